"""Where data sets lie, and how public ones come from their official addresses: checked, converted, then moved in.

It knows addresses and formats of files; it does not know what a task does with the rows.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import http.client
import io
import json
import os
import re
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epigraph.errors import ChecksumMismatch, DataNotFound, FetchFailed, TaskNotFound
from epigraph.files import write_whole
from epigraph.home import home
from epigraph.tasks.hub import FILES, HUB

E2E_COMMIT = "ab0d967dd5729ce455ef14ba9ffafc456a335264"
E2E_ADDRESS = f"https://raw.githubusercontent.com/tuetschek/e2e-dataset/{E2E_COMMIT}"
SPLITS = ("train", "dev", "test")
FETCHED = ("e2e", *HUB)

_TIMEOUT_S = 30
_CHUNK = 1 << 16
# zlib's way of saying: with the header of a gzip file, which then has time 0.
_GZIP = zlib.MAX_WBITS | 16
_SLOT = re.compile(r"\s*([^\[\],]+)\[([^\[\]]*)\]\s*(?:,|$)")
# How the Prefix-Tuning authors' linearisation renames the slots (Li & Liang 2021, section 5.1).
_RENAMED = {"eatType": "Type", "priceRange": "price", "familyFriendly": "family friendly"}

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One official CSV file and what must come out of it. ``git_blob`` is the SHA-1 that git knows the file by."""

    split: str
    file: str
    num_tables: int
    num_references: int
    git_blob: str | None = None


E2E_SOURCES = (
    Source(
        split="train",
        file="trainset.csv",
        num_tables=4_862,
        num_references=42_061,
        git_blob="fa3a5e1124d2aa0d768881e38f8ee73e63d5880d",
    ),
    # No checksum of these two is known; the commit in the address pins them, the counts are checked.
    Source(split="dev", file="devset.csv", num_tables=547, num_references=4_672),
    Source(split="test", file="testset_w_refs.csv", num_tables=630, num_references=4_693),
)


def data_folders(name: str) -> tuple[Path, ...]:
    """Where files of the data set ``name`` are looked for, in this order: ``$EPIGRAPH_DATA``, then what was fetched."""
    own = os.environ.get("EPIGRAPH_DATA")
    return (*([Path(own).expanduser() / name] if own else []), fetched_folder(name))


def fetched_folder(name: str) -> Path:
    """The folder that ``epigraph data fetch`` writes to: ``$EPIGRAPH_HOME/data/NAME``."""
    return home() / "data" / name


def find_file(name: str, file: str) -> Path:
    """The first of :func:`data_folders` that has ``file``; raises :class:`DataNotFound` saying how to get it."""
    for folder in data_folders(name):
        if (folder / file).is_file():
            return folder / file
    own = os.environ.get("EPIGRAPH_DATA")
    why = f"EPIGRAPH_DATA is {own}, which lacks {name}/{file}" if own else "EPIGRAPH_DATA is unset"
    by = "e2e" if name == "e2e" else FILES.get(f"{name}/{file}")
    if by is None:
        raise DataNotFound(
            f"got no file {name}/{file}: {why}; set it to a folder that has {name}, or put the files into "
            f"{fetched_folder(name)}; docs/data.md says what is in them"
        )
    raise DataNotFound(
        f"got no file {name}/{file}: {why}, and it was never fetched to {fetched_folder(name)}; "
        f"run `epigraph data fetch {by}`"
    )


def found_files(name: str, files: Mapping[str, str]) -> dict[str, str]:
    """The paths of those ``files`` (a file name by what it is called) that are in one of :func:`data_folders`."""
    found: dict[str, str] = {}
    for called, file in files.items():
        with contextlib.suppress(DataNotFound):
            found[called] = str(find_file(name, file))
    return found


def fetch(name: str, *, address: str | None = None, progress: Progress | None = None) -> list[Path]:
    """Fetch the data set ``name`` into :func:`fetched_folder`; splits that are there already are left alone.

    ``address`` is a mirror that has the same files under the same names: for a set of the hub another id, or a folder.
    ``progress`` is called with the file, the bytes so far and the bytes in all (None where the server does not say);
    the library that reads the hub shows its own. Returns the files, one a split.

    Raises :class:`TaskNotFound` for a name that is not fetched, :class:`FetchFailed` and :class:`ChecksumMismatch`.
    """
    if name not in FETCHED:
        raise TaskNotFound(f"got {name!r}, expected a data set with a public address: {', '.join(FETCHED)}")
    if name in HUB:
        return _fetch_hub(name, address)
    return fetch_e2e(fetched_folder(name), address=address or E2E_ADDRESS, progress=progress)


