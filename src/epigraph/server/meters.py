"""What monitoring reads: counters and histograms whose labels have few values, whoever asks for what.

It knows Prometheus; no prefix, key or text is a label, and a tenant only where the operator said so.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from epigraph.engine.base import Engine

CONTENT_TYPE = CONTENT_TYPE_LATEST

_FIRST_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_METHODS = frozenset({"GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"})


class Meters:
    """Of one server. ``by_tenant`` adds two counters that have the tenant as a label."""

    def __init__(self, engine: Engine, *, by_tenant: bool = False) -> None:
        self._all = CollectorRegistry(auto_describe=True)
        self._requests = Counter("epigraph_requests", "Requests.", ("method", "route", "status"), registry=self._all)
        self._seconds = Histogram(
            "epigraph_request_seconds", "From a request's head to its last byte.", ("route",), registry=self._all
        )
        self._tokens = Counter(
            "epigraph_tokens", "Tokens read (prompt) and said (completion).", ("kind",), registry=self._all
        )
        self._first = Histogram(
            "epigraph_first_token_seconds",
            "From a request's head to its first token.",
            buckets=_FIRST_S,
            registry=self._all,
        )
        self._each = Histogram(
            "epigraph_token_seconds",
            "From a token to the next, the mean of an answer.",
            buckets=_TOKEN_S,
            registry=self._all,
        )
        self._refusals = Counter("epigraph_quota_refusals", "Requests over a quota.", ("quota",), registry=self._all)
        self._of_tenants = (
            Counter("epigraph_tenant_tokens", "Tokens by tenant.", ("tenant", "kind"), registry=self._all)
            if by_tenant
            else None
        )
        running = Gauge("epigraph_running", "Requests that the engine answers.", registry=self._all)
        running.set_function(lambda: engine.counts().running)
        waiting = Gauge("epigraph_waiting", "Requests that wait in the engine.", registry=self._all)
        waiting.set_function(lambda: engine.counts().waiting)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request ended."""
        self._requests.labels(method if method in _METHODS else "other", route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def tokens(self, tenant: str, *, read: int = 0, said: int = 0) -> None:
        """Tokens came."""
        for kind, count in (("prompt", read), ("completion", said)):
            if count:
                self._tokens.labels(kind).inc(count)
                if self._of_tenants is not None:
                    self._of_tenants.labels(tenant, kind).inc(count)

    def first_token(self, seconds: float) -> None:
        """A request's first token came."""
        self._first.observe(seconds)

    def each_token(self, seconds: float) -> None:
        """An answer's tokens came at this distance."""
        self._each.observe(seconds)

    def quota(self, name: str) -> None:
        """A request was over that quota."""
        self._refusals.labels(name).inc()

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._all)
