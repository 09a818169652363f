"""What several runs say together, against numbers that are known otherwise."""

from __future__ import annotations

import numpy as np
import pytest

from epigraph.errors import CountMismatch
from epigraph.sweep.compare import advantage, joined, mean_interval
from epigraph.tasks.bootstrap import BOOTSTRAP_SEED, NUM_RESAMPLES, Floats, Summed, compare


def ratio(totals: Floats) -> Floats:
    return np.asarray(totals[..., 0] / totals[..., 1])


def rows(seed: int, num: int = 60, better: float = 0.0) -> Summed:
    """A metric that is no mean of rows: a ratio of sums, as precision is."""
    random = np.random.default_rng(seed)
    wanted = random.integers(3, 9, num).astype(float)
    right = np.minimum(wanted, random.integers(0, 6, num) + better)
    return Summed(statistics=np.stack([right, wanted], axis=1), finish=ratio)


def test_the_interval_is_students() -> None:
    mean, half = mean_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    # t of 2 degrees of freedom at 97.5 %, from a printed table: 4.303.
    assert half == pytest.approx(4.303 / 3**0.5, abs=1e-3)
    assert mean_interval([5.0]) == (5.0, None)


def test_joined_runs_have_the_mean_of_their_values() -> None:
    runs = [rows(1), rows(2), rows(3)]
    assert joined(runs).value == pytest.approx(np.mean([x.value for x in runs]))
    # And not the value of all answers in one heap, where the metric is no mean.
    heap = Summed(statistics=sum((x.statistics for x in runs), np.zeros((60, 2))), finish=ratio)
    assert joined(runs).value != pytest.approx(heap.value, abs=1e-6)


def test_one_run_alone_is_compared_as_ever() -> None:
    one, other = rows(1, better=1.0), rows(2)
    found = advantage([(one.value, other.value)], [(one, other)])
    plain = compare(one, other)
    assert found is not None
    assert (found.value, found.interval, found.p_rows) == (pytest.approx(plain.value), plain.interval, plain.p)
    assert (found.p_runs, found.num_pairs) == (None, 1)


def test_runs_are_resampled_on_the_same_rows() -> None:
    """The same run three times over says no more than once: rows are what is drawn, not answers."""
    one, other = rows(1, better=0.4), rows(2)
    once = advantage([(one.value, other.value)], [(one, other)])
    thrice = advantage([(one.value, other.value)] * 3, [(one, other)] * 3)
    assert once is not None
    assert thrice is not None
    assert thrice.interval == pytest.approx(once.interval)
    assert thrice.p_rows == once.p_rows


def test_the_interval_over_rows_is_that_of_the_difference_of_means() -> None:
    """The slow twin: each draw of rows by itself, scored run by run."""
    pairs = [(rows(1, better=0.5), rows(4)), (rows(2), rows(5)), (rows(3, better=1.0), rows(6))]
    found = advantage([(a.value, b.value) for a, b in pairs], pairs)
    random = np.random.default_rng(BOOTSTRAP_SEED)
    apart = []
    for _ in range(NUM_RESAMPLES):
        draw = random.integers(60, size=60)
        scored = [[float(ratio(x.statistics[draw].sum(axis=0))) for x in pair] for pair in pairs]
        apart.append(np.mean([own - other for own, other in scored]))
    assert found is not None
    assert found.interval == pytest.approx(tuple(np.percentile(apart, [2.5, 97.5])))


def test_the_test_over_runs_is_the_paired_one() -> None:
    found = advantage([(3.0, 1.0), (4.0, 1.0), (6.0, 2.0)], None)
    assert found is not None
    # Differences 2, 3, 4: t = 3 / (1 / sqrt 3) = 5.196, two-sided p of 2 degrees of freedom = 0.0351.
    assert found.value == 3.0
    assert found.p_runs == pytest.approx(0.0351, abs=1e-4)
    assert (found.interval, found.p_rows) == (None, None)


@pytest.mark.parametrize(("apart", "p"), [(1.0, 0.0), (0.0, 1.0)])
def test_differences_without_spread_have_a_p_too(apart: float, p: float) -> None:
    found = advantage([(1.0 + apart, 1.0), (2.0 + apart, 2.0)], None)
    assert found is not None
    assert found.p_runs == p


def test_nothing_to_compare() -> None:
    assert advantage([], []) is None
    with pytest.raises(CountMismatch):
        advantage([(1.0, 1.0)], [(rows(1), rows(2, num=50))])
