"""WebNLG and DART as tasks: linearisation, splits, references by source, and what the files have."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from epigraph.errors import BadRows, DataNotFound
from epigraph.tasks.base import Example
from epigraph.tasks.learned_metrics import LEARNED_METRICS
from epigraph.tasks.translation import METRICS
from epigraph.tasks.triples import DART_SOURCES, TASKS, as_in_dart, dart, webnlg

needs_data = pytest.mark.skipif(
    not os.environ.get("EPIGRAPH_DATA"), reason="EPIGRAPH_DATA is unset: no WebNLG, DART and E2E files here"
)

QUAY = ["Old_Quay", "locatedIn", "Tallow"]
LENGTH = ["Tallow_Bridge", "lengthInMetres", '"212.0"']


def entry(*triples: Sequence[str], references: Sequence[str], **more: object) -> dict[str, object]:
    return {"id": "x", "triples": list(triples), "references": list(references), **more}


def put(folder: Path, file: str, *rows: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(gzip.compress("".join(json.dumps(x) + "\n" for x in rows).encode()))
    return folder / file


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a few invented entries of each set."""
    monkeypatch.setenv("EPIGRAPH_DATA", str(tmp_path))
    monkeypatch.setenv("EPIGRAPH_HOME", str(tmp_path / "home"))
    put(tmp_path / "webnlg2017", "train.jsonl.gz", entry(QUAY, LENGTH, references=["One.", "Two."]))
    put(tmp_path / "webnlg2017", "dev.jsonl.gz", entry(QUAY, references=["Dev."]))
    put(tmp_path / "webnlg2017", "test_seen.jsonl.gz", entry(LENGTH, references=["Seen."]))
    put(tmp_path / "webnlg2017", "test_unseen.jsonl.gz", entry(QUAY, references=["Unseen.", "New."]))
    tables = [
        {"slots": {"name": "Tin Whistle", "eatType": "pub", "area": "riverside"}, "references": ["A pub."]},
        {"slots": {"name": "Blue Anchor"}, "references": ["Blue Anchor."]},
    ]
    put(tmp_path / "e2e", "train.jsonl.gz", *tables)
    mixed = entry(
        ["Ana Norde", "NOTABLE_WORK", "The Glass Orchard"],
        ["[TABLECONTEXT]", "[TITLE]", ""],
        references=["a", "b", "", "c"],
        reference_sources=["webnlg", "WikiSQL_lily", "WikiSQL_decl_sents", "webnlg"],
    )
    only = entry(["Tin Whistle", "eatType", "pub"], references=["d"], reference_sources=["e2e"])
    put(tmp_path / "dart", "dev.jsonl.gz", only)
    put(tmp_path / "dart", "test.jsonl.gz", mixed, only)
    return tmp_path


# WebNLG


@pytest.mark.usefixtures("small")
def test_a_pipe_stands_before_every_triple_of_webnlg() -> None:
    task = webnlg()
    assert tuple(task.splits) == ("train", "dev", "test", "test-seen", "test-unseen")
    source = '| Old_Quay : locatedIn : Tallow | Tallow_Bridge : lengthInMetres : "212.0"'
    assert task.load("train") == [Example(source=source, references=("One.", "Two."))]
    assert [x.references[0] for x in task.load("test")] == ["Seen.", "Unseen."]
    assert task.load("test-unseen")[0] == Example(
        source="| Old_Quay : locatedIn : Tallow", references=("Unseen.", "New.")
    )
    assert task.load("test") == task.load("test-seen") + task.load("test-unseen")
    assert set(task.files) == {"train", "dev", "test-seen", "test-unseen"}


# DART


@pytest.mark.usefixtures("small")
def test_pipes_stand_between_the_triples_of_dart_and_relations_are_small() -> None:
    task = dart()
    first, second = task.load("test")
    assert first.source == "Ana Norde : notable_work : The Glass Orchard | [TABLECONTEXT] : [title] : "
    assert first.references == ("a", "b", "c")
    assert task.load("dev") == [second] == [Example(source="Tin Whistle : eattype : pub", references=("d",))]


