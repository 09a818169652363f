"""docs/first-hour.md, walked as a newcomer would: every command is run, and must print what the page says.

The walk runs in processes of its own with the real SmolLM2-135M; mistakes are asked of the command in this process.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import json
import re
import shlex
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import fetched, tiny_model, tiny_tokenizer
from console import (
    ROOT,
    Step,
    environment,
    fences,
    make_targets,
    prints,
    run_forked,
    run_in_shell,
    sessions,
    steps,
    write_files,
)
from epigraph.cli import main
from forked import Forks

PAGE = (ROOT / "docs" / "first-hour.md").read_text(encoding="utf-8")
SESSIONS = sessions(PAGE)


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> tuple[Path, list[tuple[Step, int, str]]]:
    """The folder of the newcomer after the walk, and what every command of the walk printed.

    The shell runs the first, which finds the program, and those that are no ``epigraph`` commands.
    """
    fetched("smollm2-135m")
    folder = tmp_path_factory.mktemp("walk")
    write_files(PAGE, folder)
    first, *others = steps(SESSIONS["walk"])
    done = [(first, *run_in_shell(first.command, folder))]
    for step in others:
        is_ours = step.command.startswith("epigraph ")
        run = partial(run_forked, forks=forks) if is_ours else run_in_shell
        done.append((step, *run(step.command, folder)))
    return folder, done


def at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process as a newcomer's shell in ``folder``."""
    monkeypatch.chdir(folder)
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("EPIGRAPH_DATA", raising=False)


def ask(command: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """A command of the page, given to the program in this process; what is no ``epigraph`` command goes to a shell."""
    words, printed = shlex.split(command), io.StringIO()
    with monkeypatch.context() as here:
        while "=" in words[0]:
            here.setenv(*words.pop(0).split("=", 1))
        if words[0] != "epigraph":
            return run_in_shell(command, Path.cwd())
        with (
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(printed),
            pytest.raises(SystemExit) as done,
        ):
            main(words[1:])
    assert isinstance(done.value.code, int)
    return done.value.code, printed.getvalue()


def check_mistakes(session: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command of a session is refused as printed, and so is every line of Python."""
    for step in steps(session):
        code, printed = ask(step.command, monkeypatch)
        assert code == (2 if "epigraph " in step.command else 0), f"$ {step.command}\n{printed}"
        assert prints(step.printed, printed), f"$ {step.command}\n{printed}"
    for block in fences(session, "pycon"):
        check_python(block)


class Checker(doctest.OutputChecker):
    """Compares as the rest of the page is compared."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return prints(want, got)


def check_python(block: str) -> None:
    said: list[str] = []
    test = doctest.DocTestParser().get_doctest(block, {}, "docs/first-hour.md", None, 0)
    results = doctest.DocTestRunner(checker=Checker(), verbose=False).run(test, out=said.append)
    assert results.attempted > 2
    assert not results.failed, "".join(said)


# The walk


def test_every_command_of_the_walk_prints_what_the_page_says(walked: tuple[Path, list[tuple[Step, int, str]]]) -> None:
    assert len(walked[1]) > 7
    for step, code, printed in walked[1]:
        assert code == 0, f"$ {step.command}\n{printed}"
        assert prints(step.printed, printed), f"$ {step.command}\n{printed}"


def test_the_walk_taught_the_model_something(walked: tuple[Path, list[tuple[Step, int, str]]]) -> None:
    records = walked[0] / "runs" / "dishes" / "evaluations"
    before, after = (json.loads((records / f"{x}-test.json").read_text())["scores"] for x in ("before", "after"))
    assert after["bleu"] > before["bleu"] + 20


def test_mistakes_after_training(
    walked: tuple[Path, list[tuple[Step, int, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    at(walked[0], monkeypatch)
    tiny_model("llama").save_pretrained("other-model")
    tiny_tokenizer().save_pretrained("other-model")
    check_mistakes(SESSIONS["mistakes after training"], monkeypatch)


# Mistakes that need no model


def test_mistakes_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is here to be loaded, and nothing is written."""
    at(tmp_path, monkeypatch)
    monkeypatch.setenv("EPIGRAPH_HOME", str(tmp_path / "nothing fetched"))
    shown = set(write_files(PAGE, tmp_path))
    check_mistakes(SESSIONS["mistakes"], monkeypatch)
    made = {"notes", "empty.csv", "unicode.csv", "adapter_model.bin"}
    assert {path.name for path in tmp_path.iterdir()} == shown | made


def test_the_page_is_walked_whole() -> None:
    """No block escapes: it is a file, a session, or lines for ``make``."""
    kinds = re.findall(r"^```(\w*)\n.*?^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert set(kinds) == {"sh", "console", "pycon", "csv", "toml", "python"}
    for kind in ("console", "pycon"):
        assert sum(len(fences(text, kind)) for text in SESSIONS.values()) == kinds.count(kind)
    assert len(re.findall(r"<!-- file: ", PAGE)) == sum(kinds.count(kind) for kind in ("csv", "toml", "python"))
    assert list(SESSIONS) == ["walk", "mistakes", "mistakes after training"]


def test_the_install_lines_are_targets_of_the_makefile() -> None:
    [block] = fences(PAGE, "sh")
    *made, path = block.splitlines()
    assert {line.removeprefix("make ") for line in made} <= make_targets()
    assert path == 'export PATH="$PWD/.venv/bin:$PATH"'
    assert set(re.findall(r"`make ([a-z-]+)`", PAGE)) <= make_targets()


# The comparison itself


@pytest.mark.parametrize(
    ("said", "printed", "same"),
    [
        ("a\nb", "a\nb\n", True),
        ("a", "a\nb\n", False),
        ("a\nb", "a\n", False),
        ("", "Traceback\n", False),
        ("took … s", "took 12 s\n", True),
        ("took … s", "took s\n", False),
        ("│ …     │", "│ 12 │\n", True),
        ("│ 12  │", "│ 13  │\n", False),
        ("took … s", "took 1\n2 s\n", False),
        ("a\n…\nd", "a\nb\nc\nd\n", True),
        ("a\n…\nd", "a\nd\n", True),
        ("a\n…\nd", "a\nb\nc\n", False),
        ("a.c", "abc\n", False),
    ],
)
def test_what_counts_as_the_same(said: str, printed: str, *, same: bool) -> None:
    assert prints(said, printed) is same


@given(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1).filter(lambda x: "…" not in x))
def test_a_line_without_a_wildcard_prints_itself_only(line: str) -> None:
    assert prints(line, line)
    assert not prints(line, line + "x")
