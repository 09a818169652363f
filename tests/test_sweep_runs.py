"""Sweeps that really run, on a tiny model: what they record, who shares them, what a kill costs, what they show."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from conftest import save_tiny
from epigraph.sweep import run as running
from epigraph.sweep.folder import SweepFolder
from epigraph.sweep.inputs import read_inputs
from epigraph.sweep.plan import Plan
from epigraph.sweep.run import Sweep
from epigraph.sweep.shown import markdown, to_json
from epigraph.sweep.spec import read_spec
from epigraph.sweep.table import Results
from folders import call, printed, write_rows

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = [{"source": f"{a}+{b}", "target": str(a + b)} for a in range(6) for b in range(6)]
TEXT = """
name = "tiny"
limits = [4, 8]
draws = [1, 2]
seeds = [1, 2]

[base]
model = "model"
[base.data]
train = "train.jsonl"
test = "test.jsonl"
dev_share = 0.5
[base.text]
max_target_tokens = 4
[base.training]
batch_size = 2
precision = "fp32"
checkpoint_every = 1

[budget]
steps = 4

[search]
factors = [0.5, 2]

[[evaluate]]
[[evaluate]]
limit = 3
metrics = ["exact_match"]

[systems.prefix]
method = { num_virtual_tokens = 3 }
[systems.prompt]
method = { name = "prompt-tuning", num_virtual_tokens = 3 }
[systems.untouched]
method = { name = "untouched" }
"""
# 2 systems x 2 limits x (2 searches + 4 runs), and the model as it is, once.
NUM_JOBS = 25


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    save_tiny(folder / "model")
    write_rows(folder / "train.jsonl", ROWS)
    write_rows(folder / "test.jsonl", ROWS[::4])
    (folder / "spec.toml").write_text(TEXT)
    return folder


@pytest.fixture(autouse=True)
def _here(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(inputs)
    monkeypatch.setattr(running, "POLL_SECONDS", 0.05)


@pytest.fixture(scope="module")
def whole(inputs: Path, one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the sweep that one process did without interruption."""
    out = tmp_path_factory.mktemp("whole")
    before = Path.cwd()
    os.chdir(inputs)
    try:
        assert sweep(out).run() == NUM_JOBS
    finally:
        os.chdir(before)
    return out


def sweep(out: Path, spec: Path = Path("spec.toml"), **options: Any) -> Sweep:
    plan, folder = Plan(read_spec(spec)), SweepFolder(out)
    folder.make(spec)
    return Sweep(plan=plan, inputs=read_inputs(plan), folder=folder, **options)


def changed(folder: Path, *changes: tuple[str, str]) -> Path:
    text = TEXT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / "changed.toml"
    path.write_text(text)
    return path


def result(record: Mapping[str, Any]) -> dict[str, Any]:
    """What does not depend on when and how fast it was found."""
    names = ("key", "run", "kind", "system", "limit", "draw", "seed", "lr", "dev", "kept_step", "inputs")
    scores = [{name: x for name, x in one.items() if name != "seconds"} for one in record["evaluations"]]
    return {**{name: record[name] for name in names}, "evaluations": scores}


def results(out: Path) -> dict[str, dict[str, Any]]:
    records = SweepFolder(out).records()
    assert len({x["key"] for x in records}) == len(records)
    return {x["key"]: result(x) for x in records}


def finals(out: Path) -> list[dict[str, Any]]:
    return [x for x in SweepFolder(out).records() if x["kind"] == "final"]


# One process


def test_every_system_saw_the_same_rows_as_often(whole: Path) -> None:
    records = [x for x in SweepFolder(whole).records() if x["system"] != "untouched"]
    assert len(records) == NUM_JOBS - 1

    def seen(system: str) -> list[Any]:
        own = [x for x in records if x["system"] == system]
        return sorted(
            (x["kind"], x["limit"], x["draw"], x["seed"], x["steps"], *x["inputs"]["data"].values()) for x in own
        )

    assert seen("prefix") == seen("prompt")
    assert {x["steps"] for x in records} == {4}
    rows = {(x["limit"], x["draw"]): x["inputs"]["data"]["train"] for x in records}
    assert len(set(rows.values())) == 4
    assert {x["inputs"]["data"]["train"] for x in records} == set(rows.values())