def _fetch_hub(name: str, address: str | None) -> list[Path]:
    source = HUB[name]
    files = {fetched_folder(source.folder) / file: split for file, split in source.files.items()}
    for file, split in files.items():
        if not file.is_file():
            _write_rows(file, source.rows(split, address))
    return [*files]


def fetch_e2e(
    folder: Path,
    *,
    address: str = E2E_ADDRESS,
    sources: Sequence[Source] = E2E_SOURCES,
    progress: Progress | None = None,
) -> list[Path]:
    """Fetch the E2E files of ``sources`` from ``address`` into ``folder`` as ``SPLIT.jsonl.gz``; see :func:`fetch`."""
    files = []
    for source in sources:
        file = folder / f"{source.split}.jsonl.gz"
        if not file.is_file():
            data = _download(f"{address.rstrip('/')}/{source.file}", progress)
            rows = convert_e2e(data, source.file)
            _check(source, data, rows)
            _write_rows(file, rows)
        files.append(file)
    return files


def convert_e2e(data: bytes, file: str) -> list[dict[str, Any]]:
    """Rows ``{source, mr, slots, references}`` of an official CSV file (columns ``mr`` and ``ref``), grouped by ``mr``.

    Outer blanks are stripped, nothing else is. Raises :class:`ChecksumMismatch` where ``data`` is no such file.
    """
    try:
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        columns = [x.strip().lower() for x in reader.fieldnames or ()]
        if columns != ["mr", "ref"]:
            raise ChecksumMismatch(f"{file}: got the columns {', '.join(columns)[:80]!r}, expected 'mr, ref'")
        reader.fieldnames = columns
        references: dict[str, list[str]] = {}
        for row in reader:
            references.setdefault((row["mr"] or "").strip(), []).append((row["ref"] or "").strip())
    except (UnicodeDecodeError, csv.Error) as error:
        raise ChecksumMismatch(f"{file}: got {error}, expected a CSV file in UTF-8") from error
    return [_row(mr, texts, file) for mr, texts in references.items()]


def _row(mr: str, references: list[str], file: str) -> dict[str, Any]:
    slots = {name.strip(): value.strip() for name, value in _SLOT.findall(mr)}
    if not slots or _SLOT.sub("", mr):
        raise ChecksumMismatch(f"{file}: got the table {mr[:80]!r}, expected name[value], name[value], ...")
    source = " | ".join(f"{_RENAMED.get(name, name)} : {value}" for name, value in slots.items())
    return {"source": source, "mr": mr, "slots": slots, "references": references}


def _download(address: str, progress: Progress | None) -> bytes:
    data = bytearray()
    try:
        with urllib.request.urlopen(address, timeout=_TIMEOUT_S) as answer:
            length = answer.headers.get("Content-Length")
            total = int(length) if length else None
            while chunk := answer.read(_CHUNK):
                data += chunk
                if progress is not None:
                    progress(address.rsplit("/", 1)[-1], len(data), total)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _failed(address, " ".join(str(error).split())) from error
    if total is not None and len(data) != total:
        raise _failed(address, f"the connection ended after {len(data):,} of {total:,} bytes")
    return bytes(data)


def _failed(address: str, why: str) -> FetchFailed:
    return FetchFailed(
        f"could not fetch {address}: {why}; check the network, name a mirror with --from, "
        "or set EPIGRAPH_DATA to a folder that has the data"
    )


def _check(source: Source, data: bytes, rows: Sequence[Mapping[str, Any]]) -> None:
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    if source.git_blob is not None and blob != source.git_blob:
        raise ChecksumMismatch(f"{source.file}: got git blob {blob}, expected {source.git_blob}; nothing was kept")
    got = (len(rows), sum(len(row["references"]) for row in rows))
    if got != (source.num_tables, source.num_references):
        raise ChecksumMismatch(
            f"{source.file}: got {got[0]:,} tables with {got[1]:,} references, expected {source.num_tables:,} with "
            f"{source.num_references:,}; nothing was kept"
        )


def _write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, _zipped(rows))


def _zipped(rows: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    """A ``.jsonl.gz`` piece by piece, so that a large set is never in memory; the same rows are the same bytes."""
    zipped = zlib.compressobj(wbits=_GZIP)
    for row in rows:
        yield zipped.compress((json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8"))
    yield zipped.flush()
