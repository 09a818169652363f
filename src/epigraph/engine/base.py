"""What every engine does: a request in, pieces of its answer out.

Pure data and one protocol; it knows no model, no library and no network.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from epigraph.contract import Decoding
from epigraph.errors import BadValue

# A source, all fields of a template, or the turns of a conversation, as Tuned.generate takes them.
Text = str | Mapping[str, str] | Sequence[Mapping[str, str]]
FinishReason = Literal["stop", "length", "cancelled"]

MAX_SEED = (1 << 63) - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How tokens are drawn: at ``temperature`` 0 the likeliest, else among the ``top_p`` share of probability.

    With a ``seed`` the same request draws the same tokens. Raises :class:`BadValue` for what is no such number.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise BadValue(f"temperature is {self.temperature}, expected 0 (the likeliest) or more")
        if not 0 < self.top_p <= 1:
            raise BadValue(f"top_p is {self.top_p}, expected more than 0 and at most 1")
        if self.seed is not None and not 0 <= self.seed <= MAX_SEED:
            raise BadValue(f"seed is {self.seed}, expected 0 to {MAX_SEED}")


GREEDY = Sampling()


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One text to be answered behind one prefix, or, where ``prefix`` is None, by the bare model.

    ``decoding`` None takes the contract's own. ``raw`` leaves the contract's template out: the text goes in as it is,
    with the start token if the contract has one; stop texts and decoding stay. ``tenant`` is whose request it is:
    nothing that was computed for one is used for another.
    """

    text: Text
    prefix: str | None = None
    version: str = ""
    tenant: str = ""
    decoding: Decoding | None = None
    sampling: Sampling = GREEDY
    raw: bool = False
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """What came since the last piece. The texts of all pieces, joined, are the answer.

    ``text`` may be empty: text that could still change is kept back. ``token_ids`` are new tokens, the end token left
    out. The last piece has a ``finish_reason``: ``stop`` (the end token, or a stop text), ``length``, ``cancelled``.
    ``num_prompt_tokens`` counts virtual tokens and text.
    """

    text: str
    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A whole answer."""

    text: str
    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    finish_reason: FinishReason


class Engine(Protocol):
    """A model that answers many requests at once."""

    async def submit(self, request: Request) -> AsyncIterator[Piece]:
        """The pieces of the answer, to be iterated or cancelled; leaving the iteration early cancels it.

        Raises what is wrong with the request, a :class:`UserError`, before there are pieces. Iterating raises
        :class:`RequestFailed` where the engine gave up on this request alone.
        """
        ...

    async def cancel(self, request_id: str) -> None:
        """End that request, whose last piece then says ``cancelled``. One that is not there is no error."""
        ...

    async def close(self) -> None:
        """End all requests and give everything back, processes included. Closing twice is no error."""
        ...


async def answer(engine: Engine, request: Request) -> Answer:
    """The whole answer to ``request``. Raises what :meth:`Engine.submit` and iterating its pieces raise."""
    pieces = [piece async for piece in await engine.submit(request)]
    last = pieces[-1]
    assert last.finish_reason is not None
    return Answer(
        text="".join(piece.text for piece in pieces),
        token_ids=tuple(token for piece in pieces for token in piece.token_ids),
        num_prompt_tokens=last.num_prompt_tokens,
        finish_reason=last.finish_reason,
    )