def test_the_rate_of_the_best_search_is_every_final_runs(whole: Path) -> None:
    records = SweepFolder(whole).records()
    for system in ("prefix", "prompt"):
        for limit in (4, 8):
            own = [x for x in records if (x["system"], x["limit"]) == (system, limit)]
            searched = {x["dev"]["loss"]: x["lr"] for x in own if x["kind"] == "search"}
            assert len(searched) == 2
            assert {x["lr"] for x in own if x["kind"] == "final"} == {searched[min(searched)]}


def test_a_search_run_at_the_chosen_rate_is_not_trained_again(whole: Path) -> None:
    records = SweepFolder(whole).records()
    searched = {x["run"]: x for x in records if x["kind"] == "search"}
    again = [x for x in records if x["kind"] == "final" and x["run"] in searched]
    assert len(again) == 4
    for record in again:
        assert (record["draw"], record["seed"]) == (1, 1)
        # Training it again would have taken another time.
        assert record["train_seconds"] == searched[record["run"]]["train_seconds"]


def test_a_record_says_all_that_a_reader_needs(whole: Path) -> None:
    for record in finals(whole):
        for name in ("versions", "machine", "recipe", "inputs", "at", "method", "precision"):
            assert record[name], name
        first, second = record["evaluations"]
        assert first["num_examples"] == 9
        assert second["num_examples"] == 3
        assert set(second["scores"]) == {"exact_match"}
        assert set(first["intervals"]) <= set(first["variants"]) == set(first["scores"])
        assert first["decoding"]["max_new_tokens"] == 4
        if record["system"] != "untouched":
            assert record["stored_bytes"] > 0
            assert record["trained_numbers"] > 0


def test_predictions_are_those_that_were_scored(whole: Path) -> None:
    made = Results(Plan(read_spec(whole / "spec.toml")), SweepFolder(whole))
    for record in finals(whole)[:4]:
        for number, entry in enumerate(record["evaluations"]):
            summed = made._summed(record, number, "exact_match")
            assert summed is not None
            assert summed.value == entry["scores"]["exact_match"]


def test_files_of_runs_that_are_scored_are_gone(whole: Path) -> None:
    assert list((whole / "jobs").iterdir()) == []


@pytest.mark.slow
def test_files_stay_where_the_spec_keeps_them(tmp_path: Path) -> None:
    spec = changed(tmp_path, ("limits = [4, 8]", "keeps = true\nlimits = [4]"), ("draws = [1, 2]", ""))
    assert sweep(tmp_path / "out", spec).run() == 9
    kept = {x.name for x in (tmp_path / "out" / "jobs").iterdir()}
    assert kept == {x["run"] for x in finals(tmp_path / "out")}
    prefixes = [x["run"] for x in finals(tmp_path / "out") if x["system"] == "prefix"]
    assert (tmp_path / "out" / "jobs" / prefixes[0] / "artifact.safetensors").is_file()


def test_a_sweep_that_is_done_does_nothing_and_a_changed_one_its_own_jobs(whole: Path, tmp_path: Path) -> None:
    assert sweep(whole).run() == 0
    more = sweep(whole, changed(tmp_path, ("seeds = [1, 2]", "seeds = [1, 2, 3]")))
    assert len(more.left()) == 8
    assert len(sweep(whole, changed(tmp_path, ("steps = 4", "steps = 5"))).left()) == 9
    # The spec as it was, for the tests behind this one.
    assert sweep(whole).left() == []


def test_only_one_system_and_at_most_so_many_jobs(tmp_path: Path) -> None:
    made = sweep(tmp_path)
    assert made.run(only=["prompt"], most=3) == 3
    assert {x["system"] for x in SweepFolder(tmp_path).records()} == {"prompt"}
    assert made.run(only=["untouched"]) == 1


# What fails


def test_a_job_that_fails_is_recorded_and_stops_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = changed(
        tmp_path,
        ("limits = [4, 8]", "limits = [4]"),
        ("draws = [1, 2]", ""),
        # Keys and values of another width than the model's.
        ("method = { num_virtual_tokens = 3 }", 'method = { initial = "artifact", initial_path = "nowhere" }'),
    )
    out = tmp_path / "out"
    made = sweep(out, spec)
    assert made.run() == 7
    failed = [x for x in SweepFolder(out).records() if "failed" in x]
    assert {(x["system"], x["kind"]) for x in failed} == {("prefix", "search")}
    assert all("nowhere" in x["failed"] and "\n" not in x["failed"] for x in failed)
    assert len([x for x in finals(out) if "failed" not in x]) == 3
    assert sweep(out, spec).run() == 0
    again = sweep(out, spec)
    again.retry_failed()
    assert again.run() == 2
    assert len([x for x in SweepFolder(out).records() if "failed" in x]) == 4
    assert call("sweep", "show", out) == 0
    assert "failed: prefix, search" in capsys.readouterr().err


