"""Pages as sessions: the files that a page shows, the commands that it gives, and what it says that they print.

In what a page prints, ``…`` stands for anything within its line, and a line of nothing but ``…`` for any lines.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from forked import Forks

ROOT = Path(__file__).parents[1]

_FILE = re.compile(r"<!-- file: ([\w.-]+) -->\n```\w*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_SESSION = re.compile(r"<!-- session: ([\w ]+) -->\n(.*?)(?=<!-- session: |\Z)", re.DOTALL)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LONGEST_S = 120


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One command of a page, and what the page says that it prints."""

    command: str
    printed: str


def fences(text: str, kind: str) -> list[str]:
    """The blocks of that kind, in order."""
    return [block for found, block in _FENCE.findall(text) if found == kind]


def sessions(text: str) -> dict[str, str]:
    """The parts of a page by the names that its ``<!-- session: NAME -->`` comments give them."""
    return dict(_SESSION.findall(text))


def steps(text: str) -> Iterator[Step]:
    """The commands of the console blocks of ``text``, in order: what follows ``$ ``, up to the next one."""
    for block in fences(text, "console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, printed = part.partition("\n")
            yield Step(command=command, printed=printed)


def write_files(text: str, folder: Path) -> list[str]:
    """Write the files that a page shows under ``<!-- file: NAME -->``; their names."""
    for name, content in _FILE.findall(text):
        (folder / name).write_text(content, encoding="utf-8")
    return [name for name, _ in _FILE.findall(text)]


def environment(**changes: str) -> dict[str, str]:
    """What a command of a page runs in: this environment's commands first, a plain terminal of 80 columns."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    plain = {"COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1", "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, "PATH": path, **plain, **changes}


def run_in_shell(command: str, folder: Path, **changes: str) -> tuple[int, str]:
    """The command in a process of its own: its exit code, and both of its outputs as a terminal would show them."""
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        check=False,
        cwd=folder,
        env=environment(**changes),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=_LONGEST_S,
    )
    return done.returncode, done.stdout


def run_forked(command: str, folder: Path, forks: Forks) -> tuple[int, str]:
    """As :func:`run_in_shell`, for an ``epigraph`` command, in a fraction of the time."""
    name, *words = shlex.split(command)
    assert name == "epigraph"
    process = forks.start(["-m", "epigraph", *words], folder=folder, environment=environment(), as_one=True)
    printed, _ = process.communicate(timeout=_LONGEST_S)
    assert process.returncode is not None
    return process.returncode, printed


def prints(said: str, printed: str) -> bool:
    """Whether ``printed`` is what a page said, ``…`` and the widths of blanks apart."""
    pattern = "".join(
        r"(?:.*\n)*?" if line == "…" else ".+?".join(re.escape(x) for x in line.split("…")) + r"\n"
        for line in _lines(said)
    )
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in _lines(printed))) is not None


def _lines(text: str) -> list[str]:
    """One blank for any: a table is as wide as its longest cell, and units stand after a blank that does not break."""
    return [re.sub(r"\s+", " ", line.rstrip()) for line in text.strip("\n").splitlines()]


def make_targets() -> set[str]:
    """Every target of the Makefile that a person would call."""
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
