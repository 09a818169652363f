"""What commands print: tables, JSON and progress, the same everywhere. Progress goes to stderr, results to stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from epigraph.report.words import size

__all__ = ["print_json", "print_json_line", "print_pairs", "print_rows", "progress", "size"]


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def print_pairs(title: str, pairs: Mapping[str, Any]) -> None:
    """A two-column table."""
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in pairs.items():
        table.add_row(name, str(value))
    Console().print(table)


def print_rows(title: str, header: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """A table with a header."""
    table = Table(*header, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def progress(*extra: TextColumn) -> Progress:
    """A progress bar on stderr that leaves its last state on the screen."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *extra,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def print_json_line(value: Any) -> None:
    """One JSON object on one line of stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
