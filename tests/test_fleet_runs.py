"""`epigraph fleet` as it is run: what every user gets, who is set aside, kills, takeovers, and going on."""

from __future__ import annotations

import contextlib
import json
import math
import random
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import pytest
from torch import Tensor

import epigraph
from conftest import save_tiny
from epigraph import artifact
from epigraph.errors import BadValue, Interrupted, ResumeMismatch
from epigraph.methods.base import flatten
from epigraph.train.build import make_method
from epigraph.train.fleet import worker
from epigraph.train.fleet.member import Member
from epigraph.train.fleet.order import order_from
from epigraph.train.fleet.place import Place
from epigraph.train.fleet.table import users_of
from epigraph.train.fleet.together import Together
from epigraph.train.prepare import prepare
from epigraph.train.recipe_file import check_recipe
from epigraph.train.run import run
from folders import call, printed, refused
from forked import Forked, Forks

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_USERS = 6
# One machine, the same kernels, other batches.
CLOSE = 1e-4


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Any]:
    """Six users of 3 to 8 rows on a tiny model, with development rows."""
    save_tiny(tmp_path / "model")
    for folder in ("data", "dev"):
        (tmp_path / folder).mkdir()
        for number in range(NUM_USERS):
            rows = [{"source": f"{number}+{x}", "target": str(number + x)} for x in range(3 + number)]
            write(tmp_path / folder / f"user-{number}.jsonl", rows if folder == "data" else rows[::-2])
    training = {"steps": 12, "batch_size": 2, "lr": 0.03, "precision": "fp32", "dev_every": 4, "checkpoint_every": 2}
    recipe = {
        "model": str(tmp_path / "model"),
        "data": {"train": str(tmp_path / "data"), "dev": str(tmp_path / "dev")},
        "method": {"num_virtual_tokens": 3, "dropout": 0.1},
        "training": training,
    }
    return {"recipe": recipe, "out": str(tmp_path / "out"), "active": 2}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def prefixes(out: Path) -> dict[str, Tensor]:
    """Every user's virtual tokens, from files that are whole."""
    found = {x.parent.name: artifact.load(x) for x in sorted(out.glob("users/*/artifact.safetensors"))}
    return {name: flatten(x.tokens) for name, x in found.items()}  # type: ignore[arg-type]


def alone(given: Mapping[str, Any], folder: Path, user: str) -> Tensor:
    """What `epigraph train` makes of one user's rows."""
    tables = json.loads(json.dumps(given["recipe"]))
    tables["data"] = {key: f"{path}/{user}.jsonl" for key, path in tables["data"].items()}
    ready = prepare(check_recipe(tables))
    run(ready, make_method(ready), folder / user)
    return flatten(artifact.load(folder / user / "artifact.safetensors").tokens)  # type: ignore[arg-type]


def assert_same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, x in theirs.items():
        assert float((ours[name] - x).abs().max()) < CLOSE, name


def test_every_user_gets_what_a_run_of_his_own_gives(given: dict[str, Any], tmp_path: Path) -> None:
    progress = worker.work(order_from(given))
    assert (progress.done, progress.failed, progress.trained) == (NUM_USERS, 0, NUM_USERS)
    assert progress.steps == 12 * NUM_USERS
    names = [f"user-{number}" for number in range(NUM_USERS)]
    assert_same(prefixes(tmp_path / "out"), {name: alone(given, tmp_path / "alone", name) for name in names})
    for name in names:
        ours, theirs = (tmp_path / where / name for where in ("out/users", "alone"))
        assert {x.name for x in ours.iterdir()} == {x.name for x in theirs.iterdir()}
        records = [[json.loads(line) for line in lines(x / "steps.jsonl")] for x in (ours, theirs)]
        for one, other in zip(*records, strict=True):
            assert one.keys() == other.keys()
            assert one.get("loss", 0) == pytest.approx(other.get("loss", 0), rel=1e-3)
        summaries = [json.loads((x / "summary.json").read_text()) for x in (ours, theirs)]
        assert summaries[0].keys() == summaries[1].keys()
        for key in ("steps", "kept_step", "tokens", "stored_numbers", "trained_numbers", "task"):
            assert summaries[0][key] == summaries[1][key], key
    tuned = epigraph.load(tmp_path / "out/users/user-0")
    assert isinstance(tuned.generate(["0+1"])[0], str)


def test_given_again_it_has_nothing_to_do(given: dict[str, Any], tmp_path: Path) -> None:
    worker.work(order_from(given))
    before = {x: x.stat().st_mtime_ns for x in (tmp_path / "out/users").rglob("*")}
    progress = worker.work(order_from(given))
    assert (progress.done, progress.trained, progress.steps) == (NUM_USERS, 0, 0)
    assert {x: x.stat().st_mtime_ns for x in (tmp_path / "out/users").rglob("*")} == before


