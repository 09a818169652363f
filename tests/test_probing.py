"""LAMA's relations as tasks: templates, facts, the shared vocabulary, and P@1."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from epigraph.contract import TextContract
from epigraph.errors import BadRows, CountMismatch, DataNotFound, TaskNotFound
from epigraph.tasks.base import Example
from epigraph.tasks.catalogue import PROBES, TASKS, find
from epigraph.tasks.choice_metrics import score_probes
from epigraph.tasks.probing import RELATIONS, lama, load_every_fact, masked, read_probes, shared_vocabulary

PAGE = Path(__file__).parents[1] / "docs" / "data.md"
SPLITS = ("train", "dev", "test")


def fact(relation: str, subject: str, object_: str) -> dict[str, object]:
    return {"relation": relation, "sub_label": subject, "obj_label": object_, "uuid": None}


def put(folder: Path, file: str, rows: Sequence[object]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(gzip.compress("".join(json.dumps(x) + "\n" for x in rows).encode()))
    return folder / file


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a few facts: P19 in every split, P47 in test alone, P530 without training facts."""
    monkeypatch.setenv("EPIGRAPH_DATA", str(tmp_path))
    monkeypatch.setenv("EPIGRAPH_HOME", str(tmp_path / "home"))
    folder = tmp_path / "lama"
    templates = [{"relation": x, "template": f"[X] {x.lower()} [Y] ."} for x in (*RELATIONS, "P1923")]
    put(folder, "relations.jsonl.gz", templates)
    put(folder, "trex_train.jsonl.gz", [fact("P19", "Ada", "London"), fact("P20", "Bo", "Oslo")])
    put(folder, "trex_dev.jsonl.gz", [fact("P19", "Cy {x}", "Paris"), fact("P530", "Chad", "Niger")])
    tests = [fact("P47", "Chad", "Niger"), fact("P47", "Chad", "Egypt"), fact("P19", "Di", "London")]
    put(folder, "trex_test.jsonl.gz", [*tests, fact("P1923", "Cup", "Elsewhere"), fact("P530", "Chad", "China")])
    return folder


# Tasks


def test_there_are_forty_one_relations_by_number() -> None:
    assert len(RELATIONS) == len(set(RELATIONS)) == 41
    assert sorted(RELATIONS, key=lambda x: int(x[1:])) == list(RELATIONS)
    assert [*PROBES] == [f"lama-{x}" for x in RELATIONS]
    assert PROBES.items() <= TASKS.items()


def test_a_relation_is_a_task(small: Path) -> None:
    task = find("lama-P19")
    assert [task.load(x) for x in task.splits] == [
        [Example(source="Ada", references=("London",))],
        [Example(source="Cy {x}", references=("Paris",))],
        [Example(source="Di", references=("London",))],
    ]
    assert task.input_template == "{source} p19 [MASK] ."
    assert (task.headline, task.better_when_higher, task.labels) == ("p_at_1", ("p_at_1",), ())
    assert set(task.files) == {"relations", *SPLITS}
    contract = TextContract(input_template=task.input_template)
    assert contract.source_text({"source": "Cy {x}"}) == "Cy {x} p19 [MASK] ."
    task.load("dev").clear()
    assert len(task.load("dev")) == 1


def test_every_relation_ranks_among_the_same_words(small: Path) -> None:
    # P1923 is none of the 41: its object is no candidate.
    words = ("China", "Egypt", "London", "Niger", "Oslo", "Paris")
    assert find("lama-P19").candidates == find("lama-P36").candidates == words
    assert shared_vocabulary([Example(source="s", references=(x,)) for x in ("b", "é", "a", "Z", "b")]) == (
        "Z", "a", "b", "é",
    )  # fmt: skip


def test_a_relation_has_the_splits_that_have_facts_of_it(small: Path) -> None:
    assert [tuple(find(f"lama-{x}").splits) for x in ("P47", "P530", "P20", "P36")] == [
        ("test",), ("dev", "test"), ("train",), (),
    ]  # fmt: skip
    task = find("lama-P47")
    assert task.summary.endswith("; no train and no dev split")
    assert set(task.files) == {"relations", "test"}
    assert [x.references for x in task.load("test")] == [("Niger",), ("Egypt",)]
    with pytest.raises(TaskNotFound, match="task lama-P47 has no split 'train', expected one of test"):
        task.load("train")
    assert "split" not in find("lama-P19").summary


def test_a_missing_file_is_said_when_a_split_is_loaded(small: Path) -> None:
    for file in ("relations.jsonl.gz", "trex_train.jsonl.gz", "trex_test.jsonl.gz"):
        data = (small / file).read_bytes()
        (small / file).unlink()
        task = find("lama-P19")
        # What was not read is not here later either: the template would be another one.
        (small / file).write_bytes(data)
        assert task.candidates == ()
        for split in SPLITS:
            with pytest.raises(DataNotFound, match=f"got no file lama/{file}: .*; set it to a folder that has lama"):
                task.load(split)


def test_another_relation_is_refused() -> None:
    with pytest.raises(TaskNotFound, match="got the relation 'P1923', expected one of P17, P19"):
        lama("P1923")
    with pytest.raises(TaskNotFound, match="got no task 'lama-p19', did you mean lama-P19"):
        find("lama-p19")


