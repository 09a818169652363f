"""What a model is to virtual tokens, found by looking: one tiny forward through the seam shows every attention layer.

Knows the conditions under which a model can take virtual keys and values; refuses everything else by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import torch
from torch import nn
from transformers import PreTrainedModel

from epigraph.errors import LostBinding, UnsupportedModel
from epigraph.frozen.attention import ARGUMENT, Call, Run, Slot, seam_name
from epigraph.virtual import Geometry, LayerGeometry, PositionKind, Site

# causal: a decoder of its own; masked: an encoder with a language-modelling head; encoder: one without.
Kind = Literal["causal", "encoder-decoder", "masked", "encoder"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """What was found: the geometry, the place of each attention module, the kind of the model, and how its positions
    can be given: ``position_offset`` is the number of the first position, None where none can be given."""

    geometry: Geometry
    slots: Mapping[nn.Module, Slot]
    kind: Kind
    position_offset: int | None


def survey(model: PreTrainedModel) -> Survey:
    """The model's geometry, and the place of each of its attention modules.

    Layers that share one attention module leave the geometry without sites: such a model takes embeddings only.
    Raises :class:`UnsupportedModel` with the reason where virtual tokens could not be exact.
    """
    if "input_ids" not in _inputs(model):
        _refuse(model, "it reads no token ids")
    _refuse_by_config(model)
    seen = _look(model)
    kind = _kind(model, seen)
    if kind in ("causal", "encoder-decoder") and model.get_output_embeddings() is None:
        _refuse(model, "it has no language-modelling head")
    slots: dict[nn.Module, Slot] = {}
    sites: dict[Site, list[LayerGeometry]] = {}
    inner = {*_encoder(model).modules()} if kind == "encoder-decoder" else set()
    for module, call in seen.items():
        site = _site(kind, module in inner, call)
        layers = sites.setdefault(site, [])
        _refuse_by_look(model, site, call)
        slots[module] = Slot(site=site, layer=len(layers), window=call.window)
        _, num_kv_heads, _, head_dim = call.key.shape
        layers.append(LayerGeometry(num_kv_heads=num_kv_heads, head_dim=head_dim, window=call.window))
    if not _all_seen(model, kind, sites):
        sites = {}
    position_kind, max_positions = _positions(model)
    geometry = Geometry(
        sites={site: tuple(layers) for site, layers in sorted(sites.items())},
        embedding_dim=_embedding_dim(model),
        position_kind=position_kind,
        max_positions=max_positions,
    )
    offset = _padding_offset(model) if "position_ids" in _inputs(model) else None
    if kind == "causal" and offset is None:
        _refuse(model, "its forward takes no position_ids, so text cannot start behind virtual tokens")
    return Survey(geometry=geometry, slots=slots, kind=kind, position_offset=offset)


def _kind(model: PreTrainedModel, seen: Mapping[nn.Module, Call]) -> Kind:
    if not seen:
        _refuse(model, "its attention is not registered, 0 attention modules ran; a newer transformers may register it")
    if model.config.is_encoder_decoder:
        return "encoder-decoder"
    if next(iter(seen.values())).causal:
        return "causal"
    return "encoder" if model.get_output_embeddings() is None else "masked"


def _site(kind: Kind, is_in_encoder: bool, call: Call) -> Site:
    if kind in ("masked", "encoder") or is_in_encoder:
        return "encoder.self"
    return "decoder.cross" if kind == "encoder-decoder" and call.key.shape[2] != call.num_queries else "decoder.self"


def _all_seen(model: PreTrainedModel, kind: Kind, sites: Mapping[Site, Sequence[LayerGeometry]]) -> bool:
    """Whether every layer's attention ran, as a module of its own; encoders that share them take embeddings still."""
    config = model.config.get_text_config()
    num_layers = config.num_hidden_layers
    want: dict[Site, int] = {"decoder.self": num_layers}
    if kind == "encoder-decoder":
        num_decoder_layers = getattr(config, "num_decoder_layers", None) or getattr(
            config, "decoder_layers", num_layers
        )
        want = {"encoder.self": num_layers, "decoder.self": num_decoder_layers, "decoder.cross": num_decoder_layers}
    elif kind != "causal":
        want = {"encoder.self": num_layers}
    ran = {site: len(layers) for site, layers in sites.items()}
    if ran == want:
        return True
    if kind in ("masked", "encoder"):
        return False
    raise UnsupportedModel(
        f"{type(model).__name__} has {sum(want.values())} layers, but {sum(ran.values())} attention modules ran; "
        "models that share attention modules between layers or mix attention with recurrent state cannot take a prefix"
    )


