"""`epigraph fleet --ray`: the same workers, placed on a Ray cluster of two on this machine."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from epigraph.errors import BadValue, ResumeMismatch
from epigraph.train.fleet.cluster import work_on
from epigraph.train.fleet.order import order_from
from epigraph.train.fleet.place import Place
from epigraph.train.fleet.table import users_of
from epigraph.train.fleet.worker import work
from test_fleet_runs import NUM_USERS, assert_same, given, prefixes, whole

__all__ = ["given", "whole"]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


pytest.importorskip("ray", reason="no ray: pip install 'epigraph[ray]'")


def test_two_workers_share_the_users(given: dict[str, Any], whole: dict[str, Any], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    progress = work_on("local", given, num_workers=2, report=lambda x: seen.append((x.done, x.running)))
    assert (progress.done, progress.failed, progress.trained) == (NUM_USERS, 0, NUM_USERS)
    assert progress.steps == 12 * NUM_USERS
    assert_same(prefixes(tmp_path / "out"), whole)
    assert len({x["worker"] for x in users_of(Place(given["out"]))}) == 2
    assert seen[-1] == (NUM_USERS, 0)


def test_a_worker_that_is_killed_is_replaced_by_the_other(given: dict[str, Any], tmp_path: Path) -> None:
    training = {**given["recipe"]["training"], "steps": 300, "dev_every": 0}
    slow = {**given, "recipe": {**given["recipe"], "training": training}}
    killed: list[int] = []

    def kill_one() -> None:
        running = tmp_path / "out/running"
        while not killed:
            time.sleep(0.1)
            if running.is_dir() and len({x.name.partition(".")[0] for x in running.iterdir()}) == 4:
                beaten = [json.loads(x.read_text()) for x in (tmp_path / "out/workers").glob("*.json")]
                tasks = [x for x in psutil.Process().children(recursive=True) if x.cmdline()[:1] == ["ray::_work"]]
                assert len(beaten) == len(tasks) == 2
                os.kill(tasks[0].pid, signal.SIGKILL)
                killed.append(tasks[0].pid)

    thread = threading.Thread(target=kill_one, daemon=True)
    thread.start()
    progress = work_on("local", slow, num_workers=2)
    thread.join(10)
    assert killed
    assert (progress.done, progress.failed) == (NUM_USERS, 0)
    assert {x["steps"] for x in users_of(Place(given["out"]))} == {300}


def test_what_a_worker_refuses_is_said_here(given: dict[str, Any]) -> None:
    work(order_from(given))
    other = {**given, "recipe": {**given["recipe"], "method": {"num_virtual_tokens": 4}}}
    with pytest.raises(ResumeMismatch, match=r"method\.dropout = 0\.1, got 0\.0"):
        work_on("local", other, num_workers=1)


def test_no_cluster_is_said_plainly(given: dict[str, Any]) -> None:
    with pytest.raises(BadValue, match=r"--ray: no cluster answers at '127\.0\.0\.1:1'"):
        work_on("127.0.0.1:1", given, num_workers=1)
