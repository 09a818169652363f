"""The bytes of a registry, below a folder or an fsspec address: files that appear whole, and are gone when deleted.

It knows paths and hashes; it does not know whose they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from epigraph.errors import BadValue, ContentMismatch, StoreUnavailable
from epigraph.files import create_whole
from epigraph.stores import options_for

# No tenant begins with a dot.
MARK = ".epigraph-registry"
# Up to here an object is put in one piece out of memory, so that what is put is what was hashed.
WHOLE_BYTES = 64 << 20

_PIECE = 1 << 20
_WRITE_ATTEMPTS = 20
_USER = re.compile(r"//[^/@]*@")
_ADVICE = "see that it can be reached and has room, then try again"


class Store:
    """Files below ``address``: a folder, or anything fsspec writes (``s3://bucket/prefixes``).

    Nothing that was listed is remembered. Methods raise :class:`StoreUnavailable` where the disk or the store does not
    answer, in one line without a secret; so does making one from an address that fsspec cannot use.
    """

    def __init__(self, address: str | os.PathLike[str]) -> None:
        given = os.fspath(address)
        self.address = given if "://" in given or "::" in given else str(Path(given).expanduser().absolute())
        self.label = _USER.sub("//", self.address)
        try:
            self._files, root = fsspec.core.url_to_fs(self.address, **options_for(self.address))
        except (ImportError, ValueError, OSError) as wrong:
            why = _USER.sub("//", str(wrong))
            raise StoreUnavailable(f"{self.label} cannot be used: {why}; give a folder or an fsspec address") from wrong
        self._root = root.rstrip("/")

    @property
    def is_local(self) -> bool:
        """It is a folder here."""
        return isinstance(self._files, LocalFileSystem)

    def mark(self) -> str | None:
        """Which catalogue the files belong to, None where none was written down."""
        with self._said_plainly(MARK, "read"), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return bytes(self._files.cat_file(self._at(MARK))).decode(errors="replace").strip()
        return None

    def set_mark(self, mark: str) -> None:
        """Write down which catalogue the files belong to; in a folder, where nobody did so just now."""
        with self._said_plainly(MARK, "written"):
            if self.is_local:
                self._path(MARK).parent.mkdir(parents=True, exist_ok=True)
                create_whole(self._path(MARK), [mark.encode() + b"\n"])
            else:
                self._files.pipe_file(self._at(MARK), mark.encode() + b"\n")

    def put(self, source: Path, path: str, file_hash: str, num_bytes: int) -> None:
        """Make ``path`` hold what ``source`` does, whole or not at all.

        Raises :class:`ContentMismatch` where that has another SHA-256 by now, and :class:`StoreUnavailable`, also for
        a folder in which there is such a file.
        """
        with self._said_plainly(path, "written"), source.open("rb") as file:
            if self.is_local:
                self._put_file(file, path, file_hash)
            elif num_bytes <= WHOLE_BYTES:
                self._files.pipe_file(self._at(path), b"".join(_pieces(file, file_hash)))
            else:
                self._files.put_file(str(source), self._at(path))
                # What was read a second time may have changed before.
                if self.hash(path) != file_hash:
                    self._files.rm_file(self._at(path))
                    raise _changed()

    def delete(self, paths: Collection[str]) -> None:
        """Take files away, where they are there; folders that are empty then go too."""
        for path in paths:
            with self._said_plainly(path, "deleted"), contextlib.suppress(FileNotFoundError, NotADirectoryError):
                if self.is_local:
                    self._path(path).unlink()
                else:
                    self._files.rm_file(self._at(path))
        if self.is_local:
            for folder in {self._path(path).parent for path in paths}:
                with contextlib.suppress(OSError):
                    folder.rmdir()
                    folder.parent.rmdir()

    def size(self, path: str) -> int | None:
        """How many bytes a file has, None where there is none."""
        with self._said_plainly(path, "looked at"), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return int(self._files.info(self._at(path))["size"])
        return None

    def hash(self, path: str) -> str | None:
        """The SHA-256 of a file, None where there is none."""
        missing = contextlib.suppress(FileNotFoundError, NotADirectoryError)
        with self._said_plainly(path, "read"), missing, self._files.open(self._at(path), "rb") as file:
            return hash_of(file)
        return None

    def folders(self) -> list[str]:
        """Names of what stands at the top, in order, the mark left out."""
        with self._said_plainly("", "listed"), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found = (x.rstrip("/").rpartition("/")[2] for x in self._files.ls(self._root, detail=False))
            return sorted(x for x in found if x and x != MARK)
        return []

    def below(self, folder: str) -> dict[str, int]:
        """All files at any depth below a folder at the top, hidden ones too: path and size in bytes."""
        with self._said_plainly(folder, "listed"), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            root = f"{self._root.strip('/')}/"
            found = self._files.find(self._at(folder), detail=True)
            # Some stores keep a folder's own marker, which is found where there is nothing else.
            files = {name.strip("/"): x for name, x in found.items() if x["type"] != "directory"}
            return {name.removeprefix(root): int(x["size"] or 0) for name, x in files.items()}
        return {}

    def _put_file(self, file: BinaryIO, path: str, file_hash: str) -> None:
        target = self._path(path)
        for attempt in range(1, _WRITE_ATTEMPTS + 1):
            target.parent.mkdir(parents=True, exist_ok=True)
            file.seek(0)
            try:
                is_new = create_whole(target, _pieces(file, file_hash))
                break
            except FileNotFoundError:
                # Somebody deleted the last file of the folder just now, and the folder with it.
                if attempt == _WRITE_ATTEMPTS:
                    raise
        if not is_new:
            raise StoreUnavailable(
                f"{self.label}/{path} is there already, and no version of this catalogue is; "
                "look at it with `epigraph registry verify`"
            )
        for folder in (target.parent, target.parent.parent):
            _sync(folder)

    def _path(self, path: str) -> Path:
        return Path(self._root or "/", path)

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}".rstrip("/")

    @contextlib.contextmanager
    def _said_plainly(self, path: str, done: str) -> Iterator[None]:
        # The clients of stores raise errors of their own beside OSError: no credentials, no connection.
        failures: Any = OSError if self.is_local else Exception
        try:
            yield
        except (StoreUnavailable, ContentMismatch):
            raise
        except failures as error:
            why = (isinstance(error, OSError) and error.strerror) or str(error).strip().split("\n")[0]
            where = f"{self.label.rstrip('/')}/{path}".rstrip("/")
            raise StoreUnavailable(
                f"{where} was not {done}: {_USER.sub('//', why or type(error).__name__)}; {_ADVICE}"
            ) from error


def hash_file(path: Path) -> tuple[str, int]:
    """SHA-256 and size of a file. Raises :class:`BadValue` where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hash_of(file), file.tell()
    except OSError as error:
        raise BadValue(f"{path} cannot be read: {error.strerror}; give a file that can be") from error


def hash_of(file: BinaryIO) -> str:
    """SHA-256 of what is left of an open file."""
    digest = hashlib.sha256()
    while piece := file.read(_PIECE):
        digest.update(piece)
    return digest.hexdigest()


def _pieces(file: BinaryIO, file_hash: str) -> Iterator[bytes]:
    """The file, and an error at its end where it was not the one that was checked."""
    digest = hashlib.sha256()
    while piece := file.read(_PIECE):
        digest.update(piece)
        yield piece
    if digest.hexdigest() != file_hash:
        raise _changed()


def _changed() -> ContentMismatch:
    return ContentMismatch("the file changed while it was pushed; push it again once nobody writes to it")


def _sync(folder: Path) -> None:
    """So that a power cut does not undo a name in it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
