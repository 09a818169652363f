"""Virtual tokens at slots of a text, and prefixes, of several users: the slow twins are real words, and each row alone.

A slot that holds the embedding of a word is that word: order, positions, scales and rows are all in that.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from conftest import random_prefix
from epigraph.contract import Decoding
from epigraph.errors import TextTooLong
from epigraph.frozen.generate import generate
from epigraph.frozen.inputs import FIRST_SLOT, pad
from epigraph.frozen.model import FrozenModel
from epigraph.virtual import SoftPrompt, VirtualTokens
from families import FAMILIES, KINDS, tiny_family

# The slots are the words at these places of a row.
PLACES = (1, 3, 4)
ROWS = ([20, 31, 32, 33, 34, 60, 61], [21, 41, 42, 43, 44])
SEQ2SEQ = [x for x in FAMILIES if KINDS[x] == "encoder-decoder"]
SAYS = [x for x in FAMILIES if KINDS[x] in ("causal", "encoder-decoder")]


def states(frozen: FrozenModel, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """What the model makes of each row: logits, an encoder's states, or a decoder's logits over a fixed beginning."""
    ids, mask = pad(rows, 0, left=False)
    with torch.no_grad():
        if frozen.kind == "encoder-decoder":
            decoder = torch.tensor([[0, 70, 71]]).expand(len(rows), -1)
            return list(frozen.model(input_ids=ids, attention_mask=mask, decoder_input_ids=decoder).logits)
        if frozen.kind == "encoder":
            out = frozen.hidden(ids, mask)
        else:
            out = frozen.model(input_ids=ids, attention_mask=mask).logits
    return [x[: len(row)] for x, row in zip(out, rows, strict=True)]


def slotted(row: Sequence[int], order: Sequence[int] = (0, 1, 2)) -> list[int]:
    made = list(row)
    for place, number in zip(PLACES, order, strict=True):
        made[place] = FIRST_SLOT + number
    return made


def spelt(frozen: FrozenModel, row: Sequence[int]) -> SoftPrompt:
    return SoftPrompt(embeddings_PE=frozen.embed([row[place] for place in PLACES]), placed=True)


def assert_same(got: Tensor, want: Tensor) -> None:
    assert (got - want).abs().max().item() <= 1e-4 * float(want.max() - want.min())


@pytest.mark.parametrize("family", FAMILIES)
def test_virtual_tokens_that_are_words_are_those_words(family: str) -> None:
    """Two users in one padded batch, each with words of its own in the slots, against the bare model on the words."""
    frozen = tiny_family(family)
    want = states(frozen, ROWS)
    with torch.no_grad():
        users = [spelt(frozen, row) for row in ROWS]
    with frozen.bind(users):
        got = states(frozen, [slotted(row) for row in ROWS])
    for x, y in zip(got, want, strict=True):
        assert_same(x, y)
    with frozen.bind(users[::-1]):
        foreign = states(frozen, [slotted(row) for row in ROWS])
    assert all(float((x - y).abs().max()) > 1e-2 for x, y in zip(foreign, want, strict=True))


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_a_slot_is_filled_by_its_number_and_not_by_its_place(family: str) -> None:
    frozen = tiny_family(family)
    row = ROWS[0]
    turned = [20, 33, 32, 34, 31, 60, 61]
    with frozen.bind(spelt(frozen, row)):
        assert_same(states(frozen, [slotted(row, (1, 2, 0))])[0], states_bare(family, turned))


def states_bare(family: str, row: Sequence[int]) -> Tensor:
    return states(tiny_family(family), [row])[0]


@pytest.mark.parametrize("family", ["roberta", "gpt2", "opt", "bert"])
def test_a_table_of_positions_is_used_to_its_end_and_no_further(family: str) -> None:
    """RoBERTa's first position is not 0, which leaves fewer than its table has; a prefix takes some of a decoder's."""
    frozen = tiny_family(family)
    room = frozen.geometry.max_positions
    assert room is not None
    longest = room - (2 if KINDS[family] == "causal" else 0)
    prefix = random_prefix(frozen.geometry, 2, 1)
    with frozen.bind(prefix):
        assert torch.isfinite(states(frozen, [[20] * longest])[0]).all()
        with pytest.raises(TextTooLong, match=f"has {room} positions"):
            states(frozen, [[20] * (longest + 1)])


@pytest.mark.parametrize("family", SAYS)
@pytest.mark.parametrize("kind", ["prefix", "placed"])
def test_users_keep_their_virtual_tokens_under_beams(family: str, kind: str) -> None:
    """An encoder reads each text once, before the beams are laid out; a decoder each beam."""
    frozen = tiny_family(family)
    rows = [[20, 31, 32, 33, 34, 60], [21, 41, 42, 43, 44], [22, 51, 52, 53, 54, 61, 62]]
    users: list[VirtualTokens]
    if kind == "placed":
        generator = torch.Generator().manual_seed(1)
        shape = (3, 3, frozen.geometry.embedding_dim)
        made = 2 * frozen.embedding_rms * torch.randn(shape, generator=generator)
        users, rows = [SoftPrompt(embeddings_PE=x, placed=True) for x in made], [slotted(row) for row in rows]
    else:
        users = [random_prefix(frozen.geometry, length, length) for length in (3, 6, 2)]
    decoding = Decoding(max_new_tokens=6, min_new_tokens=6, num_beams=3)
    together = generate(frozen, rows, users, decoding)
    assert together == [generate(frozen, [row], user, decoding)[0] for row, user in zip(rows, users, strict=True)]
    assert together != generate(frozen, rows, [users[1], users[2], users[0]], decoding)