@pytest.mark.usefixtures("small")
def test_dart_is_scored_by_the_source_of_references() -> None:
    task = dart()
    assert tuple(task.splits) == ("train", "dev", "test", *(f"test-{x}" for x in DART_SOURCES))
    assert [x.references for x in task.load("test-webnlg")] == [("a", "c")]
    assert [x.references for x in task.load("test-WikiSQL_lily")] == [("b",)]
    assert [x.references for x in task.load("test-e2e")] == [("d",)]
    assert task.load("test-WikiSQL_decl_sents") == []


def test_dart_without_its_training_file_is_trained_on_its_parts(small: Path) -> None:
    task = dart()
    assert "train is its E2E and WebNLG parts" in task.summary
    assert task.load("train") == [
        # A table of nothing but a name has no triple.
        Example(source="Tin Whistle : eattype : pub | Tin Whistle : area : riverside", references=("A pub.",)),
        Example(
            source='Old Quay : located_in : Tallow | Tallow Bridge : length_in_metres : "212.0"',
            references=("One.", "Two."),
        ),
    ]
    put(small / "dart", "train.jsonl.gz", entry(["s", "R", "o"], references=["own"]))
    assert "parts" not in dart().summary.split("(")[0]
    assert task.load("train") == [Example(source="s : r : o", references=("own",))]


def test_names_of_webnlg_as_dart_writes_them() -> None:
    assert as_in_dart(("Ana_Norde", "birthPlace", "Old_Quay")) == ("Ana Norde", "BIRTH_PLACE", "Old Quay")
    assert as_in_dart(("A", "isPartOf", '"x_y"')) == ("A", "IS_PART_OF", '"x y"')
    relations = ("UTCOffset", "was a crew member of", "runwaySurfaceType", "birthDate")
    assert [as_in_dart(("", x, ""))[1] for x in relations] == [
        "UTC_OFFSET",
        "WAS_A_CREW_MEMBER_OF",
        "RUNWAY_SURFACE_TYPE",
        "DATE_OF_BIRTH",
    ]


# Both


