"""A user's own rows from JSON Lines or CSV into examples; every bad row is reported at once.

The file is untrusted. This module knows no task, no tokenizer and no model.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from epigraph.errors import BadRows, DataNotFound, UnknownFormat
from epigraph.tasks.base import Example, Turn

SUFFIXES = (".jsonl", ".jsonl.gz", ".csv")
ROLES = ("system", "user", "assistant")
MAX_PRINTED_FAULTS = 50
MAX_PRINTED_CHARS = 60

_PLAIN = ("source", "target", "references")
_CHAT = ("messages",)
_CSV = ("source", "target")
_TURN = ("role", "content")
_ROW_SHAPE = "an object with source and target, or with messages"
_UTF8_BOM = b"\xef\xbb\xbf"
# 'traget' is this near to 'target'; 'source_id' is not this near to 'source'.
_MISSPELT = 0.82


@dataclass(frozen=True, kw_only=True, slots=True)
class _Fault:
    """One thing wrong with one row; ``where`` is ``row`` or ``field NAME``."""

    where: str
    got: str
    expected: str


def read_rows(path: Path) -> list[Example]:
    """Every row of ``path`` as an :class:`Example`, in the order of the file; the suffix says the format.

    JSON Lines (``.jsonl``, ``.jsonl.gz``) rows have ``source`` with ``target`` or ``references`` (a list), or
    ``messages`` (``{"role", "content"}`` each, the last one of the assistant). CSV has the columns ``source`` and
    ``target``. Other fields are ignored unless their name looks like a misspelling of one of these.

    Raises :class:`BadRows` with all bad rows, :class:`DataNotFound` and :class:`UnknownFormat`.
    """
    suffix = next((x for x in sorted(SUFFIXES, key=len, reverse=True) if path.name.lower().endswith(x)), None)
    if suffix is None:
        raise UnknownFormat(f"{path}: got a file named {path.name}, expected one that ends in {', '.join(SUFFIXES)}")
    data = _bytes(path, zipped=suffix.endswith(".gz"))
    return _examples(path, _csv_rows(data) if suffix == ".csv" else _json_rows(data))


def _bytes(path: Path, *, zipped: bool) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataNotFound(
            f"{path}: got {error.strerror or error}, expected a file of rows that can be read"
        ) from error
    try:
        return (gzip.decompress(data) if zipped else data).removeprefix(_UTF8_BOM)
    except (OSError, EOFError, zlib.error) as error:
        raise BadRows(f"{path}: got broken gzip data ({error}), expected a whole .gz file; copy it again") from error


def _examples(path: Path, rows: Iterable[tuple[int, object]]) -> list[Example]:
    examples: list[Example] = []
    faults: list[tuple[int, _Fault]] = []
    first: tuple[int, bool] | None = None  # line and kind (chat or plain) that the rest of the file must follow
    for line, row in rows:
        found = list(_row_faults(row, first))
        faults += ((line, fault) for fault in found)
        if not found and isinstance(row, dict):
            first = first or (line, "messages" in row)
            examples.append(_chat_example(row) if first[1] else _plain_example(row))
    if faults:
        raise BadRows(_report(path, faults))
    if not examples:
        raise BadRows(f"no rows in {path}: got an empty file, expected one row a line: {_ROW_SHAPE}")
    return examples


def _report(path: Path, faults: list[tuple[int, _Fault]]) -> str:
    bad = len({line for line, _ in faults})
    lines = [f"{bad} bad row{'s' if bad > 1 else ''} in {path}"]
    for line, fault in faults[:MAX_PRINTED_FAULTS]:
        lines.append(f"{path}:{line}: {fault.where}: got {fault.got}, expected {fault.expected}")
    if len(faults) > MAX_PRINTED_FAULTS:
        lines.append(f"... and {len(faults) - MAX_PRINTED_FAULTS} more")
    return "\n".join(lines)


# Reading: each yields (line number, row), where a row that could not be read at all is the fault itself.


def _json_rows(data: bytes) -> Iterator[tuple[int, object]]:
    for line, raw in enumerate(data.split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            yield line, json.loads(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            got = f"bytes that are not UTF-8 (byte {error.start + 1} of the line)"
            yield line, _Fault(where="row", got=got, expected="UTF-8 text")
        except (ValueError, RecursionError):
            shown = _quoted(raw.decode("utf-8", "replace").strip())
            yield line, _Fault(where="row", got=f"{shown}, which is not JSON", expected=_ROW_SHAPE)


def _csv_rows(data: bytes) -> Iterator[tuple[int, object]]:
    # Bytes that are not UTF-8 survive as lone surrogates, so that the field they stand in is reported.
    reader = csv.reader(io.StringIO(data.decode("utf-8", "surrogateescape"), newline=""), strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, _Fault(where="row", got=f"broken CSV ({error})", expected="quotes in pairs, one record a row")
            continue
        if not cells:
            continue
        if header is None:
            header = [x.strip() for x in cells]
            faults = list(_header_faults(header))
            if faults:
                yield from ((line, fault) for fault in faults)
                return
        elif len(cells) != len(header):
            got = f"{len(cells)} cells"
            yield line, _Fault(where="row", got=got, expected=f"{len(header)}, as in the header")
        else:
            row = dict(zip(header, cells, strict=True))
            yield line, {name: row[name] for name in _CSV}


# Judging: each yields what is wrong; nothing yielded means that the row is good.


def _header_faults(header: list[str]) -> Iterator[_Fault]:
    misspelt = _misspelt(header, _CSV)
    yield from _misspelt_faults(misspelt)
    for name in _CSV:
        if name not in header and name not in misspelt.values():
            yield _missing(name, "a column of that name; the first row is the header")
        if header.count(name) > 1:
            yield _Fault(where=f"field {name}", got=f"{header.count(name)} columns of that name", expected="one")


def _row_faults(row: object, first: tuple[int, bool] | None) -> Iterator[_Fault]:
    if isinstance(row, _Fault):
        yield row
        return
    if not isinstance(row, dict):
        yield _Fault(where="row", got=_shown(row), expected=_ROW_SHAPE)
        return
    is_chat = "messages" in row
    plain = [name for name in _PLAIN if name in row]
    if is_chat and plain:
        got = f"a row with {' and '.join(plain)} as well"
        yield _Fault(where="field messages", got=got, expected="messages alone, or source and target")
    elif first is not None and is_chat != first[1] and (is_chat or plain):
        kinds = {True: "a chat row (messages)", False: "a plain row (source and target)"}
        yield _Fault(where="row", got=kinds[is_chat], expected=f"{kinds[first[1]]} as on line {first[0]}")
    else:
        yield from _chat_faults(row["messages"]) if is_chat else _plain_faults(row)


def _plain_faults(row: Mapping[str, Any]) -> Iterator[_Fault]:
    misspelt = _misspelt(row, _PLAIN + _CHAT)
    yield from _misspelt_faults(misspelt)
    meant = set(misspelt.values())
    if "messages" in meant and not any(name in row for name in _PLAIN):
        return
    if "source" in row:
        yield from _text_faults(row["source"], "source")
    elif "source" not in meant:
        yield _missing("source", "text")
    if "target" in row and "references" in row:
        yield _Fault(where="field references", got="target as well", expected="one of the two")
    if "target" in row:
        yield from _text_faults(row["target"], "target")
    if "references" in row:
        yield from _reference_faults(row["references"])
    if not ({"target", "references"} & (meant | row.keys())):
        yield _missing("target", "text (or references: a list of texts)")


def _reference_faults(references: object) -> Iterator[_Fault]:
    if not isinstance(references, list) or not references:
        got = "an empty list" if references == [] else _shown(references)
        yield _Fault(where="field references", got=got, expected="a list of one text or more")
        return
    for number, reference in enumerate(references):
        yield from _text_faults(reference, f"references[{number}]")


def _chat_faults(messages: object) -> Iterator[_Fault]:
    if not isinstance(messages, list) or not messages:
        got = "an empty list" if messages == [] else _shown(messages)
        yield _Fault(where="field messages", got=got, expected="a list of {role, content} objects")
        return
    faults = [x for number, turn in enumerate(messages) for x in _turn_faults(turn, f"messages[{number}]")]
    yield from faults
    if faults:
        return
    roles = [turn["role"] for turn in messages]
    if roles[-1] != "assistant":
        got = f"a last turn of {roles[-1]}"
        yield _Fault(where="field messages", got=got, expected="one of assistant: the text to learn")
    elif "user" not in roles:
        yield _Fault(where="field messages", got="no turn of user", expected="one before the last turn")


def _turn_faults(turn: object, where: str) -> Iterator[_Fault]:
    if not isinstance(turn, dict):
        yield _Fault(where=f"field {where}", got=_shown(turn), expected="an object with role and content")
        return
    misspelt = _misspelt(turn, _TURN)
    yield from _misspelt_faults(misspelt, f"{where}.")
    if "role" in turn and turn["role"] not in ROLES:
        yield _Fault(where=f"field {where}.role", got=_shown(turn["role"]), expected=f"one of {', '.join(ROLES)}")
    if "content" in turn:
        yield from _text_faults(turn["content"], f"{where}.content")
    for name in _TURN:
        if name not in turn and name not in misspelt.values():
            yield _missing(f"{where}.{name}", f"one of {', '.join(ROLES)}" if name == "role" else "text")


def _text_faults(value: object, name: str) -> Iterator[_Fault]:
    if not isinstance(value, str) or not value.strip():
        yield _Fault(where=f"field {name}", got=_shown(value), expected="text that is not empty")
        return
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        yield _Fault(where=f"field {name}", got=f"{_shown(value)}, which is not valid UTF-8", expected="UTF-8 text")


def _missing(name: str, expected: str) -> _Fault:
    return _Fault(where=f"field {name}", got="nothing", expected=expected)


def _misspelt(names: Iterable[str], known: tuple[str, ...]) -> dict[str, str]:
    """Unknown names that are near to a known name which is not there, each with that known name."""
    there = list(names)
    absent = [name for name in known if name not in there]
    near = {name: get_close_matches(name.strip().lower(), absent, n=1, cutoff=_MISSPELT) for name in there}
    return {name: found[0] for name, found in near.items() if found and name not in known}


def _misspelt_faults(misspelt: Mapping[str, str], prefix: str = "") -> Iterator[_Fault]:
    for name, known in misspelt.items():
        shown = name if name.isidentifier() and name.isascii() else _quoted(name)
        yield _Fault(where=f"field {prefix}{shown}", got="an unknown name", expected=f"{prefix}{known}")


def _shown(value: object) -> str:
    """A value in a few words: never long, never with control characters, never deep."""
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)[:MAX_PRINTED_CHARS]


def _quoted(text: str) -> str:
    cut = text[:MAX_PRINTED_CHARS]
    quoted = json.dumps(cut, ensure_ascii=False).encode("utf-8", "backslashreplace").decode("utf-8")
    return quoted if len(cut) == len(text) else f"{quoted}... ({len(text):,} characters)"


# Making


def _plain_example(row: Mapping[str, Any]) -> Example:
    references = tuple(row["references"]) if "references" in row else (row["target"],)
    return Example(source=row["source"], references=references)


def _chat_example(row: Mapping[str, Any]) -> Example:
    turns = tuple(Turn(role=turn["role"], content=turn["content"]) for turn in row["messages"])
    last_user = next(turn for turn in reversed(turns) if turn.role == "user")
    return Example(source=last_user.content, references=(turns[-1].content,), turns=turns)
