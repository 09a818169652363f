"""Virtual tokens from embeddings to keys and values: one forward pass over them alone. Exact, or refused by name.

In a causal decoder a prompt in front never changes with the text behind it, so what the layers computed for it once is
all that later text can see of it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from epigraph.errors import CannotLower
from epigraph.frozen.attention import ARGUMENT, Call, Run, Slot
from epigraph.virtual import Geometry, KVPrefix, LayerKV, Site


def lowered(
    model: PreTrainedModel, slots: Mapping[nn.Module, Slot], geometry: Geometry, embeddings_PE: Tensor
) -> KVPrefix:
    """The keys and values of embeddings ``[P, E]`` at positions 0 to P - 1, float32, with the graph back to them.

    ``text_start`` is P, and visibility ``window``: what the model itself would see.
    """
    seen: dict[nn.Module, Call] = {}
    run = Run(slots=slots, seen=seen)
    embeddings_1PE = embeddings_PE[None].to(model.device, model.dtype)
    mask = torch.ones(embeddings_1PE.shape[:2], dtype=torch.long, device=model.device)
    # Without the head: what is wanted is what the layers saw.
    model.base_model(inputs_embeds=embeddings_1PE, attention_mask=mask, use_cache=False, **{ARGUMENT: run})
    sites: dict[Site, list[LayerKV | None]] = {site: [None] * len(x) for site, x in geometry.sites.items()}
    for module, call in seen.items():
        slot = slots[module]
        k, v = (x[0].transpose(0, 1).float() for x in (call.key, call.value))
        sites[slot.site][slot.layer] = LayerKV(keys_PKH=k, values_PKH=v)
    layers = {site: tuple(x) for site, x in sites.items()}
    return KVPrefix(sites=layers, text_start=len(embeddings_PE), visibility="window")


def refuse_lowering(model: PreTrainedModel) -> None:
    """Raise :class:`CannotLower` where a soft prompt in front is not exactly some keys and values.

    What :func:`survey` lets pass is causal, attends in every layer, and has positions that do not depend on the length
    of the text; what is left is layers that look at the ids of tokens.
    """
    if getattr(model.config.get_text_config(), "hidden_size_per_layer_input", 0):
        raise CannotLower(
            f"{type(model).__name__} gives its layers embeddings of token ids, and virtual tokens have no ids; "
            "use method prefix-tuning"
        )
