"""The masks that models hand to attention: which kind, which shape, who sees whom."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from facts import ATTENTIONS, FAMILIES, WINDOW, WINDOWS, Call, attended, fact, ids, tiny, watch

pytestmark = pytest.mark.parametrize("family", FAMILIES)
SEAM = "frozen/attention.py"
LENGTHS = (9, 5)


def padded() -> tuple[Tensor, Tensor]:
    """Ids and mask, ``[2, 9]``, left-padded."""
    mask = torch.tensor([[0] * (LENGTHS[0] - n) + [1] * n for n in LENGTHS])
    return ids(2, LENGTHS[0]) * mask, mask


def seen_by(call: Call) -> Tensor:
    """``[B, 1, T, C]`` booleans; a missing mask is causal."""
    if call.mask is None:
        return torch.ones(call.query.shape[2], call.key.shape[2], dtype=torch.bool).tril()[None, None]
    return call.mask if call.mask.dtype == torch.bool else call.mask == 0


@fact(
    "sdpa gets a boolean mask in which True is seen, or none where the text alone decides",
    used_in=SEAM,
    purpose="put virtual columns into the mask",
)
def test_sdpa_masks_are_boolean(family: str) -> None:
    tokens, mask = padded()
    for call in attended(tiny(family), input_ids=tokens, attention_mask=mask):
        assert call.mask is not None
        assert call.mask.dtype == torch.bool
        assert bool(call.mask[0, 0, 0, 0])
        assert not bool(call.mask[0, 0, 0, 1])
    first = attended(tiny(family), input_ids=ids(1, WINDOW - 1))[0]
    assert first.mask is None or first.mask.dtype == torch.bool


@fact(
    "eager gets an additive mask, 0 where seen and below every score where hidden",
    used_in=SEAM,
    purpose="put virtual columns into the mask",
)
def test_eager_masks_are_additive(family: str) -> None:
    tokens, mask = padded()
    for call in attended(tiny(family, "eager"), "eager", input_ids=tokens, attention_mask=mask):
        assert call.mask is not None
        assert call.mask.is_floating_point()
        assert bool(((call.mask == 0) | (call.mask <= torch.finfo(call.mask.dtype).min)).all())


@pytest.mark.parametrize("attention", ATTENTIONS)
@fact(
    "the {attention} mask of {family} shows each token itself, what came before it in its row, no padding, and in a "
    "windowed layer the positions at a distance below the window",
    used_in=SEAM,
    purpose="apply the model's own rule to virtual tokens",
)
def test_who_sees_whom(family: str, attention: str) -> None:
    tokens, mask = padded()
    calls = attended(tiny(family, attention), attention, input_ids=tokens, attention_mask=mask)
    at = torch.arange(LENGTHS[0])
    distance = at[:, None] - at[None, :]
    for call, window in zip(calls, WINDOWS.get(family, [None, None]), strict=True):
        want = (distance >= 0) & (distance < (window or 99)) & mask.bool()[:, None, None, :]
        # What padding itself sees is nobody's business.
        rows = mask.bool()[:, None, :, None]
        assert torch.equal(seen_by(call).expand_as(want) & rows, want & rows)


@pytest.mark.parametrize("attention", ATTENTIONS)
@fact(
    "a mask of {family} is [B or 1, 1 or N, T, C] with one column a key, also behind a cache longer than a window",
    used_in=SEAM,
    purpose="join the virtual columns to it",
)
def test_a_column_for_each_key(family: str, attention: str) -> None:
    model = tiny(family, attention)
    calls = watch(model, attention)
    tokens, mask = padded()
    with torch.no_grad():
        out = model(input_ids=tokens, attention_mask=mask, use_cache=True)
        for step in range(1, 3):
            mask = torch.cat([mask, mask.new_ones(2, 1)], dim=1)
            new = ids(2, 1, seed=step)
            out = model(input_ids=new, attention_mask=mask, past_key_values=out.past_key_values, use_cache=True)
    assert len(calls) == 6
    for call in calls:
        assert call.mask is not None
        assert call.mask.shape[0] in {1, 2}
        assert call.mask.shape[1] in {1, 4}
        assert call.mask.shape[2:] == (call.query.shape[2], call.key.shape[2])


@fact(
    "positions that begin above 0 change no mask",
    used_in="frozen/model.py",
    purpose="pass every row's positions without being taken for packed texts",
)
def test_positions_change_no_mask(family: str) -> None:
    tokens = ids(2, 7)
    where = torch.stack([torch.arange(7) + 3, torch.arange(7) + 11])
    before = attended(tiny(family), input_ids=tokens)
    after = attended(tiny(family), input_ids=tokens, position_ids=where)
    for one, other in zip(before, after, strict=True):
        assert torch.equal(*torch.broadcast_tensors(seen_by(one), seen_by(other)))


@fact(
    "positions of a left-padded batch, passed with its mask, change no mask",
    used_in="frozen/model.py",
    purpose="count positions from a row's first real token",
)
def test_padded_positions_change_no_mask(family: str) -> None:
    tokens, mask = padded()
    where = (mask.cumsum(-1) - 1).clamp(min=0) + 3
    before = attended(tiny(family), input_ids=tokens, attention_mask=mask)
    after = attended(tiny(family), input_ids=tokens, attention_mask=mask, position_ids=where)
    for one, other in zip(before, after, strict=True):
        assert torch.equal(seen_by(one), seen_by(other))


@pytest.mark.parametrize("attention", ATTENTIONS)
@fact(
    "a mask of four dimensions reaches the {attention} attention of {family} as it was given, and says nothing else",
    used_in="frozen/packing.py",
    purpose="run rows one after the other, whose masks the seam makes",
)
def test_a_mask_of_four_dimensions_is_handed_on(family: str, attention: str) -> None:
    given = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    model, where = tiny(family, attention), torch.tensor([[0, 1, 2, 0, 1]])
    calls = watch(model, attention)
    with torch.no_grad():
        model(input_ids=ids(1, 5), attention_mask=given, position_ids=where, use_cache=False)
    assert len(calls) == 2
    assert all(call.mask is given for call in calls)
