"""Files that change while they are read, one function each: what the reader checked is not what it goes on to read."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from attacks.make import KEYS, ONE, VALUES, Raw
from epigraph.artifact import Artifact, load
from epigraph.artifact.reader import _read_tensors
from epigraph.errors import ArtifactError, ContentMismatch, Truncated

Change = Callable[[Path], None]
MOVING: dict[str, tuple[type[ArtifactError], Change]] = {}
WIDTH = 1 << 16  # numbers a head: half a megabyte a tensor, which no buffer of the reader holds


def caught_as(error: type[ArtifactError]) -> Callable[[Change], Change]:
    """Register a change with the one error that must catch it."""

    def register(change: Change) -> Change:
        MOVING[change.__name__] = (error, change)
        return change

    return register


def write_sound(path: Path) -> None:
    """A sound artifact of a megabyte."""
    raw = Raw()
    for layer in raw.fields["geometry"]["sites"]["decoder.self"]:
        layer["head_dim"] = WIDTH
    raw.tensors = {name: ("F32", [2, 1, WIDTH], ONE * 2 * WIDTH) for name in (KEYS, VALUES)}
    raw.write(path)


def load_while(path: Path, change: Change) -> Artifact:
    """Load ``path``; ``change`` happens to it once, between the check of the header and the reading of the tensors."""

    def watch(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code is _read_tensors.__code__:
            sys.setprofile(None)
            change(path)

    sys.setprofile(watch)
    try:
        return load(path)
    finally:
        sys.setprofile(None)


@caught_as(Truncated)
def grows_by_a_byte(path: Path) -> None:
    """Somebody appends one byte."""
    with path.open("ab") as file:
        file.write(b"\0")


@caught_as(Truncated)
def grows_by_a_hole(path: Path) -> None:
    """Somebody makes it a terabyte long: a reader that reads to the end would never come back."""
    os.truncate(path, 1 << 40)


@caught_as(Truncated)
def shrinks_to_half(path: Path) -> None:
    """Somebody cuts it: a reader that maps the file would be killed by SIGBUS."""
    os.truncate(path, path.stat().st_size // 2)


@caught_as(Truncated)
def shrinks_to_nothing(path: Path) -> None:
    """Somebody empties it, as a program that writes the plain way does first."""
    os.truncate(path, 0)


@caught_as(ContentMismatch)
def written_over(path: Path) -> None:
    """Somebody writes other finite numbers over the last ones."""
    with path.open("r+b") as file:
        file.seek(-4096, os.SEEK_END)
        file.write(bytes(4096))
