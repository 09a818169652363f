"""What a client gets for an answer, in OpenAI's shapes: whole, or as the chunks of a stream.

It knows choices and pieces; it knows no engine and no network.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from epigraph.engine.base import Piece, TokenLogprob
from epigraph.server.answering import Choice


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """What every chunk of one answer says alike. ``num_texts`` texts have as many choices each."""

    model: str
    fingerprint: str
    is_chat: bool
    num_virtual_tokens: int
    num_texts: int
    has_logprobs: bool
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def of(self, kind: str, choices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """An object of that kind."""
        return {
            "id": f"{'chatcmpl' if self.is_chat else 'cmpl'}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": list(choices),
        }


def whole(head: Head, choices: Sequence[Choice]) -> dict[str, Any]:
    """The answer to a request that does not stream."""
    kind = "chat.completion" if head.is_chat else "text_completion"
    made = [_whole_choice(head, index, choice) for index, choice in enumerate(choices)]
    return {**head.of(kind, made), "usage": usage(head, choices)}


def usage(head: Head, choices: Sequence[Choice]) -> dict[str, Any]:
    """Tokens read and said: a text is counted once, however many answers it gets; virtual tokens are among them."""
    each = len(choices) // head.num_texts
    read = sum(choice.num_prompt_tokens for choice in choices[::each])
    said = sum(choice.num_tokens for choice in choices)
    return {
        "prompt_tokens": read,
        "completion_tokens": said,
        "total_tokens": read + said,
        "prompt_tokens_details": {"virtual_tokens": head.num_virtual_tokens * head.num_texts},
    }


class Chunks:
    """The chunks of one stream, in order; it remembers where each choice's text has come to."""

    def __init__(self, head: Head, num_choices: int, *, includes_usage: bool) -> None:
        self._head = head
        self._usage = {"usage": None} if includes_usage else {}
        self._offsets = [0] * num_choices

    def first(self) -> list[dict[str, Any]]:
        """What comes before all text: in a conversation, whose turn it is."""
        if not self._head.is_chat:
            return []
        return [
            self._chunk({"index": index, "delta": {"role": "assistant", "content": ""}}, None)
            for index in range(len(self._offsets))
        ]

    def of(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        """The chunk of a choice's piece, or none where it says nothing."""
        if not (piece.text or piece.logprobs or piece.finish_reason):
            return []
        said = {"delta": {"content": piece.text} if piece.text else {}} if self._head.is_chat else {"text": piece.text}
        choice = {"index": index, **said, "logprobs": self._logprobs(index, piece)}
        return [self._chunk(choice, piece.finish_reason)]

    def cut(self, choices: Sequence[Choice]) -> list[dict[str, Any]]:
        """The last chunks of choices whose time is up."""
        said: dict[str, Any] = {"delta": {}} if self._head.is_chat else {"text": ""}
        ended = [index for index, choice in enumerate(choices) if choice.finish_reason is None]
        return [self._chunk({"index": index, **said, "logprobs": None}, "length") for index in ended]

    def last(self, choices: Sequence[Choice]) -> list[dict[str, Any]]:
        """What was used, where it was asked for."""
        if not self._usage:
            return []
        return [{**self._head.of(self._kind, []), "usage": usage(self._head, choices)}]

    @property
    def _kind(self) -> str:
        return "chat.completion.chunk" if self._head.is_chat else "text_completion"

    def _chunk(self, choice: dict[str, Any], reason: str | None) -> dict[str, Any]:
        return {**self._head.of(self._kind, [{**choice, "finish_reason": reason}]), **self._usage}

    def _logprobs(self, index: int, piece: Piece) -> dict[str, Any] | None:
        if not self._head.has_logprobs or not piece.logprobs:
            return None
        told = _logprobs(self._head, piece.logprobs, self._offsets[index])
        self._offsets[index] += sum(len(x.text) for x in piece.logprobs)
        return told


def _whole_choice(head: Head, index: int, choice: Choice) -> dict[str, Any]:
    text = "".join(choice.text)
    said = {"message": {"role": "assistant", "content": text, "refusal": None}} if head.is_chat else {"text": text}
    told = _logprobs(head, choice.logprobs, 0) if head.has_logprobs else None
    return {"index": index, **said, "logprobs": told, "finish_reason": choice.finish_reason}


def _logprobs(head: Head, tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    if head.is_chat:
        return {"content": [_chat_logprob(x) for x in tokens], "refusal": None}
    offsets = [offset]
    for one in tokens:
        offsets.append(offsets[-1] + len(one.text))
    return {
        "tokens": [x.text for x in tokens],
        "token_logprobs": [x.logprob for x in tokens],
        "top_logprobs": [dict(x.top) for x in tokens],
        "text_offset": offsets[:-1],
    }


def _chat_logprob(token: TokenLogprob) -> dict[str, Any]:
    top = [{"token": text, "logprob": value, "bytes": list(text.encode())} for text, value in token.top]
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.text.encode()), "top_logprobs": top}
