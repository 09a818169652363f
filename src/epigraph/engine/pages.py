"""Where virtual tokens stand in an engine's paged blocks. Numbers in, numbers out; it knows no engine.

Legend: M virtual tokens to write in one step, those of all its requests, K key-value heads, H head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from epigraph.engine.desk import Key

# The block that stands where a layer with a window needs none.
NO_BLOCK = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """The virtual tokens of ``key`` from number ``first`` on go into ``blocks``: those of the whole text, one row of
    block numbers for each group of layers."""

    key: Key
    first: int
    blocks: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """What is written in one step for one group of layers: of each load these tokens, all into ``slots`` ``[M]``."""

    tokens: tuple[slice | Tensor, ...]
    slots: Tensor

    def of(self, held: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values ``[M, K, H]`` of one layer and their slots; ``held`` is ``[2, P, K, H]`` for each load."""
        picked = torch.cat([one[:, tokens] for one, tokens in zip(held, self.tokens, strict=True)], dim=1)
        return picked[0], picked[1], self.slots


class Pages:
    """Blocks of ``sizes`` tokens, one size for each group of layers."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = tuple(sizes)

    def places(self, loads: Sequence[Load], group: int) -> Places:
        """Where the loads' virtual tokens go in this group. What a window has passed has no block and goes nowhere."""
        size = self._sizes[group]
        tokens: list[slice | Tensor] = []
        slots = []
        for load in loads:
            positions = torch.arange(load.first, load.key.num_virtual_tokens)
            blocks = torch.tensor(load.blocks[group])[positions // size]
            kept = blocks != NO_BLOCK
            tokens.append(positions[kept])
            slots.append((blocks * size + positions % size)[kept])
        return Places(tokens=tuple(tokens), slots=torch.cat(slots))
