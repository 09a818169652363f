"""The outermost layer: an id, a log line and a count for each request, the same headers on every answer.

It knows no route by itself, and what nobody expected ends here as a 500 that says nothing but the id.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from epigraph.errors import UserError
from epigraph.server.gate import OPEN
from epigraph.server.lines import log, told
from epigraph.server.refusals import UNEXPECTED, Refusal, refusal_of, unexpected
from epigraph.server.serving import Record, Serving, new_record, record_of

# nginx's word for a client that went before its answer.
GONE = 499
_SAFE = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_NOT_FOUND = "nothing is served there; docs/serving.md lists the routes"


class Edge:
    """Around ``app``, which is the gate and the routes behind it."""

    def __init__(self, app: ASGIApp, serving: Serving) -> None:
        self._app = app
        self._serving = serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; nothing is raised."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = new_record(scope["method"], Headers(scope=scope).get("x-request-id", ""))
        scope.setdefault("state", {})["record"] = record

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                self._add_headers(MutableHeaders(scope=message), record)
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except ClientDisconnect:
            record.status = record.status or GONE
        except Exception as wrong:
            await self._refuse(wrong, record, scope, receive, sending)
        finally:
            self._tell(record, scope)

    def _add_headers(self, headers: MutableHeaders, record: Record) -> None:
        headers.update({**_SAFE, **record.headers, "X-Request-ID": record.request_id})
        if self._serving.flights.is_draining:
            headers["Connection"] = "close"

    async def _refuse(self, wrong: Exception, record: Record, scope: Scope, receive: Receive, send: Send) -> None:
        """What the gate or nobody refused. Where an answer had begun it can only be broken off."""
        if record.status:
            if record.error is None:
                log_error(wrong, record)
            return
        await response_to(wrong, record)(scope, receive, send)

    def _tell(self, record: Record, scope: Scope) -> None:
        route = getattr(scope.get("route"), "path", "none")
        self._serving.meters.request(record.method, route, record.status, record.seconds)
        caller = record.caller
        # Probes come every second and say nothing while all is well.
        is_probe = scope["path"] in OPEN and record.status < UNEXPECTED
        log(
            "request",
            logging.DEBUG if is_probe else logging.INFO,
            request_id=record.request_id,
            method=record.method,
            route=route,
            status=record.status,
            tenant=caller and caller.tenant,
            key=caller and caller.key_id,
            prefix=record.prefix,
            prompt_tokens=record.num_read,
            completion_tokens=record.num_said,
            first_token_ms=record.first_token_s and round(record.first_token_s * 1e3, 1),
            ms=round(record.seconds * 1e3, 1),
            error=record.error,
        )


async def refuse(request: Request, wrong: Exception) -> Response:
    """What a route raised, as an answer."""
    return response_to(wrong, record_of(request))


def response_to(wrong: Exception, record: Record) -> Response:
    """The answer to a request that failed; what is our fault goes into the log."""
    refusal = noted(wrong, record)
    return Response(
        json.dumps(refusal.body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"),
        status_code=refusal.status,
        media_type="application/json",
        headers=dict(refusal.headers),
    )


def noted(wrong: Exception, record: Record) -> Refusal:
    """How ``wrong`` is told to the client; what is our fault goes into the log."""
    refusal = _refusal(wrong, record)
    record.error = refusal.code
    if refusal.is_ours:
        log_error(wrong, record)
    return refusal


def log_error(wrong: Exception, record: Record) -> None:
    """Its kind, its places, and the words of an error of our own tree, which hold no text and no secret."""
    reason = str(wrong) if isinstance(wrong, UserError) else None
    log("error", logging.ERROR, request_id=record.request_id, reason=reason, **told(wrong))


def _refusal(wrong: Exception, record: Record) -> Refusal:
    if isinstance(wrong, RequestValidationError):
        return _invalid(wrong.errors()[0])
    if isinstance(wrong, HTTPException):
        # FastAPI wraps what reading the body raised.
        if isinstance(wrong.__cause__, UserError):
            return refusal_of(wrong.__cause__, record.request_id)
        return _plain(wrong)
    return refusal_of(wrong, record.request_id)


def _plain(wrong: HTTPException) -> Refusal:
    """What the web framework refuses by itself: a path or a method that is not served, a body that cannot be read."""
    if wrong.status_code >= UNEXPECTED:
        return unexpected("")
    named = {404: ("RouteNotFound", _NOT_FOUND), 405: ("MethodNotAllowed", "the route takes another method")}
    code, message = named.get(wrong.status_code, ("BadValue", "the body cannot be read; send JSON"))
    return Refusal(status=wrong.status_code, message=message, code=code, headers=wrong.headers or {})


def _invalid(error: Mapping[str, Any]) -> Refusal:
    """The first thing that is wrong with a request's fields."""
    kind, where, told_of = error["type"], error["loc"], error.get("ctx") or {}
    if kind == "json_invalid":
        message = f"the body is no JSON: {told_of.get('error')} at character {where[-1]}"
        return Refusal(status=400, message=message, code="BadValue")
    if len(where) < 2 and "name" not in told_of:
        message = "the body is no JSON object; send one, with Content-Type: application/json"
        return Refusal(status=400, message=message, code="BadValue")
    param = str(told_of.get("name", where[1] if len(where) > 1 else where[0]))
    is_unknown = kind in ("unknown", "extra_forbidden")
    place = ".".join(str(x) for x in where[1:])
    message = error["msg"] if "name" in told_of or not place else f"{place}: {error['msg']}"
    return Refusal(status=400, message=message, code="UnknownKey" if is_unknown else "BadValue", param=param)
