"""Tasks answered by one of a few labels, a user's own labels, the metrics of both, and AG News as headlines."""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epigraph.errors import BadRows, BadValue, CountMismatch, DataError, DataNotFound, TooFewExamples
from epigraph.tasks import topics
from epigraph.tasks.base import Example
from epigraph.tasks.bootstrap import BOOTSTRAP_SEED, NUM_RESAMPLES
from epigraph.tasks.catalogue import find, own_data
from epigraph.tasks.choice_metrics import score_labels
from epigraph.tasks.classification import SENTIMENTS, TASKS, TOPICS, TREC_LABELS, TREC_WORDS
from epigraph.tasks.lines import is_held_out, read_records

LABELS = ("a", "b", "c")
PAGE = Path(__file__).parents[1] / "docs" / "data.md"
ANSWERS, WANTED = ["a", "a", " b\n", "x", "b", "A"], ["a", "b", "b", "b", "b", "a"]


def rows_of(wanted: Sequence[str]) -> list[Example]:
    return [Example(source="s", references=(label,)) for label in wanted]


def twin_macro_f1(answers: Sequence[str], wanted: Sequence[str]) -> float:
    """By precision and recall, one label at a time."""
    scores = []
    for label in sorted({*answers, *wanted} & set(LABELS)):
        right = sum(x == y == label for x, y in zip(answers, wanted, strict=True))
        precision = right / answers.count(label) if label in answers else 0.0
        recall = right / list(wanted).count(label) if label in wanted else 0.0
        scores.append(2 * precision * recall / (precision + recall) if right else 0.0)
    return 100 * sum(scores) / len(scores)


def put(folder: Path, file: str, rows: Sequence[object]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(gzip.compress("".join(json.dumps(x) + "\n" for x in rows).encode()))
    return folder / file


# Metrics


def test_scores_by_hand() -> None:
    scores = score_labels(ANSWERS, rows_of(WANTED), labels=LABELS)
    assert scores.values["accuracy"] == pytest.approx(100 * 3 / 6)
    assert scores.values["illegal_share"] == pytest.approx(100 * 2 / 6)
    # a: 1 right, 2 answers, 2 labels; b: 2 right, 2 answers, 4 labels; c: in neither, left out.
    assert scores.values["macro_f1"] == pytest.approx(100 * (2 / 4 + 4 / 6) / 2)
    assert scores.num_examples == 6
    assert set(scores.values) == set(scores.variants) == set(scores.intervals)


answered = st.lists(st.tuples(st.sampled_from([*LABELS, "x", ""]), st.sampled_from(LABELS)), min_size=1, max_size=9)


@settings(max_examples=100, deadline=None)
@given(answered)
def test_macro_f1_equals_its_slow_twin(rows: list[tuple[str, str]]) -> None:
    answers, wanted = [x for x, _ in rows], [y for _, y in rows]
    got = score_labels(answers, rows_of(wanted), ["macro_f1"], labels=LABELS).values
    assert got == {"macro_f1": pytest.approx(twin_macro_f1(answers, wanted))}


@pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="scikit-learn is not installed")
@settings(max_examples=100, deadline=None)
@given(answered)
def test_macro_f1_equals_scikit_learns(rows: list[tuple[str, str]]) -> None:
    from sklearn.metrics import f1_score  # type: ignore[import-not-found,unused-ignore]

    answers, wanted = [x for x, _ in rows], [y for _, y in rows]
    seen = sorted({*answers, *wanted} & set(LABELS))
    want = f1_score(wanted, answers, labels=seen, average="macro", zero_division=0)
    assert score_labels(answers, rows_of(wanted), labels=LABELS).values["macro_f1"] == pytest.approx(100 * want)


def test_intervals_equal_scoring_every_resample_again() -> None:
    random = np.random.default_rng(BOOTSTRAP_SEED)
    draws = [random.integers(6, size=6) for _ in range(NUM_RESAMPLES)]
    legal = [x.strip() for x in ANSWERS]
    f1 = [twin_macro_f1([legal[i] for i in draw], [WANTED[i] for i in draw]) for draw in draws]
    accuracy = [100 * np.mean([legal[i] == WANTED[i] for i in draw]) for draw in draws]
    scores = score_labels(ANSWERS, rows_of(WANTED), labels=LABELS)
    assert scores.intervals["macro_f1"] == pytest.approx(tuple(np.percentile(f1, [2.5, 97.5])))
    assert scores.intervals["accuracy"] == pytest.approx(tuple(np.percentile(accuracy, [2.5, 97.5])))
    assert scores.intervals["accuracy"][0] < 50 < scores.intervals["accuracy"][1]


