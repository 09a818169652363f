"""The folder of artifacts that an engine serves, on disk or behind an fsspec address: prefix ids into artifacts.

Prefix ``a/b`` in version ``3`` is ``a/b/3.safetensors`` or, as training writes it, ``a/b/3/artifact.safetensors``;
without a version the last part of the id stands there. It knows no engine, and remembers nothing that it read.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from epigraph import artifact
from epigraph.artifact import Artifact
from epigraph.engine.claim import Claim, check_id
from epigraph.errors import BadClaim, ContentMismatch, GeometryMismatch, PrefixNotFound, StoreUnavailable
from epigraph.stores import options_for
from epigraph.virtual import geometry_digest


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """An artifact as it was read: whole, checked, with the SHA-256 of its content (64 hex digits)."""

    artifact: Artifact
    content_hash: str


class Shelf:
    """Artifacts below ``address``: a folder, or anything fsspec reads (``s3://bucket/prefixes``).

    Raises :class:`PrefixNotFound` for an address that fsspec cannot read.
    """

    def __init__(self, address: str | os.PathLike[str]) -> None:
        self.address = os.fspath(address)
        try:
            self._files, self._root = fsspec.core.url_to_fs(self.address, **options_for(self.address))
        except (ImportError, ValueError, OSError) as wrong:
            raise PrefixNotFound(
                f"{self.address} cannot be read: {wrong}; give a folder or an fsspec address"
            ) from wrong

    def open(self, prefix: str, version: str = "") -> Opened:
        """The artifact of a prefix, read whole and checked (docs/format.md).

        Raises :class:`PrefixNotFound`, :class:`BadClaim` for a bad id, :class:`StoreUnavailable` where the address does
        not answer, and what :func:`epigraph.artifact.load` raises.
        """
        with self._on_disk(self._find(prefix, version)[0]) as path:
            content, header, _ = artifact.read(path)
        return Opened(artifact=content, content_hash=header.content_hash)

    def open_claimed(self, claim: Claim) -> Artifact:
        """The artifact that ``claim`` names, and no other: :class:`ContentMismatch` where it was replaced meanwhile.

        Also raises :class:`GeometryMismatch` and :class:`BadClaim` for a claim that tells of another artifact, and
        what :meth:`open` raises.
        """
        opened = self.open(claim.prefix, claim.version)
        if opened.content_hash != claim.content_hash:
            raise ContentMismatch(
                f"prefix {claim.label} has the content {opened.content_hash[:12]}, the request wants "
                f"{claim.content_hash[:12]}: it was replaced; make the request anew"
            )
        if geometry_digest(opened.artifact.geometry) != claim.geometry:
            raise GeometryMismatch(f"prefix {claim.label} has another geometry than the request says; make it anew")
        found = opened.artifact.tokens.num_virtual_tokens
        if found != claim.num_virtual_tokens:
            raise BadClaim(
                f"prefix {claim.label} has {found} virtual tokens, the request says {claim.num_virtual_tokens}; "
                "make it anew"
            )
        return opened.artifact

    def stamp(self, prefix: str, version: str = "") -> str:
        """What changes when the artifact's file does, without reading it.

        Raises :class:`PrefixNotFound`, :class:`BadClaim` for a bad id, and :class:`StoreUnavailable`.
        """
        return self._find(prefix, version)[1]

    def claim(self, prefix: str, version: str = "", tenant: str = "") -> Claim:
        """The claim of a request to this prefix as it is now. Raises what :meth:`open` raises."""
        return claim_to(self.open(prefix, version), prefix, version, tenant)

    def _find(self, prefix: str, version: str) -> tuple[str, str]:
        """The path of a prefix's artifact and its stamp."""
        check_id(prefix, version)
        name = f"{prefix}/{version}" if version else prefix
        for path in (f"{self._root}/{name}.safetensors", f"{self._root}/{name}/{artifact.FILE_NAME}"):
            try:
                told: dict[str, Any] = (
                    self._files.info(path, refresh=True) if self._is_remote else self._files.info(path)
                )
            except FileNotFoundError:
                continue
            except Exception as wrong:
                raise StoreUnavailable(f"prefix {name} at {self.address} cannot be read: {wrong}") from wrong
            if told.get("type") == "file" or told.get("islink"):
                # All that is said of it: each kind of file system tells of a change in a word of its own.
                return path, repr(sorted((key, str(value)) for key, value in told.items()))
        raise PrefixNotFound(f"no prefix {name} at {self.address}; give the id of one that is there")

    @property
    def _is_remote(self) -> bool:
        return not isinstance(self._files, LocalFileSystem)

    @contextmanager
    def _on_disk(self, path: str) -> Iterator[Path]:
        if not self._is_remote:
            yield Path(path)
            return
        with tempfile.TemporaryDirectory(prefix="epigraph-") as folder:
            copy = Path(folder) / artifact.FILE_NAME
            try:
                with self._files.open(path, "rb") as source, copy.open("wb") as target:
                    _copy(source, target)
            except FileNotFoundError as wrong:
                raise PrefixNotFound(f"{path} at {self.address} cannot be read: {wrong}") from wrong
            except Exception as wrong:
                raise StoreUnavailable(f"{path} at {self.address} cannot be read: {wrong}") from wrong
            yield copy


def claim_to(opened: Opened, prefix: str, version: str = "", tenant: str = "") -> Claim:
    """The claim of a request to ``opened``, which lies under that prefix id. Raises :class:`BadClaim` for a bad id."""
    check_id(prefix, version, tenant)
    return Claim(
        prefix=prefix,
        version=version,
        tenant=tenant,
        num_virtual_tokens=opened.artifact.tokens.num_virtual_tokens,
        content_hash=opened.content_hash,
        geometry=geometry_digest(opened.artifact.geometry),
    )


def _copy(source: Any, target: Any) -> None:
    left = artifact.MAX_FILE_BYTES + 1
    while left > 0 and (piece := source.read(min(left, 1 << 20))):
        target.write(piece)
        left -= len(piece)
