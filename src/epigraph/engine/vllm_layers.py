"""VLLM's attention layers as the connector sees them: which it has here, how they are paged, how they are written.

What cannot be served exactly is refused here, at the start. It knows no request and no prefix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from epigraph.engine.residents import Share
from epigraph.engine.vllm_names import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    SlidingWindowSpec,
    UniformTypeKVCacheSpecs,
    VllmConfig,
    extract_layer_index,
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
)
from epigraph.errors import CannotServe


class Layers:
    """The attention layers of one worker by vLLM's names; ``groups`` are those that share block numbers."""

    def __init__(self, vllm_config: VllmConfig, kv_cache_config: KVCacheConfig) -> None:
        self._modules = vllm_config.compilation_config.static_forward_context
        self._num_layers = vllm_config.model_config.get_total_num_hidden_layers()
        self.groups: Sequence[Sequence[str]] = [tuple(x.layer_names) for x in kv_cache_config.kv_cache_groups]

    def number(self, name: str) -> int:
        """Which of the model's layers it is."""
        number: int = extract_layer_index(name)
        return number

    def refuse_layers(self) -> None:
        """Raise :class:`CannotServe` for a layer that cannot be written to as a text's tokens are."""
        for name in self._names():
            layer = self._modules[name]
            if getattr(layer, "kv_sharing_target_layer_name", None) is not None:
                raise CannotServe(f"layer {name} reads the keys and values of another one; serve this model elsewhere")
            if not hasattr(layer.impl, "do_kv_cache_update"):
                raise CannotServe(
                    f"the attention backend {type(layer.impl).__name__} writes its cache in a way of its own; start "
                    "vLLM with another --attention-backend"
                )

    def share(self) -> Share:
        """This worker's part of the model."""
        return Share(
            layers={self.number(x): (self._modules[x].num_kv_heads, self._modules[x].head_size) for x in self._names()},
            num_layers=self._num_layers,
            rank=get_tensor_model_parallel_rank(),
            size=get_tensor_model_parallel_world_size(),
        )

    def write(self, name: str, keys_MKH: Tensor, values_MKH: Tensor, slots_M: Tensor) -> None:
        """Write keys and values into a layer's cache, as the layer itself writes those of text."""
        layer = self._modules[name]
        cache = layer.kv_cache
        k, v, slots = (x.contiguous().to(cache.device, non_blocking=True) for x in (keys_MKH, values_MKH, slots_M))
        layer.impl.do_kv_cache_update(layer, k, v, cache, slots)

    def _names(self) -> Iterator[str]:
        return (name for names in self.groups for name in names)


def page_sizes(kv_cache_config: KVCacheConfig) -> list[int]:
    """How many tokens a block has, for each group of layers."""
    return [group.kv_cache_spec.block_size for group in kv_cache_config.kv_cache_groups]


def bytes_per_token(kv_cache_config: KVCacheConfig, dtype: torch.dtype) -> int:
    """What one virtual token takes in a worker's memory."""
    specs = [spec for group in kv_cache_config.kv_cache_groups for spec in _specs(group)]
    num_numbers: int = sum(2 * spec.num_kv_heads * spec.head_size for spec in specs)
    return num_numbers * dtype.itemsize


def refuse_config(vllm_config: VllmConfig, kv_cache_config: KVCacheConfig) -> None:
    """Raise :class:`CannotServe` for a configuration under which a prefix would not be what it was in training."""
    parallel = vllm_config.parallel_config
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, name, 1) > 1:
            raise CannotServe(f"{name} is {getattr(parallel, name)}: tokens of a text are dealt out; use 1")
    speculative = vllm_config.speculative_config
    if speculative is not None and not speculative.method.startswith(("ngram", "suffix")):
        raise CannotServe(
            f"speculative decoding by {speculative.method} has layers of its own, which no prefix was trained for; "
            "use ngram or none"
        )
    for group in kv_cache_config.kv_cache_groups:
        for spec in _specs(group):
            if type(spec) not in (FullAttentionSpec, SlidingWindowSpec):
                raise CannotServe(
                    f"layer {group.layer_names[0]} keeps {type(spec).__name__.removesuffix('Spec')}, expected keys and "
                    "values of plain attention; prefixes cannot be served on this model"
                )


def _specs(group: KVCacheGroupSpec) -> list[Any]:
    """The kind of every layer of a group."""
    spec = group.kv_cache_spec
    if isinstance(spec, UniformTypeKVCacheSpecs):
        return list(spec.kv_cache_specs.values())
    return [spec] * len(group.layer_names)
