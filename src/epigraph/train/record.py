"""Records on disk: JSON lines that grow, and JSON files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from epigraph.errors import CannotWrite
from epigraph.files import write_whole


class Lines:
    """A JSON-lines file of records with a ``step``, one a line, flushed line by line.

    With ``resumed_at`` the file's records up to that step are kept and later ones, and a torn last line, are dropped:
    the run takes those steps again. Raises :class:`CannotWrite`.
    """

    def __init__(self, path: Path, *, resumed_at: int = 0) -> None:
        with said_plainly(path):
            write_whole(path, [line.encode() for line in _kept_lines(path, resumed_at)])
            self._file = path.open("a", encoding="utf-8")
        self._path = path

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record."""
        with said_plainly(self._path):
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
            self._file.flush()

    def close(self) -> None:
        """No more records."""
        with contextlib.suppress(OSError):
            self._file.close()


def append_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Add records to a JSON-lines file, one a line. Raises :class:`CannotWrite`."""
    with said_plainly(path), path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _kept_lines(path: Path, resumed_at: int) -> Iterator[str]:
    if not resumed_at or not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= resumed_at and line.endswith("\n"):
                yield line
        except (ValueError, KeyError, TypeError):
            continue


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path``, whole or not at all. Raises :class:`CannotWrite`."""
    with said_plainly(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, [(json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode()])


@contextlib.contextmanager
def said_plainly(path: Path) -> Iterator[None]:
    """A disk that does not take a file of a run is the user's to mend, in one line: :class:`CannotWrite`."""
    try:
        yield
    except OSError as error:
        raise CannotWrite(
            f"{path} was not written: {error.strerror or error}; make room, or choose a folder that you may write"
        ) from error


def versions() -> dict[str, str]:
    """The packages that decide a number."""
    names = ("epigraph", "torch", "transformers", "tokenizers", "accelerate", "safetensors", "sacrebleu", "numpy")
    return {"python": platform.python_version(), **{name: _version(name) for name in names}}


# Of thousands of users in one process each leaves a record with these, and each look reads a file.
@cache
def _version(name: str) -> str:
    return metadata.version(name)


def machine() -> dict[str, Any]:
    """The machine in words that carry between runs: no names, no addresses."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": gpu,
    }
