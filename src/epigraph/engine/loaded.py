"""The artifacts that a local engine holds: found, checked and made ready once, the least lately used forgotten first.

It lives in one event loop; reading goes on beside it, and what needs the model is done where the model runs.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from torch import Tensor

from epigraph.artifact import Artifact
from epigraph.engine.claim import check_id
from epigraph.engine.shelf import Shelf
from epigraph.errors import UserError
from epigraph.tuned import Tuned
from epigraph.virtual import VirtualTokens

DEFAULT_CACHE_BYTES = 1 << 30
Key = tuple[str, str]
OnModel = Callable[[Callable[[], Tuned]], Awaitable[Tuned]]


@dataclass(kw_only=True, slots=True, eq=False)
class Held:
    """An artifact that is ready. ``stamp`` is its file's; ``pins`` counts the requests that use it."""

    tuned: Tuned
    stamp: str
    num_bytes: int
    pins: int = 0


class Loaded:
    """The artifacts of ``shelf``, in at most ``cache_bytes`` beside those in use.

    ``ready`` makes an artifact a :class:`Tuned`, ``on_model`` calls a function where the model runs.
    """

    def __init__(
        self,
        shelf: Shelf,
        ready: Callable[[Artifact], Tuned],
        on_model: OnModel,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> None:
        self._shelf = shelf
        self._ready = ready
        self._on_model = on_model
        self._cache_bytes = cache_bytes
        # The least lately used first.
        self._held: OrderedDict[Key, Held] = OrderedDict()
        self._reading: dict[tuple[Key, str], asyncio.Task[Held]] = {}
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._held)

    async def get(self, prefix: str, version: str = "") -> Held:
        """The artifact as its file is now. Raises :class:`PrefixNotFound`, :class:`BadClaim`, :class:`WrongBase`,
        :class:`WrongTokenizer`, :class:`GeometryMismatch`, and what reading an artifact raises."""
        check_id(prefix, version)
        key = (prefix, version)
        try:
            stamp = await asyncio.to_thread(self._shelf.stamp, prefix, version)
        except UserError:
            self._forget(key)
            raise
        held = self._held.get(key)
        if held is not None and held.stamp == stamp:
            self._held.move_to_end(key)
            return held
        if (key, stamp) not in self._reading:
            self._reading[key, stamp] = asyncio.create_task(self._read(key, stamp))
        # Shielded: others wait for it, too, when the request that came first is cancelled.
        return await asyncio.shield(self._reading[key, stamp])

    def pin(self, held: Held) -> None:
        """A request uses it from now on."""
        held.pins += 1

    def unpin(self, held: Held) -> None:
        """A request uses it no more."""
        held.pins -= 1
        self._shrink()

    async def _read(self, key: Key, stamp: str) -> Held:
        try:
            opened = await asyncio.to_thread(self._shelf.open, *key)
            tuned = await self._on_model(lambda: self._ready(opened.artifact))
        finally:
            del self._reading[key, stamp]
        self._forget(key)
        held = self._held[key] = Held(tuned=tuned, stamp=stamp, num_bytes=_num_bytes(tuned))
        self.num_bytes += held.num_bytes
        self._shrink(but=key)
        return held

    def _forget(self, key: Key) -> None:
        held = self._held.pop(key, None)
        if held is not None:
            self.num_bytes -= held.num_bytes

    def _shrink(self, but: Key | None = None) -> None:
        for key in [key for key, held in self._held.items() if not held.pins and key != but]:
            if self.num_bytes <= self._cache_bytes:
                return
            self._forget(key)


def _num_bytes(tuned: Tuned) -> int:
    held: list[Tensor] = list(tuned.artifact.extra.values())
    for tokens in (tuned.prefix, tuned.artifact.tokens):
        _each(tokens, held.append)
    # One storage is counted once: what is carried as it is stored is the same tensor.
    return sum({x.data_ptr(): x.nbytes for x in held}.values())


def _each(tokens: VirtualTokens, look: Callable[[Tensor], None]) -> None:
    def seen(x: Tensor) -> Tensor:
        look(x)
        return x

    tokens.map(seen)
