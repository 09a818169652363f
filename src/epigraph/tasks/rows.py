"""A user's own rows from JSON Lines or CSV into examples; every bad row is reported at once.

The file is untrusted. This module knows no task, no tokenizer and no model.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from epigraph.errors import BadRows, UnknownFormat
from epigraph.tasks.base import Example, Turn
from epigraph.tasks.faults import Fault, missing, misspelt_faults, misspelt_names, quoted, shown, text_faults
from epigraph.tasks.lines import json_lines, read_whole, report

SUFFIXES = (".jsonl", ".jsonl.gz", ".csv")
ROLES = ("system", "user", "assistant")
MAX_PRINTED_LABELS = 10

_PLAIN = ("source", "target", "references")
_CHAT = ("messages",)
_CSV = ("source", "target")
_TURN = ("role", "content")
_ROW_SHAPE = "an object with source and target, or with messages"
_CSV_SHAPE = "a header with source and target, and one row a line below it"
# What spreadsheets put between cells where the comma is the decimal point, or where text is copied.
_OTHER_DELIMITERS = {";": "semicolons", "\t": "tabs"}


def read_rows(path: Path, labels: Sequence[str] = ()) -> list[Example]:
    """Every row of ``path`` as an :class:`Example`, in the order of the file; the suffix says the format.

    JSON Lines (``.jsonl``, ``.jsonl.gz``) rows have ``source`` with ``target`` or ``references`` (a list), or
    ``messages`` (``{"role", "content"}`` each, the last one of the assistant). CSV has the columns ``source`` and
    ``target``. Other fields are kept where they are texts, for templates that name them, unless their name looks like a
    misspelling of one of these. Where ``labels``
    are given, the target is one of them, letter for letter, and there is one target a row.

    Raises :class:`BadRows` with all bad rows, :class:`DataNotFound` and :class:`UnknownFormat`.
    """
    return judged(path, read_data(path), labels)


def read_data(path: Path) -> bytes:
    """What a file of rows holds, unpacked. Raises what :func:`read_rows` raises of a file that cannot be read."""
    return read_whole(path, zipped=suffix_of(path).endswith(".gz"))


def judged(path: Path, data: bytes, labels: Sequence[str] = (), numbers: Sequence[int] | None = None) -> list[Example]:
    """The rows in ``data`` as :func:`read_rows` reads them, where ``data`` are lines of ``path``.

    ``numbers`` are those of the lines (:func:`lines_of`) in the file, for each its own; None where they are all there.
    """
    is_csv = suffix_of(path) == ".csv"
    rows = ((numbers[line - 1] if numbers else line, row) for line, row in numbered_rows(path, data))
    return _examples(path, rows, _CSV_SHAPE if is_csv else f"one row a line: {_ROW_SHAPE}", labels)


def numbered_rows(path: Path, data: bytes, columns: Sequence[str] = ()) -> Iterator[tuple[int, object]]:
    """Every row in ``data`` before it is judged, with the number of its first line; a Fault where it cannot be read.

    A header of CSV has to have the ``columns`` beside those of every file; fields of JSON are not looked at.
    """
    return _csv_rows(data, columns) if suffix_of(path) == ".csv" else json_lines(data, _ROW_SHAPE)


def lines_of(path: Path, data: bytes) -> list[bytes]:
    """The lines of ``data``, each with its end, as rows are numbered by them; a row of CSV may take several."""
    if suffix_of(path) == ".csv":
        return [x.encode("utf-8", "surrogateescape") for x in _text_of(data)]
    return io.BytesIO(data).readlines()


def suffix_of(path: Path) -> str:
    """The one of the SUFFIXES that the name ends in; raises :class:`UnknownFormat` for any other name."""
    suffix = next((x for x in sorted(SUFFIXES, key=len, reverse=True) if path.name.lower().endswith(x)), None)
    if suffix is None:
        got = "a folder, expected a file" if path.is_dir() else f"a file named {path.name}, expected one"
        raise UnknownFormat(f"{path}: got {got} that ends in {', '.join(SUFFIXES)}; convert it or name another")
    return suffix


def _examples(path: Path, rows: Iterable[tuple[int, object]], shape: str, labels: Sequence[str] = ()) -> list[Example]:
    examples: list[Example] = []
    faults: list[tuple[int, Fault]] = []
    first: tuple[int, bool] | None = None  # line and kind (chat or plain) that the rest of the file must follow
    for line, row in rows:
        found = [*_row_faults(row, first)] or [*_label_faults(row, labels)]
        faults += ((line, fault) for fault in found)
        if not found and isinstance(row, dict):
            first = first or (line, "messages" in row)
            examples.append(_chat_example(row) if first[1] else _plain_example(row))
    if faults:
        raise BadRows(report(path, faults))
    if not examples:
        raise BadRows(f"no rows in {path}: got an empty file, expected {shape}")
    return examples


# Reading: each yields (line number, row), where a row that could not be read at all is the fault itself.


def _text_of(data: bytes) -> io.StringIO:
    # Bytes that are not UTF-8 survive as lone surrogates, so that the field they stand in is reported.
    return io.StringIO(data.decode("utf-8", "surrogateescape"), newline="")


def _csv_rows(data: bytes, columns: Sequence[str] = ()) -> Iterator[tuple[int, object]]:
    reader = csv.reader(_text_of(data), strict=True)
    header: list[str] | None = None
    has_rows = False
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            if header is not None and not has_rows:
                yield line, Fault(where="row", got="the end of the file", expected="a row below the header")
            return
        except csv.Error as error:
            has_rows = True
            yield line, Fault(where="row", got=f"broken CSV ({error})", expected="quotes in pairs, one record a row")
            continue
        if not cells:
            continue
        has_rows = header is not None
        if header is None:
            header = [x.strip() for x in cells]
            faults = list(_header_faults(header, (*_CSV, *columns)))
            if faults:
                yield from ((line, fault) for fault in faults)
                return
        else:
            yield line, _csv_row(header, cells)


def _csv_row(header: list[str], cells: list[str]) -> object:
    if len(cells) != len(header):
        return Fault(where="row", got=f"{len(cells)} cells", expected=f"{len(header)}, as in the header")
    row = dict(zip(header, cells, strict=True))
    known = (*_PLAIN, *_CHAT)
    others = set(header) - {*known, *misspelt_names(header, known)}
    return {name: text for name, text in row.items() if name in _CSV or name in others}


# Judging: each yields what is wrong; nothing yielded means that the row is good.


def _header_faults(header: list[str], wanted: tuple[str, ...]) -> Iterator[Fault]:
    other = [words for mark, words in _OTHER_DELIMITERS.items() if mark in header[0]]
    if len(header) == 1 and other:
        yield Fault(where="header", got=f"{quoted(header[0])}, cells between {other[0]}", expected="commas")
        return
    misspelt = misspelt_names(header, wanted)
    yield from misspelt_faults(misspelt)
    for name in wanted:
        if name not in header and name not in misspelt.values():
            got = f"the columns {quoted(', '.join(header))}"
            yield Fault(where=f"field {name}", got=got, expected="one of that name; the first row is the header")
        if header.count(name) > 1:
            yield Fault(where=f"field {name}", got=f"{header.count(name)} columns of that name", expected="one")


def _row_faults(row: object, first: tuple[int, bool] | None) -> Iterator[Fault]:
    if isinstance(row, Fault):
        yield row
        return
    if not isinstance(row, dict):
        yield Fault(where="row", got=shown(row), expected=_ROW_SHAPE)
        return
    is_chat = "messages" in row
    plain = [name for name in _PLAIN if name in row]
    if is_chat and plain:
        got = f"a row with {' and '.join(plain)} as well"
        yield Fault(where="field messages", got=got, expected="messages alone, or source and target")
    elif first is not None and is_chat != first[1] and (is_chat or plain):
        kinds = {True: "a chat row (messages)", False: "a plain row (source and target)"}
        yield Fault(where="row", got=kinds[is_chat], expected=f"{kinds[first[1]]} as on line {first[0]}")
    else:
        yield from _chat_faults(row["messages"]) if is_chat else _plain_faults(row)


def _plain_faults(row: Mapping[str, Any]) -> Iterator[Fault]:
    misspelt = misspelt_names(row, _PLAIN + _CHAT)
    yield from misspelt_faults(misspelt)
    meant = set(misspelt.values())
    if "messages" in meant and not any(name in row for name in _PLAIN):
        return
    if "source" in row:
        yield from text_faults(row["source"], "source")
    elif "source" not in meant:
        yield missing("source", "text")
    if "target" in row and "references" in row:
        yield Fault(where="field references", got="target as well", expected="one of the two")
    if "target" in row:
        yield from text_faults(row["target"], "target")
    if "references" in row:
        yield from _reference_faults(row["references"])
    if not ({"target", "references"} & (meant | row.keys())):
        yield missing("target", "text (or references: a list of texts)")


def _reference_faults(references: object) -> Iterator[Fault]:
    if not isinstance(references, list) or not references:
        got = "an empty list" if references == [] else shown(references)
        yield Fault(where="field references", got=got, expected="a list of one text or more")
        return
    for number, reference in enumerate(references):
        yield from text_faults(reference, f"references[{number}]")


def _label_faults(row: object, labels: Sequence[str]) -> Iterator[Fault]:
    """Of a row that is good otherwise."""
    if not labels or not isinstance(row, dict):
        return
    example = _chat_example(row) if "messages" in row else _plain_example(row)
    where = f"field {next(x for x in ('messages', 'references', 'target') if x in row)}"
    if len(example.references) > 1:
        yield Fault(where=where, got=f"{len(example.references)} references", expected="one label")
    elif example.references[0] not in labels:
        others = len(labels) - MAX_PRINTED_LABELS
        named = ", ".join(labels[:MAX_PRINTED_LABELS]) + (f" and {others} more" if others > 0 else "")
        yield Fault(where=where, got=quoted(example.references[0]), expected=f"one of the labels {named}")


def _chat_faults(messages: object) -> Iterator[Fault]:
    if not isinstance(messages, list) or not messages:
        got = "an empty list" if messages == [] else shown(messages)
        yield Fault(where="field messages", got=got, expected="a list of {role, content} objects")
        return
    faults = [x for number, turn in enumerate(messages) for x in _turn_faults(turn, f"messages[{number}]")]
    yield from faults
    if faults:
        return
    roles = [turn["role"] for turn in messages]
    if roles[-1] != "assistant":
        got = f"a last turn of {roles[-1]}"
        yield Fault(where="field messages", got=got, expected="one of assistant: the text to learn")
    elif "user" not in roles:
        yield Fault(where="field messages", got="no turn of user", expected="one before the last turn")


def _turn_faults(turn: object, where: str) -> Iterator[Fault]:
    if not isinstance(turn, dict):
        yield Fault(where=f"field {where}", got=shown(turn), expected="an object with role and content")
        return
    misspelt = misspelt_names(turn, _TURN)
    yield from misspelt_faults(misspelt, f"{where}.")
    if "role" in turn and turn["role"] not in ROLES:
        yield Fault(where=f"field {where}.role", got=shown(turn["role"]), expected=f"one of {', '.join(ROLES)}")
    if "content" in turn:
        yield from text_faults(turn["content"], f"{where}.content")
    for name in _TURN:
        if name not in turn and name not in misspelt.values():
            yield missing(f"{where}.{name}", f"one of {', '.join(ROLES)}" if name == "role" else "text")


# Making


def _plain_example(row: Mapping[str, Any]) -> Example:
    references = tuple(row["references"]) if "references" in row else (row["target"],)
    further = {name: x for name, x in row.items() if name not in _PLAIN and isinstance(x, str)}
    return Example(source=row["source"], references=references, further=further)


def _chat_example(row: Mapping[str, Any]) -> Example:
    turns = tuple(Turn(role=turn["role"], content=turn["content"]) for turn in row["messages"])
    last_user = next(turn for turn in reversed(turns) if turn.role == "user")
    return Example(source=last_user.content, references=(turns[-1].content,), turns=turns)
