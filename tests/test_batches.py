"""Batches: every row once, nothing of a row lost or added, padding never seen and never scored."""

from __future__ import annotations

import dataclasses
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from epigraph.frozen.inputs import Encoded
from epigraph.train.batches import POOL, ahead, collate, endless, epoch, in_order, share

FILL = 7
quick = settings(deadline=None, max_examples=150)


@st.composite
def encoded(draw: st.DrawFn) -> Encoded:
    # FILL is an id like any other: padding must be known by the mask, not by its value.
    ids = draw(st.lists(st.integers(0, 50) | st.just(FILL), min_size=1, max_size=12))
    scored = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    return Encoded(ids=tuple(ids), scored=tuple(scored))


rows_of = st.lists(encoded(), min_size=1, max_size=9)


@quick
@given(rows=rows_of)
def test_a_batch_holds_its_rows_and_nothing_else(rows: list[Encoded]) -> None:
    batch = collate(rows, FILL)
    longest = max(len(row.ids) for row in rows)
    assert batch.ids_BT.shape == batch.mask_BT.shape == batch.scored_BT.shape == (len(rows), longest)
    assert batch.ids_BT.dtype == torch.int64
    for number, row in enumerate(rows):
        length = len(row.ids)
        assert batch.ids_BT[number, :length].tolist() == list(row.ids)
        assert batch.scored_BT[number, :length].tolist() == list(row.scored)
        assert batch.mask_BT[number].tolist() == [1] * length + [0] * (longest - length)
        assert batch.ids_BT[number, length:].tolist() == [FILL] * (longest - length)
        assert not batch.scored_BT[number, length:].any()
    assert batch.num_tokens == sum(len(row.ids) for row in rows)


@quick
@given(
    lengths=st.lists(st.integers(1, 500), min_size=1, max_size=200),
    batch_size=st.integers(1, 20),
    seed=st.integers(0, 2**63),
    buckets=st.booleans(),
)
def test_an_epoch_has_every_row_once(lengths: list[int], batch_size: int, seed: int, buckets: bool) -> None:
    batches = epoch(lengths, batch_size, random.Random(seed), buckets=buckets)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    assert sum(len(batch) < batch_size for batch in batches) <= 1
    assert batches == epoch(lengths, batch_size, random.Random(seed), buckets=buckets)


@quick
@given(lengths=st.lists(st.integers(1, 500), min_size=2, max_size=POOL * 4), seed=st.integers(0, 1000))
def test_buckets_never_pad_more(lengths: list[int], seed: int) -> None:
    """Within one pool, sorted rows are padded no more than the same rows in any order."""

    def padded(buckets: bool) -> int:
        batches = epoch(lengths, 4, random.Random(seed), buckets=buckets)
        return sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)

    if len(lengths) % 4 == 0:
        assert padded(True) <= padded(False)


@quick
@given(rows=rows_of, batch_size=st.integers(1, 5), seed=st.integers(0, 1000), buckets=st.booleans())
def test_endless_batches_go_round(rows: list[Encoded], batch_size: int, seed: int, buckets: bool) -> None:
    num_batches = -(-len(rows) // batch_size)
    made = list(islice(endless(rows, batch_size, seed, FILL, buckets=buckets), 2 * num_batches))
    for one in (made[:num_batches], made[num_batches:]):
        tokens = sum(batch.num_tokens for batch in one)
        assert tokens == sum(len(row.ids) for row in rows)
        real = [row[mask.bool()] for batch in one for row, mask in zip(batch.ids_BT, batch.mask_BT, strict=True)]
        assert Counter(tuple(row.tolist()) for row in real) == Counter(row.ids for row in rows)


@quick
@given(rows=rows_of, batch_size=st.integers(1, 5), seed=st.integers(0, 1000), skip=st.integers(0, 30))
def test_skipping_is_having_seen(rows: list[Encoded], batch_size: int, seed: int, skip: int) -> None:
    """What a run that goes on sees is what the uninterrupted run would have seen."""
    whole = list(islice(endless(rows, batch_size, seed, FILL, buckets=True), skip + 5))
    rest = list(islice(endless(rows, batch_size, seed, FILL, buckets=True, skip=skip), 5))
    for one, other in zip(whole[skip:], rest, strict=True):
        assert torch.equal(one.ids_BT, other.ids_BT)
        assert torch.equal(one.mask_BT, other.mask_BT)
        assert torch.equal(one.scored_BT, other.scored_BT)


@quick
@given(rows=rows_of, batch_size=st.integers(1, 5))
def test_in_order_is_every_row_once_longest_first(rows: list[Encoded], batch_size: int) -> None:
    made = list(in_order(rows, batch_size, FILL))
    real = [row[mask.bool()] for batch in made for row, mask in zip(batch.ids_BT, batch.mask_BT, strict=True)]
    assert Counter(tuple(row.tolist()) for row in real) == Counter(row.ids for row in rows)
    lengths = [len(row) for row in real]
    assert lengths == sorted(lengths, reverse=True)


def test_no_rows_are_no_batch() -> None:
    with pytest.raises(ValueError, match="empty"):
        collate([], FILL)


@quick
@given(rows=st.lists(encoded(), min_size=1, max_size=9), num=st.integers(1, 5))
def test_shares_are_the_batch_and_carry_no_padding_of_others(rows: list[Encoded], num: int) -> None:
    """Each is what its own rows alone would be collated to; one that has no row reads the first, and does not count."""
    batch = collate(rows, FILL)
    for rank in range(num):
        own = share(batch, rank, num)
        alone = collate(rows[rank::num] or rows[:1], FILL)
        assert own.num_rows == len(rows)
        assert own.weight == (rank < len(rows))
        for field in dataclasses.fields(alone):
            assert torch.equal(getattr(own.batch, field.name), getattr(alone, field.name)), field.name
    assert sum(share(batch, rank, num).num_tokens for rank in range(num)) == batch.num_tokens


def test_items_made_ahead_are_the_same_one_ahead_and_no_more() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(5):
            made.append(i)
            yield i
        raise ValueError("no more")

    taken = ahead(items())
    assert next(taken) == 0
    while len(made) < 2:
        time.sleep(0.001)
    time.sleep(0.05)
    assert made == [0, 1]
    assert list(islice(taken, 4)) == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="no more"):
        next(taken)
    assert list(ahead([])) == []
    assert not [x for x in threading.enumerate() if x.name.startswith("ThreadPoolExecutor")]
