"""A server from its socket to its end: SIGTERM lets running answers finish, a second one does not.

It knows uvicorn and signals; it knows no route.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from epigraph.errors import BadValue
from epigraph.server.refusals import NotNow
from epigraph.server.serving import Serving

# What connections get to be closed after their last answer, or after they were told that there is none.
_CLOSING_S = 2
_KEEP_ALIVE_S = 30


class Server(uvicorn.Server):
    """uvicorn, which at the first signal goes on listening until all answers are out: meanwhile it says 503."""

    def __init__(self, app: ASGIApp, serving: Serving) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                loop="asyncio",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                # Who is asked for nothing here believes no header about where a request is from.
                proxy_headers=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_CLOSING_S,
            )
        )
        self._serving = serving
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def run_on(self, listener: socket.socket) -> None:
        """Serve until a signal, or :meth:`drain`, has come and running answers are out."""
        self._loop = asyncio.get_running_loop()
        await self.serve(sockets=[listener])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """uvicorn has this called on SIGINT and SIGTERM, wherever the main thread is."""
        assert self._loop is not None
        if self._serving.flights.is_draining:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self._serving.flights.is_draining = True
        self._loop.call_soon_threadsafe(self.drain)

    def drain(self) -> None:
        """Take no more requests, and end when the last is answered, or the time of grace is over."""
        self._serving.flights.is_draining = True
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        flights = self._serving.flights
        if not await flights.landed(self._serving.limits.grace_seconds):
            flights.stop_all(NotNow("the server is shutting down; ask again in a moment"))
            await flights.landed(_CLOSING_S)
        self.should_exit = True


def bound(host: str, port: int) -> socket.socket:
    """A socket at that address, which does not listen yet. Raises :class:`BadValue` where it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as wrong:
        raise _not_bound(host, port, wrong) from wrong
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as wrong:
        listener.close()
        raise _not_bound(host, port, wrong) from wrong
    return listener


def url_of(listener: socket.socket) -> str:
    """Where the server is, as a client writes it."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _not_bound(host: str, port: int, wrong: OSError) -> BadValue:
    why = wrong.strerror or wrong
    return BadValue(f"the server cannot listen at {host}, port {port}: {why}; choose another --host or --port")
