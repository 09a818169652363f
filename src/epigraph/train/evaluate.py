"""Scores of an artifact, or of the bare model, on a task: decode every source, compare with its references."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from epigraph.contract import Decoding
from epigraph.errors import DataNotFound
from epigraph.frozen.answers import Head
from epigraph.frozen.ask import Answers, ask
from epigraph.frozen.ensemble import Ensemble
from epigraph.frozen.inputs import Codec, Encoded, Message
from epigraph.frozen.model import FrozenModel
from epigraph.methods.base import Foreign
from epigraph.tasks.base import Example, Scores, Task
from epigraph.tasks.calibration import Chances, with_chances
from epigraph.virtual import VirtualTokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Scores, the predictions they were made from, and how those were decoded."""

    scores: Scores
    predictions: tuple[str, ...]
    examples: tuple[Example, ...]
    decoding: Decoding
    num_truncated: int
    num_dropped: int = 0
    num_candidates: int = 0

    def to_json(self, num_shown: int | None = None) -> dict[str, Any]:
        """The record: scores with intervals and variants, decoding, and the first ``num_shown`` predictions."""
        shown = list(zip(self.examples, self.predictions, strict=True))[:num_shown]
        return {
            **self.scores.to_json(),
            "decoding": self.decoding.model_dump(),
            "num_truncated": self.num_truncated,
            **({"num_dropped": self.num_dropped, "num_candidates": self.num_candidates} if self.num_candidates else {}),
            "examples": [
                {"source": x.source, "references": list(x.references), "prediction": text} for x, text in shown
            ],
        }


def evaluate(
    frozen: FrozenModel,
    codec: Codec,
    tokens: VirtualTokens | Ensemble | None,
    task: Task,
    examples: Sequence[Example],
    *,
    head: Head | None = None,
    foreign: Foreign | None = None,
    says: Callable[[Example], str] | None = None,
    decoding: Decoding | None = None,
    only: Collection[str] | None = None,
    batch_size: int = 64,
    advance: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Ask and score ``examples``; ``tokens`` None is the untouched model under the same text contract.
    An ensemble's members answer together, in its way.

    Where the task has candidates, those that are one token in the model's vocabulary are ranked, and examples whose
    answer is none of them are dropped, as LAMA does. ``only`` are the metrics to compute, None for all of the task.
    ``says`` answers in the model's place, and ``foreign`` decodes in its place.
    """
    decoding = decoding or codec.contract.decoding
    kept, candidates = answerable(codec, task, examples)
    asked = [question(codec, example) for example in kept]
    said = (
        Answers(texts=[says(example) for example in kept])
        if says is not None
        else ask(
            frozen,
            codec,
            asked,
            [fields(example) for example in kept],
            tokens,
            head=head,
            candidates=candidates,
            own=[example.candidates for example in kept],
            decoding=decoding,
            batch_size=batch_size,
            advance=advance,
            decode=None if foreign is None else foreign.generate,
        )
    )
    return Evaluation(
        scores=with_chances(task.score(said.texts, kept, only), _chances(said, kept), only),
        predictions=tuple(said.texts),
        examples=tuple(kept),
        decoding=decoding,
        num_truncated=sum(x.truncated for x in asked),
        num_dropped=len(examples) - len(kept),
        num_candidates=len(candidates),
    )


def _chances(said: Answers, examples: Sequence[Example]) -> list[Chances]:
    """How likely each row's choices were, and which of them is right; nothing where answers were said freely."""
    return [
        Chances(probabilities=logs_N.exp().tolist(), right=list(choices).index(example.references[0]))
        for choices, logs_N, example in zip(said.choices, said.log_chances, examples, strict=bool(said.choices))
    ]


def answerable(codec: Codec, task: Task, examples: Sequence[Example]) -> tuple[list[Example], list[str]]:
    """The examples whose answer can be ranked, and what it is ranked among: all of them and nothing in most tasks.

    Raises :class:`DataNotFound` where no example is left.
    """
    if not task.candidates:
        return list(examples), []
    candidates = [text for text in task.candidates if len(codec.candidate(text)) == 1]
    known = set(candidates)
    kept = [example for example in examples if example.references[0] in known]
    if not kept:
        raise DataNotFound(f"{task.name}: none of {len(examples)} answers is one token in this model's vocabulary")
    return kept, candidates


def fields(example: Example) -> dict[str, str]:
    """What the input template is filled with."""
    return {**example.further, "source": example.source}


def question(codec: Codec, example: Example) -> Encoded:
    """The ids that ask for an answer to ``example``."""
    if example.turns:
        return codec.question(_messages(example)[:-1])
    return codec.source(fields(example))


def lesson(codec: Codec, example: Example) -> Encoded:
    """The ids that teach ``example``: its source and its first reference, or its whole conversation."""
    if example.turns:
        return codec.chat(_messages(example))
    return codec.pair(fields(example), example.references[0])


def _messages(example: Example) -> list[Message]:
    return [Message(role=turn.role, content=turn.content) for turn in example.turns]
