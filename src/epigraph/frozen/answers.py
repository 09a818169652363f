"""What a model makes of the answers to a batch: logits where something is said or chosen, and what should be there.

One function for the four ways: a decoder that goes on, a decoder beside an encoder, a masked model, and a head.
Legend: B batch, T text tokens, A answer tokens, S scored tokens, V vocabulary, C classes, D width of what a head reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from epigraph.errors import BadValue
from epigraph.frozen.batch import Batch
from epigraph.frozen.classes import states_at_masks
from epigraph.frozen.inputs import FIRST_SLOT
from epigraph.frozen.likelihood import at_least_float32, negative_log_likelihood
from epigraph.frozen.model import FrozenModel
from epigraph.frozen.rows import Bound, Carried


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """A linear classifier on an encoder: ``weight [C, D]``, ``bias [C]`` or none, and what it reads.

    ``first``: the first token's state; ``mean``: the mean over the text's own tokens; ``tags``: that of each word's
    first token (P-Tuning v2's setting, Liu et al. 2021b); ``mask``: what the model makes of the mask, in the space of
    its own words (Hambardzumyan et al. 2021). With ``user_B`` weight and bias have U users in front, and each row of
    the batch is classified by its own's.
    """

    weight_CD: Tensor
    bias_C: Tensor | None
    reads: Literal["first", "mean", "mask", "tags"]
    user_B: Tensor | None = None

    def logits(self, frozen: FrozenModel, batch: Batch) -> Tensor:
        """``[S, C]`` float32: a row each, or a tagged word each, row after row."""
        weight_CD, states_SD = at_least_float32(self.weight_CD), at_least_float32(self._states(frozen, batch))
        states_SD, bias_C = states_SD.to(weight_CD.dtype), None if self.bias_C is None else self.bias_C.to(weight_CD)
        if self.user_B is None:
            return functional.linear(states_SD, weight_CD, bias_C)
        user_S = self.user_B[batch.said_BA.nonzero()[:, 0]]
        logits_SC = torch.einsum("sd,scd->sc", states_SD, weight_CD[user_S])
        return logits_SC if bias_C is None else logits_SC + bias_C[user_S]

    def _states(self, frozen: FrozenModel, batch: Batch) -> Tensor:
        if self.reads == "mask":
            return states_at_masks(frozen, batch)
        states_BTD = frozen.hidden(batch.ids_BT, batch.mask_BT)
        match self.reads:
            case "first":
                return states_BTD[:, 0]
            case "mean":
                text_BT = (batch.mask_BT.bool() & (batch.ids_BT < FIRST_SLOT)).to(states_BTD)
                return (states_BTD * text_BT[..., None]).sum(1) / text_BT.sum(1, keepdim=True)
            case "tags":
                return states_BTD[batch.scored_BT]


def answer_logits(frozen: FrozenModel, batch: Batch, tokens: Bound, head: Head | None = None) -> tuple[Tensor, Tensor]:
    """``[S, V]`` (or ``[S, C]``) logits at scored places only, row after row, and ``[S]`` what is right there.

    They have the model's dtype, those of a head float32. Raises :class:`BadValue` for a model that neither says
    anything nor has a head.
    """
    if head is not None:
        with frozen.bind(tokens):
            return head.logits(frozen, batch), batch.answer_BA[batch.said_BA]
    match frozen.kind:
        case "causal":
            return _continued(frozen, batch, tokens)
        case "encoder-decoder":
            return _answered(frozen, batch, tokens)
        case "masked":
            with frozen.bind(tokens), frozen.scored(batch.scored_BT):
                out = frozen.model(input_ids=batch.ids_BT, attention_mask=batch.mask_BT)
            return out.logits[0], batch.answer_BA[batch.said_BA]
        case "encoder":
            raise BadValue(
                f"{frozen.name} has no language-modelling head, so it says no words; give text.labels (a head chooses)"
            )


def row_log_probabilities(frozen: FrozenModel, batch: Batch, tokens: Carried) -> Tensor:
    """``[B]`` float32: how likely each row's answer is, in nats: the sum over its tokens, their mean in a masked model.

    A decoder's sum is the probability of the answer. Masks are filled one beside the other, which makes no such thing,
    so that answers of several lengths are compared by their mean.
    """
    logits_SV, targets_S = answer_logits(frozen, batch, tokens)
    said_S = -negative_log_likelihood(logits_SV, targets_S)
    row_S = scored_rows(frozen, batch)
    sums_B = torch.zeros(len(batch.ids_BT), device=said_S.device).index_add(0, row_S, said_S)
    return sums_B / batch.said_BA.sum(1) if frozen.kind == "masked" else sums_B


def scored_rows(frozen: FrozenModel, batch: Batch) -> Tensor:
    """``[S]``: the row of each place that :func:`answer_logits` gives."""
    places = batch.scored_BT[:, 1:] if frozen.kind == "causal" else batch.said_BA
    return places.nonzero()[:, 0]


def _continued(frozen: FrozenModel, batch: Batch, tokens: Bound) -> tuple[Tensor, Tensor]:
    next_scored = torch.zeros_like(batch.scored_BT)
    next_scored[:, :-1] = batch.scored_BT[:, 1:]
    with frozen.bind(tokens, sources=batch.sources), frozen.scored(next_scored):
        out = frozen.model(input_ids=batch.ids_BT, attention_mask=batch.mask_BT, use_cache=False)
    return out.logits[0], batch.ids_BT[:, 1:][batch.scored_BT[:, 1:]]


def _answered(frozen: FrozenModel, batch: Batch, tokens: Bound) -> tuple[Tensor, Tensor]:
    """The decoder reads its own start tokens and the answer without its last token."""
    start = torch.tensor(frozen.decoder_start, device=batch.ids_BT.device).expand(len(batch.ids_BT), -1)
    decoder_BA = torch.cat([start, batch.answer_BA[:, :-1]], dim=1)
    said_BA = functional.pad(batch.said_BA, (start.shape[1] - 1, 0))
    with frozen.bind(tokens), frozen.scored(said_BA):
        out = frozen.model(
            input_ids=batch.ids_BT, attention_mask=batch.mask_BT, decoder_input_ids=decoder_BA, use_cache=False
        )
    return out.logits[0], batch.answer_BA[batch.said_BA]
