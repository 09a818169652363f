"""The output that several workers share, a folder or an fsspec address: files that appear whole, some of them once.

It knows names, bytes and folders; it does not know what they mean.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from epigraph.errors import CannotWrite
from epigraph.files import create_whole, folder_in_whole, write_whole

# fsspec protocols whose stores themselves decide who was first; see Place.create.
_EXCLUSIVE = frozenset({"file", "local", "memory", "s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"})

# fsspec's memory looks whether a file is there and then makes it: two threads could both be first.
_ONE_THREAD = threading.Lock()


class Place:
    """Files below ``address``: a folder, or anything fsspec writes (``s3://bucket/fleet``, ``memory://fleet``).

    A name is relative, its parts joined by slashes. Hidden names (with a dot in front) are those of files on their way,
    and are never listed. Every method raises :class:`CannotWrite` where the disk or the store does not answer.
    """

    def __init__(self, address: str | os.PathLike[str]) -> None:
        self.address = os.fspath(address)
        try:
            self._files, root = fsspec.core.url_to_fs(self.address)
        except (ImportError, ValueError, OSError) as wrong:
            raise CannotWrite(
                f"{self.address} cannot be written: {wrong}; give a folder or an fsspec address"
            ) from wrong
        self._root = root.rstrip("/")

    @property
    def is_local(self) -> bool:
        """It is a folder here, so that a run may write into it as into any other."""
        return isinstance(self._files, LocalFileSystem)

    @property
    def is_exclusive(self) -> bool:
        """Whether :meth:`create` is known to have one winner; where it is not, one worker alone may write here."""
        protocol = self._files.protocol
        return not _EXCLUSIVE.isdisjoint([protocol] if isinstance(protocol, str) else protocol)

    def path(self, name: str) -> Path:
        """The file or folder ``name`` of a place that is local."""
        assert self.is_local
        return Path(self._root or "/", name)

    def read(self, name: str) -> bytes | None:
        """What the file holds, None where there is none."""
        with self._said_plainly(name, "read"), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if self.is_local:
                return self.path(name).read_bytes()
            found: bytes = self._files.cat_file(self._at(name))
            return found
        return None

    def read_all(self, folder: str) -> dict[str, bytes]:
        """What the files in ``folder`` hold, by name; of a store all are asked for at once."""
        if self.is_local:
            pairs = ((name, self.read(f"{folder}/{name}")) for name in self.names(folder))
            return {name: data for name, data in pairs if data is not None}
        names = {self._at(f"{folder}/{name}"): name for name in self.names(folder)}
        with self._said_plainly(folder, "read"):
            found = self._files.cat(list(names)) if names else {}
        return {names[path]: data for path, data in found.items()}

    def write(self, name: str, data: bytes) -> None:
        """Make the file hold ``data``, whole or not at all, whatever it held before."""
        with self._said_plainly(name, "written"):
            if self.is_local:
                path = self.path(name)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, [data])
            else:
                self._files.pipe_file(self._at(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """Make the file where there is none, whole or not at all; False where there is one, which stays as it is.

        Of all who try at once, one gets True. A folder decides that by a hard link, which its file system must have;
        in memory it holds within the process. S3, Google Cloud Storage and Azure decide it themselves (a put on the
        condition that nothing is there); of stores that only speak S3's protocol, those that know ``If-None-Match``.
        Elsewhere fsspec looks first and then writes, and two may win: :attr:`is_exclusive`. A store may answer False
        to who was first, where its first answer was lost and the put was sent again: who must know reads the file.
        """
        with self._said_plainly(name, "written"):
            if not self.is_local:
                return self._create_object(name, data)
            path = self.path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            return create_whole(path, [data])

    def names(self, folder: str) -> list[str]:
        """Names of the files and folders in ``folder`` as it is now, in order; none where there is no such folder."""
        with self._said_plainly(folder, "listed"), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if self.is_local:
                found = os.listdir(self.path(folder))
            else:
                self._files.invalidate_cache()
                at = self._at(folder)
                below = (x.rstrip("/") for x in self._files.ls(at, detail=False))
                # Some stores list a folder's own marker in it.
                found = [x.rpartition("/")[2] for x in below if x.strip("/") != at.strip("/")]
            return sorted(x for x in found if not x.startswith("."))
        return []

    def delete(self, name: str) -> None:
        """Take the file away, where it is there."""
        with self._said_plainly(name, "deleted"), contextlib.suppress(FileNotFoundError):
            if self.is_local:
                self.path(name).unlink()
            else:
                self._files.rm_file(self._at(name))

    def remove(self, folder: str) -> None:
        """Take a folder away with all that is in it, where it is there."""
        with self._said_plainly(folder, "deleted"), contextlib.suppress(FileNotFoundError):
            if self.is_local:
                shutil.rmtree(self.path(folder))
            else:
                self._files.rm(self._at(folder), recursive=True)

    def fetch(self, folder: str, local: Path) -> None:
        """Make the folder ``local`` hold what ``folder`` does and nothing else; nothing happens where it is local."""
        if self.is_local:
            return
        with self._said_plainly(folder, "read"):
            local.parent.mkdir(parents=True, exist_ok=True)
            with folder_in_whole(local) as made:
                for name in self._below(folder):
                    target = made / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(self._files.cat_file(self._at(f"{folder}/{name}")))

    def publish(self, local: Path, folder: str) -> None:
        """Make ``folder`` hold what the folder ``local`` does; nothing happens where it is local.

        Files go in the order in which they were last written, one put each, and what is gone from ``local`` goes
        last: who reads half-way, or after a kill, finds what any file tells of. Hidden files stay behind.
        """
        if self.is_local:
            return
        with self._said_plainly(folder, "written"):
            files = {x.relative_to(local): x for x in local.rglob("*") if x.is_file()}
            shown = {x.as_posix(): path for x, path in files.items() if not any(p.startswith(".") for p in x.parts)}
            for name, path in sorted(shown.items(), key=lambda x: (x[1].stat().st_mtime_ns, x[0])):
                self._files.pipe_file(self._at(f"{folder}/{name}"), path.read_bytes())
            for name in self._below(folder):
                if name not in shown:
                    self._files.rm_file(self._at(f"{folder}/{name}"))

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}".rstrip("/")

    def _below(self, folder: str) -> list[str]:
        """Files at any depth below ``folder``, relative to it."""
        self._files.invalidate_cache()
        at = self._at(folder)
        names = [x.strip("/").removeprefix(at.strip("/")).lstrip("/") for x in self._files.find(at)]
        # A store may have such names, and as paths they lead out of the folder.
        return sorted(x for x in names if x and ".." not in x.split("/"))

    def _create_object(self, name: str, data: bytes) -> bool:
        in_memory = isinstance(self._files, MemoryFileSystem)
        try:
            with _ONE_THREAD if in_memory else contextlib.nullcontext():
                self._files.pipe_file(self._at(name), data, mode="create")
        except FileExistsError:
            return False
        except OSError:
            # Not every client has a word of its own for a condition that does not hold.
            if self.read(name) is None:
                raise
            return False
        return True

    @contextlib.contextmanager
    def _said_plainly(self, name: str, done: str) -> Iterator[None]:
        """One line for a disk or a store that does not answer, as :func:`epigraph.train.record.said_plainly` has it."""
        # The clients of stores raise errors of their own beside OSError: no credentials, no connection.
        failures: Any = OSError if self.is_local else Exception
        try:
            yield
        except CannotWrite:
            raise
        except failures as error:
            why = (isinstance(error, OSError) and error.strerror) or error or type(error).__name__
            raise CannotWrite(
                f"{self.address.rstrip('/')}/{name} was not {done}: {why}; see that it can be reached and has room, "
                "or choose another place"
            ) from error