def test_only_what_is_wanted_is_computed_and_is_the_same() -> None:
    everything = score_labels(ANSWERS, rows_of(WANTED), labels=LABELS)
    assert score_labels(ANSWERS, rows_of(WANTED), ["bleu"], labels=LABELS).values == {}
    for name, value in everything.values.items():
        one = score_labels(ANSWERS, rows_of(WANTED), [name], labels=LABELS)
        assert (one.values, one.intervals) == ({name: value}, {name: everything.intervals[name]})
        assert set(one.variants) == {name}


def test_rows_without_one_label_are_refused() -> None:
    with pytest.raises(BadValue, match="row 1: got the reference 'd', expected one of the labels a, b, c; score"):
        score_labels(["a", "b"], rows_of(["a", "d"]), labels=LABELS)
    with pytest.raises(CountMismatch, match="row 0: got 2 references, expected the one label"):
        score_labels(["a"], [Example(source="s", references=("a", "b"))], labels=LABELS)
    with pytest.raises(CountMismatch, match="got 1 predictions for 2 rows"):
        score_labels(["a"], rows_of(["a", "b"]), labels=LABELS)
    with pytest.raises(TooFewExamples, match="got no predictions"):
        score_labels([], [], labels=LABELS)


# TREC


def test_trec_is_the_published_set_with_a_tenth_held_out(epigraph_data: Path) -> None:
    task = find("trec")
    train, dev, test = (task.load(split) for split in ("train", "dev", "test"))
    assert (len(train), len(dev), len(test)) == (4_882, 570, 500)
    official = read_records(epigraph_data / "trec" / "train.jsonl.gz", ("text", "coarse"))
    assert len(official) == 5_452
    pairs = Counter((x.source, x.references[0]) for x in [*train, *dev])
    assert pairs == Counter((x["text"], x["coarse"]) for x in official)
    assert not {x.source for x in train} & {x.source for x in dev}
    assert Counter(x.references[0] for x in test) == {
        "DESC": 138, "NUM": 113, "ENTY": 94, "LOC": 81, "HUM": 65, "ABBR": 9,
    }  # fmt: skip
    assert set(task.files) == {"train", "dev", "test"}
    said = " ".join(PAGE.read_text("utf-8").split())
    assert f"{len(dev)} of them, {Counter(x.references[0] for x in dev)['ABBR']} of which are `ABBR`" in said
    repeated = len(official) - len({x["text"] for x in official})
    assert f"{repeated} training questions twice" in said
    assert len({x["text"] for x in official} & {x.source for x in test}) == 10


def test_the_held_out_questions_are_told_by_their_text_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPIGRAPH_DATA", str(tmp_path))
    texts = [f"What is {number} ?" for number in range(40)]
    for order in (texts, texts[::-1]):
        put(tmp_path / "trec", "train.jsonl.gz", [{"text": x, "coarse": "NUM"} for x in order])
        # By sha256sum and bc.
        assert {x.source for x in find("trec").load("dev")} == {"What is 0 ?", "What is 13 ?", "What is 22 ?"}
        assert len(find("trec").load("train")) == 37


def test_trec_scores_labels_and_has_a_word_for_each() -> None:
    task = find("trec")
    assert (task.headline, task.labels, task.label_words) == ("accuracy", TREC_LABELS, TREC_WORDS)
    assert dict(zip(task.labels, task.label_words, strict=True))["HUM"] == "person"
    assert all(word in task.instruction for word in task.label_words)
    scores = task.score(["HUM", "person", "LOC"], rows_of(["HUM", "HUM", "NUM"]))
    assert scores.values["accuracy"] == pytest.approx(100 / 3)
    assert scores.values["illegal_share"] == pytest.approx(100 / 3)
    assert "illegal_share" not in task.better_when_higher


def test_trec_that_is_not_here_or_is_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPIGRAPH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("EPIGRAPH_DATA", str(tmp_path))
    with pytest.raises(DataNotFound) as caught:
        find("trec").load("dev")
    assert str(caught.value) == (
        f"got no file trec/train.jsonl.gz: EPIGRAPH_DATA is {tmp_path}, which lacks trec/train.jsonl.gz; set it to a "
        f"folder that has trec, or put the files into {tmp_path}/home/data/trec; docs/data.md says what is in them"
    )
    rows = [{"text": "t", "coarse": "NUM"}, {"text": "t", "coarse": "num"}, {"text": " ", "coarse": "LOC"}, {}, 3]
    file = put(tmp_path / "trec", "test.jsonl.gz", rows)
    with pytest.raises(BadRows) as bad:
        find("trec").load("test")
    assert str(bad.value).splitlines() == [
        f"4 bad rows in {file}",
        f'{file}:2: field coarse: got "num", expected one of ABBR, DESC, ENTY, HUM, LOC, NUM',
        f'{file}:3: field text: got " ", expected text that is not empty',
        f"{file}:4: field text: got nothing, expected text",
        f"{file}:4: field coarse: got nothing, expected text",
        f"{file}:5: row: got 3, expected an object with text, coarse",
    ]
    put(tmp_path / "trec", "test.jsonl.gz", [])
    with pytest.raises(BadRows, match=r"no rows in .*: got an empty file, expected one row a line: an object with"):
        find("trec").load("test")