# Templates


def test_a_template_keeps_what_stands_around_the_mask() -> None:
    assert masked("[X] was born in [Y] .") == "{source} was born in [MASK] ."
    assert masked("[X] and [Y] are twin cities .") == "{source} and [MASK] are twin cities ."
    assert masked("[Y] is where [X] lives") == "[MASK] is where {source} lives"


@pytest.mark.parametrize(
    "template",
    [
        "[X] is .",
        "is [Y] .",
        "[X] [X] [Y]",
        "[X] [Y] [Y]",
        "[X] is [Y] {now}",
        "[X] is [Y] }",
        "{ [X] [Y]",
        "[X] [MASK] [Y]",
    ],
)
def test_a_template_that_would_be_read_otherwise_is_refused(template: str, small: Path) -> None:
    with pytest.raises(ValueError, match=r"expected \[X\] and \[Y\] once each, no braces, no \[MASK\]"):
        masked(template)
    rows = [{"relation": x, "template": template if x == "P20" else "[X] [Y]"} for x in RELATIONS]
    file = put(small, "relations.jsonl.gz", rows)
    with pytest.raises(BadRows, match=re.escape(f"{file}: template of P20: got {template!r}, expected [X] and [Y]")):
        find("lama-P19")


def test_a_relation_without_template_and_bad_facts_are_refused(small: Path) -> None:
    file = put(small, "trex_dev.jsonl.gz", [fact("P19", "s", "o"), {"relation": "P19", "sub_label": "s"}])
    with pytest.raises(BadRows, match=re.escape(f"{file}:2: field obj_label: got nothing, expected text")):
        find("lama-P19")
    put(small, "relations.jsonl.gz", [{"relation": "P17", "template": "[X] [Y]"}])
    with pytest.raises(BadRows, match="got no row of relation P19, expected one of each"):
        find("lama-P19")


# P@1


def test_p_at_1_by_hand() -> None:
    facts = [Example(source="s", references=(x,)) for x in ("London", "Oslo", "Paris", "Rome")]
    scores = score_probes([" London ", "oslo", "", "Rome"], facts)
    assert scores.values == {"p_at_1": 50}
    low, high = scores.intervals["p_at_1"]
    assert 0 <= low < 50 < high <= 100
    assert set(scores.variants) == {"p_at_1"}
    assert "micro" in scores.variants["p_at_1"]
    assert score_probes(["London"], facts[:1], ["bleu"]).values == {}
    with pytest.raises(CountMismatch, match="got 1 predictions for 4 rows"):
        score_probes(["London"], facts)


def test_every_fact_has_the_same_weight() -> None:
    """Nine facts of one relation and one of another: micro, and not the mean of the two relations."""
    facts = [Example(source="s", references=("a",))] * 9 + [Example(source="s", references=("b",))]
    assert score_probes(["a"] * 10, facts).values["p_at_1"] == 90


# The real files


def test_the_real_facts_are_as_many_as_the_page_says(epigraph_data: Path) -> None:
    probes = read_probes()
    rows = re.findall(r"^\| `lama-(P\d+)` \| (\S+) \| (\S+) \| (\S+) \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert [x for x, *_ in rows] == list(RELATIONS)
    for relation, *sizes in rows:
        have = [str(len(probes.facts[x][relation])) if relation in probes.facts[x] else "-" for x in SPLITS]
        assert have == sizes, relation
    without = {x: set(RELATIONS) - set(probes.facts[x]) for x in SPLITS}
    assert without == {"train": {"P47", "P190", "P530"}, "dev": {"P47"}, "test": set()}
    assert f"{len(probes.vocabulary):,} words in the files" in PAGE.read_text("utf-8")


def test_the_real_files_are_whole_and_share_as_many_facts_as_the_page_says(epigraph_data: Path) -> None:
    facts = {split: load_every_fact(split) for split in SPLITS}
    assert {split: len(x) for split, x in facts.items()} == {"train": 25_130, "dev": 6_460, "test": 29_104}
    probes = read_probes()
    for split in SPLITS:
        assert sum(len(x) for x in probes.facts[split].values()) == len(facts[split])
    pairs = {
        split: {(relation, x.source, x.references) for relation in facts for x in facts[relation]}
        for split, facts in probes.facts.items()
    }
    shared = len(pairs["train"] & pairs["test"]), len(pairs["dev"] & pairs["test"])
    assert f"{shared[0]} of train and {shared[1]} of dev, read like a test fact" in " ".join(
        PAGE.read_text("utf-8").split()
    )
    assert not any("[MASK]" in x.source for some in facts.values() for x in some)


def test_real_templates_fill(epigraph_data: Path) -> None:
    assert find("lama-P19").input_template == "{source} was born in [MASK] ."
    probes = read_probes()
    assert Counter(x.count("[MASK]") for x in probes.templates.values()) == {1: 41}
    contracts = {x: TextContract(input_template=template) for x, template in probes.templates.items()}
    assert contracts["P37"].source_text({"source": "Chad"}) == "The official language of Chad is [MASK] ."
    # Nothing in front of the mask of any relation of the 41 comes after the object: decoders can be asked too.
    assert all(x.index("{source}") < x.index("[MASK]") for x in probes.templates.values())