def _encoder(model: PreTrainedModel) -> nn.Module:
    encoder: nn.Module = model.get_encoder()
    return encoder


def text_embeddings(model: PreTrainedModel) -> nn.Module:
    """What turns the ids of a source into embeddings: the encoder's, where there is one, with its own scale."""
    reader = _encoder(model) if model.config.is_encoder_decoder else model
    embeddings: nn.Module = reader.get_input_embeddings()  # type: ignore[operator]
    return embeddings


def _inputs(model: PreTrainedModel) -> Collection[str]:
    return inspect.signature(model.forward).parameters.keys()


def _look(model: PreTrainedModel) -> dict[nn.Module, Call]:
    seen: dict[nn.Module, Call] = {}
    run = Run(slots={}, seen=seen)
    ids = torch.full((1, 2), 3, dtype=torch.long, device=model.device)
    probe: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids), ARGUMENT: run}
    if model.config.is_encoder_decoder:
        # Other lengths in encoder and decoder: what reads across is known by them.
        probe |= {"input_ids": ids.new_full((1, 3), 3), "decoder_input_ids": ids, "use_cache": False}
        probe["attention_mask"] = torch.ones_like(probe["input_ids"])
    elif "use_cache" in _inputs(model):
        probe["use_cache"] = False
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
        "it has cross-attention": getattr(config, "add_cross_attention", False)
        and not getattr(config, "is_encoder_decoder", False),
        "some of its layers share the keys and values of others": getattr(config, "num_kv_shared_layers", 0),
        "it attends in chunks": "chunked_attention" in (getattr(config, "layer_types", None) or ()),
    }
    for reason, holds in reasons.items():
        if holds:
            _refuse(model, reason)


def _refuse(model: PreTrainedModel, reason: str) -> NoReturn:
    raise UnsupportedModel(f"{type(model).__name__} cannot take a prefix: {reason}")


def _refuse_by_look(model: PreTrainedModel, site: Site, call: Call) -> None:
    if call.causal != (site == "decoder.self"):
        _refuse(model, f"its attention at {site} is {'' if call.causal else 'not '}causal")
    if call.key.shape != call.value.shape:
        _refuse(model, f"its keys are {call.key.shape[-1]} wide, its values {call.value.shape[-1]}")
    if call.capped and model.config._attn_implementation == seam_name("sdpa"):
        # transformers up to 5.19 lets Gemma 2 attend by sdpa, which drops the cap and says nothing.
        _refuse(model, "sdpa leaves out the cap on its attention scores, use attention_name='eager'")


def _tables(value: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A table and the tables in it: some families have one rotation a layer type."""
    return [value, *(x for x in value.values() if isinstance(x, Mapping))]


def _embedding_dim(model: PreTrainedModel) -> int:
    # Asked of the module itself: some families scale or project after the lookup.
    with torch.no_grad():
        return int(text_embeddings(model)(torch.zeros(1, dtype=torch.long, device=model.device)).shape[-1])


def _positions(model: PreTrainedModel) -> tuple[PositionKind, int | None]:
    config = model.config.get_text_config()
    if any("RotaryEmbedding" in type(module).__name__ for module in model.modules()):
        return "rotary", None
    if getattr(config, "relative_attention_num_buckets", None):
        return "relative", None
    length = getattr(config, "max_position_embeddings", None)
    if length is not None and _position_tables(model):
        return "absolute", length - _padding_offset(model)
    raise UnsupportedModel(f"{type(model).__name__} numbers its positions in a way that is neither rotary nor a table")


def _position_tables(model: PreTrainedModel) -> list[nn.Embedding]:
    length = model.config.get_text_config().max_position_embeddings
    words = {id(x.weight) for x in (model.get_input_embeddings(), text_embeddings(model))}
    found = [x for x in model.modules() if isinstance(x, nn.Embedding) and id(x.weight) not in words]
    return [x for x in found if x.num_embeddings >= length]


def _padding_offset(model: PreTrainedModel) -> int:
    """RoBERTa's positions begin behind the padding token's id; elsewhere at 0."""
    if not getattr(model.config.get_text_config(), "max_position_embeddings", None):
        return 0
    return max((x.padding_idx + 1 for x in _position_tables(model) if x.padding_idx is not None), default=0)
