"""Values and 95 % intervals of metrics that are computed from sums over rows. It knows numbers only: no texts.

A metric of this kind has a few statistics a row; its value is a function of their sums. Drawing rows with replacement
and summing again says how much the value depends on which rows were drawn (Efron & Tibshirani 1993, chapter 13).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 1_000
BOOTSTRAP_SEED = 12_345
INTERVAL_VARIANT = (
    f"interval: {NUM_RESAMPLES:,} bootstrap resamples of the rows, seed {BOOTSTRAP_SEED}, 95 % percentile"
)

Floats = NDArray[np.float64]


def estimate(statistics: Floats, finish: Callable[[Floats], Floats]) -> tuple[float, tuple[float, float]]:
    """The value and the interval (low, high) of a metric over its row ``statistics`` ``[rows, K]``.

    ``finish`` takes sums ``[..., K]`` and gives the metric ``[...]``. Every metric sees the same 1,000 draws of rows.
    """
    low, high = np.percentile(finish(_resampled_totals(statistics)), [2.5, 97.5]).tolist()
    return float(finish(statistics.sum(axis=0))), (low, high)


def estimate_mean(row_values: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """The value and the interval (low, high) of a metric that is the mean of one value a row."""
    return estimate(np.array([[value, 1.0] for value in row_values]), lambda totals: totals[..., 0] / totals[..., 1])


def _resampled_totals(statistics: Floats) -> Floats:
    """Sums over rows drawn with replacement, ``[1000, K]``."""
    num_rows = len(statistics)
    random = np.random.default_rng(BOOTSTRAP_SEED)
    draws = (random.integers(num_rows, size=num_rows) for _ in range(NUM_RESAMPLES))
    return np.stack([np.bincount(draw, minlength=num_rows) @ statistics for draw in draws])
