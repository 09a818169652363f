"""Doing a sweep: take a job that nobody else has, do it, add its record, take the next one.

Any number of processes do the same in one folder; a job whose process was killed is free again and goes on from its
last checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from epigraph.errors import CannotWrite, Interrupted, RunInUse, UserError
from epigraph.sweep.folder import SweepFolder
from epigraph.sweep.inputs import Inputs
from epigraph.sweep.plan import Job, Plan
from epigraph.sweep.work import Done, do, do_together

POLL_SECONDS = 1.0
Record = Mapping[str, Any]


@dataclass(kw_only=True, slots=True)
class Sweep:
    """A plan at work in a folder. ``again`` are the records of failed jobs that are to be tried once more."""

    plan: Plan
    inputs: Inputs
    folder: SweepFolder
    device: str = "cpu"
    tell: Callable[[str], None] = lambda _: None
    again: Mapping[str, Record] = field(default_factory=dict)

    def found(self) -> Callable[[Job], Record | None]:
        """What the folder has of a job by now."""
        by_key = {record["key"]: record for record in self.folder.records()}

        def find(job: Job) -> Record | None:
            record = by_key.get(self.inputs.key(job))
            return None if record is not None and record == self.again.get(record["key"]) else record

        return find

    def retry_failed(self) -> None:
        """Let the jobs that failed until now be tried once more."""
        by_key = {record["key"]: record for record in self.folder.records()}
        self.again = {key: record for key, record in by_key.items() if "failed" in record}

    def left(self, only: Collection[str] = ()) -> list[Job]:
        """The jobs that can be done by now and have no record, those of other processes among them."""
        find = self.found()
        return [x for x in self.plan.ready(find) if find(x) is None and (not only or x.owner in only)]

    def run(self, *, only: Collection[str] = (), most: int | None = None) -> int:
        """Do jobs until none is left, or ``most`` are done here; how many were.

        While others have all that is left, this waits, since theirs decide what comes next. Raises
        :class:`Interrupted`, :class:`CannotWrite`; other failures of a job are its record.
        """
        count, is_told = 0, False
        self.tidy()
        while most is None or count < most:
            jobs = self.left(only)
            if not jobs:
                break
            if any(self._attempt(job) for job in jobs):
                count, is_told = count + 1, False
                self.tidy()
                continue
            if not is_told:
                self.tell(f"the {len(jobs)} jobs that are left are other processes'; waiting for them (Ctrl-C leaves)")
                is_told = True
            time.sleep(POLL_SECONDS)
        return count

    def tidy(self) -> None:
        """Take away the files of runs that no job will go on from, but those of systems whose files are kept."""
        find = self.found()
        finals = {self.inputs.run(x): x for x in self.plan.ready(find) if x.kind == "final" and not x.members}
        awaited = {
            self.inputs.run(member) for job in self.plan.expected(find) if find(job) is None for member in job.members
        }
        for cell in self.plan.cells:
            is_decided = all(find(job) is not None for job in cell.searches)
            for job in cell.searches:
                run = self.inputs.run(job)
                if find(job) is not None and run not in finals and (is_decided or not self.plan.goes_on(job)):
                    self.folder.drop(run)
        for run, job in finals.items():
            record = find(job)
            if record is None or run in awaited:
                continue
            if not self.plan.spec.keeps_files(job.system) or "failed" in record:
                self.folder.drop(run)

    def _attempt(self, job: Job) -> bool:
        """Whether ``job`` was done here; not, where another process has it, or did it meanwhile."""
        key = self.inputs.key(job)
        with self.folder.claim(key) as is_mine:
            if not is_mine or self.found()(job) is not None:
                return False
            self.tell(f"{described(job)}: begins")
            record = {"key": key, "run": self.inputs.run(job), "plan": job.plan, **self._done(job, key)}
            self.folder.append(record)
            self.tell(f"{described(job)}: {_outcome(record)}")
        return True

    def _done(self, job: Job, key: str) -> dict[str, Any]:
        try:
            done = self._did(job)
            if done.said:
                self.folder.write_predictions(key, done.said)
        except Interrupted as stop:
            raise Interrupted(
                f"stopped in {described(job)}, which is saved; go on with the same command",
                signal=stop.exit_code - 128,
            ) from None
        except (CannotWrite, RunInUse):
            raise
        except UserError as mistake:
            return _failure(job, str(mistake))
        except Exception as wrong:
            said = (str(wrong).strip() or "no reason given").splitlines()[0]
            return _failure(job, f"{type(wrong).__name__}: {said}")
        return done.record

    def _did(self, job: Job) -> Done:
        if job.members:
            return do_together(job, [self.folder.job(self.inputs.run(x)) for x in job.members], device=self.device)
        return do(job, self.folder.job(self.inputs.run(job)), device=self.device, notice=self.tell)


def described(job: Job) -> str:
    """The job in a few words."""
    parts = [job.system, job.kind]
    if job.limit is not None:
        parts.append(f"{job.limit} pairs")
    parts += [f"{name} {x}" for name, x in (("draw", job.draw), ("seed", job.seed)) if x is not None]
    if job.trains:
        parts.append(f"lr {job.recipe.training.lr:g}")
    return ", ".join(parts)


def _failure(job: Job, reason: str) -> dict[str, Any]:
    where = {"kind": job.kind, "system": job.system, "limit": job.limit, "draw": job.draw, "seed": job.seed}
    return {**where, "lr": job.recipe.training.lr, "failed": reason, "at": time.strftime("%FT%TZ", time.gmtime())}


def _outcome(record: Record) -> str:
    if "failed" in record:
        return f"failed: {record['failed']}"
    if record["kind"] == "search":
        return ", ".join(f"development {name} {value:.4g}" for name, value in record["dev"].items())
    first = record["evaluations"][0]
    return ", ".join(f"{name} {value:.4g}" for name, value in list(first["scores"].items())[:2])
