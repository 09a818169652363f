"""The version matrix: what broke in an altered transformers is printed by name; the versions are those we promise."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

import matrix

ROOT = Path(__file__).parents[1]
HERE = Path(sys.executable)
FACTS = ("--noconftest", "tests/contract/test_fact_calls.py", "-k", "llama and (travel or shapes)")
ORACLES = ("tests/test_attention.py", "-k", "test_two_models_do_not_disturb_each_other")
# A transformers whose Llama drops what it does not know on the way down to its layers.
ALTERED = """
from transformers.models.llama.modeling_llama import LlamaModel

forward = LlamaModel.forward
LlamaModel.forward = lambda self, *args, epigraph_run=None, **rest: forward(self, *args, **rest)
"""


@pytest.mark.slow
def test_what_broke_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way: another process, an altered transformers, the facts, the oracles, the table."""
    (tmp_path / "altered.py").write_text(ALTERED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTEST_PLUGINS", "altered")
    row = matrix.look(HERE, FACTS, ORACLES)
    printed = matrix.table([row])
    assert (row.facts.passed, len(row.facts.failed)) == (1, 1)
    assert f"| {row.version} | 1 passed, 1 failed | 0 passed, 1 failed |" in printed
    assert "fact broken: contract.test_fact_calls::test_keyword_arguments_travel_down[llama]" in printed
    assert (
        f"transformers {row.version}: it does not hold any more that llama hands unknown keyword arguments" in printed
    )
    assert "oracle broken: test_attention::test_two_models_do_not_disturb_each_other" in printed


@pytest.mark.slow
def test_nothing_is_named_where_nothing_broke() -> None:
    row = matrix.look(HERE, FACTS, ORACLES)
    assert row.facts.holds
    assert row.oracles.holds
    printed = matrix.table([row])
    assert f"| {row.version} | 2 passed | 1 passed |" in printed
    assert "broken" not in printed


@pytest.mark.slow
def test_an_epigraph_that_cannot_be_imported_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name of transformers is gone: the fact names it, though conftest.py cannot even be read."""
    gone = "import transformers.modeling_layers\n\ndel transformers.modeling_layers.GradientCheckpointingLayer\n"
    # The families are imported first, as their files need the name as well.
    (tmp_path / "altered.py").write_text(f"import transformers.models.llama.modeling_llama\n{gone}")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTEST_PLUGINS", "altered")
    row = matrix.look(HERE, ("--noconftest", "tests/contract/test_fact_names.py", "-k", "imported_name"), ORACLES)
    assert not row.oracles.holds
    # One failure for each file that imports the name; what transformers itself cannot import without it fails as well.
    source = ROOT / "src" / "epigraph"
    texts = {x.relative_to(source).as_posix(): x.read_text(encoding="utf-8") for x in source.rglob("*.py")}
    files = sorted(name for name, text in texts.items() if "import GradientCheckpointingLayer" in text)
    assert files
    named = [said for said in row.facts.failed.values() if " has GradientCheckpointingLayer; " in said]
    assert len(named) == len(files)
    for said, file in zip(named, files, strict=True):
        assert f"has GradientCheckpointingLayer; epigraph uses it in {file} to be imported at all" in said


def test_the_matrix_begins_with_the_oldest_that_is_promised() -> None:
    promised = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    [oldest] = re.findall(r"transformers>=([\d.]+),", " ".join(promised))
    [versions] = re.findall(r"^VERSIONS := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert f"{versions} ".startswith(f"{oldest}.0 ")
