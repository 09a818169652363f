"""The training loss: cross-entropy of the target tokens, and of nothing else (Li & Liang 2021, eq. 2).

Logits are computed at scored positions only. Legend: B batch, T text tokens, S scored tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from epigraph.frozen.model import FrozenModel
from epigraph.train.batches import Batch
from epigraph.virtual import VirtualTokens

Reduction = Literal["token-mean", "example-sum"]


def token_losses(
    frozen: FrozenModel, batch: Batch, prefix: VirtualTokens | Sequence[VirtualTokens | None] | None
) -> Tensor:
    """``[S]`` float32: the negative log-likelihood, in nats, of each scored token, row after row."""
    next_scored = torch.zeros_like(batch.scored_BT)
    next_scored[:, :-1] = batch.scored_BT[:, 1:]
    with frozen.bind(prefix), frozen.scored(next_scored):
        out = frozen.model(input_ids=batch.ids_BT, attention_mask=batch.mask_BT, use_cache=False)
    targets_S = batch.ids_BT[:, 1:][batch.scored_BT[:, 1:]]
    return functional.cross_entropy(out.logits[0].float(), targets_S, reduction="none")


def denominator(num_rows: int, reduction: Reduction, scored_per_row: float) -> float:
    """What the summed token losses of an optimiser step of ``num_rows`` rows are divided by.

    ``example-sum``: the rows, so that the loss is summed over each example's tokens and averaged over examples, as in
    the authors' code. ``token-mean``: the scored tokens that so many rows have on average over all training rows,
    ``scored_per_row`` each. The step's own count would give the tokens of long rows less weight, since batches hold
    rows of similar length.
    """
    return num_rows if reduction == "example-sum" else num_rows * scored_per_row
