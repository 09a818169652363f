"""Several processes train what one trains, on real processes: the same steps, the same bits in all, one that writes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import parallel_job
import resume_job
from epigraph import artifact
from epigraph.errors import BadValue
from epigraph.train.parallel import ALONE, Processes, joined
from epigraph.train.prepare import prepare
from epigraph.train.recipe_file import check_recipe
from epigraph.train.stop import Stop
from forked import Forks

pytestmark = pytest.mark.usefixtures("one_thread")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def launch(*words: object) -> subprocess.Popen[str]:
    """``words`` in two processes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    command = [*TORCHRUN, *map(str, words)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def free_port() -> int:
    with socket.socket() as here:
        here.bind(("localhost", 0))
        return int(here.getsockname()[1])


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parallel")


@pytest.fixture(scope="module")
def tables(folder: Path) -> dict[str, dict[str, Any]]:
    made = parallel_job.write_inputs(folder)
    (folder / "tables.json").write_text(json.dumps(made))
    return made


@pytest.fixture(scope="module")
def together(folder: Path, tables: dict[str, Any], forks: Forks) -> list[dict[str, Any]]:
    """What each of two processes knows after all cases. They are told of one another what torchrun tells its own."""
    told = {**os.environ, "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    told |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "PYTHONPATH": str(Path(__file__).parent)}
    both = [
        forks.start([parallel_job.__file__, str(folder)], environment={**told, "RANK": rank, "LOCAL_RANK": rank})
        for rank in ("0", "1")
    ]
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    return [json.loads((folder / f"found-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", parallel_job.CASES)
def test_two_processes_train_what_one_does(
    name: str, folder: Path, tables: dict[str, Any], together: list[dict[str, Any]], one_thread: None
) -> None:
    alone = parallel_job.go(tables[name], folder / "alone" / name, ALONE)
    one, other = (found[name] for found in together)
    # Bit for bit in both processes, and so are the random numbers that come next.
    assert one["parameters"] == other["parameters"]
    assert one["generator"] == other["generator"] == alone["generator"]
    # Up to rounding what one process makes.
    for key, value in alone["parameters"].items():
        torch.testing.assert_close(*map(torch.tensor, (one["parameters"][key], value)), rtol=0, atol=1e-5)
    for key in ("steps", "kept_step", "tokens", "stopped_early", "trained_numbers", "dev"):
        assert one["summary"][key] == pytest.approx(alone["summary"][key], rel=1e-5), key
    assert one["summary"]["resumed_at"] == ([parallel_job.STOPPED_AFTER] if "resumed" in name else [])
    assert (one["summary"]["num_processes"], alone["summary"]["num_processes"]) == (2, 1)
    # One of them writes, and what one process writes.
    assert not (folder / "together-1").exists()
    written, wanted = (records(folder / x / name) for x in ("together-0", "alone"))
    assert sorted(x.name for x in (folder / "together-0" / name).iterdir()) == sorted(
        x.name for x in (folder / "alone" / name).iterdir()
    )
    assert [x["step"] for x in written] == [x["step"] for x in wanted]
    for got, want in zip(written, wanted, strict=True):
        assert got.keys() == want.keys()
        values = {key: got[key] for key in got if key != "seconds"}
        assert values.pop("dev", {}) == pytest.approx(want.pop("dev", {}), rel=1e-4)
        assert values == pytest.approx({key: want[key] for key in values}, rel=1e-4)


def test_a_sharded_base_is_held_in_parts(together: list[dict[str, Any]]) -> None:
    for name, case in parallel_job.CASES.items():
        is_sharded = case.get("training", {}).get("shard_base", False)
        for found in together:
            assert found[name]["held"] < 0.6 if is_sharded else found[name]["held"] == 1


def test_a_failure_of_one_is_everybodys(together: list[dict[str, Any]]) -> None:
    """Wherever it comes, nobody waits for ever, and bugs are shared too."""
    said = [f"{at}: {at} in process {rank}" for rank in range(2) for at in ("inner", "outer")]
    assert together[0]["agree"]["heard"] == [*said, "main: ZeroDivisionError"]
    assert together[1]["agree"]["heard"] == [*said, "main: ProcessLost"]


# The command


def words(tables: dict[str, Any], out: Path) -> list[str]:
    pairs = [
        f"{table}.{key}={json.dumps(value)}"
        for table, values in tables.items()
        if isinstance(values, dict)
        for key, value in values.items()
    ]
    return ["-m", "epigraph", "train", "--model", tables["model"], *pairs, "--out", str(out)]


def own_lines(err: str) -> list[str]:
    """What the program itself says, without the launcher's words."""
    return [line for line in err.splitlines() if line.startswith("epigraph: ")]


def test_a_signal_stops_all_after_the_same_step_and_the_run_goes_on(tmp_path: Path) -> None:
    """The launcher is stopped; one process goes on, and ends where a run that nothing stopped ends."""
    tables = resume_job.write_inputs(tmp_path)
    tables["training"] |= {"steps": 120, "checkpoint_every": 1000, "dev_every": 50, "lr": 1e-3, "batch_size": 2}
    out = tmp_path / "out"
    process = launch(*words(tables, out))
    for _ in range(6000):
        if (out / "steps.jsonl").exists() and len(records(out)) >= 5:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    [asked, last] = own_lines(err)
    assert asked.startswith("epigraph: stopping after this step")
    step = [x for x in records(out) if "loss" in x][-1]["step"]
    assert last == (
        f"epigraph: stopped after step {step} of 120, which is saved; go on with: epigraph train --resume --out {out}"
    )
    assert [x.name[:13] for x in (out / "checkpoints").iterdir()] == [f"step-{step:08d}"]
    assert json.loads((out / "recipe.json").read_text())["num_processes"] == 2
    summary = parallel_job.go(tables, out, ALONE)["summary"]
    assert (summary["resumed_at"], summary["num_processes"], summary["steps"]) == ([step], 1, 120)
    parallel_job.go(tables, tmp_path / "alone", ALONE)
    got, want = ([x["loss"] for x in records(y) if "loss" in x] for y in (out, tmp_path / "alone"))
    assert got == pytest.approx(want, rel=1e-4)
    one, other = (artifact.load(x / artifact.FILE_NAME).tokens for x in (out, tmp_path / "alone"))
    for (_, _, a), (_, _, b) in zip(one.layers(), other.layers(), strict=True):
        # Artifacts are in bfloat16, where rounding may fall to either side.
        assert torch.allclose(a.keys_PKH, b.keys_PKH, rtol=1e-2, atol=1e-3)


def test_a_mistake_is_said_once(tmp_path: Path) -> None:
    tables = resume_job.write_inputs(tmp_path)
    tables["training"]["dev_metric"] = "blue"
    process = launch(*words(tables, tmp_path / "out"))
    out, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert out == ""
    [line] = own_lines(err)
    assert line.startswith("epigraph: training.dev_metric: got 'blue', expected one of loss, ")
    # Both ended as the command ends after a mistake, and so it stands in the launcher's own report.
    assert re.findall(r"exitcode\s*: (\d+)", err) in (["2"], ["2", "2"])
    assert "Traceback" not in err.split("torch/distributed")[0]
    assert not (tmp_path / "out").exists()


# One process


def test_shard_base_needs_several_processes_and_a_frozen_base(tmp_path: Path) -> None:
    tables = resume_job.write_inputs(tmp_path)
    tables["training"]["shard_base"] = True
    with pytest.raises(BadValue, match=r"^training\.shard_base .* several processes, got one; start with torchrun"):
        prepare(check_recipe(tables))
    tables["training"]["base_lr"] = 1e-4
    with pytest.raises(BadValue, match=r"shard_base is for a frozen base, got base_lr"):
        check_recipe(tables)


@pytest.mark.parametrize("device", ["cuda:0", "mps", "cuda"])
def test_a_device_for_each_process_or_none(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    expected = "2 processes on a machine with 1 GPUs" if device == "cuda" else "expected cpu or cuda"
    with pytest.raises(BadValue, match=expected), joined(device):
        pass
    assert Processes(rank=1, num=2, local_rank=1).device("cuda") == "cuda:1"
    assert ALONE.device("cuda") == "cuda"


def test_alone_nothing_is_sent_and_nothing_changes() -> None:
    with joined("cpu") as processes:
        assert processes is ALONE
    x = torch.nn.Parameter(torch.ones(2))
    assert ALONE.add_gradients([x], [0.1]) == [0.1]
    assert x.grad is None
    ALONE.add([x])
    ALONE.same([x])
    assert x.tolist() == [1, 1]
    assert ALONE.interleaved(["a", "b"]) == ["a", "b"]
    with pytest.raises(ZeroDivisionError):
        ALONE.together(lambda: 1 // 0)


def test_of_several_a_stop_counts_when_all_know_of_it() -> None:
    alone, here, there = Stop(), Stop(alone=False), Stop(alone=False)
    alone.asked = here.asked = signal.SIGTERM
    assert alone.signal == signal.SIGTERM
    assert not here
    sums = [x + y for x, y in zip(here.flags(), there.flags(), strict=True)]
    for stop in (here, there):
        stop.hear(sums)
        assert stop.signal == signal.SIGTERM
        stop.hear([0.0, 0.0])
        assert stop
