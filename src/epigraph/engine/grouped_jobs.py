"""Jobs that transformers' ``generate`` answers together, or that are answered by a choice: what no table has rows for.

Encoders beside decoders, infixes, beams, votes, labels. It knows no thread and no queue.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from epigraph.engine.drawing import draw, draw_together
from epigraph.engine.jobs import NOT_NUMBERS, Event, Job, Said, heard
from epigraph.errors import RequestFailed, UserError
from epigraph.frozen.ask import ask
from epigraph.frozen.ensemble import Ensemble
from epigraph.frozen.generate import generate
from epigraph.frozen.model import FrozenModel
from epigraph.virtual import VirtualTokens

Between = Callable[[Sequence[tuple[Job, Event]]], None]


def group_of(jobs: Iterable[Job], max_rows: int) -> list[Job]:
    """The first job and those behind it that can be answered with it, in at most ``max_rows`` rows."""
    group: list[Job] = []
    rows = 0
    for job in jobs:
        if not group or (_key(job) == _key(group[0]) and rows + job.num_rows <= max_rows):
            group.append(job)
            rows += job.num_rows
    return group


def _key(job: Job) -> Hashable:
    """What jobs that are answered together have in common."""
    is_ensemble = job.way == "choose" and job.num_rows > 1
    if is_ensemble:
        return job.request_id
    if job.way == "choose":
        return job.way, job.codec.contract, id(job.head), job.fields is None
    return job.way, job.draw.decoding


def answer_group(frozen: FrozenModel, group: Sequence[Job], between: Between) -> None:
    """Answer them all, or tell each why not. ``between`` is called with what was said, while there is more to come."""
    try:
        with torch.inference_mode():
            {"say": _say, "beams": _search, "choose": _choose}[group[0].way](frozen, group, between)
    except Exception as wrong:
        known = wrong if isinstance(wrong, UserError) else RequestFailed(f"the model failed: {wrong}")
        between([(job, known) for job in group])


def _say(frozen: FrozenModel, group: Sequence[Job], between: Between) -> None:
    # As generate() orders them, so that rows are who they are taken for.
    jobs = sorted(group, key=lambda job: -len(job.encoded.ids))
    speaker = _Speaker(frozen, jobs, between)
    prompts, carried = _rows(jobs)
    decoding = jobs[0].draw.decoding
    generate(frozen, prompts, carried, decoding, batch_size=len(prompts), processor=speaker)  # type: ignore[arg-type]
    between([])


def _search(frozen: FrozenModel, group: Sequence[Job], between: Between) -> None:
    prompts, carried = _rows(group)
    decoding = group[0].draw.decoding
    found = generate(frozen, prompts, carried, decoding, batch_size=len(prompts))
    said = [Said(token_ids=tuple(ids), reason=_reason(ids, decoding.max_new_tokens)) for ids in found]
    between(list(zip(group, said, strict=True)))


def _choose(frozen: FrozenModel, group: Sequence[Job], between: Between) -> None:
    first = group[0]
    tokens: Any = [job.members[0] for job in group]
    if first.num_rows > 1:
        members = tuple(x for x in first.members if x is not None)
        tokens = Ensemble(members=members, mean=first.mean)
    answers = ask(
        frozen,
        first.codec,
        [job.encoded for job in group],
        [job.fields for job in group if job.fields is not None],
        tokens,
        head=first.head,
        decoding=first.draw.decoding,
    )
    between([(job, Said(text=text, reason="stop")) for job, text in zip(group, answers.texts, strict=True)])


def _rows(jobs: Sequence[Job]) -> tuple[list[Sequence[int]], list[VirtualTokens | None]]:
    """Each member of each job's, side by side."""
    return [job.encoded.ids for job in jobs for _ in job.members], [x for job in jobs for x in job.members]


def _reason(ids: Sequence[int], most: int) -> Any:
    return "length" if len(ids) >= most else "stop"


class _Speaker:
    """Chooses the tokens of a ``generate`` in our own way, and tells them as they come."""

    def __init__(self, frozen: FrozenModel, jobs: Sequence[Job], between: Between) -> None:
        self._jobs = jobs
        self._between = between
        # Of two tokens that a decoder begins with, generate() says the second itself.
        self._skips = max(0, len(frozen.decoder_start) - 1) if frozen.kind == "encoder-decoder" else 0
        self._over: set[int] = set()
        end = frozen.tokenizer.eos_token_id
        self._end = 0 if end is None else int(end)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores ``[B, V]`` that leave each row one token."""
        if self._skips:
            self._skips -= 1
            return scores
        chosen: list[int] = []
        said: list[tuple[Job, Event]] = []
        first = 0
        for number, job in enumerate(self._jobs):
            rows_NV = scores[first : first + job.num_rows]
            first += job.num_rows
            chosen += [self._next(number, job, rows_NV, said)] * job.num_rows
        self._between(said)
        only = torch.full_like(scores, -math.inf)
        only[torch.arange(len(chosen)), torch.tensor(chosen, device=scores.device)] = 0
        return only

    def _next(self, number: int, job: Job, rows_NV: Tensor, said: list[tuple[Job, Event]]) -> int:
        if number in self._over:
            return self._end
        event: Event
        token = self._end
        if job.cancelled:
            event = Said(reason="cancelled")
        else:
            drawn = draw([job.draw], rows_NV)[0] if len(rows_NV) == 1 else _together(job, rows_NV)
            event = RequestFailed(NOT_NUMBERS) if drawn is None else heard(job, drawn)
            token = self._end if drawn is None else drawn.token
        said.append((job, event))
        if not isinstance(event, Said) or event.reason is not None:
            self._over.add(number)
        return token


def _together(job: Job, rows_NV: Tensor) -> Any:
    assert job.mean != "majority", "votes are cast by ask()"
    return draw_together(job.draw, rows_NV, job.mean)
