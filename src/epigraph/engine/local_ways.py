"""How a local engine answers a request, and how what is said becomes pieces: its rules, apart from its running.

Pure functions of requests, contracts and events; they know no thread and no queue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from epigraph.contract import Decoding, TextContract
from epigraph.engine.base import GREEDY, FinishReason, Named, Piece, Request
from epigraph.engine.jobs import Said, Way
from epigraph.engine.spoken import Spoken
from epigraph.errors import CannotServe
from epigraph.virtual import VirtualTokens


def named(request: Request) -> list[Named]:
    """All prefixes of a request, the first first."""
    if request.prefix is None:
        return []
    return [Named(prefix=request.prefix, version=request.version), *request.others]


def way_of(contract: TextContract, decoding: Decoding, request: Request, *, steps: bool) -> Way:
    """How it is answered; ``steps``: its virtual tokens, and the model, are such as a table has rows for."""
    is_chosen = bool(contract.labels) or contract.layout in ("label", "tags", "cloze")
    if is_chosen or (request.others and request.mean == "majority"):
        return "choose"
    if decoding.num_beams > 1:
        return "beams"
    return "step" if steps else "say"


def refuse_settings(way: Way, request: Request) -> None:
    """Raise :class:`CannotServe` for settings that would be ignored."""
    if way in ("step", "say"):
        return
    why = {"beams": "the answer is searched with beams", "choose": "the answer is chosen by likelihood or vote"}[way]
    if request.sampling != GREEDY:
        raise CannotServe(f"{why}, and nothing is drawn; leave temperature, cuts, penalties and seed out")
    if request.logprobs is not None:
        raise CannotServe(f"{why}, and its tokens have no log-probabilities; leave logprobs out")
    if way == "beams" and request.others:
        raise CannotServe("the members of an ensemble are averaged token by token, without beams; ask for 1 beam")


def num_in_front(members: Sequence[VirtualTokens | None]) -> int:
    """How many virtual tokens the first member puts beside the text; those at slots are counted as its ids."""
    tokens = members[0]
    return 0 if tokens is None or tokens.placed else tokens.num_virtual_tokens


def fields_of(request: Request) -> Mapping[str, str] | None:
    """The text as fields of a template, None for a conversation."""
    text = request.text
    return {"source": text} if isinstance(text, str) else text if isinstance(text, Mapping) else None


def piece_of(event: Said, spoken: Spoken, num_prompt_tokens: int) -> Piece:
    """What was said, as far as its text is settled."""
    reason: FinishReason | None = event.reason
    if event.text is not None:
        text = event.text
    else:
        text = spoken.add(event.token_ids)
        if spoken.stopped and reason is None:
            reason = "stop"
        if reason is not None:
            text += spoken.finish()
    return Piece(
        text=text,
        token_ids=event.token_ids,
        num_prompt_tokens=num_prompt_tokens,
        finish_reason=reason,
        logprobs=event.logprobs,
    )
