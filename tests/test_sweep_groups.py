"""Several sweeps in one command, the relations of LAMA together, controls, ensembles, evaluations of some systems."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from conftest import save_tiny
from epigraph.errors import BadValue, RecordsNotFound
from epigraph.sweep import groups
from epigraph.sweep.folder import SweepFolder
from epigraph.sweep.groups import all_costs, folders_in, members_of
from epigraph.sweep.inputs import read_inputs
from epigraph.sweep.plan import Plan
from epigraph.sweep.run import Sweep
from epigraph.sweep.spec import read_spec
from epigraph.sweep.table import Results
from epigraph.tasks.probing import RELATIONS
from epigraph.train.answering import open_run
from folders import call, printed, write_rows

pytestmark = pytest.mark.usefixtures("one_thread")

COMMON = """
[base]
model = "model"
[base.training]
batch_size = 2
precision = "fp32"
dev_every = 2
[budget]
steps = 2
[search]
factors = [1]
"""
LAMA = f"""
name = "relations"
title = "Two relations"
tasks = ["lama-P19", "lama-P103"]
{COMMON}
[[evaluate]]
[systems.untouched]
method = {{ name = "untouched" }}
[systems.prefix]
method = {{ num_virtual_tokens = 2 }}
[systems.control]
model = "random:model"
method = {{ num_virtual_tokens = 2 }}
"""
LABELS = f"""
name = "labels"
seeds = [1, 2, 3]
{COMMON}
[base.data]
train = "train.jsonl"
test = "test.jsonl"
[base.text]
labels = ["even", "odd"]
[[evaluate]]
limit = 2
num_beams = 2
length_penalty = 0.8
systems = ["bare"]
[[evaluate]]
[[ensembles]]
system = "prompt"
[[ensembles]]
system = "prompt"
mean = "majority"
[systems.prompt]
method = {{ name = "prompt-tuning", num_virtual_tokens = 2 }}
[systems.bare]
method = {{ name = "untouched" }}
"""
GEOMETRIC, MAJORITY = "prompt, ensemble of 3 (geometric)", "prompt, ensemble of 3 (majority)"


def facts(folder: Path, name: str, rows: Sequence[object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(gzip.compress("".join(json.dumps(x) + "\n" for x in rows).encode()))


def some(relation: str, words: str, length: int = 2) -> list[dict[str, Any]]:
    return [{"relation": relation, "sub_label": x * length, "obj_label": x} for x in words]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, a few facts whose objects are one token each for it, and rows with labels."""
    folder = tmp_path_factory.mktemp("inputs")
    save_tiny(folder / "model")
    lama = folder / "lama"
    facts(lama, "relations.jsonl.gz", [{"relation": x, "template": "[X]=[Y]"} for x in RELATIONS])
    facts(lama, "trex_train.jsonl.gz", some("P19", "ABCD") + some("P103", "EFGH", 5))
    facts(lama, "trex_dev.jsonl.gz", some("P19", "AB") + some("P103", "EF"))
    facts(lama, "trex_test.jsonl.gz", some("P19", "ABC") + some("P103", "EFGHABCDE"))
    rows = [{"source": str(x), "target": "odd" if x % 2 else "even"} for x in range(12)]
    write_rows(folder / "train.jsonl", rows)
    write_rows(folder / "test.jsonl", rows[::2] + rows[:3])
    (folder / "specs").mkdir()
    (folder / "specs" / "b-lama.toml").write_text(LAMA)
    (folder / "specs" / "a-labels.toml").write_text(LABELS)
    return folder


