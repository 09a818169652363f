"""The prefixes that one worker of an engine holds: its layers and heads of them, read and checked beside its steps.

It holds what it was told to and drops what it was told to; it decides nothing and knows no engine. Legend: P virtual
tokens, K key-value heads of this worker, H head width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from epigraph.artifact import Artifact
from epigraph.artifact.value import check_fingerprints
from epigraph.engine.claim import Claim
from epigraph.engine.servable import refuse_unservable
from epigraph.engine.shelf import Shelf
from epigraph.errors import CannotServe, GeometryMismatch, UserError
from epigraph.virtual import KVPrefix, LayerKV

_NUM_READERS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """The model that an engine runs: fingerprints of its checkpoint and tokenizer, and one that is let in for it."""

    fingerprint: str
    tokenizer_fingerprint: str
    allow_base: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """A worker's part of every layer it has: ``layers`` maps a layer's number to its key-value heads and their width.

    Heads are dealt out by ``rank`` among ``size`` workers; where there are fewer heads than workers, several workers
    hold the same one.
    """

    layers: Mapping[int, tuple[int, int]]
    num_layers: int
    rank: int = 0
    size: int = 1

    def of(self, layer: LayerKV, number: int) -> tuple[Tensor, Tensor]:
        """The keys and values ``[P, K, H]`` of this worker. Raises :class:`GeometryMismatch` where they do not fit."""
        num_heads, width = self.layers[number]
        total, got = layer.keys_PKH.shape[1:]
        fits = total == num_heads * self.size if total >= self.size else num_heads == 1 and self.size % total == 0
        if not fits or got != width:
            raise GeometryMismatch(
                f"layer {number} has {total} key-value heads of {got}, the engine's has {num_heads} of {width} on each "
                f"of {self.size} workers; use the model that the prefix was trained for"
            )
        first = self.rank * num_heads if total >= self.size else self.rank // (self.size // total)
        return layer.keys_PKH[:, first : first + num_heads], layer.values_PKH[:, first : first + num_heads]


# For each layer of a worker, by number: keys and values [2, P, K, H].
Held = Mapping[int, Tensor]


class Residents:
    """What a worker holds, in ``dtype`` on the host. Reading goes on beside the steps, in threads of its own."""

    def __init__(self, shelf: Shelf, share: Share, dtype: torch.dtype) -> None:
        self._shelf = shelf
        self._share = share
        self._dtype = dtype
        self._held: dict[Claim, tuple[str, Held]] = {}
        self._reading: dict[Claim, Future[tuple[str, Held]]] = {}
        self._readers = ThreadPoolExecutor(_NUM_READERS, thread_name_prefix="epigraph-read")

    def order(self, key: Claim, base: Base) -> None:
        """Have this prefix read and checked, or, where it is held, see that its file is the same as it was."""
        self._reading[key] = self._readers.submit(self._read, key, base, self._held.get(key))

    def verdicts(self) -> dict[Claim, tuple[int, str]]:
        """Of every order that came to an end since the last call: one answer, and what is wrong or nothing."""
        done = {key: future for key, future in self._reading.items() if future.done()}
        found = {}
        for key, future in done.items():
            del self._reading[key]
            try:
                self._held[key] = future.result()
                found[key] = (1, "")
            except Exception as wrong:
                # What is held stays until the desk says so: steps that were planned before may still need it. Whatever
                # went wrong, requests fail by it and the engine goes on.
                found[key] = (1, str(wrong) if isinstance(wrong, UserError) else f"{type(wrong).__name__}: {wrong}")
        return found

    def drop(self, key: Claim) -> None:
        """Forget this prefix."""
        self._held.pop(key, None)

    def held(self, key: Claim) -> Held:
        """The keys and values of a prefix that was found good."""
        return self._held[key][1]

    def num_bytes(self) -> int:
        """The bytes of all tensors held."""
        return sum(x.nbytes for _, held in self._held.values() for x in held.values())

    def close(self) -> None:
        """Read no more."""
        self._readers.shutdown(wait=False, cancel_futures=True)

    def _read(self, key: Claim, base: Base, known: tuple[str, Held] | None) -> tuple[str, Held]:
        # Before the file is opened: one that is replaced meanwhile has another stamp at the next look.
        stamp = self._shelf.stamp(key.prefix, key.version)
        if known is not None and known[0] == stamp:
            return known
        content = self._shelf.open_claimed(key)
        check_fingerprints(
            content, base.fingerprint, base.tokenizer_fingerprint, base.allow_base, content.allowed_bases
        )
        return stamp, shared_out(content, self._share, self._dtype)


def shared_out(content: Artifact, share: Share, dtype: torch.dtype) -> Held:
    """A worker's part of an artifact in the dtype that the engine computes in.

    Raises :class:`CannotServe` for what paged keys and values cannot be, and :class:`GeometryMismatch`.
    """
    refuse_unservable(content.tokens, content.geometry)
    assert isinstance(content.tokens, KVPrefix)
    layers: Sequence[LayerKV | None] = content.tokens.sites["decoder.self"]
    if len(layers) != share.num_layers:
        raise GeometryMismatch(
            f"the prefix has {len(layers)} layers, the engine's model {share.num_layers}; "
            "use the model that it was trained for"
        )
    held = {}
    for number in share.layers:
        layer = layers[number]
        assert layer is not None
        held[number] = torch.stack(share.of(layer, number)).to(dtype)
        if not held[number].isfinite().all():
            raise CannotServe(
                f"layer {number} has numbers beyond the largest of {str(dtype).removeprefix('torch.')}, which the "
                "engine computes in; start it with --dtype bfloat16 or float32"
            )
    return held
