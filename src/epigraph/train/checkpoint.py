"""Checkpoints of a run: files from which it goes on as if it had never stopped.

A checkpoint is a safetensors file, ``step-<step>-<first 32 digits of its SHA-256>.safetensors``: one that is torn or
changed does not have the digits of its name, and the one before it is used.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import safetensors.torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError

from epigraph.errors import Interrupted, NothingToResume
from epigraph.files import clear_unfinished, write_whole
from epigraph.train.parallel import ALONE, Processes
from epigraph.train.record import said_plainly
from epigraph.train.state import Count, Position, State
from epigraph.train.stop import Stop

FOLDER = "checkpoints"
NUM_KEPT = 2
DEFAULT_SECONDS = 60.0

_NAME = re.compile(r"step-(\d{8})-([0-9a-f]{32})\.safetensors")
_KEY = "epigraph_checkpoint"


class _Header(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    format_version: Literal[1] = 1
    position: Position
    resumed_at: tuple[Count, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A state, and the steps after which its run had been taken up again before."""

    state: State
    resumed_at: tuple[int, ...]


class Checkpoints:
    """Saves a run's states in its folder: every so many steps (None: every minute), at a stop, and at the end.

    Of several processes the main one writes, and the others wait for it where a stop was asked for.
    """

    def __init__(
        self,
        run_folder: Path,
        *,
        every: int | None,
        steps: int,
        stop: Stop,
        resumed_at: tuple[int, ...] = (),
        processes: Processes = ALONE,
    ) -> None:
        self._processes = processes
        self._run_folder = run_folder
        self._resumed_at = resumed_at
        self._every = every
        self._steps = steps
        self._stop = stop
        self._last = time.monotonic()

    def is_due(self, step: int) -> bool:
        """The state after ``step`` is wanted."""
        if self._stop:
            return True
        if not self._processes.is_main:
            return False
        if step == self._steps:
            return True
        if self._every is None:
            return time.monotonic() - self._last >= DEFAULT_SECONDS
        return step % self._every == 0

    def save(self, state: State) -> None:
        """Write a checkpoint, whole or not at all, and prune all but the last two.

        Raises :class:`CannotWrite`, and :class:`Interrupted` once it is written where a stop was asked for.
        """
        if self._stop:
            self._processes.from_main(lambda: self._write(state))
        else:
            self._write(state)
        if self._stop.signal is not None and state.position.step < self._steps:
            raise Interrupted(
                f"stopped after step {state.position.step} of {self._steps}, which is saved; "
                f"go on with: epigraph train --resume --out {self._run_folder}",
                signal=self._stop.signal,
            )

    def _write(self, state: State) -> None:
        write(self._run_folder, state, self._resumed_at)
        self._last = time.monotonic()


def write(run_folder: Path, state: State, resumed_at: tuple[int, ...]) -> None:
    """Write a checkpoint, whole or not at all, and prune all but the last two. Raises :class:`CannotWrite`."""
    header = _Header(position=state.position, resumed_at=resumed_at)
    data = safetensors.torch.save(dict(state.tensors), {_KEY: header.model_dump_json()})
    folder = run_folder / FOLDER
    path = folder / f"step-{state.position.step:08d}-{_digits(data)}.safetensors"
    with said_plainly(path):
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, [data])
        for old in _files(folder)[:-NUM_KEPT]:
            old.unlink(missing_ok=True)


def clear(run_folder: Path) -> None:
    """Take all checkpoints away, and what killed writers left."""
    folder = run_folder / FOLDER
    if not folder.is_dir():
        return
    clear_unfinished(folder)
    for file in _files(folder):
        file.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def has_any(run_folder: Path) -> bool:
    """The folder holds checkpoints, whole or torn."""
    return bool(_files(run_folder / FOLDER))


def latest(run_folder: Path) -> Checkpoint | None:
    """The last whole checkpoint of the run in ``run_folder``; None where it has none.

    Raises :class:`NothingToResume` where there are some and all are torn.
    """
    files = _files(run_folder / FOLDER)
    for file in reversed(files):
        found = _read(file)
        if found is not None:
            return found
    if files:
        raise NothingToResume(
            f"{run_folder}: got {len(files)} checkpoints, none of them as it was written; start again with --overwrite"
        )
    return None


def _read(file: Path) -> Checkpoint | None:
    """The checkpoint in ``file``; None where the file is not what was written."""
    named = _NAME.fullmatch(file.name)
    data = file.read_bytes()
    if named is None or _digits(data) != named[2]:
        return None
    try:
        length = int.from_bytes(data[:8], "little")
        header = _Header.model_validate_json(_Head.model_validate_json(data[8 : 8 + length]).metadata[_KEY])
        state = State(position=header.position, tensors=safetensors.torch.load(data))
    except (ValidationError, SafetensorError, KeyError):
        return None
    return Checkpoint(state=state, resumed_at=header.resumed_at)


class _Head(BaseModel):
    """What is read of a safetensors header."""

    metadata: Mapping[str, str] = Field(alias="__metadata__")


def _files(folder: Path) -> list[Path]:
    """Files named as checkpoints, by step; of one step the one written last comes last."""
    found = [x for x in folder.glob("step-*.safetensors") if _NAME.fullmatch(x.name)]
    return sorted(found, key=lambda x: (x.name[: len("step-00000000")], x.stat().st_mtime_ns))


def _digits(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
