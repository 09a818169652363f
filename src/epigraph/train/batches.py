"""Rows into batches: an order that the seed alone decides, rows of similar length together."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from epigraph.frozen.batch import Batch, collate, length
from epigraph.frozen.inputs import Encoded

# Buckets are cut out of this many batches at a time, so that an epoch stays shuffled.
POOL = 16


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
    lengths = [length(row) for row in rows]
    while True:
        batches = epoch(lengths, batch_size, generator, buckets=buckets)
        for numbers in batches[skip:]:
            yield collate([rows[i] for i in numbers], fill)
        skip = max(0, skip - len(batches))


def in_order(rows: Sequence[Encoded], batch_size: int, fill: int) -> Iterator[Batch]:
    """Every row once, longest first."""
    ordered = sorted(rows, key=lambda row: -length(row))
    for start in range(0, len(ordered), batch_size):
        yield collate(ordered[start : start + batch_size], fill)
