"""Guarantee 5: a run that was killed, stopped or cut off by a full disk goes on to the result it would have had."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

import resume_job
from conftest import tiny_tokenizer
from epigraph import artifact
from epigraph.cli import main
from epigraph.contract import TextContract
from epigraph.errors import CannotWrite, Interrupted, NothingToResume, OutputExists, ResumeMismatch, RunInUse
from epigraph.frozen.inputs import Codec
from epigraph.train import checkpoint
from epigraph.train.batches import endless
from epigraph.train.build import make_method
from epigraph.train.folder import alone, check_output
from epigraph.train.prepare import prepare
from epigraph.train.recipe_file import check_recipe
from epigraph.train.run import run
from epigraph.train.state import State
from epigraph.train.stop import Stop
from forked import Forks

KILLS = 50
LONG = 150
Tables = dict[str, Any]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    return resume_job.write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def whole(tables: Tables, one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    go(tables, folder)
    return folder


def go(tables: Tables, folder: Path, report: Callable[[Mapping[str, Any]], None] = lambda _: None) -> dict[str, Any]:
    ready = prepare(check_recipe(tables))
    return run(ready, make_method(ready), folder, resume=True, report=report)


def changed(tables: Tables, table: str, **values: Any) -> Tables:
    new = deepcopy(tables)
    new[table] |= values
    return new


def lines(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in found]


def assert_same_prefix(folder: Path, whole: Path) -> None:
    one, other = (artifact.load(x / artifact.FILE_NAME).tokens for x in (folder, whole))
    for (_, _, a), (_, _, b) in zip(one.layers(), other.layers(), strict=True):
        assert torch.equal(a.keys_PKH, b.keys_PKH)
        assert torch.equal(a.values_PKH, b.values_PKH)


def assert_same(folder: Path, whole: Path) -> None:
    """Everything but the time it took, bit for bit; and nothing left lying about."""
    assert_same_prefix(folder, whole)
    assert lines(folder) == lines(whole)
    summaries = [json.loads((x / "summary.json").read_text()) for x in (folder, whole)]
    for name in ("steps", "kept_step", "dev", "stopped_early", "tokens", "trained_numbers"):
        assert summaries[0][name] == summaries[1][name], name
    assert sorted(x.name for x in folder.iterdir()) == sorted(x.name for x in whole.iterdir())


class Cut(Exception):
    """The power goes off."""


def cut_at(step: int, *, after_dev: bool = False) -> Callable[[Mapping[str, Any]], None]:
    def report(record: Mapping[str, Any]) -> None:
        if record["step"] == step and ("dev" in record) == after_dev:
            raise Cut

    return report


# The parts


@pytest.mark.parametrize("skip", [0, 1, 2, 3, 7, 12])
def test_batches_go_on_where_they_were(skip: int) -> None:
    codec = Codec(tiny_tokenizer(), TextContract())
    rows = [codec.pair({"source": "x" * n}, "y") for n in range(1, 12)]
    straight, later = (endless(rows, 4, 5, 0, buckets=True, skip=n) for n in (0, skip))
    for _ in range(skip):
        next(straight)
    for _ in range(8):
        assert torch.equal(next(straight).ids_BT, next(later).ids_BT)


@pytest.mark.parametrize("parameterization", ["raw", "mlp"])
@pytest.mark.parametrize("every", [1, 4, None])
def test_a_run_cut_off_goes_on_bit_for_bit(
    tables: Tables, tmp_path: Path, parameterization: str, every: int | None
) -> None:
    """Cut three times; with ``None`` no minute passes, so that the second run begins again."""
    chosen = changed(tables, "method", parameterization=parameterization)
    chosen = changed(chosen, "training", checkpoint_every=every)
    go(chosen, tmp_path / "whole")
    for cut in (cut_at(7), cut_at(9, after_dev=True), cut_at(15)):
        with pytest.raises(Cut):
            go(chosen, tmp_path / "cut", cut)
        assert not (tmp_path / "cut" / artifact.FILE_NAME).exists()
    summary = go(chosen, tmp_path / "cut")
    assert summary["resumed_at"] == {1: [6, 8, 14], 4: [4, 8, 12], None: []}[every]
    assert_same(tmp_path / "cut", tmp_path / "whole")


def test_another_order_of_random_numbers_would_show(tables: Tables, whole: Path, tmp_path: Path) -> None:
    """The twin of the tests here: without its generators, optimiser or position the run would end elsewhere."""
    for lost in ("generator.cpu", "optimizer."):
        folder = tmp_path / lost
        with pytest.raises(Cut):
            go(tables, folder, cut_at(9))
        found = checkpoint.latest(folder)
        assert found is not None
        assert any(name.startswith(lost) for name in found.state.tensors)
        fresh = torch.random.manual_seed(99).get_state()
        kept = {
            name: fresh if name == lost else torch.zeros_like(x) if name.startswith(lost) else x
            for name, x in found.state.tensors.items()
        }
        saver = checkpoint.Checkpoints(folder, every=1, steps=100, stop=Stop())
        saver.save(State(position=found.state.position, tensors=kept))
        go(tables, folder)
        with pytest.raises(AssertionError):
            assert_same(folder, whole)


def test_the_best_and_the_patience_are_taken_along(tables: Tables, tmp_path: Path) -> None:
    """A learning rate that is too high: the run stops early, and keeps a step before the cuts."""
    chosen = changed(tables, "training", dev_every=2, patience=3, lr=3.0, steps=40, schedule="constant")
    whole = go(chosen, tmp_path / "whole")
    assert whole["stopped_early"]
    assert 0 < whole["kept_step"] < whole["steps"] < 40
    for step in (whole["kept_step"] + 1, whole["steps"]):
        with pytest.raises(Cut):
            go(chosen, tmp_path / "cut", cut_at(step))
    go(chosen, tmp_path / "cut")
    assert_same(tmp_path / "cut", tmp_path / "whole")


def test_old_checkpoints_are_pruned_and_all_go_at_the_end(tables: Tables, tmp_path: Path) -> None:
    most = 0

    def count(_: Mapping[str, Any]) -> None:
        nonlocal most
        most = max(most, len(list((tmp_path / "checkpoints").glob("*"))))

    go(tables, tmp_path, count)
    assert most == 2
    assert not (tmp_path / "checkpoints").exists()


# Torn files


def cut_run(tables: Tables, folder: Path, step: int = 9) -> list[Path]:
    with pytest.raises(Cut):
        go(tables, folder, cut_at(step))
    return sorted((folder / "checkpoints").iterdir())


@pytest.mark.parametrize("tear", ["half", "empty", "flipped", "longer"])
def test_a_torn_checkpoint_is_passed_over(tables: Tables, whole: Path, tmp_path: Path, tear: str) -> None:
    older, newest = cut_run(tables, tmp_path)
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    torn = {"half": data[: len(data) // 2], "empty": b"", "flipped": data, "longer": newest.read_bytes() + b"\0"}
    newest.write_bytes(torn[tear])
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.state.position.step == int(older.name.split("-")[1]) == 7
    assert go(tables, tmp_path)["resumed_at"] == [7]
    assert_same(tmp_path, whole)


def test_no_whole_checkpoint_is_said(tables: Tables, tmp_path: Path) -> None:
    for file in cut_run(tables, tmp_path):
        file.write_bytes(b"")
    with pytest.raises(NothingToResume, match=r"got 2 checkpoints, none of them as it was written; .* --overwrite"):
        go(tables, tmp_path)


def test_a_torn_last_line_is_taken_again(tables: Tables, whole: Path, tmp_path: Path) -> None:
    cut_run(tables, tmp_path)
    with (tmp_path / "steps.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    go(tables, tmp_path)
    assert_same(tmp_path, whole)


def test_what_a_killed_writer_left_goes(tables: Tables, whole: Path, tmp_path: Path) -> None:
    cut_run(tables, tmp_path)
    for name in (".artifact.safetensors.0123456789abcdef.tmp", "checkpoints/.step-00000009-00.safetensors.01.tmp"):
        (tmp_path / name).write_bytes(b"half")
    go(tables, tmp_path)
    assert_same(tmp_path, whole)


# What may not go on


@pytest.mark.parametrize(
    ("table", "key", "value", "words"),
    [
        ("training", "lr", 0.02, r"training\.lr = 0\.03, got 0\.02"),
        ("training", "steps", 20, r"training\.steps = 16, got 20"),
        ("method", "num_virtual_tokens", 4, r"method\.num_virtual_tokens = 3, got 4"),
        ("data", "limit", 12, r"data\.limit = null, got 12"),
    ],
)
def test_another_recipe_is_refused(
    tables: Tables, tmp_path: Path, table: str, key: str, value: Any, words: str
) -> None:
    before = cut_run(tables, tmp_path)
    with pytest.raises(ResumeMismatch, match=rf"was begun with {words}; give what it was begun with"):
        go(changed(tables, table, **{key: value}), tmp_path)
    assert sorted((tmp_path / "checkpoints").iterdir()) == before


def test_other_rows_are_refused_and_moved_rows_are_not(tables: Tables, whole: Path, tmp_path: Path) -> None:
    cut_run(tables, tmp_path / "run")
    moved = tmp_path / "moved.jsonl"
    moved.write_text(Path(tables["data"]["train"]).read_text() + '{"source": "1+9", "target": "10"}\n')
    with pytest.raises(ResumeMismatch, match=r"inputs\.data\.train = "):
        go(changed(tables, "data", train=str(moved)), tmp_path / "run")
    moved.write_text(Path(tables["data"]["train"]).read_text())
    go(changed(tables, "data", train=str(moved)), tmp_path / "run")
    assert_same(tmp_path / "run", whole)


def test_a_complete_run_is_left_as_it_is(tables: Tables, tmp_path: Path) -> None:
    first = go(tables, tmp_path)
    before = {x.name: x.stat().st_mtime_ns for x in tmp_path.iterdir()}
    assert go(tables, tmp_path) == first
    assert {x.name: x.stat().st_mtime_ns for x in tmp_path.iterdir()} == before
    with pytest.raises(ResumeMismatch):
        go(changed(tables, "training", seed=4), tmp_path)


def test_checkpoints_that_a_killed_run_left_beside_its_result_go(tables: Tables, tmp_path: Path) -> None:
    """Killed after its last file was written and before its checkpoints were taken away."""
    cut_run(tables, tmp_path / "cut")
    whole = go(tables, tmp_path / "whole")
    shutil.copytree(tmp_path / "cut" / "checkpoints", tmp_path / "whole" / "checkpoints")
    assert go(tables, tmp_path / "whole") == whole
    assert not (tmp_path / "whole" / "checkpoints").exists()


def test_an_unfinished_run_is_not_written_over(tables: Tables, tmp_path: Path) -> None:
    cut_run(tables, tmp_path)
    with pytest.raises(OutputExists, match=r"holds an unfinished run; go on with --resume, or start again with"):
        check_output(tmp_path, overwrite=False)
    check_output(tmp_path, overwrite=True)


def test_two_runs_do_not_write_one_folder(tables: Tables, tmp_path: Path) -> None:
    with alone(tmp_path), pytest.raises(RunInUse, match=r"being written by another process"):
        go(tables, tmp_path)
    go(tables, tmp_path)


# Ctrl-C


def words(tables: Tables, out: Path) -> list[str]:
    pairs = [
        f"{table}.{key}={json.dumps(value)}"
        for table, values in tables.items()
        if isinstance(values, dict)
        for key, value in values.items()
    ]
    return ["train", "--model", tables["model"], *pairs, "--out", str(out)]


def wait_for_steps(folder: Path, number: int) -> None:
    for _ in range(6000):
        if (folder / "steps.jsonl").exists() and len((folder / "steps.jsonl").read_text().splitlines()) >= number:
            return
        time.sleep(0.01)
    raise AssertionError(f"no {number} records in {folder} within a minute")


@pytest.fixture(scope="module")
def long(tables: Tables, one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tables, Path]:
    """A run long enough to be stopped after some steps, and what it becomes when nothing stops it."""
    chosen = changed(tables, "training", steps=LONG, checkpoint_every=1000, dev_every=LONG // 3)
    folder = tmp_path_factory.mktemp("long")
    go(chosen, folder)
    return chosen, folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(
    long: tuple[Tables, Path], tmp_path: Path, number: signal.Signals, forks: Forks
) -> None:
    chosen, uninterrupted = long
    out = tmp_path / "out"
    process = forks.start(["-m", "epigraph", *words(chosen, out)])
    wait_for_steps(out, 5)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    last = err.strip().splitlines()[-1]
    step = len(lines(out))
    then = f"epigraph train --resume --out {out}"
    assert last == f"epigraph: stopped after step {step} of {LONG}, which is saved; go on with: {then}"
    assert not (out / artifact.FILE_NAME).exists()
    done = forks.start(["-m", "epigraph", "train", "--resume", "--out", str(out), "--json"])
    printed, err = done.communicate(timeout=120)
    assert done.returncode == 0, err
    assert json.loads(printed)["resumed_at"] == [step]
    assert_same(out, uninterrupted)


def test_a_stop_asked_of_the_library_raises(tables: Tables, tmp_path: Path) -> None:
    heard: list[str] = []

    def press(record: Mapping[str, Any]) -> None:
        if record["step"] == 5:
            signal.raise_signal(signal.SIGINT)

    ready = prepare(check_recipe(tables))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="stopped after step 5 of 16") as stopped:
        run(ready, make_method(ready), tmp_path, report=press, notice=heard.append)
    assert stopped.value.exit_code == 130
    assert len(heard) == 1
    assert signal.getsignal(signal.SIGINT) is before


def test_resume_needs_something_to_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more, answer in (
        ([], "holds no run to go on with: there is no whole recipe.json; start it without --resume"),
        (["--overwrite"], "got --resume with --overwrite, expected one of them"),
        (["--dry-run"], "got --resume with --dry-run, expected one of them"),
    ):
        with pytest.raises(SystemExit) as done:
            main(["train", "--resume", "--out", str(tmp_path / "none"), *more])
        assert done.value.code == 2
        assert capsys.readouterr().err.strip().endswith(answer)
        assert not (tmp_path / "none").exists()


# A full disk


def test_a_full_disk_stops_the_run_and_loses_nothing(tables: Tables, whole: Path, tmp_path: Path) -> None:
    """The kernel refuses every file over a size that a checkpoint is larger than and the records are not."""
    cut_run(tables, tmp_path, step=5)
    before = {x.name: x.read_bytes() for x in (tmp_path / "checkpoints").iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(CannotWrite, match=r"step-00000005-\w+\.safetensors was not written: .*; make room"):
            go(tables, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {x.name: x.read_bytes() for x in (tmp_path / "checkpoints").iterdir()} == before
    go(tables, tmp_path)
    assert_same(tmp_path, whole)


def test_a_really_full_disk(tables: Tables, whole: Path, tmp_path: Path) -> None:
    """A file system of 2 MB, filled while the run is on it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "none", disk], capture_output=True, text=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"cannot mount a small file system here: {mount.stderr.strip()}")
    try:

        def fill(record: Mapping[str, Any]) -> None:
            if record["step"] == 7:
                free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
                (disk / "ballast").write_bytes(b"\0" * free)

        with pytest.raises(CannotWrite, match=r"was not written: No space left on device; make room"):
            go(tables, disk / "run", fill)
        (disk / "ballast").unlink()
        go(tables, disk / "run")
        assert_same(disk / "run", whole)
    finally:
        subprocess.run(["umount", disk], check=True)


