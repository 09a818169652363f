"""One training run, from a recipe to a folder: artifact, records, summary. What `epigraph train` does.

The folder holds recipe.json, steps.jsonl, checkpoints while it runs, then artifact.safetensors and summary.json.
Where several processes train, all of them are here, and only the main one touches the folder.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from epigraph.methods.base import Method
from epigraph.train import checkpoint
from epigraph.train.checkpoint import Checkpoint, Checkpoints
from epigraph.train.development import dev_score
from epigraph.train.folder import (
    RECIPE,
    STEPS,
    SUMMARY,
    TENSORBOARD,
    alone,
    check_base_is_kept,
    check_same,
    clear,
    clear_halves,
    is_complete,
    read_json,
)
from epigraph.train.loop import Outcome, train
from epigraph.train.parts import TrainingPart
from epigraph.train.prepare import Prepared
from epigraph.train.record import Lines, write_json
from epigraph.train.result import resolved, write_result
from epigraph.train.state import State
from epigraph.train.stop import Stop, on_signals
from epigraph.train.tensorboard import Board

# With no dev_every in the recipe, development scores are taken this many times.
DEFAULT_DEV_SCORES = 5


def run(
    ready: Prepared,
    method: Method,
    folder: Path,
    *,
    resume: bool = False,
    report: Callable[[Mapping[str, Any]], None] = lambda _: None,
    notice: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Train ``method`` on what ``ready`` holds and write ``folder``; returns the summary, also written there.

    With ``resume`` the run in ``folder`` goes on from its last checkpoint, and its result is that of a run that never
    stopped. With nothing there it begins; a complete run is left as it is. ``notice`` hears of Ctrl-C and SIGTERM.
    Raises :class:`ResumeMismatch`, :class:`NothingToResume`, :class:`RunInUse`, :class:`CannotWrite`, and
    :class:`Interrupted` once a run that was asked to stop is saved.
    """
    processes = ready.processes
    with contextlib.ExitStack() as stack:
        processes.from_main(lambda: stack.enter_context(alone(folder)))
        done = processes.from_main(lambda: _complete(ready, folder) if resume else None)
        if done is not None:
            return done
        begin = processes.from_main(lambda: _begun(ready, folder, resume=resume))
        resumed_at = () if begin is None else (*begin.resumed_at, begin.state.position.step)
        outcome = (
            _train(ready, method, folder, begin.state if begin else None, resumed_at, report, notice)
            if ready.steps
            else _untrained(ready, method)
        )
        return processes.from_main(lambda: write_result(ready, method, outcome, resumed_at, folder))


def _complete(ready: Prepared, folder: Path) -> dict[str, Any] | None:
    """The summary of the run in ``folder`` if that is complete, and the one that is to go on."""
    if not (folder / RECIPE).exists() and not checkpoint.has_any(folder):
        return None
    check_same(folder, identity(ready))
    if not is_complete(folder):
        return None
    # A run that was killed after its last file left its checkpoints.
    checkpoint.clear(folder)
    return read_json(folder, SUMMARY)


def _begun(ready: Prepared, folder: Path, *, resume: bool) -> Checkpoint | None:
    """Where the run goes on; without a checkpoint None, and a folder that is ready for its beginning."""
    begin = checkpoint.latest(folder) if resume else None
    if begin is None:
        check_base_is_kept(folder, ready.recipe.model)
        clear(folder)
        write_json(folder / RECIPE, identity(ready))
    clear_halves(folder)
    return begin


def _train(
    ready: Prepared,
    method: Method,
    folder: Path,
    begin: State | None,
    resumed_at: tuple[int, ...],
    report: Callable[[Mapping[str, Any]], None],
    notice: Callable[[str], None],
) -> Outcome:
    plan = plan_of(ready, method)
    saves, processes = plan.checkpoint_every != 0, ready.processes
    is_main, is_alone = processes.is_main, processes.num == 1
    with (
        _records(folder, resumed_at[-1] if resumed_at else 0, board=plan.tensorboard, is_main=is_main) as write,
        on_signals(notice if is_main else _silent, alone=is_alone) if saves else contextlib.nullcontext(Stop()) as stop,
    ):

        def record(entry: Mapping[str, Any]) -> None:
            write(entry)
            report(entry)

        saver = Checkpoints(
            folder,
            every=plan.checkpoint_every,
            steps=ready.steps,
            stop=stop,
            resumed_at=resumed_at,
            processes=processes,
        )

        baseline = ready.recipe.baseline
        return (train if baseline is None or baseline.loop is None else baseline.loop)(
            ready.frozen,
            method,
            ready.rows,
            plan,
            steps=ready.steps,
            lr=ready.recipe.lr,
            score=dev_score(ready) if ready.dev_rows and plan.dev_every else None,
            report=record,
            begin=begin,
            saver=saver if saves else None,
            processes=processes,
            stop=stop,
        )


def plan_of(ready: Prepared, method: Method) -> TrainingPart:
    """The recipe's training with what it leaves to us."""
    plan = ready.recipe.training
    if plan.dev_every is None:
        plan = plan.model_copy(update={"dev_every": max(1, ready.steps // DEFAULT_DEV_SCORES)})
    if all(name.startswith("head.") for name, x in method.named_parameters() if x.requires_grad):
        # A head that is all there is learns at the run's own rate.
        plan = plan.model_copy(update={"head_lr": ready.recipe.lr})
    return plan


def _untrained(ready: Prepared, method: Method) -> Outcome:
    """What takes no step has a development score all the same, unless it answers without the model."""
    start, baseline = time.perf_counter(), ready.recipe.baseline
    asks = ready.dev_rows and ready.recipe.training.dev_every != 0 and (baseline is None or baseline.says is None)
    dev = dev_score(ready)(method) if asks else {}
    seconds = time.perf_counter() - start
    return Outcome(steps=0, kept_step=0, kept_dev=dev, stopped_early=False, seconds=seconds, tokens=0)


def _silent(_: object) -> None:
    """What hears nothing and writes nothing, in processes that are not the main one."""


@contextlib.contextmanager
def _records(
    folder: Path, resumed_at: int, *, board: bool, is_main: bool
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """What takes records: the folder's own lines, and TensorBoard's events where they are wanted."""
    if not is_main:
        yield _silent
        return
    with contextlib.ExitStack() as stack:
        sinks: list[Lines | Board] = [
            stack.enter_context(contextlib.closing(Lines(folder / STEPS, resumed_at=resumed_at)))
        ]
        if board:
            sinks.append(stack.enter_context(contextlib.closing(Board(folder / TENSORBOARD, resumed_at=resumed_at))))

        def write(record: Mapping[str, Any]) -> None:
            for sink in sinks:
                sink.write(record)

        yield write


def identity(ready: Prepared) -> dict[str, Any]:
    """What ``recipe.json`` holds: all that decides the result, and the recipe as it was ``given``."""
    inputs = {
        "base": ready.frozen.fingerprint,
        "tokenizer": ready.frozen.tokenizer_fingerprint,
        "data": ready.data_hashes,
    }
    shared = {"num_processes": ready.processes.num}
    return {**resolved(ready), **shared, "inputs": inputs, "given": ready.recipe.model_dump(mode="json")}
