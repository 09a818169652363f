"""What a local engine's thread is asked to do, and what it says: one request as ids and virtual tokens.

Pure data between the event loop, which knows requests, and the thread, which knows the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from epigraph.engine.base import FinishReason, Joining, TokenLogprob
from epigraph.engine.drawing import Draw, Drawn
from epigraph.frozen.answers import Head
from epigraph.frozen.inputs import Codec, Encoded
from epigraph.virtual import VirtualTokens

NOT_NUMBERS = "the model's logits are no numbers; start the engine with dtype float32 or bfloat16"
# How it is answered: a row of the table, transformers' generate() token by token, the same with beams, or chosen.
Way = Literal["step", "say", "beams", "choose"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """New tokens of an answer; ``text`` where it was chosen and not said; ``reason`` with the last."""

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    text: str | None = None
    reason: FinishReason | None = None


Event = Said | Exception


@dataclass(kw_only=True, slots=True, eq=False)
class Job:
    """A request in the thread. ``members`` are the virtual tokens that answer, each in a row of its own.

    ``fields`` are the text as fields of the template, None for a conversation. ``tell`` takes what is said, in the
    thread; nothing more comes behind a reason or an exception. ``cancelled`` is set by anybody.
    """

    request_id: str
    way: Way
    codec: Codec
    encoded: Encoded
    fields: Mapping[str, str] | None
    members: tuple[VirtualTokens | None, ...]
    mean: Joining
    draw: Draw
    head: Head | None
    tell: Callable[[Event], None]
    cancelled: bool = False

    @property
    def num_rows(self) -> int:
        """How many rows of a batch it takes."""
        return len(self.members)


def heard(job: Job, drawn: Drawn) -> Said:
    """What is said of a token, and why the answer ends with it, if it does."""
    if drawn.token in job.draw.ends:
        return Said(reason="stop")
    job.draw.say(drawn.token)
    told = () if drawn.told is None else (drawn.told,)
    return Said(token_ids=(drawn.token,), logprobs=told, reason="length" if job.draw.is_over else None)
