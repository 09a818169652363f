"""What commands print: tables, JSON and progress, the same everywhere. Progress goes to stderr, results to stdout."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from epigraph.report.words import size

__all__ = ["harmless", "print_json", "print_json_line", "print_pairs", "print_rows", "progress", "size"]

# Control characters, invisible ones that turn the direction of text, halves of characters, line separators.
_ACTIVE = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def harmless(text: str) -> Text:
    """``text`` as it is: no markup in it means anything, and what would move a cursor or turn letters is escaped."""
    return Text("".join(_escaped(x) if _is_active(x) else x for x in text))


def _harmless_json(value: Any, indent: int | None = None) -> str:
    # Such a character can only stand inside a string, where its escape means the same.
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return "".join(_escaped(x) if _is_active(x) else x for x in text)


def _is_active(character: str) -> bool:
    return character != "\n" and unicodedata.category(character) in _ACTIVE


def _escaped(character: str) -> str:
    return json.dumps(character)[1:-1]


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(_harmless_json(value, indent=1) + "\n")


def print_pairs(title: str, pairs: Mapping[str, Any]) -> None:
    """A two-column table."""
    table = Table(title=harmless(title), title_justify="left", show_header=False)
    for name, value in pairs.items():
        table.add_row(harmless(name), harmless(str(value)))
    Console().print(table)


def print_rows(title: str, header: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """A table with a header."""
    table = Table(title=harmless(title), title_justify="left")
    for name in header:
        table.add_column(harmless(name))
    for row in rows:
        table.add_row(*map(harmless, row))
    Console().print(table)


def progress(*extra: TextColumn, shown: bool = True) -> Progress:
    """A progress bar on stderr that leaves its last state on the screen."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *extra,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not shown,
    )


def print_json_line(value: Any) -> None:
    """One JSON object on one line of stdout."""
    sys.stdout.write(_harmless_json(value) + "\n")
