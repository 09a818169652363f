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

Joining = Literal["geometric", "arithmetic", "majority"]

MAX_SEED = (1 << 63) - 1
MAX_LOGPROBS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How tokens are drawn: at ``temperature`` 0 the likeliest, else among the ``top_k`` likeliest (0: all), and of
    these among the ``top_p`` share of probability.

    Each token that the answer has already said loses ``presence_penalty`` of its logit once, and ``frequency_penalty``
    each time; it is done before all else, at temperature 0 too. With a ``seed`` the same request draws the same tokens.
    Raises :class:`BadValue` for what is no such number.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise BadValue(f"temperature is {self.temperature}, expected 0 (the likeliest) or more")
        if not 0 < self.top_p <= 1:
            raise BadValue(f"top_p is {self.top_p}, expected more than 0 and at most 1")
        if self.top_k < 0:
            raise BadValue(f"top_k is {self.top_k}, expected 0 (all tokens) or more")
        for name in ("presence_penalty", "frequency_penalty"):
            if not -2 <= getattr(self, name) <= 2:
                raise BadValue(f"{name} is {getattr(self, name)}, expected -2 to 2")
        if self.seed is not None and not 0 <= self.seed <= MAX_SEED:
            raise BadValue(f"seed is {self.seed}, expected 0 to {MAX_SEED}")


GREEDY = Sampling()


@dataclass(frozen=True, kw_only=True, slots=True)
class Named:
    """One prefix among those that an engine serves, by its id and version; the version may be empty."""

    prefix: str
    version: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One text to be answered behind one prefix, or, where ``prefix`` is None, by the bare model.

    With ``others`` they answer together with the first, joined by ``mean`` (docs/ensembles.md), by its contract.
    ``decoding`` None takes the contract's own; ``stop`` texts are added to the contract's. ``raw`` leaves the
    contract's template out: the text goes in as it is, with the start token if the contract has one; stop texts and
    decoding stay. ``logprobs``: how many of the likeliest tokens are told beside each token of the answer, None for
    no log-probabilities at all. ``tenant`` is whose request it is: nothing that was computed for one is used for
    another. Raises :class:`BadValue` for others without a first, and for more log-probabilities than 20.
    """

    text: Text
    prefix: str | None = None
    version: str = ""
    others: tuple[Named, ...] = ()
    mean: Joining = "geometric"
    tenant: str = ""
    decoding: Decoding | None = None
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    raw: bool = False
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        if self.others and self.prefix is None:
            raise BadValue(f"{len(self.others)} others are to answer together with no prefix; name one first")
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise BadValue(f"logprobs is {self.logprobs}, expected 0 to {MAX_LOGPROBS}")
        if not all(self.stop):
            raise BadValue("a stop text is empty, which every answer begins with; leave it out")


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLogprob:
    """A token of an answer as text, its log-probability in nats, and the likeliest tokens there, the first first.

    They are the model's own, before penalties, temperature and cuts.
    """

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """What came since the last piece. The texts of all pieces, joined, are the answer.

    ``text`` may be empty: text that could still change is kept back. ``token_ids`` are new tokens, the end token left
    out. The last piece has a ``finish_reason``: ``stop`` (the end token, or a stop text), ``length``, ``cancelled``.
    ``num_prompt_tokens`` counts virtual tokens and text. ``logprobs`` has one entry for each of ``token_ids`` where the
    request asked for them.
    """

    text: str
    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A whole answer."""

    text: str
    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """The model that an engine runs: its name, and the fingerprints of its checkpoint and tokenizer."""

    name: str
    fingerprint: str
    tokenizer_fingerprint: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """How many requests are being answered, and how many wait for room."""

    running: int
    waiting: int


class Engine(Protocol):
    """A model that answers many requests at once."""

    @property
    def base(self) -> Base:
        """The model that it runs."""
        ...

    def counts(self) -> Counts:
        """What it has to do now."""
        ...

    def check(self) -> None:
        """Raise :class:`EngineUnavailable` where it can answer nothing any more."""
        ...

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
        logprobs=tuple(one for piece in pieces for one in piece.logprobs),
    )
