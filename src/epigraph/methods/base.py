"""What every method is: a module whose forward makes virtual tokens. It knows no model."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from epigraph.errors import GeometryMismatch
from epigraph.virtual import Geometry, KVPrefix, LayerKV, Site, VirtualTokens, Visibility


class Method(nn.Module, ABC):
    """A trainable maker of virtual tokens. Its parameters are float32 and are all that a training run changes."""

    @abstractmethod
    def forward(self) -> VirtualTokens:
        """The virtual tokens as they are now, with the graph back to the parameters."""

    def fold(self) -> VirtualTokens:
        """The virtual tokens alone, in float32: whatever computed them is left behind. Equal to the live ones."""
        with torch.no_grad():
            was_training = self.training
            try:
                return self.eval().forward().frozen_copy()
            finally:
                self.train(was_training)

    @property
    def num_trained(self) -> int:
        """How many numbers training changes."""
        return sum(x.numel() for x in self.parameters() if x.requires_grad)


def flatten(prefix: KVPrefix) -> Tensor:
    """``[P, N]``: each virtual token's keys and values, layer after layer, as one row of N numbers, float32."""
    parts = [x.flatten(1) for _, _, layer in prefix.layers() for x in (layer.keys_PKH, layer.values_PKH)]
    return torch.cat(parts, dim=1).float()


def unflatten(flat_PN: Tensor, geometry: Geometry, *, text_start: int, visibility: Visibility) -> KVPrefix:
    """The inverse of :func:`flatten` for a model of ``geometry``; raises :class:`GeometryMismatch` on another N."""
    want = geometry.numbers_per_token()
    if flat_PN.shape[1] != want:
        raise GeometryMismatch(f"{flat_PN.shape[1]} numbers a virtual token, the model takes {want}")
    shapes = [
        (site, x.num_kv_heads, x.head_dim) for site, layers in geometry.sites.items() for x in layers for _ in range(2)
    ]
    parts = flat_PN.split([k * h for _, k, h in shapes], dim=1)
    tensors = [part.unflatten(1, (k, h)) for part, (_, k, h) in zip(parts, shapes, strict=True)]
    sites: dict[Site, list[LayerKV | None]] = {site: [] for site in geometry.sites}
    for (site, _, _), keys, values in zip(shapes[::2], tensors[::2], tensors[1::2], strict=True):
        sites[site].append(LayerKV(keys_PKH=keys, values_PKH=values))
    layers = {site: tuple(x) for site, x in sites.items()}
    return KVPrefix(sites=layers, text_start=text_start, visibility=visibility)
