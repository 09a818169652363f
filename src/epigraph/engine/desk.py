"""Where requests for prefixes are received: which go on, wait or are refused, what is fetched and what forgotten.

One desk decides for all workers of an engine, so that they always hold the same prefixes. It reads no file, holds no
tensor and knows no engine: time, orders and verdicts go in and out. docs/vllm.md tells the story of a request.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from epigraph.engine.claim import Claim

# What was refused is remembered for those who wait for the answer, as long as there are no more books than these.
_MOST_BOOKS = 4_096

Key = Claim


@dataclass(frozen=True, kw_only=True, slots=True)
class Matched:
    """The request goes on: this many of its tokens come from the prefix, beyond those that are there already."""

    num_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Wait:
    """Nobody knows yet; ask again at the next step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """The request ends, for this reason."""

    reason: str


Answer = Matched | Wait | Refused


@dataclass(kw_only=True, slots=True)
class Slip:
    """What one step tells the workers: drop these, fetch or check these."""

    drops: list[Key] = field(default_factory=list)
    orders: list[Key] = field(default_factory=list)


@dataclass(kw_only=True, slots=True)
class _Book:
    """What is known of one content: when it was last good or bad, in the words of the order that asked, and for how
    many workers an answer to the order of ``pending`` is still out."""

    num_bytes: int
    good: float | None = None
    bad: tuple[float, str] | None = None
    pending: float | None = None
    answers: int = 0
    wrong: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Guest:
    """A request: its claim, or why it has none that can be followed, and when it came."""

    claim: Claim | None
    refusal: str
    came: float


class Desk:
    """Decides over requests by id. ``cache_bytes`` bounds what a worker holds, ``bytes_per_token`` is one virtual token
    of it; ``recheck_seconds`` is how old the last look at a prefix's file may be when a request to it comes.
    """

    def __init__(
        self,
        *,
        bytes_per_token: int,
        cache_bytes: int,
        recheck_seconds: float,
        num_workers: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bytes_per_token = bytes_per_token
        self._cache_bytes = cache_bytes
        self._recheck_seconds = recheck_seconds
        self._num_workers = num_workers
        self._clock = clock
        self._guests: dict[str, _Guest] = {}
        # The least lately used first.
        self._books: OrderedDict[Key, _Book] = OrderedDict()
        self._used: set[Key] = set()
        self._slip = Slip()
        self.num_bytes = 0

    def came(self, request_id: str, claim: Claim | None, refusal: str = "") -> None:
        """A request arrives: with a claim, without one, or with a reason to refuse it."""
        self._guests[request_id] = _Guest(claim=claim, refusal=refusal, came=self._clock())

    def went(self, request_id: str) -> None:
        """A request ended, in whatever way."""
        self._guests.pop(request_id, None)

    def matched(self, request_id: str, num_local: int) -> Answer:
        """What a request that has ``num_local`` of its tokens already gets from its prefix."""
        guest = self._guests.get(request_id)
        if guest is None:
            return Refused(reason="the request was never announced")
        if guest.refusal:
            return Refused(reason=guest.refusal)
        if guest.claim is None:
            return Matched(num_tokens=0)
        return self._look(key_of(guest.claim), guest.came, num_local)

    def taken(self, request_id: str) -> Key:
        """The request is scheduled: what its prefix is called among the workers, which keep it over this step."""
        guest = self._guests[request_id]
        assert guest.claim is not None
        key = key_of(guest.claim)
        self._used.add(key)
        self._books.move_to_end(key)
        return key

    def slip(self) -> Slip:
        """What the workers are told at this step; the desk forgets it."""
        slip, self._slip = self._slip, Slip()
        self._used.clear()
        return slip

    def answered(self, verdicts: Mapping[Key, tuple[int, str]]) -> None:
        """Of each content, how many workers have answered since the last time, and what is wrong or nothing."""
        for key, (count, wrong) in verdicts.items():
            book = self._books[key]
            book.answers += count
            book.wrong = book.wrong or wrong
            if book.answers < self._num_workers:
                continue
            asked, book.pending, book.answers = book.pending, None, 0
            assert asked is not None
            if book.wrong:
                self._drop(key, book)
                book.good, book.bad, book.wrong = None, (asked, book.wrong), ""
            else:
                book.good, book.bad = asked, None

    def _look(self, key: Key, came: float, num_local: int) -> Answer:
        book = self._books.get(key)
        fresh = came - self._recheck_seconds
        if book is None:
            return self._order(key, self._bytes_per_token * key.num_virtual_tokens)
        if book.good is not None and book.good >= fresh:
            if book.pending is None and 0 < self._recheck_seconds / 2 < self._clock() - book.good:
                # Looked at again before it is too old, so that nobody has to wait for the answer.
                self._ask(key, book)
            return Matched(num_tokens=max(0, key.num_virtual_tokens - num_local))
        if book.pending is not None:
            return Wait()
        if book.bad is not None and book.bad[0] >= fresh:
            return Refused(reason=book.bad[1])
        return self._order(key, self._bytes_per_token * key.num_virtual_tokens)

    def _order(self, key: Key, num_bytes: int) -> Answer:
        if num_bytes > self._cache_bytes:
            return Refused(
                reason=f"prefix {key.label} takes {num_bytes} bytes, the engine holds {self._cache_bytes} in all; "
                "raise cache_bytes"
            )
        # Taken out meanwhile, so that no room is made of the book itself.
        book = self._books.pop(key, None) or _Book(num_bytes=0)
        missing = num_bytes - book.num_bytes
        has_room = self._make_room(missing)
        self._books[key] = book
        if has_room:
            book.num_bytes += missing
            self.num_bytes += missing
            self._ask(key, book)
        return Wait()

    def _ask(self, key: Key, book: _Book) -> None:
        book.pending = self._clock()
        self._slip.orders.append(key)

    def _make_room(self, num_bytes: int) -> bool:
        """Whether so many bytes fit, after what is not needed has gone."""
        if self._fits(num_bytes) and len(self._books) < _MOST_BOOKS:
            return True
        for key, book in list(self._books.items()):
            # Down to half, so that not every order has to clear up.
            if self._fits(num_bytes) and len(self._books) < _MOST_BOOKS // 2:
                break
            is_free = book.pending is None and key not in self._used
            if is_free and not (book.num_bytes and self._fits(num_bytes)):
                self._drop(key, book)
                del self._books[key]
        return self._fits(num_bytes)

    def _fits(self, num_bytes: int) -> bool:
        return self.num_bytes + num_bytes <= self._cache_bytes

    def _drop(self, key: Key, book: _Book) -> None:
        if book.num_bytes:
            self._slip.drops.append(key)
        self.num_bytes -= book.num_bytes
        book.num_bytes = 0


def key_of(claim: Claim) -> Key:
    """What tells one content from another: the claim, whoever makes it."""
    return claim.model_copy(update={"tenant": ""})