# Sentiment, subjectivity, topics

SPLITS = ("train", "dev", "test")


@pytest.mark.parametrize(
    ("name", "sizes", "tested"),
    [
        ("sst2", (67_349, 872, 1_821), {"negative": 912, "positive": 909}),
        ("cr", (2_623, 354, 794), {"positive": 524, "negative": 270}),
        ("subj", (7_025, 996, 1_979), {"objective": 1_007, "subjective": 972}),
        ("agnews", (5_376, 619, 7_600), dict.fromkeys(TOPICS, 1_900)),
    ],
)
def test_the_real_sets(epigraph_data: Path, name: str, sizes: tuple[int, int, int], tested: dict[str, int]) -> None:
    task = TASKS[name]()
    rows = {split: task.load(split) for split in SPLITS}
    assert tuple(len(x) for x in rows.values()) == sizes
    assert Counter(x.references[0] for x in rows["test"]) == tested
    train, dev, test = ({x.source for x in some} for some in rows.values())
    assert not train & dev
    assert not dev & test
    # One sentence of SST-2's test set is a whole training text, as in the official files.
    assert len(train & test) == (name == "sst2")
    assert set(task.files) == set(SPLITS)


def test_every_classification_task_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPIGRAPH_DATA", str(tmp_path))
    monkeypatch.setenv("EPIGRAPH_HOME", str(tmp_path / "home"))
    assert [*TASKS] == ["trec", "sst2", "cr", "subj", "agnews"]
    for name, make in TASKS.items():
        task = make()
        assert task.name == name
        assert len(task.label_words) in (0, len(task.labels))
        assert all(word in task.instruction for word in task.label_words or task.labels)
        assert task.score([task.labels[0]], rows_of([task.labels[0]])).values["accuracy"] == 100
        with pytest.raises(DataNotFound, match=f"got no file {name}/"):
            task.load("test")


def test_labels_by_number_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPIGRAPH_DATA", str(tmp_path))
    put(tmp_path / "sst2", "dev.jsonl.gz", [{"sentence": "fine", "label": 1}, {"sentence": "dull", "label": 0}])
    put(tmp_path / "cr", "dev.jsonl.gz", [{"text": "it broke", "label": 0, "label_text": "negative"}])
    put(tmp_path / "subj", "dev.jsonl.gz", [{"text": "he leaves", "label": 0, "label_text": "objective"}])
    sst2, cr, subj = (TASKS[x]() for x in ("sst2", "cr", "subj"))
    assert [(x.source, x.references) for x in sst2.load("dev")] == [("fine", ("positive",)), ("dull", ("negative",))]
    assert [(x.source, x.references) for x in cr.load("dev")] == [("it broke", ("negative",))]
    assert [(x.source, x.references) for x in subj.load("dev")] == [("he leaves", ("objective",))]
    # What is trained on one set of reviews can be asked about the other.
    assert (sst2.labels, sst2.input_template) == (cr.labels, cr.input_template) == (SENTIMENTS, "{source}\n")
    file = put(tmp_path / "sst2", "dev.jsonl.gz", [{"sentence": "fine", "label": 2}, {"sentence": 1, "label": "1"}])
    with pytest.raises(BadRows) as caught:
        sst2.load("dev")
    assert str(caught.value).splitlines() == [
        f"2 bad rows in {file}",
        f"{file}:1: field label: got 2, expected a number from 0 to 1",
        f"{file}:2: field sentence: got 1, expected text that is not empty",
        f'{file}:2: field label: got "1", expected a number from 0 to 1',
    ]
    (tmp_path / "sst2" / "dev.jsonl.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(
        BadRows, match=r"no rows in .*: got an empty file, expected one row a line: an object with sent"
    ):
        sst2.load("dev")


# AG News


