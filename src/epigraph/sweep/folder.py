"""The folder of a sweep: records, claims, predictions. Several processes and machines may share it.

It knows files and locks; it does not know what a job is.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from epigraph.errors import BadRows, RecordsNotFound
from epigraph.files import write_whole
from epigraph.train.record import said_plainly, write_json

SPEC, RECORDS, COST, PREDICTIONS = "spec.toml", "records.jsonl", "cost.json", "predictions"
Said = tuple[list[int], list[str]]


class SweepFolder:
    """Records and claims under ``path``. Every writer raises :class:`CannotWrite` where the disk does not take it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cost = path / COST

    def make(self, spec: Path, task: str | None = None) -> None:
        """Create it, and keep a copy of the spec; of several tasks the copy names the folder's."""
        with said_plainly(self.path):
            for name in ("jobs", "locks", PREDICTIONS):
                (self.path / name).mkdir(parents=True, exist_ok=True)
            # A key in front of all tables is one of the spec's own.
            text = (b"" if task is None else f"task = {json.dumps(task)}\n".encode()) + spec.read_bytes()
            kept = self.path / SPEC
            if not kept.exists() or kept.read_bytes() != text:
                write_whole(kept, [text])

    def check(self) -> None:
        """Raises :class:`RecordsNotFound` where no sweep began."""
        if not (self.path / SPEC).is_file():
            raise RecordsNotFound(
                f"{self.path} holds no {SPEC}, expected the folder of a sweep; "
                "name the folder that was given to `epigraph sweep run --out`"
            )

    def job(self, run: str) -> Path:
        """Where a run trains."""
        return self.path / "jobs" / run

    def drop(self, run: str) -> None:
        """Take away what a run left."""
        shutil.rmtree(self.job(run), ignore_errors=True)

    @contextlib.contextmanager
    def claim(self, key: str, *, waits: bool = False) -> Iterator[bool]:
        """Whether what that key stands for is this process's alone while inside; one that is killed loses its claim.

        With ``waits`` it always is, once whoever has it is done.
        """
        with said_plainly(self.path):
            lock = FileLock(self.path / "locks" / f"{key}.lock", timeout=-1 if waits else 0)
            try:
                lock.acquire()
            except Timeout:
                yield False
                return
        try:
            yield True
        finally:
            # The file stays: one that is taken away could be locked by two, who opened it before and after.
            lock.release()

    def records(self) -> list[dict[str, Any]]:
        """All records in order, but for a last line that a killed writer tore. Raises :class:`BadRows`."""
        path = self.path / RECORDS
        if not path.is_file():
            return []
        *lines, _torn = path.read_bytes().split(b"\n")
        return [_record(path, number, line) for number, line in enumerate(lines, start=1)]

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record as one line, in place of one that was torn."""
        line = json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        path = self.path / RECORDS
        with said_plainly(path), FileLock(self.path / ".records.lock"), path.open("ab+") as file:
            whole = _whole_lines(file.seek(0, os.SEEK_END), file)
            file.truncate(whole)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def write_predictions(self, key: str, said: Sequence[Said]) -> None:
        """For each evaluation the numbers of the rows that were asked, and the answers: a line each, packed."""
        lines = [json.dumps({"rows": rows, "predictions": texts}, ensure_ascii=False) for rows, texts in said]
        path = self._predictions(key)
        with said_plainly(path):
            write_whole(path, [gzip.compress("".join(f"{x}\n" for x in lines).encode(), mtime=0)])

    def read_predictions(self, key: str) -> list[Said]:
        """What :meth:`write_predictions` wrote. Raises :class:`RecordsNotFound`."""
        path = self._predictions(key)
        try:
            lines = gzip.decompress(path.read_bytes()).decode().split("\n")[:-1]
            return [(x["rows"], x["predictions"]) for x in map(json.loads, lines)]
        except (OSError, ValueError, KeyError, EOFError) as wrong:
            raise RecordsNotFound(f"{path} is not there or not whole ({wrong}); run the sweep again") from None

    def read_cost(self) -> dict[str, Any]:
        """What was measured before the sweep began; empty where nothing was."""
        try:
            found = json.loads(self.cost.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def write_cost(self, found: Mapping[str, Any]) -> None:
        """Keep what was measured."""
        write_json(self.cost, found)

    def _predictions(self, key: str) -> Path:
        return self.path / PREDICTIONS / f"{key}.jsonl.gz"


def _whole_lines(size: int, file: Any) -> int:
    """How many bytes of ``file`` end with a whole line."""
    at = size
    while at:
        start = max(0, at - 65_536)
        file.seek(start)
        found = file.read(at - start).rfind(b"\n")
        if found >= 0:
            return int(start + found + 1)
        at = start
    return 0


def _record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as wrong:
        raise BadRows(f"{path}: line {number} is not JSON ({wrong}); take it out, and its job runs again") from None
    if not isinstance(found, dict) or not isinstance(found.get("key"), str):
        raise BadRows(f"{path}: line {number} is no record of a job; take it out, and its job runs again")
    return found