@pytest.fixture(autouse=True)
def _here(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(inputs)
    monkeypatch.setenv("EPIGRAPH_DATA", str(inputs))
    monkeypatch.setenv("EPIGRAPH_HOME", str(inputs / "home"))


@pytest.fixture(scope="module")
def both(inputs: Path, one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which one command ran both specs."""
    out = tmp_path_factory.mktemp("both")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(inputs)
        patch.setenv("EPIGRAPH_DATA", str(inputs))
        patch.setenv("EPIGRAPH_HOME", str(inputs / "home"))
        assert call("sweep", "run", "specs", "--out", out) == 0
    return out


def results(folder: Path) -> Results:
    return Results(Plan(read_spec(folder / "spec.toml")), SweepFolder(folder))


def by_system(folder: Path) -> dict[str, dict[str, Any]]:
    return {x["system"]: x for x in SweepFolder(folder).records() if x["kind"] == "final"}


# Several


def test_each_of_several_specs_and_tasks_has_a_folder_of_its_own(tmp_path: Path) -> None:
    one = members_of([Path("specs/a-labels.toml")], tmp_path)
    assert [x.folder for x in one] == [tmp_path]
    tasks = members_of([Path("specs/b-lama.toml")], tmp_path)
    assert [x.folder for x in tasks] == [tmp_path / "lama-P19", tmp_path / "lama-P103"]
    every = members_of([Path("specs")], tmp_path)
    assert [x.folder.relative_to(tmp_path).as_posix() for x in every] == [
        *("labels", "relations/lama-P19", "relations/lama-P103"),
    ]


def test_two_specs_of_one_name_and_a_folder_without_specs_are_refused(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / f"{name}.toml").write_text(LABELS)
    with pytest.raises(BadValue, match="got the name 'labels', which another of these specs has; run them apart"):
        members_of([tmp_path], tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadValue, match=r"empty holds no .toml file; give the path of a spec, or of a folder of specs"):
        members_of([tmp_path / "empty"], tmp_path)


def test_one_command_does_all_of_them_once(both: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [x.relative_to(both).as_posix() for x in folders_in(both)] == [
        *("labels", "relations/lama-P19", "relations/lama-P103"),
    ]
    assert {x: len(SweepFolder(both / x).records()) for x in ("labels", "relations/lama-P19")} == {
        "labels": 6,
        "relations/lama-P19": 3,
    }
    found = json.loads(printed(capsys, "sweep", "specs", "--out", both, "--json"))
    assert (found["done_here"], found["failed"]) == (0, 0)
    assert list(found["expected"]) == ["labels", "relations lama-P19", "relations lama-P103"]
    with pytest.raises(RecordsNotFound):
        folders_in(both / "nothing")


def test_the_cost_of_all_comes_first_with_a_total(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "sweep", "run", "specs", "--out", tmp_path, "--dry-run")
    assert out.index("labels") < out.index("relations lama-P19") < out.index("relations lama-P103")
    assert "all sweeps" in out
    # One pilot a system and a spec: the second relation goes by the first.
    assert len(SweepFolder(tmp_path / "relations" / "lama-P19").read_cost()) == 3
    assert SweepFolder(tmp_path / "relations" / "lama-P103").read_cost() == {}


def test_a_later_task_costs_what_its_rows_are_longer(tmp_path: Path) -> None:
    sweeps = []
    for member in members_of([Path("specs/b-lama.toml")], tmp_path):
        plan, folder = Plan(member.spec), SweepFolder(member.folder)
        folder.make(member.path, member.task)
        sweeps.append((member.path, Sweep(plan=plan, inputs=read_inputs(plan), folder=folder)))
    assert [x.inputs.length for _, x in sweeps] == [3.0, 6.0]
    [[first], [second]] = all_costs(sweeps, ["untouched"])
    [pace] = groups.paces(sweeps[0][1].plan, sweeps[0][1].folder, "cpu", ["untouched"]).values()
    # 3 test facts of the one, 9 of the other, whose training pairs are twice as long; loading takes what it takes.
    assert second.seconds_left - first.seconds_left == pytest.approx((2 * 9 - 3) * pace.rows[0])


def test_most_jobs_are_counted_over_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("sweep", "run", "specs/b-lama.toml", "--out", tmp_path, "--only", "untouched", "--json")
    assert json.loads(printed(capsys, *words, "--max-jobs", "1"))["done_here"] == 1
    assert json.loads(printed(capsys, *words, "--max-jobs", "5"))["done_here"] == 1
    assert call("sweep", "run", "specs", "--out", tmp_path, "--only", "prefi") == 2
    assert "--only: got 'prefi', expected one of prompt, bare, untouched" in capsys.readouterr().err


# Relations together, and the control


def test_relations_together_are_all_their_facts(both: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(printed(capsys, "sweep", "show", both / "relations", "--json", "--against", "untouched"))
    micro, macro = found["together"]
    assert (micro["metric"], macro["metric"]) == ("p_at_1_micro", "p_at_1_macro")
    for number, row in enumerate(micro["rows"]):
        first, second = (sweep["tables"][0]["rows"][number]["mean"] for sweep in found["sweeps"])
        assert row["mean"] == pytest.approx((3 * first + 9 * second) / 12)
        assert macro["rows"][number]["mean"] == pytest.approx((first + second) / 2)
        low, high = row["runs"][0]["interval"]
        assert low <= row["mean"] <= high
    by_name = {row["system"]: row for row in micro["rows"]}
    assert list(by_name) == ["untouched", "prefix", "control"]
    assert by_name["untouched"]["advantage"] is None
    assert by_name["prefix"]["advantage"]["value"] == pytest.approx(
        by_name["prefix"]["mean"] - by_name["untouched"]["mean"]
    )
    assert by_name["prefix"]["advantage"]["interval"] is not None
    out = printed(capsys, "sweep", "show", both / "relations")
    assert out.count("Two relations") == 1
    assert "| system | lama-P19, p at 1 | lama-P103, p at 1 |" in out
    assert "**p at 1 macro**, 2 relations of LAMA, test" in out


def test_what_is_not_all_there_has_no_row_together(both: Path) -> None:
    sweeps = {x: results(both / "relations" / x) for x in ("lama-P19", "lama-P103")}
    prefix = sweeps["lama-P103"].plan.cells[1]
    assert prefix.system == "prefix"
    lost = sweeps["lama-P103"].plan.finals(prefix, prefix.rates[0])[0].plan
    find = sweeps["lama-P103"].find
    sweeps["lama-P103"].find = lambda job: None if job.plan == lost else find(job)
    [micro, _] = groups.together(sweeps)
    assert [row.system for row in micro.rows] == ["untouched", "control"]
    assert groups.together({"lama-P19": sweeps["lama-P19"]}) == []
    assert groups.together({"trec": sweeps["lama-P19"], "sst2": sweeps["lama-P103"]}) == []


def test_a_control_has_another_model_and_its_table_says_so(both: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = by_system(both / "relations" / "lama-P19")
    assert records["control"]["inputs"]["base"] != records["prefix"]["inputs"]["base"]
    assert records["prefix"]["inputs"]["base"] == records["untouched"]["inputs"]["base"]
    lines = [x for x in printed(capsys, "sweep", "show", both / "relations" / "lama-P19").splitlines() if "|" in x]
    assert lines[0].startswith("| system | model |")
    assert "| control | random:model |" in lines[-1]
    plan = Plan(read_spec(both / "relations" / "lama-P19" / "spec.toml"))
    found = read_inputs(plan)
    other = read_inputs(plan).__class__(
        **{
            **{x: getattr(found, x) for x in ("base", "data", "evaluate", "num_rows")},
            "controls": {"random:model": "x"},
        }
    )
    jobs = {x: plan.job(x) for x in ("prefix", "control")}
    assert found.key(jobs["prefix"]) == other.key(jobs["prefix"])
    assert found.key(jobs["control"]) != other.key(jobs["control"])


# Ensembles, and evaluations of some systems


def test_an_ensemble_answers_as_its_members_do_together(tmp_path: Path) -> None:
    spec = tmp_path / "spec.toml"
    spec.write_text(LABELS.replace("seeds", "keeps = true\nseeds"))
    plan, folder = Plan(read_spec(spec)), SweepFolder(tmp_path / "out")
    folder.make(spec)
    made = Sweep(plan=plan, inputs=read_inputs(plan), folder=folder)
    assert made.run() == 6
    runs = {x["seed"]: folder.job(x["run"]) for x in folder.records() if x["system"] == "prompt"}
    opened = open_run(runs[1])
    assert opened.tuned is not None
    records = {x["system"]: x for x in folder.records()}
    for name, mean in ((GEOMETRIC, "geometric"), (MAJORITY, "majority")):
        ensemble = opened.tuned.ensemble(runs[2], runs[3], mean=mean)  # type: ignore[arg-type]
        task, rows = results(folder.path)._scored_rows(1, records[name]["evaluations"][0]["data"])
        said = opened.evaluate(task, rows, ensemble=ensemble)
        assert folder.read_predictions(records[name]["key"])[0][1] == list(said.predictions)
        assert records[name]["evaluations"][0]["scores"] == pytest.approx(dict(said.scores.values))
    members = [x["stored_bytes"] for x in folder.records() if x["system"] == "prompt"]
    assert len(members) == 3
    # Not three times one of them: a file's size moves with the digits of its evidence.
    assert records[GEOMETRIC]["stored_bytes"] == sum(members)


def test_members_stay_until_they_have_been_asked_together(both: Path, tmp_path: Path) -> None:
    assert list((both / "labels" / "jobs").iterdir()) == []
    plan, folder = Plan(read_spec(Path("specs/a-labels.toml"))), SweepFolder(tmp_path)
    folder.make(Path("specs/a-labels.toml"))
    made = Sweep(plan=plan, inputs=read_inputs(plan), folder=folder)
    assert made.run(only=["prompt"], most=3) == 3
    assert len(list((tmp_path / "jobs").iterdir())) == 3
    assert [x.mean for x in made.left(["prompt"])] == ["geometric", "majority"]
    assert made.run(only=["prompt"]) == 2
    assert list((tmp_path / "jobs").iterdir()) == []


def test_the_table_has_the_best_member_and_the_ensembles(both: Path) -> None:
    found = results(both / "labels")
    rows = {row.system: row for row in found.tables()[1].rows}
    assert list(rows) == ["prompt", "bare", GEOMETRIC, MAJORITY]
    assert rows["prompt"].best == max(rows["prompt"].values)
    assert rows["bare"].best is None
    assert len(rows[GEOMETRIC].runs) == rows[GEOMETRIC].num_planned == 1
    [nll] = [x for x in found.tables(["nll"]) if len(x.rows) > 1]
    # Votes are counts and no probabilities.
    assert [row.system for row in nll.rows] == ["prompt", "bare", GEOMETRIC]
    assert nll.rows[0].best == min(nll.rows[0].values)
    against = found.tables(["accuracy"], "prompt")[1]
    by_name = {row.system: row.advantage for row in against.rows}
    together = by_name[GEOMETRIC]
    assert together is not None
    assert (together.num_pairs, together.value) == (3, pytest.approx(rows[GEOMETRIC].mean - rows["prompt"].mean))


def test_members_are_not_trained_twice_in_what_was_taken(both: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(printed(capsys, "sweep", "show", both / "labels", "--json"))
    trained = [x for x in SweepFolder(both / "labels").records() if not x.get("num_members")]
    assert found["num_runs"] == len(trained) == 4
    assert found["train_seconds"] == pytest.approx(sum(x["train_seconds"] for x in trained))
    [members] = [x for x in SweepFolder(both / "labels").records() if x["system"] == GEOMETRIC]
    assert members["train_seconds"] == pytest.approx(
        sum(x["train_seconds"] for x in trained if x["system"] == "prompt")
    )
    assert found["machines"]
    assert found["versions"][0]["torch"]


def test_an_evaluation_of_some_systems_scores_no_other(both: Path) -> None:
    records = by_system(both / "labels")
    assert {name: len(x["evaluations"]) for name, x in records.items()} == {
        "prompt": 1,
        "bare": 2,
        GEOMETRIC: 1,
        MAJORITY: 1,
    }
    assert records["bare"]["evaluations"][0]["decoding"]["length_penalty"] == 0.8
    first, second = results(both / "labels").tables()
    assert [row.system for row in first.rows] == ["bare"]
    assert first.evaluation == "own rows, test, first 2, 2 beams, length penalty 0.8"
    assert first.rows[0].mean == records["bare"]["evaluations"][0]["scores"]["accuracy"]
    assert [row.system for row in second.rows] == ["prompt", "bare", GEOMETRIC, MAJORITY]
    assert second.rows[2].mean == records[GEOMETRIC]["evaluations"][0]["scores"]["accuracy"]
