"""Scores before and after as rows with bars. It knows evaluation records and no page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from epigraph.report.records import Development, Evaluation
from epigraph.report.words import LOWER_IS_BETTER, decimals_for

# Metrics with an end of their scale that they may stay far from, and those without any; the others end at 1 or 100.
FULL_SCALE = {"bleu": 100.0, "chrf": 100.0}
UNBOUNDED = frozenset({"nist", "cider", "ter", "loss", "perplexity"})
HEADLINES = ("bleu", "accuracy", "exact_match", "f1")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreRow:
    """One evaluation's score. ``bar`` and ``whisker`` are parts of the group's scale, 0 to 1."""

    name: str
    value: float
    interval: tuple[float, float] | None
    num_examples: int
    bar: float
    whisker: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreGroup:
    """One metric on one split, by every evaluation that has it: ``places`` decimals, bars from 0 to ``top``."""

    metric: str
    split: str
    places: int
    top: float
    lower_is_better: bool
    rows: tuple[ScoreRow, ...]


def score_groups(evaluations: Sequence[Evaluation], headline: str | None) -> tuple[ScoreGroup, ...]:
    """The scores grouped by split and metric, the ``headline`` metric first."""
    keys = dict.fromkeys((x.split, metric) for x in evaluations for metric in x.scores)
    ordered = sorted(keys, key=lambda key: (key[0], key[1] != headline))
    return tuple(
        _group([x for x in evaluations if x.split == split and metric in x.scores], split, metric)
        for split, metric in ordered
    )


def headline_metric(evaluations: Sequence[Evaluation], development: Sequence[Development]) -> str | None:
    """The metric the run went by: the one development watched, else a usual one, else the first there is."""
    measured = list(dict.fromkeys(metric for x in evaluations for metric in x.scores))
    watched = [metric for x in development for metric in x.dev if metric != "loss"]
    return next((x for x in (*watched, *HEADLINES, *measured) if x in measured), None)


def before_and_after(evaluations: Sequence[Evaluation]) -> tuple[Evaluation | None, Evaluation | None]:
    """The untouched and the trained model's evaluation, on the same split wherever both exist."""
    before = {x.split: x for x in evaluations if x.name == "before"}
    after = {x.split: x for x in evaluations if x.name == "after"}
    split = next(iter([x for x in after if x in before] or [*after, *before]), "")
    return before.get(split), after.get(split)


def unlike(evaluations: Sequence[Evaluation]) -> tuple[str, ...]:
    """What differs between evaluations of one split that should not, in words: such scores do not compare."""
    differences = []
    for split in dict.fromkeys(x.split for x in evaluations):
        same = [x for x in evaluations if x.split == split]
        if any(x.num_examples != same[0].num_examples for x in same):
            differences.append(f"the number of {split} examples")
        if any(x.decoding != same[0].decoding for x in same):
            differences.append(f"the decoding on {split}")
        if any(x.variants != same[0].variants for x in same):
            differences.append(f"the metric variants on {split}")
    return tuple(differences)


def _group(evaluations: Sequence[Evaluation], split: str, metric: str) -> ScoreGroup:
    values = [x.scores[metric] for x in evaluations]
    ends = [end for x in evaluations for end in x.intervals.get(metric, ())]
    top = _top(metric.lower(), max([*values, *ends, 0.0]))
    return ScoreGroup(
        metric=metric,
        split=split,
        places=decimals_for(values),
        top=top,
        lower_is_better=metric.lower() in LOWER_IS_BETTER,
        rows=tuple(_row(x, metric, top) for x in evaluations),
    )


def _top(metric: str, largest: float) -> float:
    ends = () if metric in UNBOUNDED else (FULL_SCALE.get(metric, 1.0), 100.0)
    return next((x for x in ends if largest <= x), largest or 1.0)


def _row(evaluation: Evaluation, metric: str, top: float) -> ScoreRow:
    interval = evaluation.intervals.get(metric)
    return ScoreRow(
        name=evaluation.name,
        value=evaluation.scores[metric],
        interval=interval,
        num_examples=evaluation.num_examples,
        bar=_share(evaluation.scores[metric], top),
        whisker=interval and (_share(interval[0], top), _share(interval[1], top)),
    )


def _share(value: float, top: float) -> float:
    return round(min(max(value / top, 0.0), 1.0), 4)
