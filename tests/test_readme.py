"""README.md runs: its commands on the rows that it shows, its Python after them, its ``make`` lines in the Makefile."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import fetched, tiny_model, tiny_tokenizer
from console import ROOT, fences, make_targets, run_in_shell, write_files
from epigraph.cli import main

PAGE = (ROOT / "README.md").read_text(encoding="utf-8")
LINES = [line.partition("#")[0].split() for block in fences(PAGE, "sh") for line in block.splitlines()]
MODEL = "smollm2-135m"


def test_every_block_of_the_readme_is_of_a_kind_that_runs() -> None:
    kinds = re.findall(r"^```(\w*)\n.*?^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert sorted(kinds) == ["json", "python", "sh", "sh", "sh"]
    assert {words[0] for words in LINES if words[0] != "-d"} == {"make", "epigraph", "curl"}


def test_make_lines_are_targets_of_the_makefile() -> None:
    named = {words[1] for words in LINES if words[0] == "make"}
    assert len(named) == 2
    assert named | set(re.findall(r"`make ([a-z-]+)`", PAGE)) <= make_targets()


def test_fetching_as_the_readme_says(tmp_path: Path) -> None:
    code, printed = run_in_shell(f"epigraph models fetch {fetched(MODEL)}", tmp_path)
    assert code == 0, printed
    assert f"epigraph models fetch {MODEL}\n" in PAGE


def test_commands_and_python_of_the_readme_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One after the other, with a tiny random model in the place of the real one."""
    monkeypatch.chdir(tmp_path)
    tiny_model("llama").save_pretrained("base")
    tiny_tokenizer().save_pretrained("base")
    [rows] = write_files(PAGE, tmp_path)
    Path("my_test_rows.jsonl").write_text(Path(rows).read_text(encoding="utf-8"), encoding="utf-8")
    commands = re.findall(r"^epigraph (?!models fetch|serve)(.*)$", "\n".join(fences(PAGE, "sh")), re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["train", "evaluate", "generate", "inspect", "report"]
    for command in commands:
        with pytest.raises(SystemExit) as done:
            main(["base" if word == MODEL else word for word in shlex.split(command)])
        assert done.value.code == 0, capsys.readouterr().err
    assert Path("runs/mine/report.html").is_file()
    [block] = fences(PAGE, "python")
    here: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), here)
    check_rows_of_one_batch(here)
    check_serving(tmp_path)


def check_rows_of_one_batch(here: dict[str, Any]) -> None:
    """The README's batch: the first row carries the prefix, the second is the bare model."""
    with torch.no_grad():
        bare = here["frozen"].model(**here["batch"]).logits
    real = here["batch"]["attention_mask"].bool()
    first, second = ((here["logits"] - bare).abs().amax(-1)[row][real[row]] for row in (0, 1))
    assert first.min() > 1e-2
    assert second.max() < 1e-3


def check_serving(folder: Path) -> None:
    """The README's server and its curl line, on the run that was just trained; at a free port, in a registry here."""
    block = fences(PAGE, "sh")[-1]
    serve, curl = block.partition("\n")[0].partition("#")[0].split(), block.partition("\n")[2]
    words = ["base" if word == MODEL else word for word in serve[1:]]
    registry = ["--port", "0", "--catalogue", str(folder / "catalogue.sqlite"), "--store", str(folder / "store")]
    command = [sys.executable, "-m", "epigraph", *words, *registry]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=folder, text=True) as server:
        assert server.stdout is not None
        try:
            said = ""
            while "try it" not in said:
                line = server.stdout.readline()
                assert line, "the server ended"
                said += line
            [url], [key] = (set(re.findall(x, said)) for x in (r"http://[\d.]+:\d+", r"epk_\S+_[\w-]+"))
            code, printed = run_in_shell(f"KEY={key}\n" + curl.replace("http://127.0.0.1:8000", url), folder)
            assert code == 0, printed
            assert "data: {" in printed
            assert "data: [DONE]" in printed
        finally:
            server.terminate()
            assert server.wait(60) == 0
