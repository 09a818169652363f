"""Virtual tokens from embeddings to keys and values: one forward pass over them alone. Exact, or refused by name.

In a causal decoder a prompt in front never changes with the text behind it, so what the layers computed for it once is
all that later text can see of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from epigraph.errors import CannotLower
from epigraph.frozen.attention import ARGUMENT, Call, Run, Slot
from epigraph.frozen.geometry import Kind
from epigraph.frozen.likelihood import at_least_float32
from epigraph.virtual import Geometry, KVPrefix, LayerKV, Site, SoftPrompt


def lowered(
    model: PreTrainedModel, slots: Mapping[nn.Module, Slot], geometry: Geometry, embeddings_PE: Tensor
) -> KVPrefix:
    """The keys and values of embeddings ``[P, E]`` at positions 0 to P - 1, float32, with the graph back to them.

    ``text_start`` is P, and visibility ``window``: what the model itself would see. Of ``[U, P, E]``, those of U
    prompts in one, U in front of every tensor.
    """
    seen: dict[nn.Module, Call] = {}
    run = Run(slots=slots, seen=seen)
    is_one = embeddings_PE.ndim == 2
    embeddings_UPE = (embeddings_PE[None] if is_one else embeddings_PE).to(model.device, model.dtype)
    mask = torch.ones(embeddings_UPE.shape[:2], dtype=torch.long, device=model.device)
    # Without the head: what is wanted is what the layers saw.
    model.base_model(inputs_embeds=embeddings_UPE, attention_mask=mask, use_cache=False, **{ARGUMENT: run})
    made = KVPrefix(sites=_kept(seen, slots, geometry), text_start=embeddings_UPE.shape[1], visibility="window")
    return made.map(lambda x: x[0]) if is_one else made


def read_alone(
    model: PreTrainedModel, slots: Mapping[nn.Module, Slot], geometry: Geometry, ids: Sequence[int]
) -> KVPrefix:
    """The keys and values that every site has of a text on its own, ``text_start`` 0; a decoder reads it as its own.

    Raises :class:`SharedLayers` where layers have none of their own.
    """
    geometry.only(())
    seen: dict[nn.Module, Call] = {}
    text = torch.tensor([list(ids)], device=model.device)
    given: dict[str, Any] = {"input_ids": text, "attention_mask": torch.ones_like(text)}
    if model.config.is_encoder_decoder:
        given |= {"decoder_input_ids": text, "use_cache": False}
    model(**given, **{ARGUMENT: Run(slots=slots, seen=seen)})
    return KVPrefix(sites=_kept(seen, slots, geometry), text_start=0).map(lambda x: x[0])


def _kept(
    seen: Mapping[nn.Module, Call], slots: Mapping[nn.Module, Slot], geometry: Geometry
) -> dict[Site, tuple[LayerKV | None, ...]]:
    """``[B, P, K, H]`` each, one a row of the forward that was seen."""
    sites: dict[Site, list[LayerKV | None]] = {site: [None] * len(x) for site, x in geometry.sites.items()}
    for module, call in seen.items():
        slot = slots[module]
        k, v = (at_least_float32(x.transpose(1, 2)) for x in (call.key, call.value))
        sites[slot.site][slot.layer] = LayerKV(keys_PKH=k, values_PKH=v)
    return {site: tuple(x) for site, x in sites.items()}


def refuse_lowering(model: PreTrainedModel, kind: Kind, prompt: SoftPrompt) -> None:
    """Raise :class:`CannotLower` where a soft prompt is not exactly some keys and values in front.

    What :func:`survey` lets pass attends in every layer, and has positions that do not depend on the length of the
    text. Left are prompts that are not in front, models that read both ways, and layers that look at ids of tokens.
    """
    if prompt.placed:
        raise CannotLower(
            "the virtual tokens stand in the text's template, so that they change with the text before them; "
            "they are used as embeddings"
        )
    if kind != "causal":
        raise CannotLower(
            f"{type(model).__name__} reads both ways, so that virtual tokens in front change with the text behind; "
            "give them slots in the input template, as method prompt-tuning does by itself"
        )
    refuse_placing(model)


def refuse_placing(model: PreTrainedModel) -> None:
    """Raise :class:`CannotLower` where embeddings alone are not all that a token is to the layers."""
    if getattr(model.config.get_text_config(), "hidden_size_per_layer_input", 0):
        raise CannotLower(
            f"{type(model).__name__} gives its layers embeddings of token ids, and virtual tokens have no ids; "
            "use method prefix-tuning"
        )
