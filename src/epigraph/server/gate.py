"""What every request passes before a route sees it: a key, a bounded body, a server that still takes requests.

It knows paths only as open or not; what a key may do is each route's own question.
"""

from __future__ import annotations

import asyncio
import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from epigraph.errors import BadKey, BadValue, Forbidden, RequestTooLarge
from epigraph.registry import Caller
from epigraph.server.serving import Record, Serving

# These say nothing of anybody's.
OPEN = frozenset({"/healthz", "/readyz", "/openapi.json"})
UPLOADS = "/v1/prefixes"
_MAX_KEY = 512


class Gate:
    """Around ``app``. Raises what a client is to be refused with; whoever is around it says so."""

    def __init__(self, app: ASGIApp, serving: Serving) -> None:
        self._app = app
        self._serving = serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or raise. Raises :class:`BadKey`, :class:`Forbidden`, :class:`RequestTooLarge`,
        :class:`NotNow`."""
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        serving, headers = self._serving, Headers(scope=scope)
        serving.flights.take_off()
        try:
            record = scope["state"]["record"]
            assert isinstance(record, Record)
            record.caller = await self._caller(headers)
            is_upload = scope["method"] == "POST" and scope["path"] == UPLOADS
            most = serving.limits.upload_bytes if is_upload else serving.limits.body_bytes
            body = _Bounded(receive, most, serving.limits.body_seconds)
            body.check_announced(headers)
            await self._app(scope, body, send)
        finally:
            serving.flights.land()

    async def _caller(self, headers: Headers) -> Caller:
        stranger = self._serving.stranger
        if stranger is not None:
            _check_local(headers)
            return stranger
        return await self._serving.lookups.run(self._serving.registry.tenants.who, _secret(headers))


class _Bounded:
    """A request's body, which ends in :class:`RequestTooLarge` as soon as more than ``most`` bytes of it came, and in
    :class:`BadValue` when nothing comes for ``seconds``."""

    def __init__(self, receive: Receive, most: int, seconds: float) -> None:
        self._receive = receive
        self._most = most
        self._seconds = seconds
        self._count = 0
        self._is_whole = False

    def check_announced(self, headers: Headers) -> None:
        """What the client itself says of its length. What it says of it in vain, h11 refuses."""
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._most:
            raise self._too_large()

    async def __call__(self) -> Message:
        """The next message of the client's."""
        if self._is_whole:
            return await self._receive()
        try:
            async with asyncio.timeout(self._seconds):
                message = await self._receive()
        except TimeoutError:
            raise BadValue(f"nothing of the body came for {self._seconds:g} s; send it all") from None
        self._count += len(message.get("body", b""))
        self._is_whole = not message.get("more_body", False)
        if self._count > self._most:
            raise self._too_large()
        return message

    def _too_large(self) -> RequestTooLarge:
        return RequestTooLarge(f"the body is over {self._most} bytes, the most that is taken here; send less")


def _secret(headers: Headers) -> str:
    """The one key of a request. Where it is missing or doubtful there is none."""
    given = headers.getlist("authorization")
    scheme, _, secret = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    secret = secret.strip()
    if scheme.lower() != "bearer" or not secret or len(secret) > _MAX_KEY:
        raise BadKey("no API key came with the request; send it once, as Authorization: Bearer KEY")
    return secret


def _check_local(headers: Headers) -> None:
    """Where no key is needed a page in a browser could ask, too: by its own name for this machine, or across sites."""
    for name, url in (("Host", f"//{headers.get('host', '')}"), ("Origin", headers.get("origin", "//localhost"))):
        if not is_loopback(_host_of(url)):
            raise Forbidden(f"{name} is no name of this machine's own, and the server takes no keys; ask it locally")


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether a host is this machine and nobody else can reach it."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
