"""ROUGE of summaries: by hand, by a twin written from the paper, by the library, and its means and intervals."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.scoring import BootstrapAggregator

from epigraph.errors import CountMismatch, TooFewExamples
from epigraph.tasks.base import Example
from epigraph.tasks.bootstrap import compare
from epigraph.tasks.rouge import BETTER_WHEN_HIGHER, HEADLINE, METRICS, score_rouge

KINDS = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL", "rouge_lsum": "rougeLsum"}
PREDICTIONS = [
    "The harbour was closed after storms damaged its walls.",
    "Council votes\nto rebuild the old bridges",
    "",
    "A fox ran.",
    "Two players signed, and a third is signing.",
    "£££ --- !",
    "rain rain rain",
]
REFERENCES = [
    ("A storm has damaged the harbour wall and closed it.",),
    ("The council is voting on a bridge.", "Old bridges\nwill be rebuilt by the council"),
    ("Nothing was said.",),
    ("A fox runs", "The fox ran away."),
    ("A third player signs.",),
    ("Prices rise by £3.",),
    ("Rain, and more rain", "rain"),
]


def rows_of(references: Sequence[Sequence[str]]) -> list[Example]:
    return [Example(source="s", references=tuple(row)) for row in references]


def one(prediction: str, *references: str, stem: bool = True) -> dict[str, float]:
    """The four F1 of one row, as shares."""
    values = score_rouge([prediction], rows_of([references]), KINDS, stem=stem).values
    return {name: value / 100 for name, value in values.items()}


# By hand


def test_f1_by_hand() -> None:
    # All 4 words are among 6; of 3 pairs one ("the cat") is among 5; "the cat on mat" is a subsequence.
    assert one("the cat on mat", "The cat sat on the mat.") == {
        "rouge_1": pytest.approx(2 * 1 * (4 / 6) / (1 + 4 / 6)),
        "rouge_2": pytest.approx(2 * (1 / 3) * (1 / 5) / (1 / 3 + 1 / 5)),
        "rouge_l": pytest.approx(0.8),
        "rouge_lsum": pytest.approx(0.8),
    }
    # A word counts as often as both have it.
    assert one("the the the", "the cat the")["rouge_1"] == pytest.approx(2 / 3)
    # Words in another order: all words, one in order.
    assert one("mat cat", "cat mat") == pytest.approx({"rouge_1": 1, "rouge_2": 0, "rouge_l": 0.5, "rouge_lsum": 0.5})


def test_summary_level_is_the_union_of_sentences() -> None:
    """The example of Lin 2004, section 3.2: w1 w2 and w1 w3 w5 are together 4 of the reference's 5 words."""
    scores = one("w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5", "w1 w2 w3 w4 w5")
    recall, precision = 4 / 5, 4 / 10
    assert scores["rouge_lsum"] == pytest.approx(2 * precision * recall / (precision + recall))
    # As one line w1 w2 w3 w5 are in order too, only with other words between.
    assert one("w3 w4\nw1 w2", "w1 w2\nw3 w4") == pytest.approx(
        {"rouge_1": 1, "rouge_2": 2 / 3, "rouge_l": 0.5, "rouge_lsum": 1}
    )


def test_the_stemmer_is_on_and_can_be_off() -> None:
    assert one("bridges voted", "Bridge votes")["rouge_1"] == 1
    assert one("bridges voted", "Bridge votes", stem=False)["rouge_1"] == 0
    # Words of three letters stay: "ran" and "runs" have no stem in common either.
    assert one("was", "wa")["rouge_1"] == 0


def test_the_best_reference_is_chosen_for_each_metric() -> None:
    by_words, by_order = "d c b a", "a b x y z"
    alone = [one("a b c d", text) for text in (by_words, by_order)]
    assert alone[0]["rouge_1"] > alone[1]["rouge_1"]
    assert alone[0]["rouge_2"] < alone[1]["rouge_2"]
    assert one("a b c d", by_words, by_order) == {name: max(x[name] for x in alone) for name in KINDS}


def test_nothing_to_read_is_nothing() -> None:
    for text in ("", " \n ", "£££ — …"):
        assert set(one(text, "A fox ran.").values()) == {0}
    assert set(one("A fox ran.", "£££").values()) == {0}
    assert score_rouge(["", ""], rows_of([["a"], ["b"]])).values == dict.fromkeys(METRICS, 0)


# By a twin written from Lin 2004, and by the library itself


def f1(hits: int, have: int, wanted: int) -> float:
    return 2 * hits / (have + wanted) if hits else 0.0


def twin_ngrams(n: int, have: Sequence[str], wanted: Sequence[str]) -> float:
    one, other = (Counter(zip(*(words[i:] for i in range(n)), strict=False)) for words in (have, wanted))
    return f1((one & other).total(), one.total(), other.total())


def twin_longest(have: tuple[str, ...], wanted: tuple[str, ...]) -> float:
    @cache
    def longest(i: int, j: int) -> int:
        if i == len(have) or j == len(wanted):
            return 0
        both = 1 + longest(i + 1, j + 1) if have[i] == wanted[j] else 0
        return max(both, longest(i + 1, j), longest(i, j + 1))

    return f1(longest(0, 0), len(have), len(wanted))


