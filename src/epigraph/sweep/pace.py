"""What a sweep will cost: a pilot of each system, before anything is run; then what its finished jobs took.

A pilot is the first steps of the real run, one development score, and a few rows of each evaluation.
"""

from __future__ import annotations

import itertools
import json
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from epigraph.sweep.folder import SweepFolder
from epigraph.sweep.inputs import Inputs, rows_of
from epigraph.sweep.plan import Find, Job, Plan
from epigraph.sweep.work import asked, opened, trained
from epigraph.tasks.base import Example
from epigraph.train.answering import Answering
from epigraph.train.folder import STEPS
from epigraph.train.run import DEFAULT_DEV_SCORES

PILOT_STEPS = 4
PILOT_ROWS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """Seconds of one system: to load, to step, to score the development rows, and to answer a row of each evaluation.

    Rows are timed a few at a time and fuller batches take less a row, so that answers rather take less than is said.
    """

    start: float
    step: float
    dev: float
    rows: tuple[float, ...]

    def times(self, number: float) -> Pace:
        """That of rows ``number`` times as long."""
        return Pace(
            start=self.start, step=number * self.step, dev=number * self.dev, rows=tuple(number * x for x in self.rows)
        )

    def seconds(self, job: Job, num_rows: Sequence[int], *, is_trained: bool = False) -> float:
        """What ``job`` will take, with or without its training."""
        steps, every = job.recipe.training.steps or 0, job.recipe.training.dev_every
        scores = steps // (every or max(1, steps // DEFAULT_DEV_SCORES)) if every != 0 else 0
        training = self.start + (steps * self.step + scores * self.dev if job.trains and not is_trained else 0.0)
        if job.kind == "search":
            return training
        return training + self.start + sum(x * num_rows[n] for x, n in zip(self.rows, job.numbers, strict=True))


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """A system's jobs: how many of each kind there are, how many are done or failed, and the seconds of the others."""

    system: str
    searches: int
    finals: int
    done: int
    failed: int
    seconds_left: float


def paces(plan: Plan, folder: SweepFolder, device: str, systems: Sequence[str]) -> dict[str, Pace]:
    """The pace of each of ``systems``, measured unless cost.json has it for the same recipe."""
    names = {system: _name(plan, system) for system in systems}
    known = folder.read_cost()
    if names.values() - known.keys():
        # One process at a time: the others find what it found, and disturb no timing.
        with folder.claim("pilots", waits=True):
            known = folder.read_cost()
            for system, name in names.items():
                if name not in known:
                    known[name] = {"system": system, **asdict(_measured(plan.job(system), folder, device))}
                    folder.write_cost(known)
    return {system: _pace(known[name]) for system, name in names.items()}


def paces_by(plan: Plan, folder: SweepFolder, others: Mapping[str, Pace], ratio: float) -> dict[str, Pace]:
    """The pace of each of ``others``: where it was not measured here, that of the same system in another sweep, whose
    rows are shorter by ``ratio``. Times are taken to go by lengths, so that long rows rather take more than is said."""
    known = folder.read_cost()
    names = {system: _name(plan, system) for system in others}
    return {x: _pace(known[name]) if name in known else others[x].times(ratio) for x, name in names.items()}


def steps_in(plan: Plan, folder: SweepFolder) -> dict[str, int]:
    """By system, the steps that a budget of seconds comes to at its pace; none where the budget is another."""
    seconds = plan.spec.budget.seconds
    if seconds is None:
        return {}
    known = folder.read_cost()
    names = {system: _name(plan, system) for system in plan.spec.systems}
    return {
        system: max(1, int(seconds / _pace(known[name]).step))
        for system, name in names.items()
        if name in known and _pace(known[name]).step
    }


def costs(plan: Plan, inputs: Inputs, found: Find, known: Mapping[str, Pace]) -> list[Cost]:
    """What is left to do, by system: at the pace of its own finished jobs, or of its pilot before there are any."""
    # An ensemble's rows are its members' many times over.
    together = {x.system: known[x.member.system] for x in plan.cells if x.member and x.member.system in known}
    known = {**known, **{system: pace.times(len(plan.spec.seeds)) for system, pace in together.items()}}
    by_system: dict[str, list[Job]] = {system: [] for system in known}
    for job in plan.expected(found):
        if job.system in by_system:
            by_system[job.system].append(job)
    return [_cost(system, jobs, inputs, found, known[system]) for system, jobs in by_system.items()]


