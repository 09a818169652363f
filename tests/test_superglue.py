"""SuperGLUE as texts to texts and by patterns: the rows of the page, splits, files, and the real sets."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from conftest import tiny_tokenizer
from epigraph.contract import TextContract
from epigraph.errors import BadRows, DataNotFound
from epigraph.frozen.inputs import Codec
from epigraph.tasks import superglue, superglue_patterns
from epigraph.tasks.base import Example, Task
from epigraph.tasks.superglue import FILES, FORMATS, SPLITS
from epigraph.tasks.superglue_metrics import HEADLINES
from epigraph.tasks.superglue_patterns import PATTERNS, PLACED

PAGE = (Path(__file__).parents[1] / "docs" / "superglue.md").read_text("utf-8")
TASKS = {**superglue.TASKS, **superglue_patterns.TASKS}
ROWS = {name: json.loads(row) for name, row in re.findall(r"<!-- row: (\w+) -->\n```json\n(.*?)\n```", PAGE)}
ASKED = dict(re.findall(r"<!-- asked: ([\w-]+) -->\n```text\n(.*?)\n```", PAGE, re.DOTALL))


def put(folder: Path, name: str, file: str, *rows: object) -> Path:
    path = folder / "superglue" / FILES[name].folder / f"{file}.jsonl.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(json.dumps(x) + "\n" for x in rows).encode()))
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EPIGRAPH_DATA", str(tmp_path))
    monkeypatch.setenv("EPIGRAPH_HOME", str(tmp_path / "home"))
    return tmp_path


def task_of(name: str) -> Task:
    return TASKS[name]()


def fields(row: Example) -> dict[str, str]:
    return {**row.further, "source": row.source}


def changed(name: str, **changes: object) -> dict[str, Any]:
    return {**ROWS[name], **changes}


# Formats


def test_the_page_has_a_row_of_every_set_and_shows_every_task() -> None:
    assert set(ROWS) == set(FORMATS) == set(FILES) == set(HEADLINES)
    assert set(ASKED) == set(TASKS)
    assert len(TASKS) == 15


@pytest.mark.parametrize("name", TASKS)
def test_rows_are_written_as_the_page_shows(name: str, folder: Path) -> None:
    set_name = name.removesuffix("-cloze")
    put(folder, set_name, "val", ROWS[set_name])
    task = task_of(name)
    contract = TextContract(input_template=task.input_template, labels=task.labels, label_words=task.label_words)
    words = dict(zip(task.labels, task.label_words, strict=True))
    written = []
    for row in task.load("test"):
        said = " | ".join(words.get(x, x) for x in row.references)
        written.append(f"{contract.source_text(fields(row))} -> {said}".replace("\n ->", " ->"))
    assert "\n".join(written) == ASKED[name]


# By the description of T5's format, not by our templates.
T5 = {
    "boolq": "passage: P question: Q",
    "cb": "hypothesis: H premise: P",
    "copa": "choice1: A choice2: B premise: P question: Q",
    "multirc": "question: Q answer: A paragraph: P",
    "record": "query: Q entities: E passage: P",
    "rte": "hypothesis: H premise: P",
    "wic": "sentence1: A sentence2: B word: W",
}


@pytest.mark.parametrize("name", T5)
def test_fields_stand_in_t5s_order(name: str) -> None:
    assert re.findall(r"(\w+):", task_of(name).input_template) == re.findall(r"(\w+):", T5[name])


def test_the_answers_to_a_question_are_a_group(folder: Path) -> None:
    two = [{"idx": x, "question": "q", "answers": [{"text": "", "label": 0}] * 2} for x in (5, 9)]
    put(folder, "multirc", "val", {"passage": {"text": "p", "questions": two}})
    for name in ("multirc", "multirc-cloze"):
        assert [x.group for x in task_of(name).load("test")] == ["5", "5", "9", "9"]


def record_of(text: str, *entities: str, answers: tuple[str, ...] = ("x",)) -> dict[str, Any]:
    spans = [{"start": text.index(x), "end": text.index(x) + len(x) - 1} for x in entities]
    return {
        "passage": {"text": text, "entities": spans},
        "qas": [{"query": "q", "answers": [{"text": x} for x in answers]}],
    }


def test_entities_and_answers_stand_there_once_in_order(folder: Path) -> None:
    put(folder, "record", "val", record_of("b, a, c", "c", "a", "b", "a", answers=("c", "a", "c")))
    [row] = task_of("record").load("test")
    assert (row.further["entities"], row.further["choices"], row.references) == ("a, b, c", "a\nb\nc", ("a", "c"))


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("One\n@highlight\nTwo", "One. Two"),
        ("One.\n@highlight\nTwo!\n@highlight\nThree", "One. Two! Three"),
        ('"One"\n@highlight\nTwo', '"One" Two'),
        ("One @highlight two", "One @highlight two"),
        ("One,\n@highlight\nTwo", "One,. Two"),
    ],
)
def test_highlights_become_sentences(text: str, clean: str, folder: Path) -> None:
    put(folder, "record", "val", record_of(text, "One"))
    assert task_of("record").load("test")[0].source == clean


def wsc_of(text: str, place: int, *, phrase: str = "cat", phrase_place: int = 1, label: bool = True) -> dict[str, Any]:
    spans = {"span1_text": phrase, "span1_index": phrase_place, "span2_text": "it", "span2_index": place}
    return {"text": text, "target": spans, "label": label}


@pytest.mark.parametrize(
    ("text", "place", "marked"),
    [
        ("The cat sat since it did", 4, "The cat sat since *it* did"),
        ("The cat sat since  it did", 4, "The cat sat since *it* did"),
        ("it The cat sat since it did", 4, "it The cat sat since *it* did"),
        ("The cat sat since it did", 5, "The cat sat since *it* did"),
        ('The cat said "so be it," twice', 5, 'The cat said "so be *it* ," twice'),
    ],
)
def test_the_pronoun_is_marked_where_it_stands(text: str, place: int, marked: str, folder: Path) -> None:
    put(folder, "wsc", "val", wsc_of(text, place))
    assert task_of("wsc").load("test")[0].source == marked


@pytest.mark.parametrize(
    ("phrase", "place", "written"),
    [("The cat", 3, "the cat"), ("a dog", 0, "A dog"), ("the\ncat.", 3, "the cat"), ("the cat", 3, "the cat")],
)
def test_the_phrase_is_spelt_as_in_the_text(phrase: str, place: int, written: str, folder: Path) -> None:
    put(folder, "wsc", "val", wsc_of("A dog saw the cat and it ran", 6, phrase=phrase, phrase_place=place))
    assert task_of("wsc").load("test")[0].references == (written,)


# Patterns


@pytest.mark.parametrize("name", PLACED)
def test_the_template_is_the_placed_one_without_its_places(name: str) -> None:
    task, placed = task_of(name), TextContract(input_template=PLACED[name])
    assert placed.without_slots().input_template.lstrip() == task.input_template
    assert placed.num_slots == (2 if name == "wsc-cloze" else 1)
    assert TextContract(input_template=task.input_template).num_slots == 0
    assert dict(re.findall(r"^\| `([\w-]+)` \| `([^`]*\[MASK\][^`]*)` \|", PAGE, re.MULTILINE)) == PLACED


@pytest.mark.parametrize("name", PLACED)
def test_a_pattern_can_be_asked_of_models_of_every_kind(name: str) -> None:
    task = task_of(name)
    for layout in ("continuation", "answer", "cloze"):
        for template in (task.input_template, PLACED[name]):
            asked = {"input_template": template, "layout": layout, "labels": task.labels}
            assert TextContract.model_validate({**asked, "label_words": task.label_words}).has_mask


def test_choices_go_on_with_the_premise_and_are_ranked(folder: Path) -> None:
    row = changed("copa", question="effect", label=1, choice1="I ran.", choice2="It rang!")
    put(folder, "copa", "val", row)
    [asked] = task_of("copa-cloze").load("test")
    assert asked == Example(
        source="The lamp went out",
        references=("it rang",),
        further={"choice1": "i ran", "choice2": "it rang", "conjunction": "so"},
        candidates=("i ran", "it rang"),
    )
    assert task_of("copa").load("test")[0].candidates == ()


def test_choices_are_changed_round_where_they_are_learnt_from_and_nowhere_else(folder: Path) -> None:
    for file in ("val", "train32", "dev32"):
        put(folder, "copa", file, ROWS["copa"])
    one, other = task_of("copa-cloze").load("train32")
    assert (one.references, other.references) == (("the power failed",), ("the power failed",))
    assert one.candidates == other.candidates[::-1] == ("the power failed", "the bell rang")
    assert [other.further[x] for x in ("choice1", "choice2")] == list(other.candidates)
    for split in ("test", "dev32"):
        assert task_of("copa-cloze").load(split) == [one]
    assert len(task_of("copa").load("train32")) == 1


# What is cut, and what is asked


@pytest.mark.parametrize("name", TASKS)
def test_a_long_row_loses_its_passage_and_keeps_its_question(name: str, folder: Path) -> None:
    set_name = name.removesuffix("-cloze")
    put(folder, set_name, "val", ROWS[set_name])
    task, row = task_of(name), task_of(name).load("test")[0]
    contract = TextContract(input_template=task.input_template, max_source_tokens=400, eos=False)
    codec = Codec(tiny_tokenizer(), contract)
    asked = codec.source({**fields(row), "source": row.source + " and so on" * 60})
    assert asked.truncated
    assert len(asked.ids) == 400
    text = codec.text(asked.ids)
    kept = [row.further[x] for x in re.findall(r"\{(\w+)\}", task.input_template) if x != "source"]
    assert all(x in text for x in kept)


@pytest.mark.parametrize("name", superglue.TASKS)
def test_answers_are_said_freely_and_an_illegal_one_is_counted(name: str, folder: Path) -> None:
    put(folder, name, "val", ROWS[name])
    task = task_of(name)
    assert (task.labels, task.candidates) == ((), ())
    rows = task.load("test")
    right, wrong = task.score([x.references[0] for x in rows], rows), task.score([""] * len(rows), rows)
    assert {task.headline, "illegal_share"} <= set(right.values)
    assert set(right.values) == {*task.better_when_higher, "illegal_share"}
    assert (right.values[task.headline], right.values["illegal_share"]) == (100, 0)
    assert (wrong.values[task.headline], wrong.values["illegal_share"]) == (0, 100)


@pytest.mark.parametrize("name", superglue_patterns.TASKS)
def test_answers_to_patterns_are_scored_as_labels_or_own_candidates(name: str, folder: Path) -> None:
    set_name = name.removesuffix("-cloze")
    put(folder, set_name, "val", ROWS[set_name])
    task = task_of(name)
    rows = task.load("test")
    scores = task.score([x.references[0] for x in rows], rows)
    assert scores.values[task.headline] == 100
    assert set(scores.values) == {*HEADLINES[set_name], "illegal_share"}
    assert bool(task.labels) == (set_name not in ("copa", "wsc"))
    assert all(set(x.references) <= set(task.labels) for x in rows if task.labels)


# Splits and files


def is_held_out(text: str, share: int) -> bool:
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % share == 0


@pytest.mark.parametrize("name", ["cb", "rte"])
def test_rows_of_one_premise_are_on_one_side(name: str, folder: Path) -> None:
    rows = [changed(name, premise=f"premise {i % 40}", hypothesis=f"hypothesis {i}") for i in range(80)]
    put(folder, name, "train", *rows)
    train, dev = task_of(name).load("train"), task_of(name).load("dev")
    assert Counter(x.further["hypothesis"] for x in [*train, *dev]) == Counter(x["hypothesis"] for x in rows)
    share = {"cb": 5, "rte": 10}[name]
    assert {x.source for x in dev} == {f"premise {i}" for i in range(40) if is_held_out(f"premise {i}", share)}
    assert not {x.source for x in train} & {x.source for x in dev}
    assert dev


def test_wrong_phrases_are_not_learnt_but_scored(folder: Path) -> None:
    texts = [f"The cat sat since it did {i} times" for i in range(20)]
    rows = [wsc_of(text, 4, label=bool(i % 2)) for i, text in enumerate(texts)]
    for file in ("train", "val", "train32", "dev32"):
        put(folder, "wsc", file, *rows)
    for name in ("wsc", "wsc-cloze"):
        loaded = {split: task_of(name).load(split) for split in SPLITS}
        labels = {split: {x.further["label"] for x in some} for split, some in loaded.items()}
        both = {"True", "False"}
        assert labels == {"train": {"True"}, "dev": both, "test": both, "train32": {"True"}, "dev32": both}
        assert (len(loaded["test"]), len(loaded["train32"])) == (20, 10)


def test_a_file_that_is_not_here_is_named_when_it_is_asked_for(folder: Path) -> None:
    put(folder, "boolq", "train32", ROWS["boolq"])
    for name in ("boolq", "boolq-cloze"):
        task = task_of(name)
        assert set(task.files) == {"train32"}
        assert len(task.load("train32")) == 1
        for split, file in (("train", "train"), ("dev", "train"), ("test", "val"), ("dev32", "dev32")):
            with pytest.raises(DataNotFound, match=rf"^got no file superglue/BoolQ/{file}\.jsonl\.gz: "):
                task.load(split)


@pytest.mark.parametrize(
    ("name", "row", "fault"),
    [
        ("cb", {"label": "maybe"}, "field label: got \"maybe\", expected 'entailment', 'contradiction' or 'neutral'"),
        ("boolq", {"label": "true"}, 'field label: got "true", expected a valid boolean'),
        ("rte", {"premise": " "}, 'field premise: got " ", expected text that is not empty'),
        ("copa", {"label": 2}, "field label: got 2, expected 0 or 1"),
        ("multirc", {"passage": {"text": "t"}}, "field passage.questions: got nothing, expected a value"),
        (
            "multirc",
            {"passage": {"text": "t", "questions": [{"idx": 0, "question": "q", "answers": [{"text": "a"}]}]}},
            "field passage.questions.0.answers.0.label: got nothing, expected a value",
        ),
        ("record", {"qas": 3}, "field qas: got 3, expected a valid tuple"),
        (
            "record",
            {"qas": [{"query": "q", "answers": []}]},
            "field qas.0.answers: got a list of 0, expected one or more",
        ),
        ("wsc", {"text": "No pronoun."}, "row: got an object, expected 'it' as word 6 of the text"),
    ],
)
def test_a_bad_row_is_told_by_its_line(name: str, row: Mapping[str, object], fault: str, folder: Path) -> None:
    file = put(folder, name, "val", ROWS[name], changed(name, **row), 3)
    with pytest.raises(BadRows) as caught:
        task_of(name).load("test")
    said = str(caught.value).splitlines()
    assert said[0] == f"2 bad rows in {file}"
    assert said[1] == f"{file}:2: {fault}"
    assert said[2].startswith(f"{file}:3: row: got 3, expected an object with ")


def test_a_file_of_something_else_is_refused(folder: Path) -> None:
    file = put(folder, "rte", "val")
    with pytest.raises(BadRows, match="got an empty file, expected one row a line: an object with premise, hypothesis"):
        task_of("rte").load("test")
    file.write_bytes(gzip.compress(b"not json\n"))
    with pytest.raises(BadRows, match=r":1: row: got \"not json\", which is not JSON, expected an object with premise"):
        task_of("rte").load("test")


# The real sets


@pytest.mark.parametrize("name", TASKS)
def test_the_splits_have_the_sizes_of_the_page(name: str, epigraph_data: Path) -> None:
    [cells] = re.findall(rf"^\| [^|]*`{name}`[^|]* \| ([-\d,]+) \| (.*) \|$", PAGE, re.MULTILINE)
    sizes = []
    for split in SPLITS:
        try:
            sizes.append(f"{len(task_of(name).load(split)):,}")
        except DataNotFound:
            sizes.append("-")
    assert sizes == [cells[0], *cells[1].split(" | ")]


def texts(name: str, split: str) -> set[tuple[str, ...]]:
    return {(x.source, *x.further.values()) for x in task_of(name).load(split)}


@pytest.mark.parametrize("name", ["cb", "copa", "multirc", "rte", "wic", "wsc"])
def test_no_row_is_on_two_sides(name: str, epigraph_data: Path) -> None:
    train, dev, test = (texts(name, split) for split in ("train", "dev", "test"))
    assert not train & dev
    assert not dev & test
    assert not train & test
    assert not texts(name, "train32") & texts(name, "dev32")
    if name not in ("wic", "wsc"):
        assert not {x[0] for x in train} & {x[0] for x in dev}


def test_the_sets_are_the_published_ones(epigraph_data: Path) -> None:
    counted = {
        "cb": {"contradiction": 28, "entailment": 23, "neutral": 5},
        "copa": {"choice1": 55, "choice2": 45},
        "rte": {"entailment": 146, "not_entailment": 131},
        "wic": {"True": 319, "False": 319},
        "boolq": {"True": 2_033, "False": 1_237},
    }
    for name, labels in counted.items():
        assert Counter(x.references[0] for x in task_of(name).load("test")) == labels
    assert Counter(x.further["label"] for x in task_of("wsc").load("test")) == {"False": 66, "True": 38}
    multirc = task_of("multirc").load("test")
    assert (len({x.source for x in multirc}), len({x.group for x in multirc}), len(multirc)) == (83, 953, 4_848)
    wsc = [x for split in ("train", "dev") for x in task_of("wsc").load(split) if x.further["label"] == "True"]
    assert len(wsc) == 259
    assert f"{len(wsc)} of the official 554" in PAGE


def test_the_official_overlaps_are_those_of_the_page(epigraph_data: Path) -> None:
    rte, wic = (
        {
            split: {x.source if name == "rte" else x.further["word"] for x in task_of(name).load(split)}
            for split in SPLITS
        }
        for name in ("rte", "wic")
    )
    premises, words = (len((x["train"] | x["dev"]) & x["test"]) for x in (rte, wic))
    assert f"{premises} premises of RTE and {words} words of WiC" in " ".join(PAGE.split())
    assert not wic["train"] & wic["dev"]


def test_every_answer_of_record_is_an_entity_and_every_pronoun_is_marked(epigraph_data: Path) -> None:
    for split in ("train32", "dev32"):
        rows = task_of("record").load(split)
        assert all(set(x.references) <= set(x.further["choices"].split("\n")) for x in rows)
        assert not any("@highlight" in x.source for x in rows)
    for split in SPLITS:
        for row in task_of("wsc").load(split):
            assert row.source.count(f"*{row.further['pronoun']}*") == 1


def test_every_pattern_asks_with_what_its_rows_have(epigraph_data: Path) -> None:
    for name in PATTERNS:
        contract = TextContract(input_template=PLACED[f"{name}-cloze"])
        assert all(contract.source_text(fields(x)) for x in task_of(f"{name}-cloze").load("train32"))
