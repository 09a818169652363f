"""A checked body into the engine's requests, built from nothing but checked fields; and whether its text is too long.

It knows the engine's values and a tokenizer; it asks no engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from epigraph.contract import Decoding
from epigraph.engine.base import MAX_SEED, Named, Request, Sampling, Text
from epigraph.errors import CannotServe, RequestTooLarge
from epigraph.registry import Caller
from epigraph.server.bodies import Asked, ChatBody, CompletionBody
from epigraph.server.choosing import Chosen
from epigraph.server.limits import Limits

# So many characters of a text for each token it may have are looked at first.
_CHARACTERS = 8
_AT_A_CUT = 64


def texts_of(body: CompletionBody | ChatBody) -> list[Text]:
    """The texts that are to be answered, as the engine takes them."""
    if isinstance(body, ChatBody):
        return [[turn.said for turn in body.messages]]
    return list(body.texts)


def check_counts(body: CompletionBody | ChatBody, limits: Limits) -> int:
    """How many answers are asked for; raises :class:`RequestTooLarge` for more than the server gives at once."""
    num_answers = len(texts_of(body)) * (body.n or 1)
    for name, got, most in (
        ("answers", num_answers, limits.choices),
        ("new tokens", _asked_tokens(body) or 1, limits.new_tokens),
        ("beams", body.num_beams or 1, limits.beams),
    ):
        if got > most:
            raise RequestTooLarge(f"the request asks for {got} {name}, this server gives {most}; ask for fewer")
    return num_answers


def requests_of(body: CompletionBody | ChatBody, chosen: Chosen, caller: Caller, limits: Limits) -> list[Request]:
    """One request a choice, in the order of choices. Raises :class:`CannotServe` where the prefix is not for it."""
    if isinstance(body, ChatBody):
        _check_chat(chosen)
    first, *others = chosen.versions or [None]
    given: dict[str, Any] = {
        "prefix": None if first is None else first.prefix,
        "version": "" if first is None else str(first.number),
        "others": tuple(Named(prefix=x.prefix, version=str(x.number)) for x in others if x is not None),
        "tenant": caller.tenant,
        "decoding": _decoding(body, chosen, limits),
        "stop": body.stops,
        "logprobs": body.num_logprobs if isinstance(body, ChatBody) else body.logprobs,
        "raw": isinstance(body, CompletionBody) and bool(body.raw),
        **({} if body.mean is None else {"mean": body.mean}),
    }
    number = range(body.n or 1)
    return [Request(text=text, sampling=_sampling(body, k), **given) for text in texts_of(body) for k in number]


def length_of(text: Text) -> list[str]:
    """All that a client wrote in ``text``."""
    if isinstance(text, str):
        return [text]
    if isinstance(text, Mapping):
        return list(text.values())
    return [turn["content"] for turn in text]


class Ruler:
    """Counts tokens of what clients wrote, with the base's ``tokenizer``. It blocks: call it aside, one at a time."""

    def __init__(self, tokenizer: Any, most: int) -> None:
        self._tokenizer = tokenizer
        self._most = most

    def is_short(self, texts: Sequence[Text]) -> bool:
        """Whether no counting is needed: a token stands for a byte at least."""
        return all(sum(len(x.encode("utf-8", "replace")) for x in length_of(text)) <= self._most for text in texts)

    def check(self, texts: Sequence[Text]) -> None:
        """Raise :class:`RequestTooLarge` for a text of more tokens than the server reads."""
        for text in texts:
            begins = ["".join(length_of(text))[: _CHARACTERS * self._most]]
            # What is far too long is known by how it begins; at a cut a few tokens may be others.
            if self._count(begins) > self._most + _AT_A_CUT or self._count(length_of(text)) > self._most:
                raise RequestTooLarge(f"the text has over {self._most} tokens, all that this server reads; shorten it")

    def _count(self, pieces: Sequence[str]) -> int:
        return sum(len(self._tokenizer(x, add_special_tokens=False, verbose=False).input_ids) for x in pieces)


def _asked_tokens(body: Asked) -> int | None:
    return (isinstance(body, ChatBody) and body.max_completion_tokens) or body.max_tokens


def _decoding(body: Asked, chosen: Chosen, limits: Limits) -> Decoding:
    """The contract's own, with what the client asked otherwise, and never longer than the server gives."""
    own = Decoding() if chosen.contract is None else chosen.contract.decoding
    length = min(_asked_tokens(body) or own.max_new_tokens, limits.new_tokens)
    return own.model_copy(
        update={
            "max_new_tokens": length,
            "min_new_tokens": min(own.min_new_tokens, length),
            "num_beams": body.num_beams or own.num_beams,
        }
    )


def _sampling(body: Asked, number: int) -> Sampling:
    """Each choice draws for itself; with a seed, the same every time."""
    given = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "seed": None if body.seed is None else (body.seed + number) % (MAX_SEED + 1),
    }
    return Sampling(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]


def _check_chat(chosen: Chosen) -> None:
    other = next((x for x in chosen.versions if not x.is_chat), None)
    if other is not None:
        raise CannotServe(f"{other.id} was trained on plain text, not on conversations; ask it at /v1/completions")
