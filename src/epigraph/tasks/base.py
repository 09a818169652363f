"""What a task is: examples, words for them, and what counts as good. It knows no model and no torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from epigraph.errors import TaskNotFound
from epigraph.tasks.bootstrap import Summed


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One turn of a conversation; ``role`` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One row: a source and its references; for chat rows the turns, whose last one is the reference.

    ``further`` are the row's other texts by name, for templates that ask for them. ``candidates`` are the answers that
    this row is answered by one of, where every row has its own; a reference is one of them. ``group`` names what the
    row is a part of, where a metric counts several rows together (the answers to one question).
    """

    source: str
    references: tuple[str, ...]
    turns: tuple[Turn, ...] = ()
    further: Mapping[str, str] = field(default_factory=dict, hash=False)
    candidates: tuple[str, ...] = ()
    group: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Scores of one system on one test set.

    ``values`` maps a metric to its value, ``intervals`` to its bootstrap interval (low, high), ``variants`` to the
    exact variant that was computed, in words; ``missing`` maps a metric that could not be computed to the reason and
    what to do. A metric that was asked for is in ``values`` or in ``missing``. ``summed`` has the metrics that are
    computed from sums over rows, so that two systems on one test set can be compared row by row; no record keeps it.
    """

    values: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    variants: Mapping[str, str]
    num_examples: int
    missing: Mapping[str, str] = field(default_factory=dict)
    summed: Mapping[str, Summed] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        summed: Mapping[str, Summed],
        variants: Mapping[str, str],
        num_examples: int,
        missing: Mapping[str, str] | None = None,
    ) -> Scores:
        """Scores whose every value and interval comes from sums over rows; ``variants`` may have more names."""
        estimates = {name: metric.estimate() for name, metric in summed.items()}
        return cls(
            values={name: value for name, (value, _) in estimates.items()},
            intervals={name: interval for name, (_, interval) in estimates.items()},
            variants={name: variants[name] for name in estimates},
            num_examples=num_examples,
            missing=missing or {},
            summed=summed,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for a record: ``{"scores": {...}, "intervals": {...}, "variants": {...}, ...}``."""
        return {
            "scores": dict(self.values),
            "intervals": {name: list(pair) for name, pair in self.intervals.items()},
            "variants": dict(self.variants),
            "missing": dict(self.missing),
            "num_examples": self.num_examples,
        }


Loader = Callable[[], list[Example]]


class Scorer(Protocol):
    """What scores a task's predictions."""

    def __call__(
        self, predictions: Sequence[str], examples: Sequence[Example], only: Collection[str] | None = None
    ) -> Scores:
        """Scores of ``predictions``, one an example; ``only`` these metrics, None for all the task has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A named task. ``instruction`` says it in words (the default text to initialise from); ``headline`` is the
    metric that tables go by, ``better_when_higher`` those that a run may be chosen by; lengths count tokens.

    An answer is one of ``labels`` where there are any, each called ``label_words`` in the text (the labels themselves
    where none are given), or one of ``candidates``, which are many words that an answer is ranked among.
    """

    name: str
    summary: str
    instruction: str
    splits: Mapping[str, Loader]
    score: Scorer
    headline: str = "bleu"
    better_when_higher: tuple[str, ...] = ("bleu", "chrf", "exact_match")
    input_template: str = "{source}\n"
    target_template: str = "{target}"
    max_source_tokens: int = 512
    max_target_tokens: int = 128
    is_chat: bool = False
    labels: tuple[str, ...] = ()
    label_words: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)

    def load(self, split: str) -> list[Example]:
        """The examples of ``split``; raises :class:`TaskNotFound` for a split the task does not have."""
        if split not in self.splits:
            raise TaskNotFound(f"task {self.name} has no split {split!r}, expected one of {', '.join(self.splits)}")
        return self.splits[split]()
