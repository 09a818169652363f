"""How well a system knows what it does not know: the likelihood of the right choice, and the calibration error.

It knows probabilities only: no texts, no task and no model.

With p_i the probability that row i gives to the choice that is right, c_i that of the choice it makes, and a_i whether
that is right, over n rows in bins b of c_i (Guo et al. 2017, equations 3 and 5)::

    NLL = -(1 / n) sum_i log p_i        ECE = sum_b |sum_{i in b} a_i - sum_{i in b} c_i| / n
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from epigraph.tasks.base import Scores
from epigraph.tasks.bootstrap import INTERVAL_VARIANT, Floats, Summed

NUM_BINS = 15
METRICS = ("nll", "ece")

# A probability that rounds to nothing still has a finite logarithm.
_LEAST = 1e-12
_VARIANTS = {
    "nll": (
        "mean negative log-likelihood of the right choice in nats, probabilities normalised over the row's choices; "
        f"lower is better; {INTERVAL_VARIANT}"
    ),
    "ece": (
        f"expected calibration error in percent, {NUM_BINS} bins of equal width of the choice's probability, which is "
        f"normalised over the row's choices; lower is better; {INTERVAL_VARIANT}"
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Chances:
    """The probabilities of a row's choices, which sum to one, and the number of the choice that is ``right``."""

    probabilities: Sequence[float]
    right: int


def with_chances(scores: Scores, rows: Sequence[Chances], only: Collection[str] | None = None) -> Scores:
    """``scores`` with ``nll`` and ``ece`` of ``rows`` beside them, or ``only`` those; without rows as they are."""
    wanted = [name for name in METRICS if only is None or name in only]
    if not rows or not wanted:
        return scores
    found = {name: _SUMMED[name](rows) for name in wanted}
    added = Scores.of(found, _VARIANTS, scores.num_examples)
    return replace(
        scores,
        values={**scores.values, **added.values},
        intervals={**scores.intervals, **added.intervals},
        variants={**scores.variants, **added.variants},
        summed={**scores.summed, **found},
    )


def _nll(rows: Sequence[Chances]) -> Summed:
    return Summed.mean([-math.log(max(row.probabilities[row.right], _LEAST)) for row in rows])


def _ece(rows: Sequence[Chances]) -> Summed:
    """From rows that each stand in one bin: how many are right there, the sum of their confidence, and a one."""
    statistics = np.zeros((len(rows), 2 * NUM_BINS + 1))
    for number, row in enumerate(rows):
        confidence = max(row.probabilities)
        bin_of = min(int(confidence * NUM_BINS), NUM_BINS - 1)
        statistics[number, bin_of] = row.probabilities.index(confidence) == row.right
        statistics[number, NUM_BINS + bin_of] = confidence
        statistics[number, -1] = 1.0
    return Summed(statistics=statistics, finish=_gap)


def _gap(totals: Floats) -> Floats:
    right, confidence = totals[..., :NUM_BINS], totals[..., NUM_BINS:-1]
    return np.asarray(100.0 * np.abs(right - confidence).sum(axis=-1) / totals[..., -1])


_SUMMED = {"nll": _nll, "ece": _ece}
