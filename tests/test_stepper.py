"""Rows that come and go in one table say what each says alone behind the seam, whatever their neighbours carry.

The slow twin is a whole forward of one row under ``bind()``, for every token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random

import pytest
import torch
from torch import Tensor

from conftest import FAMILIES, WINDOWED, random_ids, random_prefix, tiny
from epigraph.errors import BatchMismatch, TextTooLong, UnsupportedModel
from epigraph.frozen.inputs import FIRST_SLOT
from epigraph.frozen.model import FrozenModel
from epigraph.frozen.stepper import Row, Stepper, can_carry
from epigraph.virtual import KVPrefix, SoftPrompt, VirtualTokens
from families import tiny_family

NEW = 10


@dataclass(kw_only=True, eq=False)
class Speaker:
    """A row with all that it was given, and the logits behind its last token."""

    tokens: VirtualTokens | None
    row: Row
    ids: list[int]
    unread: list[int]
    logits: Tensor | None = None
    seen: list[tuple[int, Tensor]] = field(default_factory=list)


def carried_by(frozen: FrozenModel, number: int) -> tuple[VirtualTokens | None, list[int]]:
    """Virtual tokens of every kind, and a text for them."""
    ids = random_ids(3 + 5 * number % 17, number)
    prefix = random_prefix(frozen.geometry, 2 + 3 * number % 7, seed=number, visibility="always")
    match number % 5:
        case 0:
            return None, ids
        case 1:
            return prefix, ids
        case 2:
            return replace(prefix, visibility="window"), ids
        case 3:
            layers = prefix.sites["decoder.self"]
            return replace(prefix, sites={"decoder.self": (None, *layers[1:])}), ids
        case _:
            torch.manual_seed(number)
            prompt = SoftPrompt(embeddings_PE=torch.randn(3, frozen.geometry.embedding_dim), placed=True)
            return prompt, [*ids[:2], FIRST_SLOT, FIRST_SLOT + 1, *ids[2:], FIRST_SLOT + 2, 7]


def alone(frozen: FrozenModel, tokens: VirtualTokens | None, ids: Sequence[int]) -> Tensor:
    """The logits behind the last of ``ids``."""
    with torch.no_grad(), frozen.bind(tokens):
        logits: Tensor = frozen.model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits
    return logits[0, -1].float()


def close(got: Tensor, want: Tensor) -> bool:
    return bool((got - want).abs().max() <= 1e-4 * (want.max() - want.min()))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_come_and_go_say_what_each_says_alone(family: str, attention: str) -> None:
    frozen = tiny(family, attention)
    stepper = Stepper(frozen, max_rows=5)
    draw = Random(1)
    here: list[Speaker] = []
    done: list[Speaker] = []
    waiting = list(range(9))
    while waiting or here:
        while waiting:
            tokens, ids = carried_by(frozen, waiting[0])
            if not stepper.has_room(tokens, len(ids), NEW):
                break
            here.append(Speaker(tokens=tokens, row=stepper.admit(tokens, ids, NEW), ids=[], unread=list(ids)))
            waiting.pop(0)
            if draw.random() < 0.3:
                break
        asked = [x for x in here if draw.random() < 0.8] or here[:1]
        draw.shuffle(asked)
        news = []
        for one in asked:
            count = draw.randrange(1, 6) if one.unread else 1
            news.append(one.unread[:count] or [draw.randrange(3, 100)])
            one.unread = one.unread[count:]
        logits = stepper.step([x.row for x in asked], news)
        for one, new, logits_V in zip(asked, news, logits, strict=True):
            one.ids += new
            if max(one.ids[-1:]) < FIRST_SLOT and not one.unread:
                one.seen.append((len(one.ids), logits_V.clone()))
        for one in [x for x in here if len(x.seen) >= draw.randrange(2, NEW)]:
            here.remove(one)
            stepper.leave(one.row)
            done.append(one)
    assert stepper.num_rows == 0
    assert len(done) == 9
    for one in done:
        for length, logits_V in one.seen:
            assert close(logits_V, alone(frozen, one.tokens, one.ids[:length]))


@pytest.mark.parametrize("family", WINDOWED)
def test_a_prefix_reaches_beyond_the_window_or_not_as_it_says(family: str) -> None:
    frozen = tiny(family)
    ids = random_ids(30, 5)
    prefix = random_prefix(frozen.geometry, 4, seed=3)
    for visibility in ("always", "window"):
        tokens = replace(prefix, visibility=visibility)
        stepper = Stepper(frozen)
        [logits_V] = stepper.step([stepper.admit(tokens, ids, 1)], [ids])
        assert close(logits_V, alone(frozen, tokens, ids))


def test_a_soft_prompt_in_front_is_carried_as_keys_and_values() -> None:
    frozen = tiny("llama")
    torch.manual_seed(0)
    tokens = frozen.carried(SoftPrompt(embeddings_PE=torch.randn(5, 64)))
    stepper = Stepper(frozen)
    ids = random_ids(9, 2)
    [logits_V] = stepper.step([stepper.admit(tokens, ids, 3)], [ids])
    assert close(logits_V, alone(frozen, tokens, ids))


def test_text_starts_where_the_prefix_says() -> None:
    frozen = tiny("gpt2")
    tokens = replace(random_prefix(frozen.geometry, 4, seed=3), text_start=11)
    ids = random_ids(6, 1)
    stepper = Stepper(frozen)
    [logits_V] = stepper.step([stepper.admit(tokens, ids, 2)], [ids])
    assert close(logits_V, alone(frozen, tokens, ids))


def test_room_is_bounded_in_rows_bytes_and_positions() -> None:
    frozen = tiny("gpt2")
    row_bytes = 2 * 64 * 3 * 4
    stepper = Stepper(frozen, max_rows=3, max_bytes=3 * 40 * row_bytes)
    for _ in range(3):
        assert stepper.has_room(None, 20, 20)
        stepper.admit(None, random_ids(20, 0), 20)
    assert not stepper.has_room(None, 1, 1)
    assert stepper._table.bytes_for(stepper._table.num_rows, stepper._table.num_columns) <= 3 * 40 * row_bytes
    with pytest.raises(TextTooLong, match="position 97, tiny-gpt2 has 96"):
        stepper.check(None, 50, 47)
    with pytest.raises(TextTooLong, match=r"4 rows .* more than the engine has room for \(3 rows"):
        stepper.check(None, 5, 5, num_rows=4)
    with pytest.raises(TextTooLong, match="2 rows of 90 tokens"):
        stepper.check(None, 50, 40, num_rows=2)


def test_the_room_of_a_long_row_is_given_back_for_many_short_ones() -> None:
    frozen = tiny("gpt2")
    stepper = Stepper(frozen, max_rows=8, max_bytes=2 * 64 * 3 * 4 * 8 * 20)
    long = stepper.admit(None, random_ids(80, 0), 10)
    stepper.step([long], [long.unread])
    stepper.leave(long)
    rows = []
    ids = random_ids(7, 1)
    while stepper.has_room(None, 7, 13):
        rows.append(stepper.admit(None, ids, 13))
    assert len(rows) == 8
    for logits_V in stepper.step(rows, [ids] * 8):
        assert close(logits_V, alone(frozen, None, ids))


def test_slots_without_virtual_tokens_are_refused_and_so_are_models_that_cannot() -> None:
    frozen = tiny("llama")
    stepper = Stepper(frozen)
    with pytest.raises(BatchMismatch, match="2 slots for virtual tokens and carries 0"):
        stepper.admit(None, [5, FIRST_SLOT, FIRST_SLOT + 1], 3)
    with pytest.raises(UnsupportedModel, match="no decoder of its own"):
        Stepper(tiny_family("bart"))


def test_an_infix_is_no_row_of_a_table() -> None:
    frozen = tiny("llama")
    prefix = random_prefix(frozen.geometry, 2, seed=0)
    assert can_carry(None)
    assert can_carry(prefix)
    assert not can_carry(replace(prefix, visibility="answer"))
    assert isinstance(prefix, KVPrefix)
