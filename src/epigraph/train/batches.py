"""Rows into batches: an order that the seed alone decides, rows of similar length together, shared out to processes.

Knows rows of ids; does not know models or what a batch is for.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Final, TypeVar

import torch
from torch import Tensor

from epigraph.frozen.batch import Batch, collate, length
from epigraph.frozen.inputs import Encoded

# Buckets are cut out of this many batches at a time, so that an epoch stays shuffled.
POOL = 16
T = TypeVar("T")
_END: Final = object()


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
    for numbers in endless_numbers(rows, batch_size, seed, buckets=buckets, skip=skip):
        yield collate([rows[i] for i in numbers], fill)


def endless_numbers(
    rows: Sequence[Encoded], batch_size: int, seed: int, *, buckets: bool, skip: int = 0
) -> Iterator[list[int]]:
    """:func:`endless`, but for the numbers of each batch's rows."""
    generator = random.Random(seed)
    lengths = [length(row) for row in rows]
    while True:
        batches = epoch(lengths, batch_size, generator, buckets=buckets)
        yield from batches[skip:]
        skip = max(0, skip - len(batches))


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """A process's rows of a batch, which has ``num_rows`` in all.

    ``weight`` 0: it has no row of this batch, and reads the first one for company. So all processes draw the same
    random numbers, and ask each other for the same things.
    """

    batch: Batch
    num_rows: int
    weight: int = 1

    def pinned(self) -> Share:
        """In memory that a GPU copies from while it computes."""
        return Share(batch=_each(self.batch, Tensor.pin_memory), num_rows=self.num_rows, weight=self.weight)

    def to(self, device: torch.device) -> Share:
        """On a device; a GPU's copy is not waited for."""
        moved = _each(self.batch, lambda x: x.to(device, non_blocking=device.type == "cuda"))
        return Share(batch=moved, num_rows=self.num_rows, weight=self.weight)

    @property
    def num_tokens(self) -> int:
        """Real tokens of rows that count."""
        return self.batch.num_tokens * self.weight


def share(batch: Batch, rank: int, num: int) -> Share:
    """Rows ``rank::num`` of ``batch``, without the padding that only the others need."""
    num_rows = len(batch.ids_BT)
    if num == 1:
        return Share(batch=batch, num_rows=num_rows)
    rows = slice(rank, None, num) if rank < num_rows else slice(1)
    text, answer = (int(mask[rows].sum(1).max()) for mask in (batch.mask_BT, batch.said_BA))
    part = Batch(
        ids_BT=batch.ids_BT[rows, :text],
        mask_BT=batch.mask_BT[rows, :text],
        scored_BT=batch.scored_BT[rows, :text],
        answer_BA=batch.answer_BA[rows, :answer],
        said_BA=batch.said_BA[rows, :answer],
    )
    return Share(batch=part, num_rows=num_rows, weight=int(rank < num_rows))


def _each(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    return Batch(**{field.name: change(getattr(batch, field.name)) for field in fields(Batch)})


def ahead(items: Iterable[T]) -> Generator[T]:
    """The same items; the next one is made in a thread of its own while the last one is used."""
    source = iter(items)
    with ThreadPoolExecutor(1) as worker:
        coming = worker.submit(next, source, _END)
        while (item := coming.result()) is not _END:
            coming = worker.submit(next, source, _END)
            yield item  # type: ignore[misc]  # the end is no item


def in_order(rows: Sequence[Encoded], batch_size: int, fill: int) -> Iterator[Batch]:
    """Every row once, longest first."""
    ordered = sorted(rows, key=lambda row: -length(row))
    for start in range(0, len(ordered), batch_size):
        yield collate(ordered[start : start + batch_size], fill)
