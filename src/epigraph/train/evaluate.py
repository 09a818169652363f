"""Scores of an artifact, or of the bare model, on a task: decode every source, compare with its references."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from epigraph.contract import Decoding
from epigraph.frozen.ensemble import Ensemble
from epigraph.frozen.generate import generate
from epigraph.frozen.inputs import Codec, Encoded, Message
from epigraph.frozen.model import FrozenModel
from epigraph.tasks.base import Example, Scores, Task
from epigraph.virtual import VirtualTokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Scores, the predictions they were made from, and how those were decoded."""

    scores: Scores
    predictions: tuple[str, ...]
    examples: tuple[Example, ...]
    decoding: Decoding
    num_truncated: int

    def to_json(self, num_shown: int | None = None) -> dict[str, Any]:
        """The record: scores with intervals and variants, decoding, and the first ``num_shown`` predictions."""
        shown = list(zip(self.examples, self.predictions, strict=True))[:num_shown]
        return {
            **self.scores.to_json(),
            "decoding": self.decoding.model_dump(),
            "num_truncated": self.num_truncated,
            "examples": [
                {"source": x.source, "references": list(x.references), "prediction": text} for x, text in shown
            ],
        }


def evaluate(
    frozen: FrozenModel,
    codec: Codec,
    prefix: VirtualTokens | Ensemble | None,
    task: Task,
    examples: Sequence[Example],
    *,
    decoding: Decoding | None = None,
    only: Collection[str] | None = None,
    batch_size: int = 64,
    advance: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Decode and score ``examples``; ``prefix`` None is the untouched model under the same text contract.
    An ensemble's members answer together, in its way.

    ``only`` are the metrics to compute, None for all that the task has.
    """
    decoding = decoding or codec.contract.decoding
    asked = [question(codec, example) for example in examples]
    prompts = [x.ids for x in asked]
    if isinstance(prefix, Ensemble):
        new = prefix.generate(frozen, prompts, codec.text, decoding, batch_size=batch_size, advance=advance)
    else:
        new = generate(frozen, prompts, prefix, decoding, batch_size=batch_size, advance=advance)
    predictions = tuple(codec.text(ids) for ids in new)
    return Evaluation(
        scores=task.score(predictions, examples, only),
        predictions=predictions,
        examples=tuple(examples),
        decoding=decoding,
        num_truncated=sum(x.truncated for x in asked),
    )


def question(codec: Codec, example: Example) -> Encoded:
    """The ids that ask for an answer to ``example``."""
    if example.turns:
        return codec.question(_messages(example)[:-1])
    return codec.source({"source": example.source})


def lesson(codec: Codec, example: Example) -> Encoded:
    """The ids that teach ``example``: its source and its first reference, or its whole conversation."""
    if example.turns:
        return codec.chat(_messages(example))
    return codec.pair({"source": example.source}, example.references[0])


def _messages(example: Example) -> list[Message]:
    return [Message(role=turn.role, content=turn.content) for turn in example.turns]
