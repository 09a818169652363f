"""Rows of files and of the hub whose columns have any names, as examples; every bad row is reported at once.

The rows are untrusted. This module knows which column is what; no task, no metric and no model.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epigraph.errors import BadRows, UnknownFormat
from epigraph.tasks.base import Example
from epigraph.tasks.faults import Fault, missing, misspelt_faults, misspelt_names, quoted, shown, text_faults
from epigraph.tasks.hub import read_table
from epigraph.tasks.lines import json_lines, read_whole, report
from epigraph.tasks.rows import MAX_PRINTED_LABELS, SUFFIXES


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Which column is what: ``answer`` holds a text, a list of texts where ``is_list``, or one of ``labels``, by its
    name or its place, from 0; ``further`` are columns by the name that templates give them."""

    source: str
    answer: str
    further: Mapping[str, str]
    is_list: bool = False
    labels: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that every row must have."""
        return tuple(dict.fromkeys([self.source, self.answer, *self.further.values()]))


def read_file(path: Path, columns: Columns) -> list[Example]:
    """Every row of a ``.jsonl``, ``.jsonl.gz`` or ``.csv`` file, in its order; columns without a name here are dropped.

    Raises :class:`BadRows` with all bad rows, :class:`DataNotFound` and :class:`UnknownFormat`.
    """
    if not path.name.endswith(SUFFIXES):
        raise UnknownFormat(f"{path}: got a file named {path.name}, expected one that ends in {', '.join(SUFFIXES)}")
    data = read_whole(path, zipped=path.name.endswith(".gz"))
    if path.name.endswith(".csv"):
        return _examples(_csv_rows(data, columns.names), columns, path)
    return _examples(json_lines(data, _shape(columns)), columns, path)


def read_hub(address: str, config: str | None, split: str, columns: Columns) -> list[Example]:
    """Every row of a split of the hub; label numbers that the hub has names for are those names.

    Raises :class:`BadRows` with all bad rows, and :class:`FetchFailed`.
    """
    table = read_table(address, config, split)
    rows = ({**row, **{x: _named(row[x], names) for x, names in table.labels.items()}} for row in table.rows)
    return _examples(enumerate(rows), columns, Path(address) / split)


def _named(value: Any, names: Sequence[str]) -> Any:
    """A row without a label has -1, which stays, and is no text."""
    return names[value] if isinstance(value, int) and value >= 0 else value


def _shape(columns: Columns) -> str:
    return f"an object with {', '.join(columns.names)}"


def _csv_rows(data: bytes, columns: Sequence[str]) -> Iterator[tuple[int, object]]:
    # Bytes that are not UTF-8 survive as lone surrogates, so that the field they stand in is reported.
    reader = csv.reader(io.StringIO(data.decode("utf-8", "surrogateescape"), newline=""), strict=True)
    try:
        header = [x.strip() for x in next(reader, [])]
        faults = [*_header_faults(header, columns)]
        yield from ((1, fault) for fault in faults)
        # Without its columns every row would be bad, which says no more.
        for cells in () if faults else reader:
            if cells and len(cells) != len(header):
                fault = Fault(where="row", got=f"{len(cells)} cells", expected=f"{len(header)}, as in the header")
                yield reader.line_num, fault
            elif cells:
                yield reader.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        yield reader.line_num, Fault(where="row", got=f"broken CSV ({error})", expected="quotes in pairs")


def _header_faults(header: Sequence[str], columns: Sequence[str]) -> Iterator[Fault]:
    for column in columns:
        if header.count(column) != 1:
            got = f"{header.count(column)} of that name among the columns {quoted(', '.join(header))}"
            yield Fault(where=f"field {column}", got=got, expected="one; the first row is the header")


def _examples(rows: Iterable[tuple[int, object]], columns: Columns, path: Path) -> list[Example]:
    examples: list[Example] = []
    faults: list[tuple[int, Fault]] = []
    for line, row in rows:
        found = [*_row_faults(row, columns)]
        faults += ((line, fault) for fault in found)
        if not found and isinstance(row, Mapping):
            examples.append(_example(row, columns))
    if faults:
        raise BadRows(report(path, faults))
    if not examples:
        raise BadRows(f"no rows in {path}: got an empty file, expected one row a line: {_shape(columns)}")
    return examples


def _row_faults(row: object, columns: Columns) -> Iterator[Fault]:
    if isinstance(row, Fault):
        yield row
        return
    if not isinstance(row, Mapping):
        yield Fault(where="row", got=shown(row), expected=_shape(columns))
        return
    misspelt = misspelt_names(row, columns.names)
    yield from misspelt_faults(misspelt)
    for column in columns.names:
        if column not in row and column not in misspelt.values():
            yield missing(column, "text")
        elif column == columns.answer and column in row:
            yield from _answer_faults(row[column], columns)
        elif column in row:
            yield from text_faults(row[column], column)


def _answer_faults(value: object, columns: Columns) -> Iterator[Fault]:
    where = f"field {columns.answer}"
    if columns.labels:
        if _label(value, columns.labels) is None:
            others = len(columns.labels) - MAX_PRINTED_LABELS
            named = ", ".join(columns.labels[:MAX_PRINTED_LABELS]) + (f" and {others} more" if others > 0 else "")
            yield Fault(where=where, got=shown(value), expected=f"one of the labels {named}")
    elif not columns.is_list:
        yield from text_faults(value, columns.answer)
    elif not isinstance(value, list) or not value:
        yield Fault(where=where, got=shown(value), expected="a list of one text or more; name one text in target")
    else:
        yield from (x for number, text in enumerate(value) for x in text_faults(text, f"{columns.answer}[{number}]"))


def _label(value: object, labels: Sequence[str]) -> str | None:
    """The label that ``value`` is: by its name, or by its place, from 0."""
    if isinstance(value, int) and 0 <= value < len(labels):
        return labels[value]
    return value if isinstance(value, str) and value in labels else None


def _example(row: Mapping[str, Any], columns: Columns) -> Example:
    answer = row[columns.answer]
    references = tuple(answer) if columns.is_list else (_label(answer, columns.labels) or answer,)
    further = {name: row[column] for name, column in columns.further.items()}
    return Example(source=row[columns.source], references=references, further=further)
