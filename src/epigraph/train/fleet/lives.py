"""Which workers of a shared output are alive: a number that each one raises, and a lock that dies with its process.

No two machines' clocks are compared, and nobody is asked. It knows workers by name; it does not know what they hold.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from epigraph.errors import CannotWrite
from epigraph.train.fleet.place import Place

FOLDER = "workers"
Clock = Callable[[], float]


def this_machine() -> str:
    """16 hex digits, the same for every process of this machine until it is started again; empty where not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        return ""
    return hashlib.sha256(f"{boot}{platform.node()}".encode()).hexdigest()[:16]


class Life:
    """One life of a worker, from its first beat until it ends, is killed, or could not beat for a whole lease.

    Whoever sees a number unchanged for a lease takes its worker for dead, for ever. That is right whatever the
    clocks show, because a beat lengthens a life by one lease from when the beat *began*, and only where it was there
    *before* the life ran out: who saw the number before it, saw it later than that. A life that ran out is over.
    """

    def __init__(self, place: Place, lease_seconds: float, clock: Clock, machine: str) -> None:
        self.worker = secrets.token_hex(8)
        self._place, self._lease, self._clock, self._machine = place, lease_seconds, clock, machine
        self._lengthened = clock()
        self._number = 0
        self._has_begun = self._is_over = False
        self._beating = threading.Lock()
        # Before the first beat: whoever knows of this life finds its lock held.
        self._lock = _held_lock(place, self.worker) if machine else None

    @property
    def is_over(self) -> bool:
        """It ended or ran out, and no beat brings it back."""
        return self._is_over or self._clock() - self._lengthened >= self._lease

    @property
    def is_alive(self) -> bool:
        """Nobody takes this worker for dead yet."""
        return self._has_begun and not self.is_over

    def beat(self) -> bool:
        """Raise the number; False where that came too late. Raises :class:`CannotWrite`; then it may be tried again."""
        with self._beating:
            begun = self._clock()
            if self.is_over:
                return False
            self._number += 1
            self._say(ended=False)
            if self.is_over:
                return False
            self._lengthened, self._has_begun = begun, True
            return True

    def end(self) -> None:
        """Over at once, and said to be where that can be written; otherwise it runs out."""
        self._is_over = True
        with self._beating:
            with contextlib.suppress(CannotWrite):
                self._say(ended=True)
            if self._lock is not None:
                self._lock.release()
                with contextlib.suppress(OSError):
                    _lock_file(self._place, self.worker).unlink()

    def _say(self, *, ended: bool) -> None:
        said = {"beat": self._number, "machine": self._machine, "locked": self._lock is not None, "ended": ended}
        self._place.write(f"{FOLDER}/{self.worker}.json", json.dumps(said).encode())


class Lives:
    """The lives of all workers, as one of them sees them: who was taken for dead stays dead."""

    def __init__(self, place: Place, lease_seconds: float, clock: Clock, machine: str) -> None:
        self._place, self._lease, self._clock, self._machine = place, lease_seconds, clock, machine
        self._dead: set[str] = set()
        # The number that was seen last, and since when.
        self._seen: dict[str, tuple[Any, float]] = {}

    def look(self) -> None:
        """Look at everybody not known to be dead: one listing, and one small file for each. Raises CannotWrite."""
        files = [x for x in self._place.names(FOLDER) if x.endswith(".json")]
        for worker in {x.removesuffix(".json") for x in files} | self._seen.keys():
            if worker not in self._dead:
                self._look_at(worker)

    def is_dead(self, worker: str) -> bool:
        """As of the last look; one never heard of is looked at now, and given a lease."""
        if worker not in self._dead and worker not in self._seen:
            self._look_at(worker)
        return worker in self._dead

    def bury(self, worker: str) -> None:
        """Take it for dead without a look."""
        self._dead.add(worker)

    def _look_at(self, worker: str) -> None:
        asked = self._clock()
        said = parsed(self._place.read(f"{FOLDER}/{worker}.json"))
        known = self._seen.get(worker)
        number = said.get("beat")
        if said.get("ended") is True or self._was_killed(worker, said):
            self._dead.add(worker)
        elif known is None or known[0] != number:
            self._seen[worker] = (number, self._clock())
        elif asked - known[1] >= self._lease:
            self._dead.add(worker)

    def _was_killed(self, worker: str, said: dict[str, Any]) -> bool:
        """The process is gone from this very machine: what it locked is free."""
        if not self._place.is_local or not self._machine or said.get("machine") != self._machine:
            return False
        return said.get("locked") is True and _is_free(_lock_file(self._place, worker))


def parsed(data: bytes | None) -> dict[str, Any]:
    """The object in a small JSON file; empty where there is none."""
    try:
        found = json.loads(data or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _lock_file(place: Place, worker: str) -> Path:
    return place.path(f"{FOLDER}/{worker}.lock")


def _held_lock(place: Place, worker: str) -> FileLock | None:
    """A lock that the system lets go when this process is gone; None where locks keep nobody out, or there are none."""
    if not place.is_local:
        return None
    path = _lock_file(place, worker)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Ended by another thread than it was begun by.
        lock = FileLock(path, timeout=0, thread_local=False)
        lock.acquire()
    except (OSError, NotImplementedError):
        return None
    if _is_free(path):
        lock.release()
        return None
    return lock


def _is_free(path: Path) -> bool:
    if not path.exists():
        return False
    lock = FileLock(path, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except (Timeout, OSError, NotImplementedError):
        return False
    lock.release()
    return True
