"""What a model is to virtual tokens, found by looking: one tiny forward through the seam shows every attention layer.

Knows the conditions under which a model can take virtual keys and values; refuses everything else by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from epigraph.errors import LostBinding, UnsupportedModel
from epigraph.frozen.attention import ARGUMENT, Call, Run, Slot, seam_name
from epigraph.virtual import Geometry, LayerGeometry, PositionKind


def survey(model: PreTrainedModel) -> tuple[Geometry, dict[nn.Module, Slot]]:
    """The model's geometry, and the place of each of its attention modules.

    Raises :class:`UnsupportedModel` with the reason where virtual keys and values could not be exact.
    """
    _refuse_by_config(model)
    seen = _look(model)
    num_layers = model.config.get_text_config().num_hidden_layers
    if len(seen) != num_layers:
        raise UnsupportedModel(
            f"{type(model).__name__} has {num_layers} layers, but {len(seen)} attention modules ran; models that share "
            "attention modules between layers or mix attention with recurrent state cannot take a prefix"
        )
    slots, layers = {}, []
    for number, (module, call) in enumerate(seen.items()):
        _refuse_by_look(model, call)
        slots[module] = Slot(site="decoder.self", layer=number, window=call.window)
        _, num_kv_heads, _, head_dim = call.key.shape
        layers.append(LayerGeometry(num_kv_heads=num_kv_heads, head_dim=head_dim, window=call.window))
    kind, max_positions = _positions(model)
    geometry = Geometry(
        sites={"decoder.self": tuple(layers)},
        embedding_dim=_embedding_dim(model),
        position_kind=kind,
        max_positions=max_positions,
    )
    return geometry, slots


def _look(model: PreTrainedModel) -> dict[nn.Module, Call]:
    seen: dict[nn.Module, Call] = {}
    run = Run(slots={}, seen=seen)
    ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    probe: dict[str, Any] = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "use_cache": False,
        ARGUMENT: run,
    }
    try:
        with torch.no_grad():
            model(**probe)
    except LostBinding as lost:
        raise UnsupportedModel(
            f"{type(model).__name__} does not hand keyword arguments down to its attention, so no prefix can reach it"
        ) from lost
    except TypeError as wrong:
        raise UnsupportedModel(
            f"{type(model).__name__} cannot carry a prefix: its forward takes no further keyword arguments ({wrong})"
        ) from wrong
    return seen


def _refuse_by_config(model: PreTrainedModel) -> None:
    config = model.config.get_text_config()
    rotations = {x.get("rope_type") for x in _tables(getattr(config, "rope_parameters", None) or {})}
    reasons = {
        "its positions depend on the length of the text (dynamic or long rotary scaling)": rotations
        & {"dynamic", "longrope"},
        "it is an encoder-decoder, and its three sites are not built yet": getattr(config, "is_encoder_decoder", False),
        "it has cross-attention": getattr(config, "add_cross_attention", False),
        "some of its layers share the keys and values of others": getattr(config, "num_kv_shared_layers", 0),
        "it attends in chunks": "chunked_attention" in (getattr(config, "layer_types", None) or ()),
        "it has no language-modelling head": model.get_output_embeddings() is None,
    }
    for reason, holds in reasons.items():
        if holds:
            raise UnsupportedModel(f"{type(model).__name__} cannot take a prefix: {reason}")


def _refuse_by_look(model: PreTrainedModel, call: Call) -> None:
    reason = None
    if not call.causal:
        reason = "its attention is not causal, a token sees what follows it"
    elif call.key.shape != call.value.shape:
        reason = f"its keys are {call.key.shape[-1]} wide, its values {call.value.shape[-1]}"
    elif call.capped and model.config._attn_implementation == seam_name("sdpa"):
        # transformers up to 5.19 lets Gemma 2 attend by sdpa, which drops the cap and says nothing.
        reason = "sdpa leaves out the cap on its attention scores, use attention_name='eager'"
    if reason is not None:
        raise UnsupportedModel(f"{type(model).__name__} cannot take a prefix: {reason}")


def _tables(value: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A table and the tables in it: some families have one rotation a layer type."""
    return [value, *(x for x in value.values() if isinstance(x, Mapping))]


def _embedding_dim(model: PreTrainedModel) -> int:
    # Asked of the module itself: some families scale or project after the lookup.
    with torch.no_grad():
        return int(model.get_input_embeddings()(torch.zeros(1, dtype=torch.long, device=model.device)).shape[-1])


def _positions(model: PreTrainedModel) -> tuple[PositionKind, int | None]:
    if any("RotaryEmbedding" in type(module).__name__ for module in model.modules()):
        return "rotary", None
    length = model.config.get_text_config().max_position_embeddings
    tables = [x for x in model.modules() if isinstance(x, nn.Embedding) and x is not model.get_input_embeddings()]
    if any(table.num_embeddings >= length for table in tables):
        return "absolute", length
    raise UnsupportedModel(f"{type(model).__name__} numbers its positions in a way that is neither rotary nor a table")
