"""The fleet's bench: its sides read the same rows and learn the same, and records hold what was measured."""

from __future__ import annotations

import json
import re
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import save_tiny
from epigraph.bench import fleet as bench
from epigraph.bench import fleet_many
from epigraph.bench.fleet import PARTS, run
from epigraph.bench.fleet_job import FULL, QUICK, Job, Sizes
from epigraph.bench.fleet_many import ten_thousand
from epigraph.bench.fleet_parts import overhead, point, users
from epigraph.bench.fleet_sides import Alone, Batched, Fleet
from epigraph.cli import main
from epigraph.errors import BadValue
from epigraph.frozen.batch import num_scored
from epigraph.report.fleet import SHOW, TITLES
from epigraph.report.performance import read, shown_part, tables
from epigraph.train.build import make_method
from epigraph.train.fleet.order import Progress

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "benchmarks" / "fleet.json"
PAGE = ROOT / "docs" / "performance.md"
SMALL = Sizes(num_users=3, num_pairs=5, rounds=2, steps=2, at_once=(2, 3), batch_size=2, many=12, many_steps=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("bench") / "tiny")


@pytest.fixture(scope="module")
def job(folder: Path) -> Job:
    return Job(model=str(folder), task="cards", device=torch.device("cpu"), sizes=SMALL)


def nothing() -> None:
    return


def test_users_have_rows_of_their_own(job: Job) -> None:
    one, two, three = (ready.rows for ready in job.users(3, 1))
    assert len(job.ready.rows) == 15
    assert (*one, *two, *three) == job.ready.rows
    assert job.users(4, 1)[3].rows == one, "a fourth has no rows left, and shares the first one's"
    assert {ready.recipe.training.batch_size for ready in job.users(2, 7)} == {7}


def test_one_run_reads_in_each_step_what_all_users_read(job: Job) -> None:
    """Before the first step all have one prefix, so its loss is the mean of theirs, each as often as it has tokens."""
    every = job.users(3, 1)
    method = make_method(every[0])
    fleet, batched = Fleet(every, method, 3), Batched(every, method)
    read = [fleet.members[number].window()[0][0] for number in range(3)]
    fleet, counts = Fleet(every, method, 3), [num_scored(row) for row in read]
    fleet.take(1)
    batched.take(1)
    sums = [loss * count for [loss], count in zip(fleet.losses(), counts, strict=True)]
    assert batched._run.losses == pytest.approx([sum(sums) / sum(counts)], rel=1e-5)
    assert len(set(counts)) > 1


