"""Attention of query heads that share keys, without a copy of the keys for each: a group's heads as more queries.

It knows tensors alone.
Legend: B batch, N query heads, K key-value heads, G = N / K of them a group, T queries, C columns, H head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional

# What would change the scores in a way that is not spelled out here.
_OTHER = ("softcap", "position_bias", "s_aux", "cache")


def fits(query: Tensor, key: Tensor, mask: Tensor, options: Mapping[str, Any]) -> bool:
    """Whether :func:`attend` is what attention by sdpa would come to, for less."""
    shares = query.shape[1] > key.shape[1]
    is_plain = not options.get("dropout") and all(options.get(name) is None for name in _OTHER)
    return shares and is_plain and mask.shape[1] == 1


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None) -> Tensor:
    """``[B, T, N, H]`` of ``query [B, N, T, H]``, ``key`` and ``value [B, K, C, H]``, ``mask [B or 1, 1, T, C]``."""
    num_groups = key.shape[1]
    query_BKGTH = query.unflatten(1, (num_groups, -1))
    size = query_BKGTH.shape[2]
    mask = mask.expand(-1, size, -1, -1).flatten(1, 2).unsqueeze(1)
    query_BKMH = query_BKGTH.flatten(2, 3)
    out_BKMH: Tensor = functional.scaled_dot_product_attention(query_BKMH, key, value, attn_mask=mask, scale=scaling)
    out_BNTH: Tensor = out_BKMH.unflatten(2, (size, -1)).flatten(1, 2)
    return out_BNTH.transpose(1, 2)
