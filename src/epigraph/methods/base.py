"""What every method is: a module whose forward makes virtual tokens. It knows no model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor, nn

from epigraph.errors import GeometryMismatch
from epigraph.virtual import Geometry, KVPrefix, LayerKV, Site, VirtualTokens, Visibility


class Classifier(nn.Linear):
    """What chooses a class from an encoder's states; ``reads`` the first token's, their mean, what stands at the mask,
    or each tagged word's.

    At the mask its rows are class vectors, which start from ``first_CW`` where that is given, and it has no bias.
    (Hambardzumyan et al. 2021, section 3.)
    """

    def __init__(
        self,
        width: int,
        num_classes: int,
        reads: Literal["first", "mean", "mask", "tags"],
        first_CW: Tensor | None = None,
    ) -> None:
        super().__init__(width, num_classes, bias=reads != "mask")
        self.reads = reads
        # As BERT's own heads start.
        nn.init.normal_(self.weight, std=0.02)
        if first_CW is not None:
            with torch.no_grad():
                self.weight.copy_(first_CW)
        if reads != "mask":
            nn.init.zeros_(self.bias)


class Foreign(Protocol):
    """A model as another library carries what is trained: it reads lessons and answers in the frozen model's place."""

    def losses(self, batch: Any) -> Tensor:
        """``[S]`` float32: the negative log-likelihood, in nats, of each scored token of a batch, row after row."""

    def generate(
        self, prompts: Sequence[Sequence[int]], decoding: Any, *, batch_size: int, advance: Callable[[int], None]
    ) -> list[list[int]]:
        """The new token ids of each prompt, its end token left out, in the order given."""


class Method(nn.Module, ABC):
    """A trainable maker of virtual tokens. Its parameters are float32 and are all that a training run changes.

    Two things may be trained beside them, and are then parts of the method: ``head``, a classifier on an encoder, and
    ``base``, the model itself, which is then frozen no more and stays in eval mode. ``foreign`` is no part of it: a
    model of another library that the parameters belong to, where they are compared with ours.
    """

    def __init__(self) -> None:
        super().__init__()
        self.head: Classifier | None = None
        self.base: nn.Module | None = None
        self.foreign: Foreign | None = None

    @abstractmethod
    def forward(self) -> VirtualTokens | None:
        """The virtual tokens as they are now, with the graph back to the parameters; None where there are none."""

    def fold(self) -> VirtualTokens | None:
        """The virtual tokens alone, in float32: whatever computed them is left behind. Equal to the live ones."""
        with torch.no_grad():
            was_training = self.training
            try:
                tokens = self.eval().forward()
                return None if tokens is None else tokens.frozen_copy()
            finally:
                self.train(was_training)

    def train(self, mode: bool = True) -> Self:
        """As in torch, but for the base: its dropout stays off."""
        super().train(mode)
        if self.base is not None:
            self.base.eval()
        return self

    @property
    def num_stored(self) -> int:
        """How many numbers an artifact holds: folded virtual tokens, and the head."""
        tokens = self.fold()
        head = [] if self.head is None else list(self.head.parameters())
        return (0 if tokens is None else tokens.num_numbers) + sum(x.numel() for x in head)

    @property
    def num_trained(self) -> int:
        """How many numbers training changes."""
        return sum(x.numel() for x in self.parameters() if x.requires_grad)


class Maker(Method):
    """A method of virtual tokens that are some numbers first: what trains many users at once makes those together.

    ``dropout`` falls on the first of the numbers.
    """

    dropout: float

    @abstractmethod
    def numbers(self) -> tuple[Tensor, ...]:
        """``[P, ...]`` each, float32: all that is trained has gone into them, and nothing that is drawn."""

    @abstractmethod
    def tokens(self, *numbers: Tensor) -> VirtualTokens:
        """The virtual tokens made of ``numbers``; of ``[U, P, ...]`` each, those of U users in one, U in front."""

    def forward(self) -> VirtualTokens:
        """The virtual tokens as they are now."""
        first, *rest = self.numbers()
        return self.tokens(nn.functional.dropout(first, self.dropout, self.training), *rest)


def flatten(prefix: KVPrefix, sites: Iterable[Site] | None = None) -> Tensor:
    """``[P, N]``: each virtual token's keys and values at ``sites`` (none: all it has), as one row of N numbers.

    Float32, site after site, layer after layer. Raises :class:`GeometryMismatch` where a layer has none.
    """
    parts = []
    for site in prefix.sites if sites is None else sites:
        for layer in prefix.sites.get(site, (None,)):
            if layer is None:
                raise GeometryMismatch(f"the first values have none for every layer at {site}; start from others")
            parts += [layer.keys_PKH.flatten(1), layer.values_PKH.flatten(1)]
    return torch.cat(parts, dim=1).float()


def unflatten(flat_PN: Tensor, geometry: Geometry, *, text_start: int, visibility: Visibility) -> KVPrefix:
    """The inverse of :func:`flatten` for a model of ``geometry``; raises :class:`GeometryMismatch` on another N.

    What stands before ``[P, N]`` stays in front of every tensor.
    """
    want = geometry.numbers_per_token()
    if flat_PN.shape[-1] != want:
        raise GeometryMismatch(f"{flat_PN.shape[-1]} numbers a virtual token, the model takes {want}")
    shapes = [
        (site, x.num_kv_heads, x.head_dim) for site, layers in geometry.sites.items() for x in layers for _ in range(2)
    ]
    parts = flat_PN.split([k * h for _, k, h in shapes], dim=-1)
    tensors = [part.unflatten(-1, (k, h)) for part, (_, k, h) in zip(parts, shapes, strict=True)]
    sites: dict[Site, list[LayerKV | None]] = {site: [] for site in geometry.sites}
    for (site, _, _), keys, values in zip(shapes[::2], tensors[::2], tensors[1::2], strict=True):
        sites[site].append(LayerKV(keys_PKH=keys, values_PKH=values))
    layers = {site: tuple(x) for site, x in sites.items()}
    return KVPrefix(sites=layers, text_start=text_start, visibility=visibility)