@given(*[st.lists(st.sampled_from(["fox", "ran", "a", "b2"]), max_size=9)] * 2)
@settings(max_examples=60, deadline=None)
def test_the_twin_agrees(have: list[str], wanted: list[str]) -> None:
    scores = one(" ".join(have), " ".join(wanted), stem=False)
    longest = twin_longest(tuple(have), tuple(wanted))
    twin = {"rouge_1": twin_ngrams(1, have, wanted), "rouge_2": twin_ngrams(2, have, wanted), "rouge_l": longest}
    # One line each: a summary of one sentence.
    assert scores == pytest.approx({**twin, "rouge_lsum": longest})


@pytest.mark.parametrize("stem", [True, False])
def test_every_row_is_the_librarys(stem: bool) -> None:
    scorer = RougeScorer([*KINDS.values()], use_stemmer=stem)
    scores = score_rouge(PREDICTIONS, rows_of(REFERENCES), stem=stem)
    for name, kind in KINDS.items():
        rows = [
            max(100 * scorer.score(wanted, text)[kind].fmeasure for wanted in row)
            for text, row in zip(PREDICTIONS, REFERENCES, strict=True)
        ]
        assert 0 < np.mean(rows) < 100
        assert scores.values[name] == pytest.approx(np.mean(rows))
        assert scores.summed[name].statistics == pytest.approx(np.array([[x, 1] for x in rows]))


def test_what_the_library_prints_is_a_resampled_median_near_ours() -> None:
    """``mid`` moves with the seed; the mean is in the aggregator's interval, and the two intervals are the same."""
    words = np.random.default_rng(0).choice(["fox", "ran", "home", "late", "red"], size=(200, 2, 6))
    pairs = [(" ".join(have), " ".join(wanted)) for have, wanted in words]
    scores = score_rouge([x for x, _ in pairs], rows_of([[x] for _, x in pairs]))
    scorer = RougeScorer([*KINDS.values()], use_stemmer=True)
    mids = set()
    for seed in (1, 2):
        np.random.seed(seed)
        aggregator = BootstrapAggregator()
        for have, wanted in pairs:
            aggregator.add_scores(scorer.score(wanted, have))
        printed = aggregator.aggregate()
        mids.add(printed["rouge2"].mid.fmeasure)
        for name, kind in KINDS.items():
            low, middle, high = (100 * x.fmeasure for x in printed[kind])
            assert low < scores.values[name] < high
            assert scores.values[name] == pytest.approx(middle, abs=0.05 * (high - low))
            assert scores.intervals[name] == pytest.approx((low, high), abs=0.1 * (high - low))
    assert len(mids) == 2


# What a reader is told


def test_variants_say_what_a_reader_must_know() -> None:
    scores = score_rouge(PREDICTIONS, rows_of(REFERENCES))
    assert tuple(scores.values) == tuple(scores.variants) == tuple(scores.intervals) == METRICS
    for name in KINDS:
        for part in (f"rouge-score {version('rouge-score')}", "best reference", "Porter stems", "mean of the rows"):
            assert part in scores.variants[name]
        assert "no stemmer" in score_rouge(["a"], rows_of([["a"]]), stem=False).variants[name]
    assert "sentences, which are lines" in scores.variants["rouge_lsum"]
    assert len(set(scores.variants.values())) == len(METRICS)


def test_lengths_count_words_between_blanks() -> None:
    scores = score_rouge(["a b\nc-d", "£ x"], rows_of([["a"], ["b"]]))
    assert scores.values["mean_length_words"] == 2.5


def test_only_what_is_asked_for_is_computed() -> None:
    for name in METRICS:
        assert set(score_rouge(["a"], rows_of([["a"]]), {name}).values) == {name}
    assert score_rouge(["a"], rows_of([["a"]]), {"bleu"}).values == {}
    assert {HEADLINE} < set(BETTER_WHEN_HIGHER) == set(METRICS) - {"mean_length_words"}


def test_rows_must_pair_up() -> None:
    with pytest.raises(CountMismatch, match="got 1 predictions for 2 rows of references, expected one a row"):
        score_rouge(["a"], rows_of([["a"], ["b"]]))
    with pytest.raises(CountMismatch, match="row 0: got no reference"):
        score_rouge(["a"], rows_of([[]]))
    with pytest.raises(TooFewExamples, match="got no predictions to score"):
        score_rouge([], [])


def test_two_systems_are_compared_row_by_row() -> None:
    examples = rows_of([[f"fox number {x} ran"] for x in range(40)])
    better = score_rouge([f"fox number {x} ran" for x in range(40)], examples).summed["rouge_2"]
    worse = score_rouge([f"fox number {x} sat" for x in range(40)], examples).summed["rouge_2"]
    difference = compare(better, worse)
    assert difference.value == pytest.approx(100 - 200 / 3)
    assert difference.p < 0.01


def test_the_library_is_imported_when_it_is_needed() -> None:
    code = "import sys, epigraph.tasks.rouge; print(sorted({'nltk', 'rouge_score'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
