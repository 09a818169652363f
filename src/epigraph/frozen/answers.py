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
from epigraph.frozen.likelihood import negative_log_likelihood
from epigraph.frozen.model import FrozenModel
from epigraph.frozen.rows import Carried


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """A linear classifier on an encoder: ``weight [C, D]``, ``bias [C]`` or none, and what it reads.

    ``first``: the first token's state; ``mean``: the mean over the text's own tokens; ``tags``: that of each word's
    first token (P-Tuning v2's setting, Liu et al. 2021b); ``mask``: what the model makes of the mask, in the space of
    its own words (Hambardzumyan et al. 2021).
    """

    weight_CD: Tensor
    bias_C: Tensor | None
    reads: Literal["first", "mean", "mask", "tags"]

    def logits(self, frozen: FrozenModel, batch: Batch) -> Tensor:
        """``[S, C]`` float32: a row each, or a tagged word each, row after row."""
        bias_C = None if self.bias_C is None else self.bias_C.float()
        return functional.linear(self._states(frozen, batch).float(), self.weight_CD.float(), bias_C)

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


def answer_logits(
    frozen: FrozenModel, batch: Batch, tokens: Carried, head: Head | None = None
) -> tuple[Tensor, Tensor]:
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
    places = batch.scored_BT[:, 1:] if frozen.kind == "causal" else batch.said_BA
    row_S = places.nonzero()[:, 0]
    sums_B = torch.zeros(len(batch.ids_BT), device=said_S.device).index_add(0, row_S, said_S)
    return sums_B / batch.said_BA.sum(1) if frozen.kind == "masked" else sums_B


def _continued(frozen: FrozenModel, batch: Batch, tokens: Carried) -> tuple[Tensor, Tensor]:
    next_scored = torch.zeros_like(batch.scored_BT)
    next_scored[:, :-1] = batch.scored_BT[:, 1:]
    with frozen.bind(tokens, sources=batch.sources), frozen.scored(next_scored):
        out = frozen.model(input_ids=batch.ids_BT, attention_mask=batch.mask_BT, use_cache=False)
    return out.logits[0], batch.ids_BT[:, 1:][batch.scored_BT[:, 1:]]


def _answered(frozen: FrozenModel, batch: Batch, tokens: Carried) -> tuple[Tensor, Tensor]:
    """The decoder reads its own start tokens and the answer without its last token."""
    start = torch.tensor(frozen.decoder_start, device=batch.ids_BT.device).expand(len(batch.ids_BT), -1)
    decoder_BA = torch.cat([start, batch.answer_BA[:, :-1]], dim=1)
    said_BA = functional.pad(batch.said_BA, (start.shape[1] - 1, 0))
    with frozen.bind(tokens), frozen.scored(said_BA):
        out = frozen.model(
            input_ids=batch.ids_BT, attention_mask=batch.mask_BT, decoder_input_ids=decoder_BA, use_cache=False
        )
    return out.logits[0], batch.answer_BA[batch.said_BA]
