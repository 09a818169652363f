"""What each tenant may still do in this minute: requests, tokens, answers at once. Numbers in memory, of one process.

It knows no request and no engine; quotas come with every caller, as the catalogue has them now.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from epigraph.errors import Forbidden, QuotaExceeded, RequestTooLarge
from epigraph.registry import Caller, Quotas

_MINUTE_S = 60.0
# What a sum of floats may be short of a whole request.
_ROUNDING = 1e-6
_MOST_IDLE = 10_000


@dataclass(kw_only=True, slots=True)
class _Bucket:
    """Fills evenly, to a minute's worth at most. ``level`` below 0 is owed: tokens are counted as they come."""

    level: float
    at: float

    def fill(self, now: float, per_minute: int) -> None:
        """To what it is now."""
        gained = (now - self.at) * per_minute / _MINUTE_S
        self.level, self.at = min(float(per_minute), self.level + gained), now

    def seconds_to_one(self, per_minute: int) -> float:
        """Until there is one, 0 where there is."""
        missing = 1 - self.level
        return 0.0 if missing <= _ROUNDING else missing * _MINUTE_S / per_minute


@dataclass(kw_only=True, slots=True)
class _Tenant:
    """``running`` holds until when each answer on its way ends at the latest."""

    requests: _Bucket | None = None
    tokens: _Bucket | None = None
    running: list[float] = field(default_factory=list)


class Admission:
    """One request that was let in: what it uses is its tenant's."""

    def __init__(self, tenant: _Tenant, quotas: Quotas, until: float, num_answers: int, now: float) -> None:
        self._tenant = tenant
        self._quotas = quotas
        self._until = until
        self._num_answers = num_answers
        self._now = now
        tenant.running += [until] * num_answers

    def spend(self, num_tokens: int) -> None:
        """Tokens that were read or said."""
        if self._tenant.tokens is not None:
            self._tenant.tokens.level -= num_tokens

    def leave(self) -> None:
        """The request ended. Leaving twice is no error."""
        for _ in range(self._num_answers):
            self._tenant.running.remove(self._until)
        self._num_answers = 0

    def headers(self) -> dict[str, str]:
        """OpenAI's words for what is left; of what is not limited nothing is said."""
        return dict(_headers(self._tenant, self._quotas))


class Turnstile:
    """Lets requests of all tenants in or not. ``refused`` is told of each refusal by the quota's name."""

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, refused: Callable[[str], None] = lambda _: None
    ) -> None:
        self._clock = clock
        self._refused = refused
        self._tenants: OrderedDict[str, _Tenant] = OrderedDict()

    def admit(self, caller: Caller, *, num_answers: int, seconds: float) -> Admission:
        """Let a request in that asks for so many answers and takes no longer than ``seconds``.

        Raises :class:`QuotaExceeded`, with the seconds after which the same request is let in if the tenant asks
        nothing else; :class:`RequestTooLarge` where it never is; :class:`Forbidden` where a quota is 0.
        """
        now, quotas = self._clock(), caller.quotas
        _refuse_hopeless(caller, num_answers)
        tenant = self._of(caller.tenant)
        _fill(tenant, quotas, now)
        waits = dict(_waits(tenant, quotas, num_answers, now))
        name, seconds_left = max(waits.items(), key=lambda x: x[1], default=("", 0.0))
        if seconds_left > 0:
            self._refused(name)
            raise QuotaExceeded(_words(caller, name, seconds_left), retry_after=seconds_left)
        if tenant.requests is not None:
            tenant.requests.level -= 1
        return Admission(tenant, quotas, now + seconds, num_answers, now)

    def left(self, caller: Caller) -> dict[str, str]:
        """As :meth:`Admission.headers`, for a request that was not let in."""
        return dict(_headers(self._of(caller.tenant), caller.quotas))

    def _of(self, name: str) -> _Tenant:
        tenant = self._tenants.setdefault(name, _Tenant())
        self._tenants.move_to_end(name)
        if len(self._tenants) > _MOST_IDLE:
            self._forget()
        return tenant

    def _forget(self) -> None:
        """Those first who were away longest: after a minute their buckets are full, as a new one is."""
        long_ago = self._clock() - _MINUTE_S
        for name, tenant in list(self._tenants.items())[: _MOST_IDLE // 10]:
            buckets = [x for x in (tenant.requests, tenant.tokens) if x is not None]
            if not tenant.running and all(x.at < long_ago and x.level >= 0 for x in buckets):
                del self._tenants[name]


def _fill(tenant: _Tenant, quotas: Quotas, now: float) -> None:
    tenant.requests = _filled(tenant.requests, quotas.requests_per_minute, now)
    tenant.tokens = _filled(tenant.tokens, quotas.tokens_per_minute, now)


def _filled(bucket: _Bucket | None, per_minute: int | None, now: float) -> _Bucket | None:
    if per_minute is None:
        return None
    bucket = bucket or _Bucket(level=per_minute, at=now)
    bucket.fill(now, per_minute)
    return bucket


def _refuse_hopeless(caller: Caller, num_answers: int) -> None:
    quotas = caller.quotas
    if 0 in (quotas.requests_per_minute, quotas.tokens_per_minute, quotas.concurrent):
        raise Forbidden(f"tenant {caller.tenant} may ask nothing: a quota of its is 0; ask who runs the server")
    if quotas.concurrent is not None and num_answers > quotas.concurrent:
        raise RequestTooLarge(
            f"the request asks for {num_answers} answers at once, tenant {caller.tenant} may have {quotas.concurrent}; "
            "ask for fewer"
        )


def _waits(tenant: _Tenant, quotas: Quotas, num_answers: int, now: float) -> Iterator[tuple[str, float]]:
    """For each quota the seconds until it lets the request in, if nothing else happens."""
    if tenant.requests is not None and quotas.requests_per_minute is not None:
        yield "requests", tenant.requests.seconds_to_one(quotas.requests_per_minute)
    if tenant.tokens is not None and quotas.tokens_per_minute is not None:
        yield "tokens", tenant.tokens.seconds_to_one(quotas.tokens_per_minute)
    if quotas.concurrent is not None:
        over = len(tenant.running) + num_answers - quotas.concurrent
        # Every answer ends at its time limit at the latest: by then so many have made room.
        yield "concurrent", max(1.0, sorted(tenant.running)[over - 1] - now) if over > 0 else 0.0


def _words(caller: Caller, name: str, seconds: float) -> str:
    quotas = caller.quotas
    told = {
        "requests": f"{quotas.requests_per_minute} requests a minute",
        "tokens": f"{quotas.tokens_per_minute} tokens a minute",
        "concurrent": f"{quotas.concurrent} answers at once",
    }
    return f"tenant {caller.tenant} has had its {told[name]}; ask again in {max(1, math.ceil(seconds))} s"


def _headers(tenant: _Tenant, quotas: Quotas) -> Iterator[tuple[str, str]]:
    for name, bucket, per_minute in (
        ("requests", tenant.requests, quotas.requests_per_minute),
        ("tokens", tenant.tokens, quotas.tokens_per_minute),
    ):
        if bucket is None or per_minute is None:
            continue
        seconds = (per_minute - bucket.level) * _MINUTE_S / per_minute
        yield f"x-ratelimit-limit-{name}", str(per_minute)
        yield f"x-ratelimit-remaining-{name}", str(max(0, math.floor(bucket.level + _ROUNDING)))
        yield f"x-ratelimit-reset-{name}", f"{max(0.0, seconds):.3f}s"
