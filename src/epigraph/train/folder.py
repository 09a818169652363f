"""The folder of a run: which files it holds, what may be written over, and that one process at a time writes it."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from epigraph import artifact
from epigraph.errors import NothingToResume, OutputExists, ResumeMismatch, RunInUse
from epigraph.files import clear_unfinished
from epigraph.train import checkpoint, kept
from epigraph.train.record import said_plainly

RECIPE, STEPS, SUMMARY, REPORT = "recipe.json", "steps.jsonl", "summary.json", "report.html"
BASE = "base"
# Of which a complete run has one.
RESULTS = (artifact.FILE_NAME, kept.FILE_NAME)
TENSORBOARD = "tensorboard"

# What may differ between a run and its going on: where things lie, how often it is saved, and who watches.
_FREE = (
    *("model", "data.train", "data.dev", "data.test", "training.checkpoint_every", "training.tensorboard", "given"),
    # How the same rows are shared out, and the same weights.
    *("num_processes", "training.shard_base"),
)


def check_output(folder: Path, *, overwrite: bool) -> None:
    """Raise :class:`OutputExists` when ``folder`` holds a run that would be lost."""
    if folder.exists() and not folder.is_dir():
        raise OutputExists(f"{folder} is a file, expected a folder to write to; choose another --out")
    if overwrite:
        return
    for name in RESULTS:
        if (folder / name).exists():
            raise OutputExists(f"{folder} already holds {name}; choose another --out, or pass --overwrite")
    if checkpoint.has_any(folder):
        raise OutputExists(f"{folder} holds an unfinished run; go on with --resume, or start again with --overwrite")


def check_base_is_kept(folder: Path, model: str) -> None:
    """Raise :class:`OutputExists` where ``model`` is what an earlier run in ``folder`` wrote, and would be lost."""
    if (folder / BASE).is_dir() and Path(model).expanduser().resolve() == (folder / BASE).resolve():
        raise OutputExists(
            f"{folder} holds the model to be trained, which a new run there replaces; choose another --out"
        )


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make ``folder`` and keep every other run out of it. Raises :class:`RunInUse`, :class:`CannotWrite`."""
    with said_plainly(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise RunInUse(
                f"{folder} is being written by another process; wait for it, stop it, or choose another --out"
            ) from None
    try:
        yield
    finally:
        lock.release()
        (folder / ".lock").unlink(missing_ok=True)


def clear(folder: Path) -> None:
    """Take an earlier run's files away: its scores beside this run's artifact would be a lie."""
    for name in (*RESULTS, SUMMARY, STEPS, REPORT, "mass.json", "mass.png"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / BASE, ignore_errors=True)
    for record in [*(folder / "evaluations").glob("*.json"), *(folder / TENSORBOARD).glob("events.out.*")]:
        record.unlink()
    checkpoint.clear(folder)
    clear_halves(folder)


def clear_halves(folder: Path) -> None:
    """Take away what writers that were killed left in ``folder``."""
    clear_unfinished(folder)
    for half in folder.glob(f".{BASE}-*"):
        shutil.rmtree(half, ignore_errors=True)


def is_complete(folder: Path) -> bool:
    """The run in ``folder`` ended."""
    return any((folder / name).exists() for name in RESULTS) and (folder / SUMMARY).exists()


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A record of the run in ``folder``; raises :class:`NothingToResume` where it is not there or not whole."""
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise NothingToResume(
            f"{folder} holds no run to go on with: there is no whole {name}; start it without --resume"
        )
    return found


def given_tables(folder: Path) -> dict[str, Any]:
    """The recipe that the run in ``folder`` was begun with, as it was given; raises :class:`NothingToResume`."""
    tables = read_json(folder, RECIPE).get("given")
    if not isinstance(tables, dict):
        raise NothingToResume(f"{folder}: {RECIPE} does not say what was given; give the recipe or the flags again")
    return tables


def check_same(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Raise :class:`ResumeMismatch` unless the run in ``folder`` was begun with ``wanted``, see ``recipe.json``."""
    check_same_recipe(str(folder), read_json(folder, RECIPE), wanted)


def check_same_recipe(where: str, begun_with: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise :class:`ResumeMismatch` unless what ``where`` was ``begun_with`` is what is ``wanted``."""
    begun, now = _flat(begun_with), _flat(wanted)
    for key in sorted(begun.keys() | now.keys()):
        if key.startswith(_FREE) or begun.get(key) == now.get(key):
            continue
        raise ResumeMismatch(
            f"{where} was begun with {key} = {json.dumps(begun.get(key))}, got {json.dumps(now.get(key))}; "
            "give what it was begun with, or choose another --out"
        )


def _flat(value: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested tables by dotted key."""
    flat: dict[str, Any] = {}
    for name, x in value.items():
        flat |= _flat(x, f"{above}{name}.") if isinstance(x, dict) else {f"{above}{name}": x}
    return flat
