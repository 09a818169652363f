"""What a few seeds leave to chance."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from scipy import stats


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and how far its 95 % interval by Student's t reaches on either side; 0 for one value alone."""
    if len(values) < 2:
        return values[0], 0.0
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values), float(half)
