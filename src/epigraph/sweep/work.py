"""One job of a sweep, from its recipe to its record: train, open what was written, score it, keep the predictions.

What is scored is what was stored: the file, opened as `epigraph evaluate` would. It knows nothing of other jobs.
"""

from __future__ import annotations

import datetime
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epigraph.contract import Decoding
from epigraph.frozen.ensemble import Ensemble
from epigraph.sweep.folder import Said
from epigraph.sweep.inputs import rows_of, task_of
from epigraph.sweep.plan import Job
from epigraph.sweep.spec import EvaluatePart
from epigraph.tasks.base import Example
from epigraph.tasks.catalogue import data_hash
from epigraph.train.answering import Answering, open_run
from epigraph.train.build import make_method
from epigraph.train.evaluate import Evaluation
from epigraph.train.folder import RECIPE, SUMMARY, read_json
from epigraph.train.prepare import DTYPES, prepare
from epigraph.train.record import machine, versions
from epigraph.train.run import run

Tell = Callable[[str], None]
# What a summary says that belongs to a record of a sweep.
_KEPT = (
    *("method", "steps", "kept_step", "dev", "precision", "resumed_at"),
    *("trained_numbers", "stored_numbers", "num_virtual_tokens"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """A job's record, as far as it is the job's own, and its predictions, evaluation by evaluation."""

    record: dict[str, Any]
    said: list[Said]


def do(job: Job, folder: Path, *, device: str = "cpu", notice: Tell = lambda _: None) -> Done:
    """Train (or go on training) in ``folder`` and score. Raises what these raise."""
    summary = trained(job, folder, device=device, notice=notice)
    start = time.perf_counter()
    scored = _all_scored(job, opened(job, folder, summary, device)) if job.evaluations else []
    about = {**{name: summary.get(name) for name in _KEPT}, "stored_bytes": stored_bytes(summary)}
    times = {"train_seconds": summary["seconds"], "evaluate_seconds": time.perf_counter() - start}
    return _done(job, scored, {**about, **times}, folder)


def do_together(job: Job, folders: Sequence[Path], *, device: str = "cpu") -> Done:
    """Ask together what the runs of the job's members left in ``folders``; counts and seconds are those of all.

    Raises :class:`NothingToResume` where one of them is gone, and what opening and asking raise.
    """
    summaries = [read_json(folder, SUMMARY) for folder in folders]
    start = time.perf_counter()
    answering = opened(job.members[0], folders[0], summaries[0], device)
    assert answering.tuned is not None, "the spec refuses members without virtual tokens"
    ensemble = answering.tuned.ensemble(*folders[1:], mean=job.mean or "geometric")
    scored = _all_scored(job, answering, ensemble)
    about: dict[str, Any] = dict.fromkeys(_KEPT)
    for name in ("trained_numbers", "stored_numbers"):
        about[name] = sum(x[name] for x in summaries)
    about |= {"method": summaries[0]["method"], "stored_bytes": sum(stored_bytes(x) or 0 for x in summaries)}
    times = {"train_seconds": sum(x["seconds"] for x in summaries), "evaluate_seconds": time.perf_counter() - start}
    return _done(job, scored, {**about, **times, "num_members": len(folders)}, folders[0])


def _all_scored(job: Job, answering: Answering, ensemble: Ensemble | None = None) -> list[tuple[dict[str, Any], Said]]:
    return [_scored(job, part, answering, ensemble) for part in job.evaluations]


def _done(job: Job, scored: Sequence[tuple[dict[str, Any], Said]], about: dict[str, Any], folder: Path) -> Done:
    record = {
        "kind": job.kind,
        "system": job.system,
        "limit": job.limit,
        "draw": job.draw,
        "seed": job.seed,
        "lr": job.recipe.training.lr if job.trains else None,
        **about,
        "evaluations": [entry for entry, _ in scored],
        **_resolved(folder),
        "versions": versions(),
        "machine": machine(),
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    return Done(record=record, said=[answers for _, answers in scored])


def trained(job: Job, folder: Path, *, device: str, notice: Tell = lambda _: None) -> dict[str, Any]:
    """The summary of the run in ``folder``, which goes on where it was, and is left as it is where it ended."""
    ready = prepare(job.recipe, device=device)
    summary = run(ready, make_method(ready), folder, resume=True, notice=notice)
    del ready
    # A model and its hooks know each other, so that it is gone only when somebody looks; the next one needs the room.
    gc.collect()
    return summary


def opened(job: Job, folder: Path, summary: dict[str, Any], device: str) -> Answering:
    """What the run in ``folder`` left, in the precision that it was trained in."""
    # With a base of its own the run's folder says where that is.
    model = None if job.recipe.training.base_lr is not None else job.recipe.model
    return open_run(folder, model=model, dtype=DTYPES[summary["precision"]], device=device)


def asked(
    answering: Answering,
    job: Job,
    part: EvaluatePart,
    examples: Sequence[Example],
    decoding: Decoding | None = None,
    ensemble: Ensemble | None = None,
) -> Evaluation:
    """Answers to ``examples``, scored, with the decoding that ``part`` asks for; an ``ensemble`` answers instead."""
    names = ("num_beams", "length_penalty", "max_new_tokens")
    given = {name: x for name in names if (x := getattr(part, name)) is not None}
    decoding = (decoding or answering.contract.decoding).model_copy(update=given)
    if ensemble is not None:
        ensemble.check(decoding)
    task = task_of(part, job.recipe)
    return answering.evaluate(task, examples, ensemble=ensemble, decoding=decoding, only=part.metrics)


def stored_bytes(summary: dict[str, Any]) -> int | None:
    """How large the file is that a run left: an artifact's or a baseline's."""
    return summary.get("stored_bytes", summary.get("artifact_bytes"))


def _scored(
    job: Job, part: EvaluatePart, answering: Answering, ensemble: Ensemble | None
) -> tuple[dict[str, Any], Said]:
    examples, start = rows_of(part, job.recipe), time.perf_counter()
    done = asked(answering, job, part, examples, ensemble=ensemble)
    seconds = time.perf_counter() - start
    numbers = iter(enumerate(examples))
    rows = [next(number for number, x in numbers if x is kept) for kept in done.examples]
    found = done.to_json(0)
    del found["examples"]
    about = {"task": part.task or job.recipe.data.task, "split": part.split, "limit": part.limit}
    return {**about, **found, "data": data_hash(examples), "seconds": seconds}, (rows, list(done.predictions))


def _resolved(folder: Path) -> dict[str, Any]:
    """The recipe with every default filled in, and the hashes of what the run read."""
    recipe = read_json(folder, RECIPE)
    return {"inputs": recipe.pop("inputs", None), "recipe": recipe}
