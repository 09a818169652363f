"""Paste what every command really prints for ``--help`` into commands.md: run ``python docs/paste_help.py``.

The place for a command is a text block under the comment ``<!-- help: epigraph NAME -->``; other text is left alone.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from typer.main import get_command

from epigraph.cli import app

PAGE = Path(__file__).with_name("commands.md")
# Another terminal must not change the page.
TERMINAL = {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
_PLACE = re.compile(r"<!-- help: epigraph(?P<words>[ a-z-]*) -->\n```text\n.*?```", re.DOTALL)


def commands() -> list[tuple[str, ...]]:
    """Every command as its words after ``epigraph``, groups before what they hold; the first is the empty one."""
    return list(_below((), get_command(app)))


def help_of(words: tuple[str, ...]) -> str:
    """What ``epigraph WORDS --help`` prints in that terminal, without blanks at the ends of lines."""
    before, printed = dict(os.environ), io.StringIO()
    os.environ.update(TERMINAL)
    try:
        with redirect_stdout(printed):
            app(args=[*words, "--help"], prog_name="epigraph", standalone_mode=False)
    finally:
        os.environ.clear()
        os.environ.update(before)
    return "\n".join(line.rstrip() for line in printed.getvalue().strip().splitlines()) + "\n"


def places(page: str) -> list[tuple[str, ...]]:
    """The commands that ``page`` has a place for, in its order."""
    return [tuple(match["words"].split()) for match in _PLACE.finditer(page)]


def pasted(page: str) -> str:
    """``page`` with the real help at every place."""
    return _PLACE.sub(
        lambda match: f"<!-- help: epigraph{match['words']} -->\n```text\n{help_of(tuple(match['words'].split()))}```",
        page,
    )


def _below(words: tuple[str, ...], command: Any) -> Iterator[tuple[str, ...]]:
    yield words
    for name, inner in getattr(command, "commands", {}).items():
        yield from _below((*words, name), inner)


if __name__ == "__main__":
    before = PAGE.read_text(encoding="utf-8")
    missing = [" ".join(words) for words in commands() if words not in places(before)]
    if missing:
        sys.exit(
            f"{PAGE.name} has no place for {', '.join(missing)}; add <!-- help: epigraph NAME --> and a text block"
        )
    PAGE.write_text(pasted(before), encoding="utf-8")