def _cost(system: str, jobs: Sequence[Job], inputs: Inputs, found: Find, pace: Pace) -> Cost:
    records = [found(job) for job in jobs]
    pace = _corrected(pace, [x for x in records if x is not None and "failed" not in x])
    # A final job that goes on from a search job finds its training done.
    searched = {inputs.run(job) for job in jobs if job.kind == "search"}
    left = [job for job, record in zip(jobs, records, strict=True) if record is None]
    return Cost(
        system=system,
        searches=sum(job.kind == "search" for job in jobs),
        finals=sum(job.kind == "final" for job in jobs),
        done=sum(x is not None and "failed" not in x for x in records),
        failed=sum(x is not None and "failed" in x for x in records),
        seconds_left=sum(
            pace.seconds(job, inputs.num_rows, is_trained=job.kind == "final" and inputs.run(job) in searched)
            for job in left
        ),
    )


def _corrected(pace: Pace, records: Sequence[Mapping[str, Any]]) -> Pace:
    """With what finished jobs took in place of what the pilot did; development scores are then part of the steps."""
    steps = [x["train_seconds"] / x["steps"] for x in records if x["steps"]]
    scored = [x["evaluations"] for x in records if x["evaluations"]]
    rows = [statistics.mean(x["seconds"] / x["num_examples"] for x in one) for one in zip(*scored, strict=True)]
    return Pace(
        start=pace.start,
        step=statistics.mean(steps) if steps else pace.step,
        dev=0.0 if steps else pace.dev,
        rows=tuple(rows) or pace.rows,
    )


def _name(plan: Plan, system: str) -> str:
    """The same while nothing changes that a pilot depends on."""
    return Plan(plan.spec).job(system).plan


def _measured(job: Job, folder: SweepFolder, device: str) -> Pace:
    where = folder.path / "pilots" / job.run
    changed = {"steps": PILOT_STEPS, "dev_every": PILOT_STEPS, "checkpoint_every": 0}
    training = job.recipe.training.model_copy(update=changed)
    first = Job(
        kind="final",
        system=job.system,
        limit=job.limit,
        draw=job.draw,
        seed=job.seed,
        recipe=job.recipe.model_copy(update={"training": training}),
        evaluations=job.evaluations,
        numbers=job.numbers,
    )
    shutil.rmtree(where, ignore_errors=True)
    try:
        return _timed(first, where, device)
    finally:
        shutil.rmtree(where, ignore_errors=True)


def _timed(job: Job, where: Path, device: str) -> Pace:
    began = time.perf_counter()
    summary = trained(job, where, device=device)
    took = time.perf_counter() - began
    answering = opened(job, where, summary, device)
    rows = tuple(_seconds_a_row(answering, job, number) for number in range(len(job.evaluations)))
    step, dev = _in_training(where / STEPS)
    return Pace(start=max(0.0, took - summary["seconds"]), step=step, dev=dev, rows=rows)


def _in_training(path: Path) -> tuple[float, float]:
    """Seconds of a step, the first one left out, which warms up, and of a development score."""
    lines = [json.loads(x) for x in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    steps = [x["seconds"] for x in lines if "loss" in x]
    dev = [x["seconds"] - steps[-1] for x in lines if "dev" in x and steps]
    apart = [later - earlier for earlier, later in itertools.pairwise(steps)]
    return statistics.median(apart) if apart else 0.0, dev[-1] if dev else 0.0


def _seconds_a_row(answering: Answering, job: Job, number: int) -> float:
    part = job.evaluations[number]
    rows = rows_of(part, job.recipe)[:PILOT_ROWS]
    decoding = answering.contract.decoding
    # What has hardly been trained does not know where to end.
    most = min(decoding.max_new_tokens, part.max_new_tokens or decoding.max_new_tokens, _longest(answering, rows))
    start = time.perf_counter()
    cut = part.model_copy(update={"max_new_tokens": most, "metrics": ()})
    asked(answering, job, cut, rows, decoding)
    return (time.perf_counter() - start) / len(rows)


def _longest(answering: Answering, rows: Sequence[Example]) -> int:
    ids = answering.frozen.tokenizer([x for row in rows for x in row.references], add_special_tokens=False).input_ids
    return max(1, *map(len, ids))


def _pace(found: Mapping[str, Any]) -> Pace:
    return Pace(start=found["start"], step=found["step"], dev=found["dev"], rows=tuple(found["rows"]))
