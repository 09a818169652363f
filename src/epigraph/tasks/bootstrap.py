"""Values, 95 % intervals and paired tests of metrics that are sums over rows. It knows numbers only: no texts.

A metric of this kind has a few statistics a row; its value is a function of their sums. Drawing rows with replacement
and summing again says how much the value depends on which rows were drawn (Efron & Tibshirani 1993, chapter 13), and,
where two systems answered the same rows, how much their difference does (Koehn 2004).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from epigraph.errors import CountMismatch

NUM_RESAMPLES = 1_000
BOOTSTRAP_SEED = 12_345
INTERVAL_VARIANT = (
    f"interval: {NUM_RESAMPLES:,} bootstrap resamples of the rows, seed {BOOTSTRAP_SEED}, 95 % percentile"
)

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Summed:
    """A metric of this kind: its row ``statistics`` ``[rows, K]``, and ``finish``, from sums ``[..., K]`` to ``[...]``.

    A row may be several rows of the task that are counted together, such as all answers to one question.
    """

    statistics: Floats
    finish: Callable[[Floats], Floats]

    @classmethod
    def mean(cls, row_values: Sequence[float]) -> Summed:
        """The mean of one value a row."""
        return cls(statistics=np.array([[value, 1.0] for value in row_values]), finish=_mean)

    @property
    def value(self) -> float:
        """The metric over all rows."""
        return float(self.finish(self.statistics.sum(axis=0)))

    def estimate(self) -> tuple[float, tuple[float, float]]:
        """The value and its interval (low, high); every metric sees the same 1,000 draws of rows."""
        low, high = np.percentile(self.finish(_resampled_totals(self.statistics)), [2.5, 97.5]).tolist()
        return self.value, (low, high)


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One system's metric minus another's on the same rows: its 95 % interval, and the two-sided ``p`` of no
    difference: twice the share of draws, themselves included, on the other side of zero."""

    value: float
    interval: tuple[float, float]
    p: float


def compare(one: Summed, other: Summed) -> Difference:
    """The paired bootstrap test: both systems are summed over the same draws of the rows that both answered.

    Raises :class:`CountMismatch` where they have not the same number of rows.
    """
    if len(one.statistics) != len(other.statistics):
        raise CountMismatch(
            f"got {len(one.statistics)} rows of one system and {len(other.statistics)} of the other, "
            "expected the same rows of both"
        )
    draws = one.finish(_resampled_totals(one.statistics)) - other.finish(_resampled_totals(other.statistics))
    low, high = np.percentile(draws, [2.5, 97.5]).tolist()
    beyond = 1 + min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    p = min(1.0, 2.0 * beyond / (NUM_RESAMPLES + 1))
    return Difference(value=one.value - other.value, interval=(low, high), p=p)


def _mean(totals: Floats) -> Floats:
    return np.asarray(totals[..., 0] / totals[..., 1])


def _resampled_totals(statistics: Floats) -> Floats:
    """Sums over rows drawn with replacement, ``[1000, K]``."""
    num_rows = len(statistics)
    random = np.random.default_rng(BOOTSTRAP_SEED)
    draws = (random.integers(num_rows, size=num_rows) for _ in range(NUM_RESAMPLES))
    return np.stack([np.bincount(draw, minlength=num_rows) @ statistics for draw in draws])
