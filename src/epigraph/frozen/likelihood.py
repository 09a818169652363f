"""How unlikely a model finds what was to be said: cross-entropy that keeps nothing of the vocabulary's size but logits.

It knows no model. Legend: S scored tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Logits in one piece of work: small enough for a processor's cache, large enough for a GPU.
_PIECE = 4 << 20


def negative_log_likelihood(logits_SV: Tensor, targets_S: Tensor) -> Tensor:
    """``[S]`` float32 (float64 of such logits), in nats: what ``cross_entropy(logits.float(), targets)`` is of each.

    Computed piece by piece, from logits of any dtype, so that there is no float32 copy of them and no table of
    probabilities; the backward pass makes the gradient of the logits and nothing beside it.
    """
    found: Tensor = _NegativeLogLikelihood.apply(logits_SV, targets_S)  # type: ignore[no-untyped-call]
    return found


class _NegativeLogLikelihood(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_SV: Tensor, targets_S: Tensor) -> Tensor:
        rows = _rows(logits_SV)
        sum_S = torch.cat([at_least_float32(piece).logsumexp(1) for piece in logits_SV.split(rows)])
        ctx.save_for_backward(logits_SV, sum_S, targets_S)
        return sum_S - at_least_float32(logits_SV.gather(1, targets_S[:, None]).squeeze(1))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad_S,) = grads
        logits_SV, sum_S, targets_S = ctx.saved_tensors
        out_SV = torch.empty_like(logits_SV)
        rows = _rows(logits_SV)
        pieces = (x.split(rows) for x in (out_SV, logits_SV, sum_S[:, None], grad_S[:, None], targets_S[:, None]))
        for out, logits, total, grad, target in zip(*pieces, strict=True):
            # In float32 to the end: of a probability near 1, less 1, bf16 would leave nothing.
            made = (at_least_float32(logits) - total).exp_().mul_(grad)
            out.copy_(made.scatter_add_(1, target, -grad))
        return out_SV, None


def at_least_float32(x: Tensor) -> Tensor:
    """In float32, or in float64 where it is that."""
    return x if x.dtype == torch.float64 else x.float()


def _rows(logits_SV: Tensor) -> int:
    return max(1, _PIECE // max(1, logits_SV.shape[1]))
