"""Grouped attention against attention with the keys copied for each head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from conftest import random_ids, random_prefix, tiny
from epigraph.frozen import grouped
from epigraph.frozen.answers import answer_logits
from epigraph.frozen.batch import collate
from epigraph.frozen.inputs import Encoded


@pytest.mark.parametrize("rows_of_mask", [1, 2])
@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize(("num_heads", "num_groups"), [(6, 2), (4, 1), (3, 3)])
def test_it_is_attention_with_copied_keys(num_heads: int, num_groups: int, additive: bool, rows_of_mask: int) -> None:
    torch.manual_seed(0)
    query = torch.randn(2, num_heads, 5, 8, requires_grad=True)
    key, value = (torch.randn(2, num_groups, 7, 8, requires_grad=True) for _ in range(2))
    mask = torch.rand(rows_of_mask, 1, 5, 7) < 0.6
    mask[..., 0] = True
    if additive:
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    copied = [x.repeat_interleave(num_heads // num_groups, dim=1) for x in (key, value)]
    slow = functional.scaled_dot_product_attention(query, *copied, attn_mask=mask, scale=0.3).transpose(1, 2)
    fast = grouped.attend(query, key, value, mask, 0.3)
    assert fast.shape == (2, 5, num_heads, 8)
    assert torch.allclose(fast, slow, atol=1e-6)
    weights = torch.randn(fast.shape)
    for ours, theirs in zip(
        _grads(fast, weights, query, key, value), _grads(slow, weights, query, key, value), strict=True
    ):
        assert torch.allclose(ours, theirs, atol=1e-5)


def _grads(out: Tensor, weights: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad((out * weights).sum(), leaves)


@pytest.mark.parametrize(
    ("options", "num_groups", "heads_of_mask", "fits"),
    [
        ({}, 2, 1, True),
        ({"dropout": 0.0, "sliding_window": 4, "softcap": None}, 2, 1, True),
        ({}, 4, 1, False),  # nothing is shared
        ({}, 2, 4, False),  # a mask a head
        ({"dropout": 0.1}, 2, 1, False),
        ({"softcap": 30.0}, 2, 1, False),
        ({"position_bias": torch.zeros(1)}, 2, 1, False),
        ({"s_aux": torch.zeros(4)}, 2, 1, False),
    ],
)
def test_where_it_fits(options: dict[str, Any], num_groups: int, heads_of_mask: int, fits: bool) -> None:
    query, key = torch.zeros(1, 4, 5, 8), torch.zeros(1, num_groups, 7, 8)
    assert grouped.fits(query, key, torch.ones(1, heads_of_mask, 5, 7, dtype=torch.bool), options) is fits


@pytest.mark.parametrize(("family", "num_groups"), [("llama", 2), ("gemma3", 1), ("gpt2", 4)])
def test_training_copies_no_keys(family: str, num_groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a layer attends to has the heads that its keys have; where all heads have keys of their own, all of them."""
    frozen = tiny(family)
    seen: list[int] = []
    real = functional.scaled_dot_product_attention

    def look(query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.append(key.shape[1])
        return real(query, key, *args, **kwargs)

    rows = collate([Encoded(ids=tuple(random_ids(9, 1)), scored=(False,) * 4 + (True,) * 5)] * 2, 0)
    assert frozen.packs
    monkeypatch.setattr(functional, "scaled_dot_product_attention", look)
    answer_logits(frozen, rows, random_prefix(frozen.geometry, 3, 1))
    assert seen == [num_groups] * 3
