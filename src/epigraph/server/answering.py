"""The engine at work for one request of a client: a text a choice, all at once, merged as their pieces come.

What waits for a slow reader is what the engine has said, no more than the longest answers allowed; the engine itself
never waits. It knows no format and no network.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from epigraph.engine.base import Engine, FinishReason, Piece, Request, TokenLogprob
from epigraph.errors import EpigraphError, RequestFailed, RequestTooLarge


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A piece of one of the choices."""

    index: int
    piece: Piece


@dataclass(kw_only=True, slots=True)
class Choice:
    """One answer as far as it has come."""

    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    num_prompt_tokens: int = 0
    num_tokens: int = 0
    finish_reason: FinishReason | None = None

    def add(self, piece: Piece) -> None:
        """What came since."""
        self.text.append(piece.text)
        self.logprobs += piece.logprobs
        self.num_prompt_tokens = piece.num_prompt_tokens
        self.num_tokens += len(piece.token_ids)
        self.finish_reason = piece.finish_reason


class Answering:
    """The answers to ``requests``, of which the client was told that they end after ``seconds``; ``spent`` of these
    have gone by. ``behind`` tells what is behind an error of the engine's. Close it, whatever happened."""

    def __init__(
        self,
        engine: Engine,
        requests: Sequence[Request],
        seconds: float,
        *,
        behind: Callable[[Exception], Awaitable[Exception]] | None = None,
        spent: float = 0.0,
    ) -> None:
        self._engine = engine
        self._behind = behind or _itself
        self._requests = requests
        self._seconds = seconds
        self._until = asyncio.get_running_loop().time() + seconds - spent
        self._pumps: list[asyncio.Task[None]] = []
        # Never full: it is bounded by what the engine may say.
        self._came: asyncio.Queue[Part | Exception] = asyncio.Queue()
        self.choices = [Choice() for _ in requests]

    async def begin(self) -> None:
        """Hand the requests to the engine. Raises what is wrong with one of them, and :class:`RequestTooLarge`."""
        try:
            async with asyncio.timeout_at(self._until):
                for index, request in enumerate(self._requests):
                    pieces = await self._engine.submit(request)
                    self._pumps.append(asyncio.create_task(self._pump(index, pieces)))
                    # It begins now: an iteration that was never begun could not be left, and the engine not told.
                    await asyncio.sleep(0)
        except TimeoutError:
            raise self._too_long() from None
        except Exception as wrong:
            told = await self._behind(wrong)
            if told is wrong:
                raise
            raise told from wrong

    async def next(self) -> Part | None:
        """The next piece of any choice, None after the last one's last.

        Raises :class:`RequestFailed` and other errors of the engine, :class:`RequestTooLarge` when the time is up, and
        what :meth:`stop` was given. After an error nothing more comes.
        """
        if self._came.empty() and all(x.finish_reason is not None for x in self.choices):
            return None
        try:
            async with asyncio.timeout_at(self._until):
                came = await self._came.get()
        except TimeoutError:
            raise self._too_long() from None
        if isinstance(came, Exception):
            raise came
        if came.piece.finish_reason == "cancelled":
            raise RequestFailed("the engine cancelled the request")
        self.choices[came.index].add(came.piece)
        return came

    def stop(self, reason: EpigraphError) -> None:
        """Have :meth:`next` raise ``reason`` after what has come."""
        self._came.put_nowait(reason)

    async def close(self) -> None:
        """Cancel what is still running in the engine."""
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        for request, choice in zip(self._requests, self.choices, strict=True):
            if choice.finish_reason is None:
                await self._engine.cancel(request.request_id)

    async def _pump(self, index: int, pieces: AsyncIterator[Piece]) -> None:
        try:
            async for piece in pieces:
                self._came.put_nowait(Part(index=index, piece=piece))
                if piece.finish_reason is not None:
                    return
            raise RequestFailed("the engine's answer has no end")
        except Exception as wrong:
            self._came.put_nowait(await self._behind(wrong))

    def _too_long(self) -> RequestTooLarge:
        return RequestTooLarge(
            f"the answer was not done after {self._seconds:g} s, which is all that this server gives a request; "
            "ask for fewer new tokens"
        )


async def _itself(wrong: Exception) -> Exception:
    return wrong
