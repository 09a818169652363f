"""NLL and the calibration error against their definitions, and the paired test against what it must say."""

import itertools
import math
import random

import numpy as np
import pytest

from epigraph.errors import CountMismatch
from epigraph.tasks.base import Scores
from epigraph.tasks.bootstrap import Summed, compare
from epigraph.tasks.calibration import NUM_BINS, Chances, with_chances

EMPTY = Scores(values={}, intervals={}, variants={}, num_examples=0)


def drawn(num_rows: int, *, honest: bool, seed: int = 0) -> list[Chances]:
    """Rows whose first choice is right as often as it says, or a third less often."""
    numbers = random.Random(seed)
    rows = []
    for _ in range(num_rows):
        sure = 0.5 + numbers.random() / 2
        right = numbers.random() < (sure if honest else sure - 0.33)
        rows.append(Chances(probabilities=(sure, 1 - sure), right=0 if right else 1))
    return rows


def by_definition(rows: list[Chances]) -> tuple[float, float]:
    nll = sum(-math.log(row.probabilities[row.right]) for row in rows) / len(rows)
    edges = [number / NUM_BINS for number in range(NUM_BINS + 1)]
    ece = 0.0
    for low, high in itertools.pairwise(edges):
        some = [x for x in rows if low <= max(x.probabilities) < high or max(x.probabilities) == high == 1]
        if some:
            sure = sum(max(x.probabilities) for x in some) / len(some)
            hits = sum(x.probabilities.index(max(x.probabilities)) == x.right for x in some) / len(some)
            ece += len(some) / len(rows) * abs(hits - sure)
    return nll, 100 * ece


@pytest.mark.parametrize("honest", [True, False])
def test_values_are_the_definitions(honest: bool) -> None:
    rows = [*drawn(400, honest=honest), Chances(probabilities=(1.0, 0.0), right=0)]
    scores = with_chances(EMPTY, rows)
    nll, ece = by_definition(rows)
    assert scores.values == pytest.approx({"nll": nll, "ece": ece})
    assert (scores.values["ece"] < 8) == honest
    for name, (low, high) in scores.intervals.items():
        # The error of a calibrated system is near its least value, so that resampling moves it up.
        assert low <= scores.values[name] * 1.2
        assert high >= scores.values[name]
    assert set(scores.variants) == set(scores.summed) == {"nll", "ece"}


def test_a_probability_of_nothing_is_no_infinity() -> None:
    scores = with_chances(EMPTY, [Chances(probabilities=(1.0, 0.0), right=1)])
    assert scores.values["nll"] == pytest.approx(27.6, abs=0.1)
    assert scores.values["ece"] == 100


def test_only_what_is_asked_for() -> None:
    rows = drawn(5, honest=True)
    assert with_chances(EMPTY, rows, ("accuracy",)) is EMPTY
    assert set(with_chances(EMPTY, rows, ("ece",)).values) == {"ece"}
    assert with_chances(EMPTY, []) is EMPTY


def test_a_system_against_itself_is_no_difference() -> None:
    same = Summed.mean([0.0, 100.0, 100.0])
    found = compare(same, same)
    assert (found.value, found.interval, found.p) == (0.0, (0.0, 0.0), 1.0)


def test_pairs_show_what_two_intervals_hide() -> None:
    """Rows differ a lot, systems a little: the intervals overlap, and the paired test sees the difference."""
    hard = np.random.default_rng(1).normal(50, 20, 300)
    one, other = Summed.mean(list(hard + 1 + np.random.default_rng(2).normal(0, 2, 300))), Summed.mean(list(hard))
    assert one.estimate()[1][0] < other.estimate()[1][1]
    found = compare(one, other)
    assert found.p < 0.01
    assert found.interval[0] > 0
    assert found.value == pytest.approx(1, abs=0.5)
    back = compare(other, one)
    assert (back.value, back.p) == pytest.approx((-found.value, found.p))


def test_p_is_seldom_small_without_a_difference() -> None:
    """Under no difference p is below 0.05 about one time in twenty."""
    generator = np.random.default_rng(3)
    small = 0
    for _ in range(100):
        rows = generator.normal(0, 1, 120)
        small += compare(Summed.mean(list(rows + generator.normal(0, 1, 120))), Summed.mean(list(rows))).p < 0.05
    assert small <= 12


def test_rows_must_be_the_same() -> None:
    with pytest.raises(CountMismatch, match="2 rows of one system and 3 of the other"):
        compare(Summed.mean([1, 2]), Summed.mean([1, 2, 3]))
