"""Data sets of the hub: invented rows in its columns, through the real library from a local folder, to our tasks."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from epigraph.errors import BadRows, ChecksumMismatch, DataNotFound, FetchFailed
from epigraph.tasks.base import Example
from epigraph.tasks.catalogue import TASKS, find
from epigraph.tasks.fetch import FETCHED, fetch, find_file
from epigraph.tasks.hub import FILES, HUB
from epigraph.tasks.own import own_task

datasets = pytest.importorskip("datasets", reason="the extra hub is not installed")

NEWS = "Ann met Bob in Oslo.\n@highlight\nBob left"
SPANS = {"text": ["Ann", "Bob", "Oslo", "Bob"], "start": [0, 8, 15, 32], "end": [3, 11, 19, 35]}
MULTIRC = [
    (0, 0, "Who ran?", "Ann", 1),
    (0, 0, "Who ran?", "Bob", 0),
    (0, 1, "Why?", "Rain", 1),
    (3, 7, "Who sat?", "Eve", 0),
]
# Rows as the hub has them, by task.
ROWS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "boolq": [{"question": "is it wet", "passage": "Rain is wet.", "idx": 0, "label": 1}],
    "cb": [{"premise": "It may rain.", "hypothesis": "it rains", "idx": 0, "label": 2}],
    "copa": [
        {
            "premise": "It fell.",
            "choice1": "It broke.",
            "choice2": "It sang.",
            "question": "effect",
            "idx": 0,
            "label": 1,
        }
    ],
    "multirc": [
        {
            "paragraph": "Ann ran." if passage == 0 else "Eve sat.",
            "question": question,
            "answer": answer,
            "idx": {"paragraph": passage, "question": number, "answer": i},
            "label": label,
        }
        for i, (passage, number, question, answer, label) in enumerate(MULTIRC)
    ],
    "record": [
        {
            "passage": NEWS,
            "query": f"{gap} lives there.".replace("X", "@placeholder"),
            "entities": ["Ann", "Bob", "Oslo"],
            "entity_spans": SPANS,
            "answers": ["Bob"],
            "idx": {"passage": 5, "query": number},
        }
        for number, gap in enumerate(("X", "Now X"))
    ],
    "rte": [{"premise": "It rains.", "hypothesis": "It is wet.", "idx": 0, "label": 0}],
    "wic": [
        {
            "word": "run",
            "sentence1": "a long run",
            "sentence2": "they run",
            "start1": 7,
            "start2": 5,
            "end1": 10,
            "end2": 8,
            "idx": 0,
            "label": 0,
        }
    ],
    "wsc": [
        {
            "text": "Ann thanked Eve because she helped.",
            "span1_index": 2,
            "span2_index": 4,
            "span1_text": "Eve",
            "span2_text": "she",
            "idx": 0,
            "label": 1,
        }
    ],
    "squad": [
        {
            "id": "a",
            "title": "T",
            "context": "Ann ran home.",
            "question": "Who ran?",
            "answers": {"text": ["Ann", "Ann ran"], "answer_start": [0, 0]},
        }
    ],
    "xsum": [
        {"id": "1", "document": "Rain fell.\nIt was wet.", "summary": "It rained."},
        {"id": "2", "document": " ", "summary": "Nothing."},
    ],
    "aeslc": [{"email_body": "Shall we meet?", "subject_line": "Meeting"}],
    "mrpc": [{"sentence1": "It rains.", "sentence2": "Rain falls.", "idx": 0, "label": 1}],
    "qqp": [{"question1": "Why rain?", "question2": "How snow?", "idx": 0, "label": 0}],
    "sst2": [{"idx": 0, "sentence": "all rain", "label": 0}],
}
# What each task's first test row (of train, where the hub has no labelled test rows) is read as.
FIRST: Mapping[str, Example] = {
    "boolq": Example(source="Rain is wet.", references=("True",), further={"question": "is it wet"}),
    "cb": Example(source="It may rain.", references=("neutral",), further={"hypothesis": "it rains"}),
    "rte": Example(source="It rains.", references=("entailment",), further={"hypothesis": "It is wet."}),
    "xsum": Example(source="Rain fell.\nIt was wet.", references=("It rained.",)),
    "mrpc": Example(source="It rains.", references=("equivalent",), further={"second": "Rain falls."}),
    "qqp": Example(source="Why rain?", references=("not_duplicate",), further={"second": "How snow?"}),
    "sst2": Example(source="all rain", references=("negative",)),
}


@pytest.fixture(autouse=True)
def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPIGRAPH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("EPIGRAPH_DATA", raising=False)


def as_on_the_hub(
    folder: Path, name: str, *, labels: Sequence[str] | None = None, rows: Sequence[Mapping[str, Any]] | None = None
) -> Path:
    """A folder as the hub's: Parquet files, named by a card, with the label's names in them."""
    source = HUB[name]
    found = datasets.Dataset.from_list([dict(x) for x in rows or ROWS[name]])
    names = source.labels if labels is None else labels
    if names:
        found = found.cast_column("label", datasets.ClassLabel(names=list(names)))
    lines = []
    for split in sorted(set(source.files.values())):
        file = folder / (source.config or "data") / f"{split}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        found.to_parquet(file)
        lines.append(f"  - split: {split}\n    path: {file.relative_to(folder)}\n")
    card = f"---\nconfigs:\n- config_name: {source.config or 'default'}\n  data_files:\n{''.join(lines)}---\n"
    (folder / "README.md").write_text(card)
    return folder


@pytest.mark.parametrize("name", HUB)
def test_the_hubs_rows_are_read_by_our_task(name: str, tmp_path: Path) -> None:
    files = fetch(name, address=str(as_on_the_hub(tmp_path / "hub", name)))
    assert len(files) == len(HUB[name].files)
    assert all(file.is_relative_to(tmp_path / "home" / "data" / HUB[name].folder) for file in files)
    task = find(name)
    split = "test" if "test" in task.files else "dev" if name in ("qqp", "sst2") else "train"
    examples = task.load("test-original" if name == "aeslc" else split)
    assert examples
    if name in FIRST:
        assert examples[0] == FIRST[name]
    answers = [x.references[0] for x in examples]
    assert task.score(answers, examples, {task.headline}).values[task.headline] in (0, 100)
    before = [file.stat().st_mtime_ns for file in files]
    assert fetch(name, address="/nowhere") == files
    assert [file.stat().st_mtime_ns for file in files] == before


def test_rows_of_an_answer_are_gathered_by_passage_and_question(tmp_path: Path) -> None:
    [_, file] = fetch("multirc", address=str(as_on_the_hub(tmp_path / "hub", "multirc")))
    examples = find("multirc").load("test")
    assert [(x.further["question"], x.further["answer"], x.references[0], x.group) for x in examples] == [
        ("Who ran?", "Ann", "True", "0"),
        ("Who ran?", "Bob", "False", "0"),
        ("Why?", "Rain", "True", "1"),
        ("Who sat?", "Eve", "False", "7"),
    ]
    assert [x.source for x in examples] == ["Ann ran."] * 3 + ["Eve sat."]
    assert file.name == "val.jsonl.gz"


def test_spans_end_on_their_last_character(tmp_path: Path) -> None:
    fetch("record", address=str(as_on_the_hub(tmp_path / "hub", "record")))
    [first, second] = find("record").load("test")
    assert first.further["entities"] == "Ann, Bob, Oslo"
    assert (first.references, second.references) == (("Bob",), ("Bob",))
    assert second.further["query"] == "Now @placeholder lives there."


def test_the_rest_of_the_converters_by_their_answers(tmp_path: Path) -> None:
    for name in ("copa", "wic", "wsc", "squad"):
        fetch(name, address=str(as_on_the_hub(tmp_path / name, name)))
    assert find("copa").load("test")[0].references == ("choice2",)
    assert find("wic").load("test")[0].references == ("False",)
    assert find("wsc").load("test")[0].references == ("Eve",)
    assert find("wsc").load("test")[0].source == "Ann thanked Eve because *she* helped."
    assert find("squad").load("test")[0].references == ("Ann", "Ann ran")


def test_what_the_hub_lacks_is_said_and_not_made_up(tmp_path: Path) -> None:
    fetch("aeslc", address=str(as_on_the_hub(tmp_path / "hub", "aeslc")))
    assert find("aeslc").load("train")[0].references == ("Meeting",)
    with pytest.raises(BadRows, match="field extra_references: got null"):
        find("aeslc").load("test")
    fetch("xsum", address=str(as_on_the_hub(tmp_path / "xsum", "xsum")))
    assert len(find("xsum").load("train")) == 1


def test_labels_in_another_order_are_refused(tmp_path: Path) -> None:
    folder = as_on_the_hub(tmp_path / "hub", "cb", labels=("neutral", "entailment", "contradiction"))
    with pytest.raises(
        ChecksumMismatch, match="got the labels neutral, entailment, contradiction, expected entailment, c"
    ):
        fetch("cb", address=str(folder))
    assert not list((tmp_path / "home").rglob("*.gz"))


def test_a_row_without_a_label_is_refused(tmp_path: Path) -> None:
    folder = as_on_the_hub(tmp_path / "hub", "cb", labels=(), rows=[{**ROWS["cb"][0], "label": -1}])
    with pytest.raises(ChecksumMismatch, match="got the label -1, expected 0 to 2; nothing was kept"):
        fetch("cb", address=str(folder))


def test_other_columns_are_refused(tmp_path: Path) -> None:
    folder = as_on_the_hub(tmp_path / "hub", "aeslc", rows=[{"body": "x", "subject_line": "y"}])
    with pytest.raises(
        ChecksumMismatch, match=r"got rows without what docs/data.md says they have \(KeyError: 'email_body'"
    ):
        fetch("aeslc", address=str(folder))
    assert not [x for x in (tmp_path / "home" / "data").rglob("*") if x.is_file()]


def test_what_cannot_be_had_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FetchFailed) as caught:
        fetch("boolq", address=str(tmp_path / "none"))
    message = str(caught.value)
    assert message.startswith(f"could not get {tmp_path}/none (boolq), split train: ")
    assert message.endswith("with --from, or set EPIGRAPH_DATA to a folder that has the files")
    assert "\n" not in message
    # None in sys.modules is how Python says that an import fails.
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        FetchFailed, match=r"aps/super_glue is read by the library datasets, .* pip install 'epigraph\[hub\]'"
    ):
        fetch("boolq")


def test_a_file_that_is_not_here_names_the_set_to_fetch() -> None:
    with pytest.raises(
        DataNotFound, match=r"got no file superglue/CB/train.jsonl.gz: .*; run `epigraph data fetch cb`"
    ):
        find("cb-cloze").load("train")
    with pytest.raises(DataNotFound, match=r"docs/data\.md says what is in them"):
        find_file("superglue", "CB/train32.jsonl.gz")
    assert set(FILES.values()) == set(HUB) == set(FETCHED) - {"e2e"}
    assert set(HUB) <= set(TASKS)


def test_a_users_own_task_reads_the_hub(tmp_path: Path) -> None:
    folder = as_on_the_hub(tmp_path / "hub", "cb")
    file = tmp_path / "mine.toml"
    toml = {"source": "premise", "target": "label", "labels": [*reversed(HUB["cb"].labels)]}
    lines = [f"{key} = {json.dumps(value)}" for key, value in toml.items()]
    hub = f'[hub]\nid = {json.dumps(str(folder))}\nconfig = "cb"\nsplits = {{ train = "train", dev = "validation" }}\n'
    file.write_text("\n".join([*lines, hub]))
    task = own_task(file)
    assert task.load("dev") == [Example(source="It may rain.", references=("neutral",))]
    file.write_text(file.read_text().replace('"label"', '"labels"'))
    with pytest.raises(BadRows, match=r"hub/train:0: field label: got an unknown name, expected labels"):
        own_task(file).load("train")
