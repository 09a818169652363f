"""Rows into batches: an order that the seed alone decides, rows of similar length together.

Legend: B batch, T text tokens.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from epigraph.frozen.inputs import Encoded, pad

# Buckets are cut out of this many batches at a time, so that an epoch stays shuffled.
POOL = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Right-padded rows: ids, mask and which tokens are scored, each ``[B, T]``."""

    ids_BT: Tensor
    mask_BT: Tensor
    scored_BT: Tensor

    def to(self, device: torch.device) -> Batch:
        """On another device."""
        return Batch(
            ids_BT=self.ids_BT.to(device), mask_BT=self.mask_BT.to(device), scored_BT=self.scored_BT.to(device)
        )

    @property
    def num_tokens(self) -> int:
        """Real tokens, padding left out."""
        return int(self.mask_BT.sum())


def collate(rows: Sequence[Encoded], fill: int) -> Batch:
    """One batch out of rows."""
    ids, mask = pad([row.ids for row in rows], fill, left=False)
    scored, _ = pad([[int(x) for x in row.scored] for row in rows], 0, left=False)
    return Batch(ids_BT=ids, mask_BT=mask, scored_BT=scored.bool())


def epoch(lengths: Sequence[int], batch_size: int, generator: random.Random, *, buckets: bool) -> list[list[int]]:
    """Row numbers of one epoch, batch by batch: every row once, shuffled, similar lengths together if ``buckets``."""
    order = list(range(len(lengths)))
    generator.shuffle(order)
    if buckets:
        pool = batch_size * POOL
        parts = [order[i : i + pool] for i in range(0, len(order), pool)]
        order = [row for part in parts for row in sorted(part, key=lambda row: lengths[row])]
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    generator.shuffle(batches)
    return batches


def endless(
    rows: Sequence[Encoded], batch_size: int, seed: int, fill: int, *, buckets: bool, skip: int = 0
) -> Iterator[Batch]:
    """Batches, epoch after epoch, for ever; from the one after the first ``skip`` on."""
    generator = random.Random(seed)
    lengths = [len(row.ids) for row in rows]
    while True:
        batches = epoch(lengths, batch_size, generator, buckets=buckets)
        for numbers in batches[skip:]:
            yield collate([rows[i] for i in numbers], fill)
        skip = max(0, skip - len(batches))


def in_order(rows: Sequence[Encoded], batch_size: int, fill: int) -> Iterator[Batch]:
    """Every row once, longest first."""
    ordered = sorted(rows, key=lambda row: -len(row.ids))
    for start in range(0, len(ordered), batch_size):
        yield collate(ordered[start : start + batch_size], fill)