# Several processes, and kills

COMMAND = """
import sys, torch
torch.set_num_threads(1)
from epigraph.sweep import run
run.POLL_SECONDS = 0.05
from epigraph.cli import main
main(["sweep", "run", sys.argv[2], "--json", "--out", sys.argv[1]])
"""


def begin(out: Path, spec: Path = Path("spec.toml")) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", COMMAND, str(out), str(spec)]
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def done_here(process: subprocess.Popen[str]) -> int:
    said, told = process.communicate(timeout=240)
    assert process.returncode == 0, told
    return int(json.loads(said)["done_here"])


def held_in_training(process: subprocess.Popen[str], out: Path) -> None:
    """Stop the process while a job of its has a checkpoint and no summary."""
    until = time.monotonic() + 120
    while True:
        assert process.poll() is None
        assert time.monotonic() < until
        for checkpoint in out.glob("jobs/*/checkpoints/step-*"):
            process.send_signal(signal.SIGSTOP)
            if checkpoint.exists() and not (checkpoint.parents[1] / "summary.json").exists():
                return
            process.send_signal(signal.SIGCONT)
        time.sleep(0.002)


@pytest.mark.slow
def test_two_processes_share_a_folder_and_find_what_one_does(whole: Path, tmp_path: Path) -> None:
    both = [begin(tmp_path), begin(tmp_path)]
    counts = [done_here(x) for x in both]
    assert sum(counts) == NUM_JOBS
    assert min(counts) > 0
    assert results(tmp_path) == results(whole)


@pytest.mark.slow
def test_a_killed_job_goes_on_elsewhere_to_the_same_record(whole: Path, tmp_path: Path) -> None:
    first = begin(tmp_path)
    held_in_training(first, tmp_path)
    first.kill()
    first.communicate()
    num_before = len(SweepFolder(tmp_path).records())
    # What a writer that is killed in the midst of a line leaves.
    with (tmp_path / "records.jsonl").open("ab") as file:
        file.write(b'{"key": "half')
    assert sweep(tmp_path).run() == NUM_JOBS - num_before
    assert results(tmp_path) == results(whole)
    assert any(record["resumed_at"] for record in SweepFolder(tmp_path).records()[num_before:])


@pytest.mark.slow
def test_a_sweep_that_is_asked_to_stop_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = begin(out, changed(tmp_path, ("steps = 4", "steps = 5000"), ("dev_share = 0.5", "dev_share = 0.25")))
    held_in_training(process, out)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 143, told
    assert "which is saved; go on with the same command" in told.splitlines()[-1]
    assert SweepFolder(out).records() == []
    assert list(out.glob("jobs/*/checkpoints/step-*"))


# The command


def test_the_cost_comes_first_and_a_dry_run_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "sweep", "run", "spec.toml", "--out", tmp_path, "--dry-run")
    assert "prefix" in out
    assert "left, expected" in out
    assert SweepFolder(tmp_path).records() == []
    assert list((tmp_path / "pilots").iterdir()) == []
    costs = SweepFolder(tmp_path).read_cost()
    assert {x["system"] for x in costs.values()} == {"prefix", "prompt", "untouched"}
    paces = {x["system"]: x for x in costs.values()}
    assert paces["prefix"]["step"] > 0
    assert all(x > 0 for x in paces["untouched"]["rows"])