@pytest.mark.parametrize(("name", "learned"), [("webnlg", ()), ("dart", LEARNED_METRICS)])
def test_a_task_has_its_metrics_or_says_what_is_missing(
    name: str, learned: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    task = TASKS[name]()
    scores = task.score(["A pub."], [Example(source="s", references=("A pub.", "One."))])
    assert {*scores.values, *scores.missing} == {*METRICS, *learned}
    assert "meteor" in scores.missing
    assert task.headline == "bleu_multi"
    assert {task.headline, *task.better_when_higher} <= {*METRICS, *learned}
    assert not {"ter", "mean_length_words", "mover_score", "bleurt"} & set(task.better_when_higher)
    assert (task.name, task.is_chat) == (name, False)


@pytest.mark.parametrize("name", ["webnlg", "dart"])
def test_without_files_it_says_where_they_belong(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPIGRAPH_DATA", str(tmp_path))
    monkeypatch.setenv("EPIGRAPH_HOME", str(tmp_path / "home"))
    task = TASKS[name]()
    assert task.files == {}
    for split in task.splits:
        with pytest.raises(DataNotFound, match=rf"got no file .*{tmp_path}.*(docs/data.md|`epigraph data fetch e2e`)"):
            task.load(split)


def test_every_bad_entry_is_reported(small: Path) -> None:
    bad = [
        entry(references=["no triples"]),
        entry(["two", "texts"], references=["x"]),
        entry(QUAY, ["a", 1, "b"], references=[]),
        entry(QUAY, references=[" "]),
        {"triples": [QUAY]},
        "text",
    ]
    path = put(small / "webnlg2017", "dev.jsonl.gz", entry(QUAY, references=["good"]), *bad)
    with pytest.raises(BadRows) as caught:
        webnlg().load("dev")
    assert str(caught.value).splitlines() == [
        f"6 bad rows in {path}",
        f"{path}:2: field triples: got a list of 0, expected a list of one triple or more",
        f"{path}:3: field triples[0]: got a list of 2, expected three texts",
        f"{path}:4: field triples[1]: got a list of 3, expected three texts",
        f"{path}:4: field references: got no text in it, expected one text or more that is not empty",
        f"{path}:5: field references: got no text in it, expected one text or more that is not empty",
        f"{path}:6: field references: got nothing, expected a list of texts",
        f'{path}:7: row: got "text", expected an object with triples and references',
    ]


def test_sources_and_tables_are_checked(small: Path) -> None:
    short = entry(QUAY, references=["x", "y"], reference_sources=["e2e"])
    path = put(small / "dart", "test.jsonl.gz", short, entry(QUAY, references=["x"]))
    assert len(dart().load("test")) == 2
    with pytest.raises(BadRows) as caught:
        dart().load("test-e2e")
    assert str(caught.value).splitlines()[1:] == [
        f"{path}:1: field reference_sources: got 1 of them, expected 2, one a reference",
        f"{path}:2: field reference_sources: got nothing, expected a list of texts",
    ]
    path = put(small / "e2e", "train.jsonl.gz", {"slots": {"area": "x"}, "references": ["x"]}, {"slots": {"name": 1}})
    with pytest.raises(BadRows) as caught:
        dart().load("train")
    assert str(caught.value).splitlines()[1:] == [
        f"{path}:1: field slots: got an object, expected an object of texts with a name",
        f"{path}:2: field slots.name: got 1, expected text that is not empty",
        f"{path}:2: field references: got nothing, expected a list of texts",
    ]
    put(small / "dart", "dev.jsonl.gz")
    with pytest.raises(BadRows, match="no rows in"):
        dart().load("dev")


# The files


@needs_data
def test_webnlg_is_the_challenge_of_2017() -> None:
    task = webnlg()
    splits = {split: task.load(split) for split in task.splits}
    counts = {split: (len(rows), sum(len(x.references) for x in rows)) for split, rows in splits.items()}
    assert (counts["train"], counts["dev"], counts["test-seen"]) == ((6_940, 18_102), (872, 2_268), (971, 2_495))
    assert counts["test-unseen"][0] > 700
    assert all(x.source.startswith("| ") for rows in splits.values() for x in rows)
    sources = {split: {x.source for x in rows} for split, rows in splits.items()}
    shared = {split: sum(x.source in sources["train"] for x in splits[split]) for split in ("dev", "test")}
    # The official files share these, and are left as they are.
    assert shared == {"dev": 12, "test": 10}
    assert len(sources["dev"] & sources["test"]) == 3


@needs_data
def test_dart_is_version_1_1_1() -> None:
    task = dart()
    dev, test = task.load("dev"), task.load("test")
    assert (len(dev), sum(len(x.references) for x in dev)) == (2_768, 6_980)
    assert len(test) > 4_500
    by_source = [x for split in task.splits if split.startswith("test-") for x in task.load(split)]
    assert sum(len(x.references) for x in by_source) == sum(len(x.references) for x in test)


@needs_data
def test_parts_are_written_as_dart_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Development entries in the place of training entries: DART has the same texts, in its own form.
    data = Path(os.environ["EPIGRAPH_DATA"])
    for name in ("webnlg2017", "e2e"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl.gz").symlink_to(data / name / "dev.jsonl.gz")
    theirs = dart().load("dev")
    monkeypatch.setenv("EPIGRAPH_DATA", str(tmp_path))
    ours = dart().load("train")
    in_theirs = {x.references: x.source for x in theirs}
    same = [x.source == in_theirs[x.references] for x in ours if x.references in in_theirs]
    assert len(same) > 900
    assert sum(same) / len(same) > 0.99
    # DART has put some texts of E2E together or left them out, so that its tables are compared without them.
    tables = [x.source in in_theirs.values() for x in ours if " : eattype : " in x.source]
    assert sum(tables) / len(tables) > 0.95
