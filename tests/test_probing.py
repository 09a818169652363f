"""LAMA's relations as tasks: templates, facts, the shared vocabulary, P@1, and P@1 of several relations together."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from epigraph.contract import TextContract
from epigraph.errors import BadRows, CountMismatch, DataNotFound, MetricUnavailable, TaskNotFound, TooFewExamples
from epigraph.tasks import probing
from epigraph.tasks.base import Example, Scores
from epigraph.tasks.bootstrap import BOOTSTRAP_SEED, NUM_RESAMPLES, compare
from epigraph.tasks.catalogue import PROBES, TASKS, find
from epigraph.tasks.choice_metrics import score_probes
from epigraph.tasks.probing import (
    GOOGLE_RE,
    RELATIONS,
    TRAINABLE,
    UNTRAINABLE,
    google_re,
    lama,
    lama_groups,
    load_every_fact,
    masked,
    read_probes,
    shared_vocabulary,
)

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
    put(folder, "relations.jsonl.gz", [*templates, *({"relation": x, "template": "[X] in [Y]"} for x in GOOGLE_RE)])
    places = [fact("place_of_birth", "Ada", "London"), fact("place_of_death", "Bo", "Oslo")]
    put(folder, "google_re_test.jsonl.gz", [*places, fact("date_of_birth", "Cy", "1901"), fact("else", "Di", "Rome")])
    put(folder, "trex_train.jsonl.gz", [fact("P19", "Ada", "London"), fact("P20", "Bo", "Oslo")])
    put(folder, "trex_dev.jsonl.gz", [fact("P19", "Cy {x}", "Paris"), fact("P530", "Chad", "Niger")])
    tests = [fact("P47", "Chad", "Niger"), fact("P47", "Chad", "Egypt"), fact("P19", "Di", "London")]
    put(folder, "trex_test.jsonl.gz", [*tests, fact("P1923", "Cup", "Elsewhere"), fact("P530", "Chad", "China")])
    return folder


# Tasks


def test_there_are_forty_one_relations_by_number() -> None:
    assert len(RELATIONS) == len(set(RELATIONS)) == 41
    assert sorted(RELATIONS, key=lambda x: int(x[1:])) == list(RELATIONS)
    assert {f"lama-{x}" for x in RELATIONS} <= PROBES.keys()
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


def test_the_tasks_of_both_parts() -> None:
    assert [*probing.TASKS] == [*(f"lama-{x}" for x in RELATIONS), *(f"lama-google-re-{x}" for x in GOOGLE_RE)]


def test_google_re_is_for_testing_alone(small: Path) -> None:
    task = probing.TASKS["lama-google-re-date_of_birth"]()
    assert task.name == "lama-google-re-date_of_birth"
    assert [*task.splits] == ["test"]
    assert task.load("test") == [Example(source="Cy", references=("1901",))]
    assert task.input_template == "{source} in [MASK]"
    # Objects of the three relations, and of nothing else.
    assert task.candidates == google_re("place_of_birth").candidates == ("1901", "London", "Oslo")
    assert set(task.files) == {"relations", "test"}
    assert task.summary == (
        "LAMA Google-RE, relation date_of_birth: the object of a fact from its subject; no train and no dev split"
    )
    with pytest.raises(TaskNotFound, match="has no split 'train', expected one of test"):
        task.load("train")
    with pytest.raises(TaskNotFound, match="got the relation 'P19', expected one of place_of_birth, date_of_birth"):
        google_re("P19")


def test_google_re_that_is_not_here(small: Path) -> None:
    (small / "google_re_test.jsonl.gz").unlink()
    task = google_re("place_of_death")
    assert (task.candidates, task.input_template) == ((), "{source} [MASK]")
    with pytest.raises(DataNotFound, match=r"got no file lama/google_re_test\.jsonl\.gz"):
        task.load("test")
    # The relations of T-REx do not need it.
    assert len(find("lama-P19").load("test")) == 1


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


# Relations together


def probed(*right: bool) -> Scores:
    return score_probes(["a" if x else "b" for x in right], [Example(source="s", references=("a",))] * len(right))


def test_micro_and_macro_by_hand() -> None:
    together = lama_groups({"P19": probed(True, True, True, False), "P20": probed(False)})
    assert together.values == {"p_at_1_micro": 60, "p_at_1_macro": pytest.approx((75 + 0) / 2)}
    assert together.num_examples == 5
    assert set(together.variants) == set(together.intervals) == set(together.values)
    assert "drawn together" in together.variants["p_at_1_macro"]
    one = lama_groups({"P19": probed(True, False, False)})
    assert one.values["p_at_1_micro"] == pytest.approx(one.values["p_at_1_macro"])
    assert one.intervals["p_at_1_micro"] == pytest.approx(one.intervals["p_at_1_macro"])


def relations_of(seed: int, sizes: Sequence[int], shares: Sequence[float]) -> list[list[bool]]:
    random = np.random.default_rng(seed)
    return [(random.random(size) < share).tolist() for size, share in zip(sizes, shares, strict=True)]


def test_the_macro_interval_equals_scoring_every_resample_again() -> None:
    answers = relations_of(1, (2, 9, 30), (0.5, 0.2, 0.7))
    pool = [(number, right) for number, some in enumerate(answers) for right in some]
    random = np.random.default_rng(BOOTSTRAP_SEED)
    means, num_without = [], 0
    for _ in range(NUM_RESAMPLES):
        drawn = [pool[place] for place in random.integers(len(pool), size=len(pool))]
        apart = [[right for number, right in drawn if number == relation] for relation in range(3)]
        means.append(np.mean([100 * np.mean(some) for some in apart if some]))
        num_without += not all(apart)
    # Some draws have no fact of the first relation: those are means of two.
    assert num_without > 50
    together = lama_groups({str(number): probed(*some) for number, some in enumerate(answers)})
    assert together.intervals["p_at_1_macro"] == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))


def test_the_macro_interval_is_that_of_drawing_within_each_relation() -> None:
    """Where relations are as large as LAMA's, drawing their facts together or apart gives the same interval."""
    answers = relations_of(2, (160, 400, 800, 800), (0.9, 0.3, 0.5, 0.1))
    random = np.random.default_rng(3)
    apart = [np.mean([100 * np.mean(random.choice(some, len(some))) for some in answers]) for _ in range(NUM_RESAMPLES)]
    low, high = lama_groups({str(n): probed(*some) for n, some in enumerate(answers)}).intervals["p_at_1_macro"]
    want_low, want_high = np.percentile(apart, [2.5, 97.5])
    assert abs(low - want_low) < 0.35
    assert abs(high - want_high) < 0.35
    assert high - low == pytest.approx(want_high - want_low, rel=0.15)