def test_what_is_done_costs_nothing_any_more(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(printed(capsys, "sweep", "spec.toml", "--out", whole, "--json"))
    assert found["done_here"] == found["failed"] == 0
    assert [(x["system"], x["searches"], x["finals"], x["done"], x["seconds_left"]) for x in found["expected"]] == [
        ("prefix", 4, 8, 12, 0),
        ("prompt", 4, 8, 12, 0),
        ("untouched", 0, 1, 1, 0),
    ]


@pytest.mark.slow
def test_a_budget_of_seconds_is_the_steps_that_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = changed(
        tmp_path,
        ("steps = 4", "seconds = 0.5"),
        ("limits = [4, 8]", "limits = [4]"),
        ("draws = [1, 2]\nseeds = [1, 2]", ""),
        ("factors = [0.5, 2]", "factors = [1]"),
        ("checkpoint_every = 1", "dev_every = 0"),
    )
    out = tmp_path / "out"
    found = json.loads(printed(capsys, "sweep", "run", spec, "--out", out, "--json"))
    assert found["done_here"] == 3
    paces = {x["system"]: x["step"] for x in SweepFolder(out).read_cost().values()}
    steps = {x["system"]: x["recipe"]["training"]["steps"] for x in finals(out)}
    for system in ("prefix", "prompt"):
        assert steps[system] == max(1, int(0.5 / paces[system])) > 1
    assert json.loads(printed(capsys, "sweep", "run", spec, "--out", out, "--json"))["done_here"] == 0


def test_the_tables_have_every_system_and_limit(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "sweep", "show", whole, "--metric", "chrf", "--against", "untouched")
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("| ")
    ]
    assert lines[0][:2] == ["pairs", "system"]
    assert [tuple(x[:2]) for x in lines[2:]] == [
        ("", "untouched"),
        ("4", "prefix"),
        ("4", "prompt"),
        ("8", "prefix"),
        ("8", "prompt"),
    ]
    assert "chrf: " in out


def test_the_json_has_every_run_with_its_interval(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("sweep", "show", whole, "--json", "--metric", "exact_match", "--against", "untouched")
    found = json.loads(printed(capsys, *words))
    assert found["failed"] == []
    assert [x["evaluation"] for x in found["tables"]] == ["own rows, test", "own rows, test, first 3"]
    rows = {(x["system"], x["limit"]): x for x in found["tables"][0]["rows"]}
    assert set(rows) == {("prefix", 4), ("prefix", 8), ("prompt", 4), ("prompt", 8), ("untouched", None)}
    row = rows["prefix", 4]
    assert len(row["runs"]) == row["num_planned"] == 4
    assert all(len(run["interval"]) == 2 for run in row["runs"])
    assert row["mean"] == pytest.approx(sum(run["score"] for run in row["runs"]) / 4)
    assert row["advantage"]["num_pairs"] == 4
    assert row["advantage"]["value"] == pytest.approx(row["mean"] - rows["untouched", None]["mean"])
    assert rows["untouched", None]["advantage"] is None


def test_a_pair_is_the_same_draw_and_seed(whole: Path) -> None:
    made = Results(Plan(read_spec(whole / "spec.toml")), SweepFolder(whole))
    by_system = {name: [x for x in finals(whole) if x["system"] == name] for name in ("prefix", "prompt")}
    [table] = made.tables(["exact_match"], "prompt")[:1]
    for row in table.rows:
        if row.system == "prefix":
            scores = {
                (x["draw"], x["seed"]): x["evaluations"][0]["scores"]["exact_match"]
                for x in by_system["prompt"]
                if x["limit"] == row.limit
            }
            own = [
                run["evaluations"][0]["scores"]["exact_match"] - scores[run["draw"], run["seed"]] for run in row.runs
            ]
            assert row.advantage is not None
            assert row.advantage.value == pytest.approx(sum(own) / 4)
            assert row.advantage.num_pairs == 4
    assert "| ---" in markdown(to_json(table))


def test_a_curve_is_drawn(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "curve.png"
    printed(capsys, "sweep", "show", whole, "--metric", "chrf", "--picture", path)
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "spec.toml", "--out", "x", "--only", "prefi"), "--only: got 'prefi', expected one of prefix, prompt"),
        (("run", "spec.toml", "--out", "x", "--max-jobs", "0"), "--max-jobs is 0, expected 1 or more"),
        (("show", "nowhere"), "nowhere holds no spec.toml, expected the folder of a sweep"),
    ],
)
def test_mistakes_are_told_in_one_line(words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("sweep", *words) == 2
    assert said in capsys.readouterr().err


def test_metrics_and_systems_that_are_not_there_are_told(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("sweep", "show", whole, "--metric", "blue") == 2
    assert "--metric: got 'blue', expected one of bleu, chrf, exact_match" in capsys.readouterr().err
    assert call("sweep", "show", whole, "--against", "prefi") == 2
    assert "--against: got 'prefi', expected one of prefix, prompt, untouched" in capsys.readouterr().err


def test_other_rows_than_those_scored_are_no_comparison(
    whole: Path, inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = (inputs / "test.jsonl").read_text()
    write_rows(inputs / "test.jsonl", ROWS[1::4])
    try:
        assert call("sweep", "show", whole, "--metric", "exact_match", "--against", "untouched") == 2
        assert "are not those that this sweep scored" in capsys.readouterr().err
    finally:
        (inputs / "test.jsonl").write_text(kept)
