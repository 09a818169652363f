"""QQP and MRPC: T5's words, one set in the other's words, and F1 of the positive label."""

from __future__ import annotations

import gzip
import importlib.util
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epigraph.contract import TextContract
from epigraph.errors import BadRows, BadValue, CountMismatch
from epigraph.tasks.base import Example, Task
from epigraph.tasks.bootstrap import BOOTSTRAP_SEED, NUM_RESAMPLES, compare
from epigraph.tasks.paraphrase import TASKS, score_pairs

LABELS = ("no", "yes")
SPLITS = ("train", "dev", "test")


def task(name: str) -> Task:
    return TASKS[name]()


def rows_of(wanted: Sequence[str]) -> list[Example]:
    return [Example(source="s", references=(x,)) for x in wanted]


def put(folder: Path, file: str, rows: Sequence[object]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(gzip.compress("".join(json.dumps(x) + "\n" for x in rows).encode()))
    return folder / file


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EPIGRAPH_DATA", str(tmp_path))
    monkeypatch.setenv("EPIGRAPH_HOME", str(tmp_path / "home"))
    put(tmp_path / "qqp", "dev.jsonl.gz", [{"question1": "Why?", "question2": "How so?", "label": 1}])
    put(tmp_path / "mrpc", "dev.jsonl.gz", [{"sentence1": "It rained .", "sentence2": "It snowed .", "label": 0}])
    return tmp_path


def written(made: Task) -> tuple[str, str]:
    """What the model reads and is to say."""
    [row] = made.load("dev")
    contract = TextContract(input_template=made.input_template)
    return contract.source_text({"source": row.source, **row.further}), row.references[0]


def test_pairs_are_written_as_t5_writes_them(small: Path) -> None:
    assert written(task("qqp")) == ("question1: Why? question2: How so?\n", "duplicate")
    assert written(task("mrpc")) == ("sentence1: It rained . sentence2: It snowed .\n", "not_equivalent")


def test_either_set_in_the_others_words(small: Path) -> None:
    assert written(task("qqp-as-mrpc")) == ("sentence1: Why? sentence2: How so?\n", "equivalent")
    assert written(task("mrpc-as-qqp")) == ("question1: It rained . question2: It snowed .\n", "not_duplicate")


@pytest.mark.parametrize(("trained", "asked"), [("qqp", "mrpc-as-qqp"), ("mrpc", "qqp-as-mrpc")])
def test_what_is_trained_on_one_is_asked_and_scored_about_the_other(small: Path, trained: str, asked: str) -> None:
    """Its text contract fits the rows, and what it learnt to say is a label there."""
    here, there = task(trained), task(asked)
    assert here.input_template == there.input_template
    [learnt], [row] = here.load("dev"), there.load("dev")
    assert row.further.keys() == learnt.further.keys()
    assert there.score([learnt.references[0]], [row]).values["illegal_share"] == 0
    own = task(asked.split("-", maxsplit=1)[0])
    assert own.score([learnt.references[0]], own.load("dev")).values["illegal_share"] == 100


def test_the_model_says_the_label(small: Path) -> None:
    for name in TASKS:
        made = task(name)
        assert made.name == name
        assert (made.labels, made.label_words) == ((), ())
        assert made.headline in made.better_when_higher
        assert "illegal_share" not in made.better_when_higher
        assert tuple(made.splits) == SPLITS


def test_bad_rows_are_all_told(small: Path) -> None:
    pair = {"question1": "a", "question2": "b"}
    bad = [{**pair, "label": x} for x in (2, True, "1", -1, 1.0)]
    file = put(small / "qqp", "dev.jsonl.gz", [{**pair, "label": 0}, *bad, pair, {"question1": "", "label": 1}, 7])
    with pytest.raises(BadRows) as caught:
        task("qqp").load("dev")
    expected = "expected a number from 0 to 1"
    assert str(caught.value).splitlines() == [
        f"8 bad rows in {file}",
        f"{file}:2: field label: got 2, {expected}",
        f"{file}:3: field label: got true, {expected}",
        f'{file}:4: field label: got "1", {expected}',
        f"{file}:5: field label: got -1, {expected}",
        f"{file}:6: field label: got 1.0, {expected}",
        f"{file}:7: field label: got nothing, {expected}",
        f'{file}:8: field question1: got "", expected text that is not empty',
        f"{file}:8: field question2: got nothing, expected text",
        f"{file}:9: row: got 7, expected an object with question1, question2, label",
    ]


# Metrics

ANSWERS, WANTED = ["yes", " yes\n", "no", "no", "maybe", "maybe", "Yes"], ["yes", "no", "yes", "no", "yes", "no", "no"]


def test_scores_by_hand() -> None:
    scores = score_pairs(ANSWERS, rows_of(WANTED), labels=LABELS)
    # An illegal answer to a yes is a no, to a no a yes: answers yes, yes, no, no, no, yes, yes; one of them right.
    assert scores.values["f1"] == pytest.approx(100 * 2 * 1 / (4 + 3))
    assert scores.values["accuracy"] == pytest.approx(100 * 2 / 7)
    assert scores.values["illegal_share"] == pytest.approx(100 * 3 / 7)
    assert set(scores.values) == set(scores.variants) == set(scores.intervals) == set(scores.summed)
    assert "F1 of the label yes" in scores.variants["f1"]


def test_nothing_positive_is_no_f1_and_no_warning() -> None:
    assert score_pairs(["no"], rows_of(["no"]), ["f1"], labels=LABELS).values == {"f1": 0}


def twin_f1(answers: Sequence[str], wanted: Sequence[str]) -> float:
    """Illegal answers replaced first, then by precision and recall."""
    opposite = {"yes": "no", "no": "yes"}
    legal = [x if x in LABELS else opposite[label] for x, label in zip(answers, wanted, strict=True)]
    right = sum(x == y == "yes" for x, y in zip(legal, wanted, strict=True))
    if not right:
        return 0.0
    precision, recall = right / legal.count("yes"), right / list(wanted).count("yes")
    return 100 * 2 * precision * recall / (precision + recall)


answered = st.lists(st.tuples(st.sampled_from(["yes", "no", "x", ""]), st.sampled_from(LABELS)), min_size=1, max_size=9)


@settings(max_examples=100, deadline=None)
@given(answered)
def test_f1_equals_its_slow_twin(rows: list[tuple[str, str]]) -> None:
    answers, wanted = [x for x, _ in rows], [y for _, y in rows]
    got = score_pairs(answers, rows_of(wanted), ["f1"], labels=LABELS).values
    assert got == {"f1": pytest.approx(twin_f1(answers, wanted))}


@pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="scikit-learn is not installed")
@settings(max_examples=100, deadline=None)
@given(answered)
def test_f1_equals_scikit_learns(rows: list[tuple[str, str]]) -> None:
    from sklearn.metrics import f1_score  # type: ignore[import-not-found,unused-ignore]

    wanted = [y for _, y in rows]
    legal = [x if x in LABELS else LABELS[1 - LABELS.index(y)] for x, y in rows]
    want = f1_score(wanted, legal, pos_label="yes", zero_division=0)
    assert score_pairs([x for x, _ in rows], rows_of(wanted), labels=LABELS).values["f1"] == pytest.approx(100 * want)