def test_a_fleet_learns_what_everybody_learns_alone(job: Job) -> None:
    every = job.users(3, 1)
    method = make_method(every[0])
    fleet, batched, alone = Fleet(every, method, 2), Batched(every, method), Alone(every, method)
    first = fleet.prefixes()[0]
    for side in (fleet, batched, alone):
        side.take(4)
    assert fleet.tokens() == batched.tokens() == alone.tokens() > 0
    assert len(fleet.losses()[0]) == 4
    for ours, theirs in zip(fleet.losses(), alone.losses(), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
    for one, other in zip(fleet.prefixes(), alone.prefixes(), strict=True):
        assert float((one - other).norm() / other.norm()) < 1e-3
        assert float((one - first).norm() / first.norm()) > 1e-2
    assert float((fleet.prefixes()[0] - fleet.prefixes()[1]).norm()) > 0, "two users have two prefixes"


def test_overhead(job: Job) -> None:
    found = overhead(job, nothing)
    speed = {name: x["values"] for name, x in found["examples_a_second"].items()}
    assert [len(x) for x in speed.values()] == [2, 2, 2]
    for ratio, side in (("ratio_vs_batched", "one run"), ("ratio_vs_solo", "alone")):
        assert found[ratio]["values"] == [x / y for x, y in zip(speed["fleet"], speed[side], strict=True)]
    assert 0 < found["largest_prefix_difference"] < 1e-3
    assert found["largest_loss_difference"] < 1e-4
    width = 3 * 2 * 2 * 16
    assert found["user_bytes"] == 10 * width * 4 * (2 + 2 + 2), "values, gradients, two moments, and what is made twice"


def test_examples_a_second_are_of_all_users(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every round takes half a second, 3 users with one row and 2 steps a round have 12 examples a second."""
    monkeypatch.setattr("epigraph.bench.fleet_parts.seconds", lambda work, _: (work(), 0.5)[1])
    assert overhead(job, nothing)["examples_a_second"]["alone"]["values"] == [12.0, 12.0]
    found = point(job, 6, nothing)["examples_a_second"]
    assert found["fleet"]["values"] == [6 * 2 * 2 / 0.5] * 2
    assert found["alone"]["values"] == [4 * 2 * 2 / 0.5] * 2


def test_more_users_at_once_want_a_gpu(job: Job) -> None:
    found = users(job, nothing)
    assert "give --device cuda" in found["skipped"]
    assert SHOW["users"](found).startswith("Not measured: more users at once")
    on_gpu = {str(number): point(job, number, nothing) for number in job.sizes.at_once}
    assert on_gpu["3"]["passes_a_step"] == 1
    shown = SHOW["users"](on_gpu)
    assert "| 2 | " in shown
    assert "| 3 | " in shown


def test_a_pass_has_so_many_rows(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("epigraph.bench.fleet_parts.DEFAULT_ROWS", {"cpu": 4})
    found = point(job, 3, nothing)
    assert (found["rows_a_pass"], found["passes_a_step"]) == (4, 2)


def test_thousands_of_users(job: Job) -> None:
    found = ten_thousand(job, nothing)
    assert (found["done"], found["failed"], found["steps"]) == (12, 0, 24)
    assert found["marks"][-1]["done"] == 12
    assert all(x["resident_bytes"] > 10**7 and x["users_an_hour"] > 0 for x in found["marks"])
    assert found["last_to_first"] == found["marks"][-1]["users_an_hour"] / found["marks"][0]["users_an_hour"]
    # The smallest artifact of 4 virtual tokens: 2 layers of keys and values, 2 heads of 8, in bfloat16.
    assert found["artifact_bytes"] > 12 * 4 * 2 * 2 * 2 * 8 * 2
    assert found["disk_bytes"] > found["artifact_bytes"]
    assert found["files"] > 12 * 5
    assert "12 users are done, 0 set aside" in SHOW["ten_thousand"](found)


def test_a_mark_is_made_once_for_each_part() -> None:
    """Users end sixteen at a time; whoever looks each hundred sees 112, 208, 304, ... and the last."""
    marks = fleet_many._Marks(torch.device("cpu"), 100, nothing)
    for done in [*range(0, 1000, 16), 1000, 1000]:
        marks.see(Progress(total=1000, done=done, seconds=done / 10))
    assert [x["done"] for x in marks.found] == [112, 208, 304, 400, 512, 608, 704, 800, 912, 1000]
    assert {round(x["users_an_hour"]) for x in marks.found} == {36_000}
    assert {x["device_bytes"] for x in marks.found} == {None}


def test_a_record_grows_part_by_part_and_is_not_mixed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "FULL", SMALL)
    monkeypatch.setattr(bench, "QUICK", replace(SMALL, many=10))
    path, given = tmp_path / "record.json", {"model": str(folder), "task": "cards"}
    run(path, ["users"], **given)
    run(path, ["overhead", "ten_thousand"], **given)
    record = json.loads(path.read_text())
    assert list(record["parts"]) == ["users", "overhead", "ten_thousand"]
    assert (record["settings"]["at_once"], record["settings"]["precision"]) == ([2, 3], "fp32")
    with pytest.raises(BadValue, match="is of other settings, and numbers of two are not mixed"):
        run(path, ["users"], **given, quick=True)
    shown = tables(read(path))
    assert all(f"### {TITLES[name]}" in shown for name in record["parts"])
    ratio = record["parts"]["overhead"]["ratio_vs_batched"]["median"]
    assert f"`ratio_vs_batched` **{ratio:.2f} (" in shown
    with pytest.raises(SystemExit) as done:
        main(["bench", "show", str(path), "--pictures", str(tmp_path / "pictures")])
    assert done.value.code == 0
    assert capsys.readouterr().out == f"{shown}\n"
    assert (tmp_path / "pictures" / "fleet-thousands.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_runs_a_part(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "fleet", "--json", tmp_path / "x.json", "--part", "users", "--quick", "--model", folder]
    with pytest.raises(SystemExit) as done:
        main([str(word) for word in (*words, "--task", "cards")])
    assert done.value.code == 0
    assert "give --device cuda" in capsys.readouterr().out
    assert list(read(tmp_path / "x.json")["parts"]) == ["users"]


def test_a_wrong_part_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["bench", "fleet", "--json", str(tmp_path / "x.json"), "--part", "speed"])
    assert done.value.code == 2
    assert "--part is 'speed', expected one of overhead, users, ten_thousand" in capsys.readouterr().err


def test_every_part_has_a_table_and_a_title() -> None:
    assert list(PARTS) == list(TITLES) == list(SHOW)


def test_sizes_are_those_that_were_promised() -> None:
    assert (FULL.num_users, FULL.num_pairs, FULL.many) == (32, 50, 10_000)
    assert FULL.at_once == (8, 64, 256, 1024)
    assert FULL.num_pairs > FULL.rounds * FULL.steps, "no row is read twice"
    assert QUICK.many == 100


# The page


@pytest.fixture
def pasted() -> Any:
    return runpy.run_path(str(ROOT / "docs" / "paste_tables.py"))["pasted"]


def test_the_page_shows_the_record_or_says_that_there_is_none(pasted: Any) -> None:
    page = PAGE.read_text(encoding="utf-8")
    places = dict(re.findall(r"<!-- fleet: (\w+) -->\n(.*?)<!-- end -->", page, re.DOTALL))
    assert set(places) == {"machine", *SHOW}
    record: dict[str, Any] = read(RECORD) if RECORD.exists() else {"parts": {}}
    for name, shown in places.items():
        if name in record["parts"]:
            assert shown_part(name, record["parts"][name]) in shown
        elif name != "machine" or not record["parts"]:
            assert "Not measured yet" in shown
    if record["parts"]:
        assert pasted(page, record, "fleet") == page


def test_a_part_that_was_not_made_leaves_its_place(pasted: Any) -> None:
    place = "<!-- fleet: users -->\n\nNot measured yet.\n\n<!-- end -->"
    assert pasted(place, {"parts": {}}, "fleet") == place
    made = pasted(place, {"parts": {"users": {"skipped": "why"}}}, "fleet")
    assert made == "<!-- fleet: users -->\n\nNot measured: why.\n\n<!-- end -->"
