"""SuperGLUE's metrics, by hand and against other implementations of the same definitions."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epigraph.errors import BadValue, CountMismatch, TooFewExamples
from epigraph.tasks.base import Example, Scorer
from epigraph.tasks.bootstrap import BOOTSTRAP_SEED, NUM_RESAMPLES, compare
from epigraph.tasks.superglue_metrics import (
    CB_LABELS,
    names_referent,
    score_candidates,
    score_cb,
    score_choices,
    score_multirc,
    score_record,
    score_wsc,
)

TRUE = ("False", "True")
needs_sklearn = pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="scikit-learn is not installed")


def rows_of(wanted: Sequence[str], groups: Sequence[str] | None = None) -> list[Example]:
    groups = groups or [""] * len(wanted)
    return [Example(source="s", references=(x,), group=group) for x, group in zip(wanted, groups, strict=True)]


# Labels


def test_an_answer_is_the_label_letter_for_letter() -> None:
    scores = score_choices(["True", "true", " False\n", ""], rows_of(["True", "True", "False", "False"]), labels=TRUE)
    assert scores.values == {"accuracy": 50.0, "illegal_share": 50.0}


def test_cb_counts_a_label_that_nobody_uses_as_zero() -> None:
    answers = ["entailment", "entailment", "contradiction", "perhaps"]
    wanted = ["entailment", "contradiction", "contradiction", "entailment"]
    scores = score_cb(answers, rows_of(wanted))
    # entailment: 1 right of 2 answers and 2 labels; contradiction: 1 right of 1 answer and 2 labels; neutral: unseen.
    assert scores.values["macro_f1"] == pytest.approx(100 * (2 * 1 / 4 + 2 * 1 / 3 + 0) / 3)
    assert scores.values["accuracy"] == 50
    assert scores.values["illegal_share"] == 25
    assert "all three labels" in scores.variants["macro_f1"]


cb_rows = st.lists(
    st.tuples(st.sampled_from([*CB_LABELS, "x", ""]), st.sampled_from(CB_LABELS)), min_size=1, max_size=9
)


@needs_sklearn
@settings(max_examples=100, deadline=None)
@given(cb_rows)
def test_cb_equals_scikit_learn_over_the_three_labels(rows: list[tuple[str, str]]) -> None:
    from sklearn.metrics import fbeta_score  # type: ignore[import-not-found,unused-ignore]

    numbers = {name: number for number, name in enumerate(CB_LABELS)}
    answers, wanted = [numbers.get(x, -1) for x, _ in rows], [numbers[y] for _, y in rows]
    want = fbeta_score(wanted, answers, beta=1, labels=range(3), average="macro", zero_division=0)
    got = score_cb([x for x, _ in rows], rows_of([y for _, y in rows]), {"macro_f1"}).values
    assert got == {"macro_f1": pytest.approx(100 * want)}


# MultiRC


def test_multirc_by_hand() -> None:
    wanted = ["True", "False", "True", "False", "True"]
    answers = ["True", "False", "False", "True", "maybe"]
    scores = score_multirc(answers, rows_of(wanted, ["q1", "q1", "q2", "q2", "q3"]))
    # True is said twice, once rightly, and is the label of three; "maybe" counts as False.
    assert scores.values["f1a"] == pytest.approx(100 * 2 * 1 / (2 + 3))
    assert scores.values["em"] == pytest.approx(100 / 3)
    assert scores.values["illegal_share"] == 20
    assert scores.num_examples == 5


def test_an_illegal_answer_to_a_wrong_one_counts_as_true() -> None:
    assert score_multirc(["True", "maybe"], rows_of(["True", "False"])).values["f1a"] == pytest.approx(100 * 2 / 3)
    assert score_multirc(["True", "False"], rows_of(["True", "False"])).values["f1a"] == 100


def test_rows_without_a_group_are_questions_of_their_own() -> None:
    assert score_multirc(["True", "False"], rows_of(["True", "True"])).values["em"] == 50
    assert score_multirc(["True", "False"], rows_of(["True", "True"], ["q", "q"])).values["em"] == 0


def test_answers_to_a_question_need_not_stand_together() -> None:
    scores = score_multirc(["True", "True", "False"], rows_of(["True", "True", "True"], ["a", "b", "a"]))
    assert scores.values["em"] == 50
    assert len(scores.summed["em"].statistics) == len(scores.summed["f1a"].statistics) == 2


judged = st.lists(
    st.tuples(st.sampled_from(["True", "False", "x"]), st.sampled_from(TRUE), st.sampled_from("abc")),
    min_size=1,
    max_size=9,
)


@needs_sklearn
@settings(max_examples=100, deadline=None)
@given(judged)
def test_multirc_equals_scikit_learn_and_a_count_by_question(rows: list[tuple[str, str, str]]) -> None:
    from sklearn.metrics import f1_score  # type: ignore[import-not-found,unused-ignore]

    wanted = np.array([label == "True" for _, label, _ in rows])
    said = np.array([(answer == "True") if answer in TRUE else label == "False" for answer, label, _ in rows])
    by_question = groupby(sorted(rows, key=lambda x: x[2]), key=lambda x: x[2])
    exact = [all(answer == label for answer, label, _ in some) for _, some in by_question]
    scores = score_multirc([x for x, _, _ in rows], rows_of([y for _, y, _ in rows], [z for _, _, z in rows]))
    assert scores.values["f1a"] == pytest.approx(100 * f1_score(wanted, said, zero_division=0))
    assert scores.values["em"] == pytest.approx(100 * np.mean(exact))


def test_questions_are_resampled_and_not_answers() -> None:
    wanted = ["True", "False", "True", "False", "True", "True"]
    answers = ["True", "False", "False", "False", "True", "x"]
    groups = ["a", "a", "a", "b", "b", "c"]
    random = np.random.default_rng(BOOTSTRAP_SEED)
    drawn = []
    for _ in range(NUM_RESAMPLES):
        numbers = [i for group in random.integers(3, size=3) for i in range(6) if groups[i] == "abc"[group]]
        right = sum(wanted[i] == answers[i] == "True" for i in numbers)
        both = sum(wanted[i] == "True" for i in numbers) + sum(answers[i] == "True" for i in numbers)
        drawn.append(100 * 2 * right / both)
    scores = score_multirc(answers, rows_of(wanted, groups))
    assert scores.intervals["f1a"] == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])))
    assert "resamples of the questions" in scores.variants["f1a"]


# ReCoRD


def query(*answers: str, choices: Sequence[str] = ()) -> Example:
    return Example(source="p", references=answers, further={"choices": "\n".join(choices)})


def test_record_by_hand() -> None:
    rows = [
        query("Ana Ruiz", "Ruiz", choices=["Ana Ruiz", "Ruiz", "Smith, Jones & Co."]),
        query("Harbour Town", choices=["Harbour Town", "Gulls"]),
        query("Smith, Jones & Co.", choices=["Smith, Jones & Co."]),
    ]
    scores = score_record(["the ruiz.", "Harbour Bay Town", "Gulls"], rows)
    assert scores.values["em"] == pytest.approx(100 / 3)
    assert scores.values["f1"] == pytest.approx((100 + 80 + 0) / 3)
    assert scores.values["illegal_share"] == pytest.approx(100 * 2 / 3)


def test_entities_are_compared_like_answers_and_any_words_will_do_without_them() -> None:
    legal = query("x", choices=["Smith, Jones & Co.", "The Gulls"])
    for text, share in (("smith jones co", 0), ("gulls", 0), ("Smith", 100), ("", 100), ("the", 100)):
        assert score_record([text], [legal], {"illegal_share"}).values == {"illegal_share": share}
    assert score_record(["anything"], [query("x")]).values["illegal_share"] == 0
    assert score_record(["  "], [query("x")]).values["illegal_share"] == 100


# WSC


@pytest.mark.parametrize(
    ("answer", "referent", "same"),
    [
        ("the cat", "The cat", True),
        ("cat", "my grey cat", True),
        ("the big grey cat", "grey cat", True),
        ("grey dog", "grey cat", False),
        ("cat", "Ben's cat", False),
        ("Ben's cat", "the cat", False),
        ("Ben's cat", "Ben's grey cat", True),
        ("cat.", "cat", False),
        ("grey  cat", "old grey cat", False),
        ("cat grey", "grey cat", True),
        ("his", "cat", False),
        ("cat", "his", False),
        ("the sponsors", "these sponsors", True),
    ],
)
def test_what_counts_as_the_same_referent(answer: str, referent: str, same: bool) -> None:
    assert names_referent(answer, referent) is same


def referent(text: str, label: str) -> Example:
    return Example(source="s", references=(text,), further={"label": label})


def test_wsc_is_whether_the_answer_agrees_with_the_label() -> None:
    rows = [referent("the cat", "True"), referent("the cat", "True"), referent("the cat", "False")]
    rows += [referent("the cat", "False"), referent("the cat", "False")]
    scores = score_wsc(["cat", "dog", "cat", "dog", " The "], rows)
    assert scores.values == {"accuracy": 40.0, "illegal_share": 20.0}
    assert score_wsc(["cat"], rows_of(["the cat"])).values["accuracy"] == 100


# Candidates


def test_own_candidates() -> None:
    rows = [Example(source="s", references=("it rained",), candidates=("it rained", "it shone")) for _ in range(4)]
    scores = score_candidates(["it rained ", "it shone", "It rained", "it rained"], rows)
    assert scores.values == {"accuracy": 50.0, "illegal_share": 25.0}
    bad = [Example(source="s", references=("a",), candidates=("b", "c"))]
    with pytest.raises(BadValue, match="row 0: got the reference 'a', expected one of the row's own candidates, b, c;"):
        score_candidates(["b"], bad)
    with pytest.raises(BadValue, match="the row's own candidates, which are none; score texts with another task"):
        score_candidates(["b"], rows_of(["a"]))


# All of them

ROWS: dict[Scorer, tuple[list[str], list[Example]]] = {
    score_cb: (["neutral", "entailment"], rows_of(["neutral", "neutral"])),
    score_multirc: (["True", "True"], rows_of(["True", "False"])),
    score_record: (["a b", "c"], [query("a"), query("c")]),
    score_wsc: (["cat", "dog"], rows_of(["cat", "cat"])),
    score_candidates: (
        ["b", "c"],
        [Example(source="s", references=("b",), candidates=("b", "c")) for _ in range(2)],
    ),
}


@pytest.mark.parametrize("score", ROWS, ids=lambda x: x.__name__)
def test_only_what_is_wanted_is_computed_and_is_the_same(score: Scorer) -> None:
    predictions, rows = ROWS[score]
    everything = score(predictions, rows)
    assert set(everything.values) == set(everything.variants) == set(everything.intervals) == set(everything.summed)
    assert len(everything.values) >= 2
    for name, value in everything.values.items():
        one = score(predictions, rows, [name])
        assert (one.values, one.intervals) == ({name: value}, {name: everything.intervals[name]})
    assert score(predictions, rows, ["bleu"]).values == {}


@pytest.mark.parametrize("score", ROWS, ids=lambda x: x.__name__)
def test_rows_that_do_not_pair_up_are_refused(score: Scorer) -> None:
    _, rows = ROWS[score]
    with pytest.raises(CountMismatch, match="got 1 predictions for 2 rows"):
        score(["True"], rows)
    with pytest.raises(TooFewExamples, match="got no predictions"):
        score([], [])


def test_a_reference_that_is_no_label_is_refused() -> None:
    for score, labels in ((score_cb, "entailment, contradiction, neutral"), (score_multirc, "False, True")):
        with pytest.raises(BadValue, match=f"row 1: got the reference '1', expected one of the labels {labels}"):
            score(["True", "True"], rows_of([labels.split(", ")[0], "1"]))


def test_two_systems_are_compared_question_by_question() -> None:
    rows = rows_of(["True", "False"] * 20, [f"q{number // 2}" for number in range(40)])
    good, bad = score_multirc([x.references[0] for x in rows], rows), score_multirc(["True"] * 40, rows)
    difference = compare(good.summed["em"], bad.summed["em"])
    assert (difference.value, difference.p < 0.05) == (100, True)
    assert compare(good.summed["f1a"], bad.summed["f1a"]).value == pytest.approx(100 - 100 * 2 / 3)