def test_bad_rows_set_one_user_aside_until_they_are_mended(given: dict[str, Any], tmp_path: Path) -> None:
    good = (tmp_path / "data/user-3.jsonl").read_text()
    (tmp_path / "data/user-3.jsonl").write_text(good + '{"source": "no target"}\n')
    progress = worker.work(order_from(given))
    assert (progress.done, progress.failed) == (NUM_USERS - 1, 1)
    [failed] = [x for x in users_of(Place(given["out"])) if x["how"] == "failed"]
    assert (failed["user"], failed["error"]) == ("user-3", "BadRows")
    assert "user-3.jsonl:7" in failed["reason"]
    assert "user-3" not in prefixes(tmp_path / "out")

    (tmp_path / "data/user-3.jsonl").write_text(good)
    assert worker.work(order_from(given)).failed == 1
    progress = worker.work(order_from({**given, "retry_failed": True}))
    assert (progress.done, progress.failed, progress.trained) == (NUM_USERS, 0, 1)


def test_numbers_that_are_none_at_the_very_end_are_one_users(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of the last step was a number and what it led to is none: no such artifact, and no end of the others."""
    result = Together.result

    def spoilt(fleet: Together, member: Member) -> Any:
        made = result(fleet, member)
        if member.name == "user-2":
            next(made.parameters()).data.fill_(math.nan)
        return made

    monkeypatch.setattr(Together, "result", spoilt)
    progress = worker.work(order_from(given))
    assert (progress.done, progress.failed) == (NUM_USERS - 1, 1)
    [failed] = [x for x in users_of(Place(given["out"])) if x["how"] == "failed"]
    assert (failed["user"], failed["error"]) == ("user-2", "BadTensor")
    assert "user-2" not in prefixes(tmp_path / "out")


def test_one_file_with_a_column_of_users(given: dict[str, Any], tmp_path: Path) -> None:
    worker.work(order_from(given))
    rows = [(x.stem, json.loads(line)) for x in sorted((tmp_path / "data").iterdir()) for line in lines(x)]
    random.Random(0).shuffle(rows)
    rows.sort(key=lambda x: x[1]["source"])  # A user's own rows in their own order, between others'.
    one = write(tmp_path / "all.jsonl", [{"who": name, **row} for name, row in rows])
    dev = [{"who": x.stem, **json.loads(line)} for x in (tmp_path / "dev").iterdir() for line in lines(x)]
    files = {"train": str(one), "dev": str(write(tmp_path / "dev.jsonl", dev))}
    recipe = {**given["recipe"], "data": files}
    worker.work(order_from({**given, "recipe": recipe, "column": "who", "out": str(tmp_path / "other")}))
    assert_same(prefixes(tmp_path / "other"), prefixes(tmp_path / "out"))


# Kills


@pytest.fixture
def whole(given: dict[str, Any], tmp_path: Path) -> dict[str, Tensor]:
    """What an uninterrupted fleet gives."""
    worker.work(order_from({**given, "out": str(tmp_path / "whole")}))
    return prefixes(tmp_path / "whole")


def started(forks: Forks, given: Mapping[str, Any], tmp_path: Path, *words: str) -> Forked:
    recipe = given["recipe"]
    tables = {"training": recipe["training"], "method": recipe["method"]}
    changes = [f"{table}.{key}={json.dumps(x)}" for table, keys in tables.items() for key, x in keys.items()]
    options = ["--model", recipe["model"], "--dev", recipe["data"]["dev"], "--active", "2", "--json", *words]
    return forks.start(["-m", "epigraph", "fleet", recipe["data"]["train"], *changes, "--out", given["out"], *options])


@pytest.mark.parametrize("num_kills", [6, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_goes_on(
    given: dict[str, Any], whole: dict[str, Tensor], tmp_path: Path, forks: Forks, num_kills: int
) -> None:
    draws, out = random.Random(num_kills), tmp_path / "out"
    seen: dict[str, int] = {}
    kills = 0
    while kills < num_kills:
        process = started(forks, given, tmp_path)
        # From before it has begun to after it has ended.
        time.sleep(draws.uniform(0.3, 4.0))
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        process.communicate(60)
        kills += 1
        for name in prefixes(out):
            now = (out / f"users/{name}/artifact.safetensors").stat().st_mtime_ns
            assert seen.setdefault(name, now) == now, "a finished artifact was written again"
        if len(seen) == NUM_USERS:
            shutil.rmtree(out)
            seen.clear()
    said, errors = started(forks, given, tmp_path).communicate(120)
    assert json.loads(said)["done"] == NUM_USERS, errors
    assert_same(prefixes(out), whole)
    assert not [x for x in (out / "users").rglob("*") if x.name.startswith(".")]
    assert not list((out / "running").iterdir())


def test_a_dead_workers_users_are_taken_over(
    given: dict[str, Any], whole: dict[str, Tensor], tmp_path: Path, forks: Forks
) -> None:
    training = {**given["recipe"]["training"], "steps": 200, "dev_every": 0}
    slow = {**given, "recipe": {**given["recipe"], "training": training}}
    first = started(forks, slow, tmp_path)
    running = tmp_path / "out/running"
    wait_for(lambda: len(list(running.glob("*/checkpoints/*"))) > 2)
    second = started(forks, slow, tmp_path)
    wait_for(lambda: len({x.name.partition(".")[0] for x in running.iterdir()}) == 4)
    first.send_signal(signal.SIGKILL)
    first.communicate(60)
    said, errors = second.communicate(300)
    found = json.loads(said)
    assert (found["done"], found["failed"]) == (NUM_USERS, 0), errors
    ended = users_of(Place(given["out"]))
    assert sorted(x["id"] for x in ended) == sorted(whole)
    assert {x["steps"] for x in ended} == {200}
    # Those of the first were gone on with, not begun again.
    summaries = [json.loads(x.read_text()) for x in (tmp_path / "out").glob("users/*/summary.json")]
    assert sum(bool(x["resumed_at"]) for x in summaries) == 2


def wait_for(holds: Any, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if holds():
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise AssertionError("it did not come to that")


def test_asked_to_stop_it_saves_and_goes_on(
    given: dict[str, Any], whole: dict[str, Tensor], tmp_path: Path, forks: Forks
) -> None:
    process = started(forks, given, tmp_path)
    wait_for(lambda: any((tmp_path / "out/running").glob("*/checkpoints/*")))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(60)
    assert process.returncode == 130
    assert "which are saved; go on with the same command" in errors
    assert json.loads(started(forks, given, tmp_path).communicate(120)[0])["done"] == NUM_USERS
    assert_same(prefixes(tmp_path / "out"), whole)


# Elsewhere


@pytest.fixture
def store() -> Iterator[str]:
    yield "memory://fleet"
    fsspec.filesystem("memory").rm("/fleet", recursive=True)


def test_behind_an_address_it_is_the_same(
    given: dict[str, Any], whole: dict[str, Tensor], store: str, tmp_path: Path
) -> None:
    """Stopped on the way, and gone on with by a worker that has nothing of the first one's disk."""
    there = {**given, "out": store}
    asked = []

    def stop_after(progress: Any) -> None:
        if progress.steps > 30 and not asked:
            asked.append(progress.steps)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        worker.work(order_from(there), report=stop_after)
    progress = worker.work(order_from(there))
    assert progress.done == NUM_USERS
    assert progress.steps < 12 * NUM_USERS
    fsspec.filesystem("memory").get("/fleet/", str(tmp_path / "got") + "/", recursive=True)
    assert_same(prefixes(tmp_path / "got"), whole)
    assert Place(store).names("running") == []


# Mistakes


def test_another_recipe_in_the_same_place_is_refused(given: dict[str, Any]) -> None:
    worker.work(order_from(given))
    other = {**given, "recipe": {**given["recipe"], "method": {"num_virtual_tokens": 4}}}
    with pytest.raises(ResumeMismatch, match=r"method\.dropout = 0\.1, got 0\.0"):
        worker.work(order_from(other))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": {"name": "full"}}, "trains virtual tokens on one frozen base"),
        ({"training": {"base_lr": 1e-5}}, "training.base_lr"),
        ({"training": {"tensorboard": True}}, "each user has his steps.jsonl"),
        ({"data": {"task": "e2e"}}, "a fleet's rows are its users'"),
    ],
)
def test_what_no_fleet_trains_is_refused_at_once(given: dict[str, Any], changes: dict[str, Any], words: str) -> None:
    with pytest.raises(BadValue, match=words):
        order_from({**given, "recipe": {**given["recipe"], **changes}})


def test_more_users_at_a_time_than_fit_are_refused_with_the_number(given: dict[str, Any]) -> None:
    mlp = {"num_virtual_tokens": 3, "parameterization": "mlp", "mlp_width": 4096}
    with pytest.raises(BadValue, match=r"1,000,000 users at a time take [\d.]+ GB .* give --active \d+"):
        worker.work(order_from({**given, "recipe": {**given["recipe"], "method": mlp}, "active": 1_000_000}))


def test_the_command_says_how_it_went(
    given: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data/user-1.jsonl").write_text("{}\n")
    recipe = given["recipe"]
    flags = ("--model", recipe["model"], "--steps", 4, "--batch-size", 2, "--num-virtual-tokens", 2)
    shown = printed(capsys, "fleet", recipe["data"]["train"], "--out", tmp_path / "out", *flags)
    assert "5 (5 by this worker)" in shown
    assert "BadRows" in shown
    assert refused(capsys, "fleet", recipe["data"]["train"], *flags).startswith("epigraph: --out is missing")
    assert call("fleet", tmp_path / "nowhere", "--out", tmp_path / "out", *flags) == 2
