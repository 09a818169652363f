"""Rows without their padding, one after the other: everything but attention is computed for real tokens alone.

Linear layers, norms and activations do not care which row a token is in; attention does, and gets the rows laid out
again, just for itself. So a batch of any lengths costs what its real tokens cost, and no row sees another.
Legend: B batch, T text tokens of the longest row, S real tokens of the batch, N heads, H head width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# What a forward may be given beside these would have to be packed as well.
_KNOWN = {"input_ids", "inputs_embeds", "attention_mask", "position_ids", "use_cache"}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Packing:
    """Where the real tokens of a right-padded batch are: ``place_S``, row after row, counted over its B * T places."""

    shape: tuple[int, int]
    place_S: Tensor
    masks: dict[tuple[int | None, torch.dtype | None], Tensor] = field(default_factory=dict)

    def packed(self, x_BTx: Tensor) -> Tensor:
        """``[1, S, ...]`` of ``[B, T, ...]``."""
        return x_BTx.flatten(0, 1).index_select(0, self.place_S)[None]

    def spread(self, x_1NSH: Tensor) -> Tensor:
        """``[B, N, T, H]`` of ``[1, N, S, H]``, zeros at the padding."""
        x_SNH = x_1NSH.squeeze(0).transpose(0, 1)
        x_RNH = x_SNH.new_zeros(self.shape[0] * self.shape[1], *x_SNH.shape[1:])
        x_BTNH: Tensor = x_RNH.index_copy(0, self.place_S, x_SNH).unflatten(0, self.shape)
        return x_BTNH.transpose(1, 2)

    def arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        """A forward's arguments, ``[B, T, ...]`` each, as one row. The mask is attention's business: :meth:`mask`."""
        row = {name: self.packed(given[name]) for name in ("input_ids", "inputs_embeds") if given.get(name) is not None}
        positions_BT = given["position_ids"].expand(self.shape)
        # Of four dimensions, so that the model hands it on as it is.
        nothing = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.place_S.device)
        return {**given, **row, "position_ids": self.packed(positions_BT), "attention_mask": nothing}

    def mask(self, window: int | None, additive: torch.dtype | None) -> Tensor | None:
        """What a text token sees of its own row, ``[1, 1, T, T]``; None where that is all before it.

        ``additive``: of this dtype, and never None. Padding is behind every real token, so that causality hides it.
        """
        num_tokens = self.shape[1]
        if window is not None and window >= num_tokens:
            window = None
        if window is None and additive is None:
            return None
        if (window, additive) not in self.masks:
            sees = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=self.place_S.device).tril()
            if window is not None:
                sees = sees.triu(1 - window)
            if additive is not None:
                sees = torch.zeros_like(sees, dtype=additive).masked_fill(~sees, torch.finfo(additive).min)
            self.masks[window, additive] = sees[None, None]
        return self.masks[window, additive]


def packing_of(given: dict[str, Any]) -> Packing | None:
    """How a forward's rows are packed; None where they are not right-padded rows of text and nothing else.

    Rows of one length are packed too: they gain by attention alone (see grouped.py), and there is one way less.
    """
    mask = given.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        return None
    others = {name for name, x in given.items() if x is not None} - _KNOWN
    is_right_padded = bool((mask[:, :-1] >= mask[:, 1:]).all()) and bool(mask[:, 0].all())
    # A cache would hold one row, and its user expects them all.
    if others or given.get("use_cache") is not False or not is_right_padded:
        return None
    return Packing(shape=(mask.shape[0], mask.shape[1]), place_S=mask.flatten().nonzero()[:, 0])
