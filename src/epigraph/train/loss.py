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
from epigraph.virtual import KVPrefix

Reduction = Literal["token-mean", "example-sum"]


def token_losses(frozen: FrozenModel, batch: Batch, prefix: KVPrefix | Sequence[KVPrefix | None] | None) -> Tensor:
    """``[S]`` float32: the negative log-likelihood, in nats, of each scored token, row after row."""
    next_scored = torch.zeros_like(batch.scored_BT)
    next_scored[:, :-1] = batch.scored_BT[:, 1:]
    with frozen.bind(prefix), frozen.scored(next_scored):
        out = frozen.model(input_ids=batch.ids_BT, attention_mask=batch.mask_BT, use_cache=False)
    targets_S = batch.ids_BT[:, 1:][batch.scored_BT[:, 1:]]
    return functional.cross_entropy(out.logits[0].float(), targets_S, reduction="none")


def denominator(batches: Sequence[Batch], reduction: Reduction) -> int:
    """What the summed token losses of one optimiser step are divided by.

    ``token-mean``: scored tokens. ``example-sum``: examples, so that the loss is summed over each example's tokens
    and averaged over examples, which is what the authors' code does.
    """
    if reduction == "example-sum":
        return sum(len(batch.ids_BT) for batch in batches)
    # The first token of a row has nothing before it to be predicted from.
    return sum(int(batch.scored_BT[:, 1:].sum()) for batch in batches)