@pytest.fixture
def news(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """40 descriptions, each under two titles, ten of each topic."""
    monkeypatch.setenv("EPIGRAPH_DATA", str(tmp_path))
    texts = [(f"What is {number} ?", number % 4) for number in range(40)]
    rows = [{"title": x, "description": y, "label": label} for y, label in texts for x in ("One", "Two")]
    put(tmp_path / "agnews", "train_subset.jsonl.gz", rows)
    put(tmp_path / "agnews", "test.jsonl.gz", [{"title": "T", "description": "What is 0 ?", "label": 3}])
    return tmp_path


def test_a_description_is_on_one_side(news: Path) -> None:
    dev, train = (TASKS["agnews"]().load(split) for split in ("dev", "train"))
    # By sha256sum and bc, as in TREC.
    texts = ("What is 0 ?", "What is 13 ?", "What is 22 ?")
    assert {x.source for x in dev} == {f"{title} {text}" for title in ("One", "Two") for text in texts}
    assert (len(dev), len(train)) == (6, 74)
    assert [is_held_out(x) for x in (*texts, "What is 1 ?")] == [True, True, True, False]
    assert {x.source: x.references for x in dev}["One What is 13 ?"] == ("Sports",)
    # A test row stays, whatever its description.
    assert [x.references for x in TASKS["agnews"]().load("test")] == [("Sci/Tech",)]


def test_headlines_of_one_topic_are_asked_of_another(news: Path) -> None:
    names = ["agnews-titles", *(f"agnews-titles-{x}" for x in ("world", "sports", "business", "sci-tech"))]
    assert [*topics.TASKS] == names
    tasks = {name: make() for name, make in topics.TASKS.items()}
    assert all(task.name == name and task.headline in task.better_when_higher for name, task in tasks.items())
    assert len({task.input_template for task in tasks.values()}) == 1
    sports = tasks["agnews-titles-sports"]
    assert [(x.source, x.references) for x in sports.load("dev")] == [
        ("What is 13 ?", ("One",)), ("What is 13 ?", ("Two",)),
    ]  # fmt: skip
    assert {x.source for x in sports.load("train")} == {f"What is {x} ?" for x in range(1, 40, 4)} - {"What is 13 ?"}
    assert sports.load("test") == []
    assert len(tasks["agnews-titles-sci-tech"].load("test")) == 1
    for split in SPLITS:
        apart = [x for name in names[1:] for x in tasks[name].load(split)]
        assert sorted(apart, key=str) == sorted(tasks["agnews-titles"].load(split), key=str)
    values = sports.score(["two", "two more"], sports.load("dev")).values
    assert (values["rouge_1"], values["mean_length_words"]) == (pytest.approx(100 / 3), 1.5)


def test_the_real_headlines(epigraph_data: Path) -> None:
    sizes = [[len(make().load(split)) for split in SPLITS] for make in topics.TASKS.values()]
    assert sizes[0] == [5_376, 619, 7_600] == [sum(x) for x in zip(*sizes[1:], strict=True)]
    assert all(min(x) > 100 and x[2] == 1_900 for x in sizes[1:])


# Rows of one's own


def test_own_rows_with_labels_are_scored_by_accuracy(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("source,target\ns,a\nt,b\n")
    task = own_data(file, file, None, "mine", labels=LABELS)
    assert (task.headline, task.labels) == ("accuracy", LABELS)
    assert set(task.better_when_higher) == {"accuracy", "macro_f1"}
    assert task.score(["a", "a"], task.load("dev")).values["accuracy"] == 50
    assert own_data(file, None, None, "mine").headline == "bleu"


def test_own_conversations_may_end_in_a_label(tmp_path: Path) -> None:
    def turns(answer: str) -> dict[str, object]:
        return {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": answer}]}

    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(turns(x)) + "\n" for x in ("a", "d", "b ")))
    with pytest.raises(BadRows) as caught:
        own_data(file, None, None, "mine", labels=LABELS)
    assert str(caught.value).splitlines() == [
        f"2 bad rows in {file}",
        f'{file}:2: field messages: got "d", expected one of the labels a, b, c',
        f'{file}:3: field messages: got "b ", expected one of the labels a, b, c',
    ]


def test_many_labels_are_not_all_printed(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("source,target\ns,x\n")
    with pytest.raises(BadRows, match=r'got "x", expected one of the labels 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more$'):
        own_data(file, None, None, "mine", labels=tuple(str(x) for x in range(12)))


def test_a_bad_row_is_not_blamed_for_its_label_too(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"source": "", "target": "x"}\n')
    with pytest.raises(BadRows) as caught:
        own_data(file, None, None, "mine", labels=LABELS)
    assert len(str(caught.value).splitlines()) == 2


def test_labels_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    for labels, message in (
        (("a", "b", "a"), "labels: got 'a' as number 2, expected each once and without outer blanks"),
        (("a", "b "), "labels: got 'b ' as number 1"),
        (("", "b"), "labels: got '' as number 0"),
        (("a",), "labels: got 'a' alone, expected two or more to choose from"),
    ):
        with pytest.raises(BadValue, match=re.escape(message)):
            own_data(tmp_path / "never-read.csv", None, None, "mine", labels=labels)


def test_the_page_shows_what_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    marked = re.findall(r"<!-- (labels|refused): ([\w.-]+) -->\n```\w+\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    [(_, name, rows), (_, _, printed)] = marked
    Path(name).write_text(rows)
    with pytest.raises(DataError) as caught:
        own_data(Path(name), None, None, "mine", labels=("bad", "good"))
    assert f"epigraph: {caught.value}\n" == printed
