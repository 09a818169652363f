"""Activation checkpointing that keeps virtual tokens: on, off, and refused where it would forget them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from epigraph.errors import ReentrantCheckpointing

# Where a layer's own dropout rates wait meanwhile.
RATES = "_epigraph_dropout_rates"


def recompute(layers: Iterable[GradientCheckpointingLayer], on: bool) -> None:
    """Let the layers run again in the backward pass, or not. Their own flags change, not those of what is inside.

    A layer recomputes only while its ``training`` is on, and those of OPT and BART then drop out by that same flag: the
    rates that a layer keeps as plain numbers are 0 while it is on.
    """
    for layer in layers:
        own = vars(layer)
        layer.gradient_checkpointing = on
        own["_gradient_checkpointing_func"] = partial(checkpoint, use_reentrant=False)
        layer.training = on
        if not on:
            own.update(own.pop(RATES, {}))
        elif RATES not in own:
            own[RATES] = {name: rate for name, rate in own.items() if "dropout" in name and isinstance(rate, float)}
            own.update(dict.fromkeys(own[RATES], 0.0))


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
