"""Who trains which user, where several workers share one output: claims with a lease, and what has ended.

It knows ids, and files of a place; it does not know what is trained.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Final, Literal, Self

from epigraph.errors import CannotWrite
from epigraph.train.fleet.lives import Clock, Life, Lives, parsed, this_machine
from epigraph.train.fleet.place import Place

How = Literal["done", "failed"]
CLAIMS = "claims"
DONE: Final = "done"
FAILED: Final = "failed"
# Where both were said, what is done is done.
_HOWS: tuple[How, How] = (FAILED, DONE)

# Nobody's: given back, and free to take at once.
_RELEASED = ""
# By these a worker knows a file that it wrote itself, when it is told that it was there before.
_OURS = ("worker", "claim", "released")


class Claims:
    """One worker's claims to ids in ``place``; a context manager, within which a thread keeps the worker alive.

    ``claims/ID.NNNNNN`` is created once and never changed; who wrote the highest number has the id, unless that one
    says ``released``. The next number may be written only above one that is released or whose worker is dead
    (:class:`~epigraph.train.fleet.lives.Life`), and of all who try, one can. So an id is somebody else's exactly when
    there is a next number, and a worker that slept too long finds that out by itself (:meth:`holds`). A worker that
    was cut off for longer than a lease loses what it held and goes on under a new name.

    ``clock`` counts seconds upwards; ``machine`` is what :func:`~epigraph.train.fleet.lives.this_machine` gives.
    Methods raise :class:`CannotWrite` where the place does not answer. They are for one thread.
    """

    def __init__(
        self, place: Place, lease_seconds: float = 60.0, *, clock: Clock = time.monotonic, machine: str | None = None
    ) -> None:
        self._place, self._lease, self._clock = place, lease_seconds, clock
        self._machine = this_machine() if machine is None else machine
        self._lives = Lives(place, lease_seconds, clock, self._machine)
        self._life: Life | None = None
        self._following = threading.Lock()
        self._held: dict[str, tuple[Life, int]] = {}
        # As of the last look: the highest number of every id that has one; and whose it is, where that was asked.
        self._highest: dict[str, int] | None = None
        self._owners: dict[str, tuple[int, str]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, daemon=True)

    def __enter__(self) -> Self:
        self._now_living().beat()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        """Hold nothing any more, and say so: others need not wait for a lease."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._now_living().end()

    @property
    def worker(self) -> str:
        """The name under which this worker claims now."""
        return self._now_living().worker

    def beat(self) -> bool:
        """Raise this worker's number, as the thread does each quarter of a lease; False where that did not succeed."""
        try:
            return self._now_living().beat()
        except CannotWrite:
            return False

    def take(self, name: str) -> bool:
        """Claim an id that nobody alive holds and that has not ended; False where another was first.

        Also False where this worker holds it, and where it could not beat. What :meth:`open_ids` last saw is used
        where it says that the id is free; otherwise the place is looked at again.
        """
        if not self._now_living().is_alive and not self.beat():
            return False
        life = self._now_living()
        number = self._free_number(name)
        if number is None:
            self._look()
            number = self._free_number(name)
        if number is None or not self._claim(life, name, number):
            return False
        # It may have ended since we looked, in the hands of one who then left in order.
        if self._how(name) is not None:
            self.release(name)
            return False
        return life.is_alive

    def holds(self, name: str) -> bool:
        """Whether the id is still this worker's; once False, only :meth:`take` makes it True again."""
        if name not in self._held:
            return False
        life, number = self._held[name]
        following = None
        # Who cannot ask needs no answer: while a life has not run out, nobody gives away what it holds.
        with contextlib.suppress(CannotWrite):
            following = self._place.read(_file(name, number + 1))
        return following is None and life.is_alive

    def number(self, name: str) -> int:
        """Of the claim to an id that is held: the higher, the later."""
        return self._held[name][1]

    def release(self, name: str) -> None:
        """Give an id back unfinished: anybody may take it at once. Nothing happens where it is not held any more."""
        life, number = self._held.pop(name, (None, 0))
        if life is not None and self._put(_file(name, number + 1), {"worker": life.worker, "released": True}):
            self._saw(name, number + 1, _RELEASED)

    def finish(self, name: str, how: How, record: Mapping[str, Any]) -> bool:
        """Say once and for ever how an id ended, with ``record`` (JSON) beside it; False where that is not ours to say.

        That is where the id was lost, or where somebody else was first.
        """
        if not self.holds(name) or self._place.read(_mark(FAILED if how == DONE else DONE, name)) is not None:
            return False
        life, number = self._held[name]
        was_first = self._put(_mark(how, name), {**record, "worker": life.worker, "claim": number})
        if how == FAILED:
            # Otherwise nobody could retry it while this worker lives.
            self.release(name)
        self._held.pop(name, None)
        return was_first

    def ended(self) -> dict[str, How]:
        """Every id that ended, and how; two listings."""
        return {file.removesuffix(".json"): how for how in _HOWS for file in self._place.names(how)}

    def retry(self, name: str) -> None:
        """Forget that an id failed."""
        self._place.delete(_mark(FAILED, name))

    def open_ids(self, all_ids: Iterable[str], ended: Mapping[str, How] | None = None) -> list[str]:
        """Of ``all_ids``, in their order, those that neither ended nor are held by a worker that may be alive.

        Four listings, a small file for each worker that lives, and one for each claim not seen before to an id that
        has not ended. ``ended``: what :meth:`ended` said just now, which saves two of the listings; :meth:`take` finds
        out who ended since.
        """
        self._look()
        ended = self.ended() if ended is None else ended
        return [name for name in all_ids if name not in ended and self._free_number(name) is not None]

    def _now_living(self) -> Life:
        """The life of now; where one ran out, the next begins."""
        with self._following:
            before = self._life
            if before is not None and (not before.is_over or self._stop.is_set()):
                return before
            self._life = Life(self._place, self._lease, self._clock, self._machine)
        if before is not None:
            self._lives.bury(before.worker)
            before.end()
        return self._life

    def _keep_beating(self) -> None:
        pause = self._lease / 4
        while not self._stop.wait(pause):
            pause = self._lease / 4 if self.beat() else self._lease / 16

    def _look(self) -> None:
        highest: dict[str, int] = {}
        for file in self._place.names(CLAIMS):
            name, _, number = file.rpartition(".")
            if number.isdecimal():
                highest[name] = max(highest.get(name, 0), int(number))
        self._highest = highest
        self._lives.look()

    def _free_number(self, name: str) -> int | None:
        """The number under which the id may be claimed, as far as was seen; None where somebody may have it."""
        if self._highest is None:
            return None
        highest = self._highest.get(name, 0)
        if highest == 0:
            return 1
        owner, life = self._owner(name, highest), self._life
        if life is None or owner != life.worker:
            return highest + 1 if owner == _RELEASED or self._lives.is_dead(owner) else None
        if life.is_over:
            return highest + 1
        # Where we do not know that it is ours, the answer to our put was lost.
        return None if self._held.get(name, (None,))[0] is life else highest

    def _owner(self, name: str, number: int) -> str:
        """Who wrote the claim; it never changes, and is read once."""
        known = self._owners.get(name)
        if known is None or known[0] != number:
            said = parsed(self._place.read(_file(name, number)))
            known = number, _RELEASED if said.get("released") else str(said.get("worker", "nobody"))
            self._owners[name] = known
        return known[1]

    def _claim(self, life: Life, name: str, number: int) -> bool:
        is_ours = self._put(_file(name, number), {"worker": life.worker})
        if is_ours:
            self._held[name] = life, number
            self._saw(name, number, life.worker)
        elif self._highest is not None:
            self._highest[name] = max(number, self._highest.get(name, 0))
        return is_ours

    def _saw(self, name: str, number: int, owner: str) -> None:
        if self._highest is not None:
            self._highest[name] = number
        self._owners[name] = number, owner

    def _how(self, name: str) -> How | None:
        return next((how for how in _HOWS if self._place.read(_mark(how, name)) is not None), None)

    def _put(self, file: str, said: Mapping[str, Any]) -> bool:
        """Create a file; also True where it is there and ours, because a put was sent twice."""
        if self._place.create(file, json.dumps(said).encode()):
            return True
        found = parsed(self._place.read(file))
        return all(found.get(key) == said.get(key) for key in _OURS)


def _file(name: str, number: int) -> str:
    return f"{CLAIMS}/{name}.{number:06d}"


def _mark(how: How, name: str) -> str:
    return f"{how}/{name}.json"
