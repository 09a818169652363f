"""/healthz, /readyz and /metrics: whether the process lives, whether it can answer, and how it does.

It asks each part; it knows no request but its own.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from epigraph.errors import UserError
from epigraph.server.documented import Health, refusals_of
from epigraph.server.meters import CONTENT_TYPE
from epigraph.server.refusals import refusal_of
from epigraph.server.serving import Serving, caller_of, record_of, serving_of

router = APIRouter(tags=["health"])

# Anybody may ask, and must not have the database asked each time.
_REMEMBERED_S = 1.0
_ANSWERS_S = 5.0


@dataclass(kw_only=True, slots=True)
class Readiness:
    """The last look at the parts, and when it was."""

    serving: Serving
    reason: str | None = None
    at: float = float("-inf")
    one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def look(self, request_id: str) -> str | None:
        """Why the server cannot answer requests now, None where it can."""
        if self.serving.flights.is_draining:
            return "the server is shutting down"
        async with self.one_at_a_time:
            if time.monotonic() - self.at > _REMEMBERED_S:
                self.reason, self.at = await self._ask(request_id), time.monotonic()
            return self.reason

    async def _ask(self, request_id: str) -> str | None:
        try:
            self.serving.engine.check()
            async with asyncio.timeout(_ANSWERS_S):
                await self.serving.lookups.run(self.serving.registry.check)
        except TimeoutError:
            return f"the registry did not answer for {_ANSWERS_S:g} s"
        except UserError as wrong:
            return refusal_of(wrong, request_id).message
        return None


@router.get("/healthz", response_model=Health)
async def healthz() -> dict[str, str | None]:
    """The process is alive."""
    return {"status": "ok", "reason": None}


@router.get("/readyz", response_model=Health, responses={503: {"model": Health, "description": "Not now."}})
async def readyz(request: Request) -> Response:
    """Engine, catalogue and store answer, and the server is not shutting down."""
    readiness = request.app.state.readiness
    assert isinstance(readiness, Readiness)
    reason = await readiness.look(record_of(request).request_id)
    status = "ok" if reason is None else "unavailable"
    return JSONResponse({"status": status, "reason": reason}, status_code=200 if reason is None else 503)


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "Prometheus"}, **refusals_of(401, 403, 500, 503)},
)
async def metrics(request: Request) -> Response:
    """For Prometheus, with an admin's key."""
    caller_of(request, "admin")
    return Response(serving_of(request).meters.text(), media_type=CONTENT_TYPE)