def test_two_systems_are_compared_in_the_macro_mean() -> None:
    one = lama_groups({"a": probed(*[True] * 40), "b": probed(*[False] * 4)})
    other = lama_groups({"a": probed(*[False] * 40), "b": probed(*[False] * 4)})
    assert compare(one.summed["p_at_1_macro"], other.summed["p_at_1_macro"]).value == 50


def test_what_cannot_be_put_together_is_refused() -> None:
    with pytest.raises(TooFewExamples, match="got no relations"):
        lama_groups({})
    recorded = Scores(values={"p_at_1": 1.0}, intervals={}, variants={}, num_examples=1)
    with pytest.raises(
        MetricUnavailable, match="relation P19: got scores without the rows of p_at_1, expected them as"
    ):
        lama_groups({"P17": probed(True), "P19": recorded})


# The real files


def test_the_real_relations_that_can_be_trained(epigraph_data: Path) -> None:
    facts = read_probes().facts
    assert list(TRAINABLE) == [x for x in RELATIONS if x in facts["train"]]
    assert list(UNTRAINABLE) == [x for x in RELATIONS if x not in facts["train"]]
    assert (len(TRAINABLE), UNTRAINABLE) == (38, ("P47", "P190", "P530"))


def test_the_real_google_re(epigraph_data: Path) -> None:
    tasks = {x: google_re(x) for x in GOOGLE_RE}
    assert [len(x.load("test")) for x in tasks.values()] == [2_936, 1_825, 765]
    assert [x.input_template for x in tasks.values()] == [
        "{source} was born in [MASK] .", "{source} (born [MASK]).", "{source} died in [MASK] .",
    ]  # fmt: skip
    words = set(tasks["date_of_birth"].candidates)
    assert all(x.references[0] in words for task in tasks.values() for x in task.load("test"))


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
