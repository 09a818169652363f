"""Logits where something is scored, and nowhere else: no tensor of rows by tokens by vocabulary is made.

Who asks for that reads no states at the padding either, so that a causal decoder's rows are packed meanwhile.
Legend: B batch, T text tokens, S real tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from epigraph.frozen.attention import ARGUMENT, Run, Slot
from epigraph.frozen.packing import Packing, packing_of


def _close(dtype: torch.dtype) -> float:
    """How far the same logits of packed and padded rows may be apart, of their range: rounding."""
    return 1e-3 if dtype == torch.float32 else 0.05


@dataclass(kw_only=True, slots=True, eq=False)
class Wanted:
    """The scored places ``[B, T]`` of a model's next forward, and how that forward packed its rows, if it did."""

    model: PreTrainedModel
    mask_BT: Tensor
    packing: Packing | None = None


# In this thread or task only.
_WANTED: ContextVar[tuple[Wanted, ...]] = ContextVar("epigraph_scored", default=())


def wanted(model: PreTrainedModel) -> Wanted | None:
    """What is scored of this model's forwards here; None where all is."""
    return next((x for x in reversed(_WANTED.get()) if x.model is model), None)


@contextmanager
def scored(model: PreTrainedModel, mask_BT: Tensor, packing: Packing | None = None) -> Iterator[None]:
    """Let the model's language-modelling head see the marked places only; ``packing``: the rows are packed already."""
    token = _WANTED.set((*_WANTED.get(), Wanted(model=model, mask_BT=mask_BT, packing=packing)))
    try:
        yield
    finally:
        _WANTED.reset(token)


def narrow_head(model: PreTrainedModel) -> None:
    """Make the head of ``model`` heed :func:`scored`: what it sees becomes ``[1, marked, D]``."""
    head = model.get_output_embeddings()
    if head is None:
        return

    def narrow(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        now = wanted(model)
        if now is None:
            # The last states alone, as generate() asks for them, are a view with gaps, which torch multiplies slowly.
            return None if args[0].is_contiguous() else (args[0].contiguous(), *args[1:])
        if now.packing is None:
            return (args[0][now.mask_BT][None], *args[1:])
        return (args[0][now.packing.packed(now.mask_BT)][None], *args[1:])

    head.register_forward_pre_hook(narrow)


def can_pack(model: PreTrainedModel, slots: Mapping[nn.Module, Slot], position_offset: int | None) -> bool:
    """Whether a causal decoder computes a token from itself and from attention alone, found by trying it.

    Three rows of several lengths, padded and packed: layers that mix neighbours in another way (convolutions, recurrent
    state), and models that need their mask elsewhere, give other numbers, or none.
    """
    tokens = torch.arange(24, device=model.device).reshape(3, 8) % model.config.get_text_config().vocab_size
    mask_BT = torch.arange(8, device=model.device) < torch.tensor([[5], [8], [3]], device=model.device)
    positions_BT = torch.arange(8, device=model.device)[None] + (position_offset or 0)
    given = {"input_ids": tokens, "attention_mask": mask_BT.long(), "position_ids": positions_BT, "use_cache": False}
    packing = packing_of(given)
    assert packing is not None, "its rows have padding"
    with torch.no_grad():
        padded_SV = packing.packed(_logits(model, given, Run(slots=slots)))
        try:
            packed_SV = _logits(model, packing.arguments(given), Run(slots=slots, packing=packing))
        except (ValueError, RuntimeError, TypeError, IndexError):
            return False
    return packed_SV.shape == padded_SV.shape and bool(
        (packed_SV - padded_SV).abs().max() <= _close(model.dtype) * (padded_SV.max() - padded_SV.min())
    )


def _logits(model: PreTrainedModel, given: Mapping[str, Any], run: Run) -> Tensor:
    """All of them, whoever asked for some."""
    token = _WANTED.set(())
    try:
        logits: Tensor = model(**given, **{ARGUMENT: run}).logits
        return logits.float()
    finally:
        _WANTED.reset(token)