# SIGKILL


def assert_nothing_half_written(folder: Path, whole: Path) -> None:
    if (folder / artifact.FILE_NAME).exists():
        assert_same_prefix(folder, whole)
    for name in ("recipe.json", "summary.json"):
        if (folder / name).exists():
            json.loads((folder / name).read_text())
    for file in (folder / "checkpoints").glob("step-*"):
        assert checkpoint._read(file) is not None, file


def test_fifty_kills_at_random_moments(
    tables: Tables, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half at any moment of a run, half around the writing of a checkpoint. After each, one copy of the folder goes on
    to its end and another is killed again.
    """
    # So that the server of the forks finds, and imports once, what each of them needs.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["resume_job"])

    def start_job(folder: Path) -> tuple[Any, Any]:
        saving = context.Value("i", 0)
        process = context.Process(target=resume_job.job, args=(tables, str(folder), saving))
        process.start()
        return process, saving

    def complete(folder: Path) -> None:
        process, _ = start_job(folder)
        process.join(120)
        assert process.exitcode == 0
        assert_same(folder, whole)

    moments = random.Random(7)
    kills = in_save = runs = 0
    folder = tmp_path / "run-0"
    while kills < KILLS:
        process, saving = start_job(folder)
        if kills % 2:
            wanted = 2 * moments.randrange(4) + 1
            while saving.value < wanted and process.is_alive():
                pass
            time.sleep(moments.uniform(0, 0.002))
        else:
            process.join(moments.uniform(0, 0.6))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills, in_save = kills + 1, in_save + saving.value % 2
            assert_nothing_half_written(folder, whole)
            if folder.exists():
                shutil.copytree(folder, tmp_path / f"resumed-{kills}")
            complete(tmp_path / f"resumed-{kills}")
        else:
            assert process.exitcode == 0
            assert_same(folder, whole)
            runs += 1
            folder = tmp_path / f"run-{runs}"
    print(f"{kills} kills, {in_save} of them while a checkpoint was being written; {runs} runs ended between kills")
    assert in_save >= KILLS // 10


# TensorBoard


def test_tensorboard_shows_every_step_once(tables: Tables, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    chosen = changed(tables, "training", tensorboard=True)
    with pytest.raises(Cut):
        go(chosen, tmp_path, cut_at(9, after_dev=True))
    go(chosen, tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    losses = {record["step"]: record["loss"] for record in lines(tmp_path) if "loss" in record}
    assert {x.step: x.value for x in events.Scalars("train/loss")} == pytest.approx(losses)
    assert [x.step for x in events.Scalars("train/loss")] == list(range(1, 17))
    assert [x.step for x in events.Scalars("dev/loss")] == [3, 6, 9, 12, 15, 16]
