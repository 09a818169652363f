"""Activation checkpointing that keeps virtual tokens: on, off, and refused where it would forget them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from epigraph.errors import ReentrantCheckpointing


def recompute(layers: Iterable[GradientCheckpointingLayer], on: bool) -> None:
    """Let the layers run again in the backward pass, or not. Their own flags change, not those of what is inside."""
    for layer in layers:
        layer.gradient_checkpointing = on
        vars(layer)["_gradient_checkpointing_func"] = partial(checkpoint, use_reentrant=False)
        layer.training = on


def refuse_reentrant(layers: Iterable[GradientCheckpointingLayer]) -> None:
    """Raise :class:`ReentrantCheckpointing` where the backward pass would run layers without what they carried."""
    if not torch.is_grad_enabled():
        return
    for layer in layers:
        if layer.gradient_checkpointing and layer.training:
            keywords = getattr(layer._gradient_checkpointing_func, "keywords", {})
            if keywords.get("use_reentrant") is not False:
                raise ReentrantCheckpointing(
                    "activation checkpointing is on with use_reentrant=True, which forgets the prefix; "
                    "call FrozenModel.checkpoint_activations(), or pass use_reentrant=False"
                )
