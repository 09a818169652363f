"""Files of JSON, one object a line: read whole, unpacked, and every bad line reported at once.

The files are untrusted. This module does not know what the lines mean.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from epigraph.errors import BadRows, DataNotFound
from epigraph.tasks.faults import Fault, missing, quoted, shown, text_faults

MAX_PRINTED_FAULTS = 50
# Where a set has no development rows, one training row in so many is one.
DEV_SHARE = 10

Check = Callable[[dict[str, Any]], Iterator[Fault]]

_UTF8_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


def read_records(
    path: Path, fields: Sequence[str], one_of: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> list[dict[str, str]]:
    """Every row of a ``.jsonl`` or ``.jsonl.gz`` file as its ``fields``, each a text; other fields are dropped.

    ``one_of`` names the texts that a field may have. Raises what :func:`read_checked` raises.
    """
    check = partial(field_faults, fields=fields, one_of=one_of)
    rows = read_checked(path, f"an object with {', '.join(fields)}", check)
    return [{name: row[name] for name in fields} for row in rows]


def read_checked(path: Path, expected: str, check: Check) -> list[dict[str, Any]]:
    """Every row of a ``.jsonl`` or ``.jsonl.gz`` file, an object that ``check`` finds nothing wrong with.

    ``expected`` says in words what a row is. Raises :class:`BadRows` with all bad rows or for a file without any, and
    :class:`DataNotFound`.
    """
    rows: list[dict[str, Any]] = []
    faults: list[tuple[int, Fault]] = []
    for line, row in json_lines(read_whole(path, zipped=path.name.endswith(".gz")), expected):
        if isinstance(row, dict):
            found = list(check(row))
            rows.append(row)
        else:
            found = [row if isinstance(row, Fault) else Fault(where="row", got=shown(row), expected=expected)]
        faults += ((line, fault) for fault in found)
    if faults:
        raise BadRows(report(path, faults))
    if not rows:
        raise BadRows(f"no rows in {path}: got an empty file, expected one row a line: {expected}")
    return rows


def field_faults(
    row: Mapping[str, Any],
    fields: Sequence[str],
    prefix: str = "",
    one_of: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> Iterator[Fault]:
    """What is wrong with ``fields`` of ``row``: each has to be text that is not empty, or ``one_of`` some."""
    for name in fields:
        if name not in row:
            yield missing(f"{prefix}{name}", "text")
        elif name in one_of and row[name] not in one_of[name]:
            expected = f"one of {', '.join(one_of[name])}"
            yield Fault(where=f"field {prefix}{name}", got=shown(row[name]), expected=expected)
        else:
            yield from text_faults(row[name], f"{prefix}{name}")


def is_held_out(text: str, one_in: int = DEV_SHARE) -> bool:
    """Whether a training row is held out for development: by its text alone, so that no text is on both sides."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()) % one_in == 0


def read_whole(path: Path, *, zipped: bool) -> bytes:
    """The bytes of ``path``, unpacked where ``zipped``; raises :class:`DataNotFound` and :class:`BadRows`."""
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        why = (isinstance(error, OSError) and error.strerror) or error
        raise DataNotFound(f"{path}: got {why}, expected a file of rows that can be read") from error
    if data.startswith(_UTF16_BOMS):
        raise BadRows(f"{path}: got UTF-16 text, expected UTF-8; save it again as UTF-8")
    try:
        return (gzip.decompress(data) if zipped else data).removeprefix(_UTF8_BOM)
    except (OSError, EOFError, zlib.error) as error:
        raise BadRows(f"{path}: got broken gzip data ({error}), expected a whole .gz file; copy it again") from error


def json_lines(data: bytes, expected: str) -> Iterator[tuple[int, object]]:
    """Line number and value of every line that is not blank, or the :class:`Fault` of a line that cannot be read."""
    for line, raw in enumerate(data.split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            yield line, json.loads(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            got = f"bytes that are not UTF-8 (byte {error.start + 1} of the line)"
            yield line, Fault(where="row", got=got, expected="UTF-8 text")
        except (ValueError, RecursionError):
            got = f"{quoted(raw.decode('utf-8', 'replace').strip())}, which is not JSON"
            yield line, Fault(where="row", got=got, expected=expected)


def report(path: Path, faults: Sequence[tuple[int, Fault]]) -> str:
    """The message that lists ``faults``, each with its line: the first 50 in words, the others as a number."""
    bad = len({line for line, _ in faults})
    lines = [f"{bad} bad row{'s' if bad > 1 else ''} in {path}"]
    for line, fault in faults[:MAX_PRINTED_FAULTS]:
        lines.append(f"{path}:{line}: {fault.where}: got {fault.got}, expected {fault.expected}")
    if len(faults) > MAX_PRINTED_FAULTS:
        lines.append(f"... and {len(faults) - MAX_PRINTED_FAULTS} more")
    return "\n".join(lines)
