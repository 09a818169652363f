"""The training loss: cross-entropy of the target tokens, and of nothing else (Li & Liang 2021, eq. 2).

Logits are computed at scored positions only. Legend: B batch, T text tokens, S scored tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from epigraph.frozen.answers import Head, answer_logits
from epigraph.frozen.batch import Batch
from epigraph.frozen.likelihood import negative_log_likelihood
from epigraph.frozen.model import FrozenModel
from epigraph.frozen.rows import Bound
from epigraph.methods.base import Method

Reduction = Literal["token-mean", "example-sum"]


def token_losses(frozen: FrozenModel, batch: Batch, tokens: Bound, head: Head | None = None) -> Tensor:
    """``[S]`` float32: the negative log-likelihood, in nats, of each scored token, row after row."""
    logits_SV, targets_S = answer_logits(frozen, batch, tokens, head)
    return negative_log_likelihood(logits_SV, targets_S)


def lesson_losses(frozen: FrozenModel, batch: Batch, method: Method) -> Tensor:
    """:func:`token_losses` of the method as it is now, with its graph."""
    if method.foreign is not None:
        return method.foreign.losses(batch)
    return token_losses(frozen, batch, method(), head_of(method))


def head_of(method: Method) -> Head | None:
    """The method's head as a frozen model's user takes it, with its graph."""
    head = method.head
    return None if head is None else Head(weight_CD=head.weight, bias_C=head.bias, reads=head.reads)


def denominator(num_rows: int, reduction: Reduction, scored_per_row: float) -> float:
    """What the summed token losses of an optimiser step of ``num_rows`` rows are divided by.

    ``example-sum``: the rows, so that the loss is summed over each example's tokens and averaged over examples, as in
    the authors' code. ``token-mean``: the scored tokens that so many rows have on average over all training rows,
    ``scored_per_row`` each. The step's own count would give the tokens of long rows less weight, since batches hold
    rows of similar length.
    """
    return num_rows if reduction == "example-sum" else num_rows * scored_per_row
