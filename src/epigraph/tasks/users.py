"""Many users' own rows, in a file for each or in one file with a column of names; each user's become a task when asked.

It knows whose a row is; whether the row is good is judged in rows.py, for one user as for many.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from epigraph.errors import BadRows, DataNotFound, TaskNotFound, UnknownFormat
from epigraph.tasks.base import Example, Task
from epigraph.tasks.catalogue import check_labels, own_rows
from epigraph.tasks.faults import Fault, missing, shown
from epigraph.tasks.lines import report
from epigraph.tasks.rows import SUFFIXES, judged, lines_of, numbered_rows, read_data, read_rows, suffix_of

COLUMN = "user"
MAX_PRINTED_NAMES = 5

_NAME = "a text or a whole number: the user's name"
_DIGITS = 10
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rows:
    """Where one user's rows are: a file of their own, or some ``lines`` of one file, with their numbers there."""

    path: Path
    lines: bytes | None = None
    numbers: Sequence[int] = ()

    def examples(self, labels: tuple[str, ...]) -> list[Example]:
        if self.lines is None:
            return read_rows(self.path, labels)
        return judged(self.path, self.lines, labels, self.numbers)


@dataclass(frozen=True, kw_only=True, slots=True)
class Users:
    """The ``names`` of users, sorted, and the rows of each."""

    names: tuple[str, ...]
    _train: Mapping[str, _Rows] = field(repr=False)
    _dev: Mapping[str, _Rows] = field(repr=False)

    def task(self, name: str, labels: tuple[str, ...] = ()) -> Task:
        """One user's rows as :func:`~epigraph.tasks.catalogue.own_data` makes a task of them, read and judged now.

        Its splits are ``train`` and, where the user has any, ``dev``. Raises what ``own_data`` raises: line numbers
        are those of the file, whoever's lines stand between. :class:`TaskNotFound` for no user's name.
        """
        if name not in self._train:
            raise TaskNotFound(f"got no user {shown(name)}, expected one of the {len(self.names):,} that have rows")
        check_labels(labels)
        given = {"train": self._train[name]} | ({"dev": self._dev[name]} if name in self._dev else {})
        rows = {split: x.examples(labels) for split, x in given.items()}
        return own_rows(rows, {split: x.path for split, x in given.items()}, name, labels)


def read_users(data: Path, dev: Path | None = None, *, column: str = COLUMN) -> Users:
    """The users of ``data``, and their development rows from ``dev``, which some or all of them may be without.

    Each of the two is a folder with one file of rows a user, ``NAME.jsonl``, ``NAME.jsonl.gz`` or ``NAME.csv``, of
    which only the names are read now; or one such file whose rows say in the field ``column`` whose they are (a text,
    or a whole number as its digits), which is read whole and shared out, unjudged. Hidden files are no user's. The
    column stays in the rows, for templates that name it, where it is a text.

    Raises :class:`DataNotFound`; :class:`UnknownFormat` with all files of a folder that are no rows; and
    :class:`BadRows` with all rows that are nobody's, for two files or two ids of one name, and for users who have
    development rows alone.
    """
    train = _found(data, column)
    others = _found(dev, column) if dev is not None else {}
    strangers = sorted(others.keys() - train.keys())
    if strangers:
        raise BadRows(f"{dev}: got development rows of {_named(strangers)}, expected users with rows in {data}")
    _check_ids(train, data)
    return Users(names=tuple(sorted(train)), _train=train, _dev=others)


def user_id(name: str) -> str:
    """The name under which a user's folder and artifact go, also as one part of a prefix id: 1 to 128 characters.

    A name that fits ``[A-Za-z0-9_][A-Za-z0-9._-]*`` stays as it is. Any other is written with ``_`` for what does not
    fit, cut, and told from its likes by the first 10 hex digits of its SHA-256.
    """
    if _ID.fullmatch(name):
        return name
    # Names of files may have bytes that are no text, which Python holds as lone surrogates.
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]
    fitting = re.sub(r"[^A-Za-z0-9._-]", "_", name[: 127 - _DIGITS])
    return f"{re.sub(r'^[.-]|^$', '_', fitting)}-{digest}"


def _found(data: Path, column: str) -> dict[str, _Rows]:
    if not data.exists():
        raise DataNotFound(f"{data}: got no such file or folder, expected a file of rows a user, or one file of all")
    found = _of_folder(data) if data.is_dir() else _of_file(data, column)
    if not found:
        raise BadRows(f"no rows in {data}: got none, expected a file a user, or rows with the field {column}")
    return found


def _of_folder(folder: Path) -> dict[str, _Rows]:
    try:
        files = sorted(x for x in folder.iterdir() if not x.name.startswith("."))
    except OSError as error:
        raise DataNotFound(f"{folder}: got {error.strerror or error}, expected a folder of rows") from error
    others = [x.name for x in files if not x.name.lower().endswith(SUFFIXES) or x.is_dir()]
    if others:
        raise UnknownFormat(
            f"{folder}: got {_named(others)}, expected files that end in {', '.join(SUFFIXES)}, one a user; "
            "move the others away, or hide them (a dot in front)"
        )
    found: dict[str, _Rows] = {}
    for file in files:
        name = file.name[: -len(suffix_of(file))]
        if name in found:
            raise BadRows(f"{folder}: got {found[name].path.name} and {file.name}, expected one file for {shown(name)}")
        found[name] = _Rows(path=file)
    return found


def _of_file(path: Path, column: str) -> dict[str, _Rows]:
    """Each user's lines of one file, behind what stands above the first row (a header)."""
    data = read_data(path)
    rows = list(_owned(path, data, column))
    faults = [(line, owner) for line, owner in rows if isinstance(owner, Fault)]
    if faults:
        raise BadRows(report(path, faults))
    if not rows:
        return {}
    lines = lines_of(path, data)
    starts = [line - 1 for line, _ in rows]
    above = range(1, starts[0] + 1)
    numbers: dict[str, array[int]] = {}
    for (_, owner), start, end in zip(rows, starts, [*starts[1:], len(lines)], strict=True):
        numbers.setdefault(str(owner), array("Q", above)).extend(range(start + 1, end + 1))
    return {
        name: _Rows(path=path, lines=b"".join(lines[x - 1] for x in own), numbers=own) for name, own in numbers.items()
    }


def _owned(path: Path, data: bytes, column: str) -> Iterator[tuple[int, str | Fault]]:
    """The number of every row's first line, and whose the row is, or why it can be nobody's."""
    for line, row in numbered_rows(path, data, [column]):
        yield line, row if isinstance(row, Fault) else _owner(row, column)


def _owner(row: object, column: str) -> str | Fault:
    if not isinstance(row, dict):
        return Fault(where="row", got=shown(row), expected=f"an object with {column}, {_NAME}")
    if column not in row:
        return missing(column, _NAME)
    name = row[column]
    if isinstance(name, int) and not isinstance(name, bool):
        return str(name)
    if isinstance(name, str) and name.strip():
        return name
    return Fault(where=f"field {column}", got=shown(name), expected=_NAME)


def _check_ids(names: Mapping[str, object], data: Path) -> None:
    whose: dict[str, str] = {}
    for name in sorted(names):
        other = whose.setdefault(user_id(name), name)
        if other != name:
            raise BadRows(
                f"{data}: got users {shown(other)} and {shown(name)}, expected other ids than {user_id(name)}"
            )


def _named(names: Sequence[str]) -> str:
    others = len(names) - MAX_PRINTED_NAMES
    return ", ".join(map(shown, names[:MAX_PRINTED_NAMES])) + (f" and {others:,} more" if others > 0 else "")
