"""An artifact from a request's body to the registry, by way of a file: at no time is all of it in memory.

It knows bytes and the registry's push; what is in the file, the registry checks.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from epigraph.artifact import FILE_NAME
from epigraph.errors import ArtifactError, CannotWrite
from epigraph.registry import Version
from epigraph.server.serving import Serving

# So much at a time is handed to a thread that writes.
_PIECE_BYTES = 1 << 20


async def push(
    serving: Serving,
    body: AsyncIterator[bytes],
    tenant: str,
    name: str,
    *,
    by: str,
    aliases: Sequence[str],
    scores: Mapping[str, Any] | None,
) -> Version:
    """The version that ``body`` became.

    Raises what :meth:`epigraph.registry.Registry.push` raises, :class:`CannotWrite` where there is no room for the
    file, and what reading the body raises.
    """
    async with _file_of(serving, body) as path:
        try:
            return await serving.pushes.run(
                serving.registry.push, tenant, name, path, by=by, aliases=tuple(aliases), scores=scores
            )
        except ArtifactError as wrong:
            # In the client's words it is no file of ours.
            raise type(wrong)(str(wrong).replace(str(path), "the body")) from wrong


@contextlib.asynccontextmanager
async def _file_of(serving: Serving, body: AsyncIterator[bytes]) -> AsyncIterator[Path]:
    run = serving.pushes.run
    try:
        folder = await run(tempfile.TemporaryDirectory, prefix="epigraph-push-")
    except OSError as wrong:
        raise _no_room(wrong) from wrong
    try:
        path = Path(folder.name) / FILE_NAME
        await _write(serving, body, path)
        yield path
    finally:
        await run(folder.cleanup)


async def _write(serving: Serving, body: AsyncIterator[bytes], path: Path) -> None:
    run = serving.pushes.run
    file: BinaryIO = await run(path.open, "wb", 0)
    try:
        held = bytearray()
        async for piece in body:
            held += piece
            if len(held) >= _PIECE_BYTES:
                await run(file.write, bytes(held))
                held.clear()
        await run(file.write, bytes(held))
    except OSError as wrong:
        raise _no_room(wrong) from wrong
    finally:
        await run(file.close)


def _no_room(wrong: OSError) -> CannotWrite:
    return CannotWrite(f"the upload was not written: {wrong.strerror or wrong}; give the server's disk room")
