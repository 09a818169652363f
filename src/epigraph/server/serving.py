"""What all routes of one server share, and what is remembered of one request while it lasts.

It wires parts together and knows no route.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from dataclasses import dataclass, field
from functools import cached_property

from fastapi import Request

from epigraph.engine.base import Base, Engine
from epigraph.errors import EpigraphError, Forbidden
from epigraph.registry import Caller, Registry, Scope
from epigraph.server.answering import Answering
from epigraph.server.aside import Aside
from epigraph.server.asking import Ruler
from epigraph.server.choosing import Chooser
from epigraph.server.limits import Limits
from epigraph.server.meters import Meters
from epigraph.server.quotas import Turnstile
from epigraph.server.refusals import NotNow

_DIGITS = 12
_LOOKUP_THREADS = 8
_PUSH_THREADS = 4
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass(kw_only=True, slots=True)
class Record:
    """One request, for its log line and its answer's headers; it holds no text and no secret."""

    request_id: str
    method: str
    began: float = field(default_factory=time.perf_counter)
    status: int = 0
    caller: Caller | None = None
    prefix: str | None = None
    num_read: int | None = None
    num_said: int | None = None
    first_token_s: float | None = None
    error: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.perf_counter() - self.began


class Flights:
    """The requests on their way, so that a shutdown can wait for them, and end those that take too long."""

    def __init__(self) -> None:
        self._count = 0
        self._answerings: set[Answering] = set()
        self._landed = asyncio.Event()
        self._landed.set()
        self.is_draining = False

    def take_off(self) -> None:
        """A request came. Raises :class:`NotNow` once no more are taken."""
        if self.is_draining:
            raise NotNow("the server is shutting down; ask again in a moment")
        self._count += 1
        self._landed.clear()

    def land(self) -> None:
        """It ended."""
        self._count -= 1
        if not self._count:
            self._landed.set()

    def add(self, answering: Answering) -> None:
        """It asks the engine."""
        self._answerings.add(answering)

    def drop(self, answering: Answering) -> None:
        """It asks no more. Dropping twice is no error."""
        self._answerings.discard(answering)

    async def landed(self, seconds: float) -> bool:
        """Whether all have ended, waiting that long for it."""
        try:
            await asyncio.wait_for(self._landed.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def stop_all(self, reason: EpigraphError) -> None:
        """End every answer with ``reason``."""
        for answering in self._answerings:
            answering.stop(reason)


@dataclass(frozen=True, kw_only=True)
class Serving:
    """One server's parts. ``stranger`` is who asks without a key, where that is allowed; else None."""

    engine: Engine
    registry: Registry
    limits: Limits
    tokenizer: object
    stranger: Caller | None = None
    by_tenant: bool = False
    lookups: Aside = field(default_factory=lambda: Aside(_LOOKUP_THREADS, "lookup"))
    pushes: Aside = field(default_factory=lambda: Aside(_PUSH_THREADS, "push"))
    counting: Aside = field(default_factory=lambda: Aside(1, "count"))
    flights: Flights = field(default_factory=Flights)

    @property
    def base(self) -> Base:
        """The model that the engine runs."""
        return self.engine.base

    @property
    def fingerprint(self) -> str:
        """What answers say of it, as OpenAI has it."""
        return f"fp_{self.base.fingerprint[:_DIGITS]}"

    @cached_property
    def meters(self) -> Meters:
        """For monitoring."""
        return Meters(self.engine, by_tenant=self.by_tenant)

    @cached_property
    def turnstile(self) -> Turnstile:
        """Quotas."""
        return Turnstile(refused=self.meters.quota)

    @cached_property
    def chooser(self) -> Chooser:
        """Names into versions."""
        return Chooser(self.registry, self.base, self.limits.members)

    @cached_property
    def ruler(self) -> Ruler:
        """How long texts are."""
        return Ruler(self.tokenizer, self.limits.source_tokens)

    def close_threads(self) -> None:
        """Wait for what was begun beside the event loop."""
        for aside in (self.lookups, self.pushes, self.counting):
            aside.close()


def new_record(method: str, given_id: str) -> Record:
    """Of a request that came just now: a client's own id is kept where it can do no harm in a log."""
    is_harmless = _REQUEST_ID.fullmatch(given_id) is not None
    return Record(request_id=given_id if is_harmless else uuid.uuid4().hex, method=method)


def serving_of(request: Request) -> Serving:
    """The server that ``request`` came to."""
    serving = request.app.state.serving
    assert isinstance(serving, Serving)
    return serving


def record_of(request: Request) -> Record:
    """What is remembered of ``request``."""
    record = request.scope["state"]["record"]
    assert isinstance(record, Record)
    return record


def caller_of(request: Request, *scopes: Scope) -> Caller:
    """Who made ``request``; raises :class:`Forbidden` unless the key has one of ``scopes``."""
    caller = record_of(request).caller
    # The gate lets nobody pass to a route with scopes without knowing who it is.
    assert caller is not None
    if caller.scopes.isdisjoint(scopes):
        raise Forbidden(f"the key is not for this, which needs the scope {' or '.join(scopes)}; use another key")
    return caller
