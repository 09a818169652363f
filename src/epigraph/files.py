"""Files and folders that appear whole or not at all, and what killed processes left. It knows bytes and folders."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

Bytes = bytes | bytearray | memoryview

_UNFINISHED = ".tmp"


def write_whole(path: Path, pieces: Iterable[Bytes]) -> None:
    """Write ``pieces`` to ``path`` in one step: under a temporary name in the same folder, synced, then moved.

    A file at ``path`` is replaced; on any error it is left as it was and nothing new stays behind. A process killed on
    the way leaves a hidden file that :func:`clear_unfinished` takes away. Raises :class:`OSError`.
    """
    with _hidden(path, pieces) as temporary:
        temporary.replace(path)
    # The file is whole by now: a folder that cannot be synced only means that a power cut may undo its new name.
    with contextlib.suppress(OSError):
        _sync_folder(path.parent)


def create_whole(path: Path, pieces: Iterable[Bytes]) -> bool:
    """As :func:`write_whole`, where there is no file at ``path``; False where there is one, which stays as it is.

    Of all who try at once one gets True: that of a second name for the same file, which the file system must have.
    """
    with _hidden(path, pieces) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            # NFS says so as well where it did it and its answer was lost; then our own file has two names.
            return temporary.stat().st_nlink > 1
        return True


@contextlib.contextmanager
def _hidden(path: Path, pieces: Iterable[Bytes]) -> Iterator[Path]:
    """A whole file under a hidden name beside ``path``, gone afterwards unless it was moved."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{_UNFINISHED}")
    try:
        # Opened by hand rather than by tempfile, so that the file gets the permissions the user's umask gives.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_in_whole(folder: Path) -> Iterator[Path]:
    """A new folder beside ``folder``, which takes its place when the block ends well and is gone when it does not."""
    # Not by tempfile, so that the folder gets the permissions the user's umask gives.
    made = folder.with_name(f".{folder.name}-{secrets.token_hex(8)}")
    try:
        made.mkdir()
        yield made
        shutil.rmtree(folder, ignore_errors=True)
        made.replace(folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def clear_unfinished(folder: Path) -> None:
    """Take away what processes that were killed inside :func:`write_whole` left in ``folder``."""
    for file in folder.glob(f".*{_UNFINISHED}"):
        file.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