def test_intervals_equal_scoring_every_resample_again() -> None:
    random = np.random.default_rng(BOOTSTRAP_SEED)
    draws = [random.integers(7, size=7) for _ in range(NUM_RESAMPLES)]
    answers = [x.strip() for x in ANSWERS]
    again = [twin_f1([answers[i] for i in draw], [WANTED[i] for i in draw]) for draw in draws]
    scores = score_pairs(ANSWERS, rows_of(WANTED), labels=LABELS)
    assert scores.intervals["f1"] == pytest.approx(tuple(np.percentile(again, [2.5, 97.5])))


def test_two_systems_are_compared_in_f1() -> None:
    wanted = ["yes", "no"] * 30
    right, wrong = (score_pairs(x, rows_of(wanted), labels=LABELS) for x in (wanted, ["yes"] * 60))
    difference = compare(right.summed["f1"], wrong.summed["f1"])
    assert difference.value == pytest.approx(100 - 100 * 2 / 3)
    assert difference.p < 0.01


def test_only_what_is_wanted_is_computed_and_is_the_same() -> None:
    everything = score_pairs(ANSWERS, rows_of(WANTED), labels=LABELS)
    assert score_pairs(ANSWERS, rows_of(WANTED), ["bleu"], labels=LABELS).values == {}
    for name, value in everything.values.items():
        one = score_pairs(ANSWERS, rows_of(WANTED), [name], labels=LABELS)
        assert (one.values, one.intervals) == ({name: value}, {name: everything.intervals[name]})
        assert set(one.variants) == set(one.summed) == {name}


def test_rows_without_one_label_are_refused() -> None:
    with pytest.raises(BadValue, match="row 0: got the reference 'maybe', expected one of the labels no, yes"):
        score_pairs(["no"], rows_of(["maybe"]), ["f1"], labels=LABELS)
    with pytest.raises(CountMismatch, match="got 1 predictions for 2 rows"):
        score_pairs(["no"], rows_of(["no", "no"]), labels=LABELS)


# The real files


@pytest.mark.parametrize(
    ("name", "label", "sizes", "positive"),
    [
        ("qqp", "duplicate", [7_966, 1_000, 1_033], [2_867, 377, 385]),
        ("mrpc", "equivalent", [3_668, 408, 1_725], [2_474, 279, 1_147]),
    ],
)
def test_the_real_files(epigraph_data: Path, name: str, label: str, sizes: list[int], positive: list[int]) -> None:
    rows = {split: task(name).load(split) for split in SPLITS}
    assert [len(x) for x in rows.values()] == sizes
    assert [Counter(y.references[0] for y in some)[label] for some in rows.values()] == positive
    pairs = [{(x.source, x.further["second"]) for x in some} for some in rows.values()]
    assert not pairs[0] & pairs[1] | pairs[0] & pairs[2] | pairs[1] & pairs[2]
