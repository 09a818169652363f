"""What several runs say together: their mean and its interval, and whether one system is better than another.

Two things are left to chance, which rows were scored and which runs were made, and each has a test of its own;
docs/sweeps.md says why. It knows numbers, not where they come from.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from epigraph.tasks.bootstrap import Floats, Summed, compare


@dataclass(frozen=True, kw_only=True, slots=True)
class Advantage:
    """One system's mean minus another's over runs that had the same rows and the same seed.

    ``interval`` and ``p_rows``: the paired bootstrap over rows, with these runs as they are; None where the metric is
    no sum over rows. ``p_runs``: Student's paired t over runs; None where there are not two pairs.
    """

    value: float
    interval: tuple[float, float] | None
    p_rows: float | None
    p_runs: float | None
    num_pairs: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def mean_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and how far its 95 % interval by Student's t reaches on either side; None for one value alone."""
    if len(values) < 2:
        return values[0], None
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values), float(half)


def joined(runs: Sequence[Summed]) -> Summed:
    """Several runs' answers to the same rows as one metric: the mean of the runs' values.

    A row's statistics are those of all runs side by side, so that a draw of rows is the same draw for every run.
    """
    ends = np.cumsum([run.statistics.shape[1] for run in runs])[:-1]

    def finish(totals: Floats) -> Floats:
        parts = np.split(totals, ends, axis=-1)
        return np.asarray(np.mean([run.finish(part) for run, part in zip(runs, parts, strict=True)], axis=0))

    return Summed(statistics=np.concatenate([run.statistics for run in runs], axis=1), finish=finish)


def advantage(
    values: Sequence[tuple[float, float]], summed: Sequence[tuple[Summed, Summed]] | None
) -> Advantage | None:
    """The advantage over pairs of runs: their ``values``, own and other, and their row statistics where there are some.

    None without pairs. Raises :class:`CountMismatch` where two runs have not answered the same rows.
    """
    if not values:
        return None
    apart = [own - other for own, other in values]
    over_rows = compare(joined([x for x, _ in summed]), joined([x for _, x in summed])) if summed else None
    return Advantage(
        value=statistics.mean(apart),
        interval=over_rows.interval if over_rows else None,
        p_rows=over_rows.p if over_rows else None,
        p_runs=_p_of_mean(apart),
        num_pairs=len(values),
    )


def _p_of_mean(apart: Sequence[float]) -> float | None:
    if len(apart) < 2:
        return None
    if len(set(apart)) == 1:
        # No spread: a difference that is always the same, or never there.
        return 0.0 if apart[0] else 1.0
    return float(stats.ttest_1samp(apart, 0.0).pvalue)
