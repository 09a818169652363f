"""The waist: what virtual tokens are, and what must match between them and a model.

Methods make these values, engines use them; neither knows the other. This file knows no model and no method.
Legend, the same in all files: B batch, T text tokens, P virtual tokens, S = P + T, L layers, N query heads,
K key-value heads, H head width, D model width, V vocabulary.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from epigraph.errors import GeometryMismatch, SharedLayers

Site = Literal["decoder.self", "decoder.cross", "encoder.self"]
Visibility = Literal["always", "window", "answer"]
PositionKind = Literal["rotary", "absolute", "relative", "none"]

SITES: tuple[Site, ...] = get_args(Site)
VISIBILITIES: tuple[Visibility, ...] = get_args(Visibility)


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerGeometry:
    """One attention layer: K key-value heads of width H; ``window`` counts positions, None sees everything."""

    num_kv_heads: int
    head_dim: int
    window: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """What must match between virtual tokens and a model.

    ``embedding_dim`` is the width of the *input* embeddings (E, not always D); ``max_positions`` is None where
    positions have no table to run out of.
    """

    sites: Mapping[Site, tuple[LayerGeometry, ...]]
    embedding_dim: int
    position_kind: PositionKind
    max_positions: int | None = None

    @property
    def has_windows(self) -> bool:
        """Whether any layer sees only a window, so that ``always`` and ``window`` differ."""
        return any(layer.window is not None for layers in self.sites.values() for layer in layers)

    @property
    def is_causal(self) -> bool:
        """Whether text only ever sees what stands before it: a decoder without an encoder."""
        return set(self.sites) == {"decoder.self"}

    def text_start(self, num_virtual_tokens: int) -> int:
        """Where text starts behind trained keys and values: behind them in a decoder of its own, elsewhere at 0.

        Encoders see both ways, so that in front is nowhere in particular; a decoder beside an encoder starts at 0 in
        the authors' BART, too.
        """
        return num_virtual_tokens if self.is_causal else 0

    def only(self, sites: Collection[Site]) -> Geometry:
        """The same geometry with these sites alone; raises :class:`GeometryMismatch` for one that it does not have."""
        if not self.sites:
            raise SharedLayers(
                "the model's layers share one attention module, which cannot be told which layer it is; "
                "use virtual tokens as embeddings: method prompt-tuning or p-tuning"
            )
        missing = sorted(set(sites) - set(self.sites))
        if missing:
            raise GeometryMismatch(
                f"the model has no {missing[0]}, expected some of {', '.join(self.sites)}; change method.sites"
            )
        return replace(self, sites={site: layers for site, layers in self.sites.items() if site in sites})

    def numbers_per_token(self) -> int:
        """How many numbers one virtual token is, as keys and values in every layer of every site."""
        return sum(2 * x.num_kv_heads * x.head_dim for layers in self.sites.values() for x in layers)


def geometry_digest(geometry: Geometry) -> str:
    """64 hex digits over what must match between virtual tokens and a model."""
    return hashlib.sha256(json.dumps(asdict(geometry), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerKV:
    """The virtual keys and values of one layer, each ``[P, K, H]``; keys are stored after any rotation."""

    keys_PKH: Tensor
    values_PKH: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class SoftPrompt:
    """Virtual tokens as input embeddings ``[P, E]``: in front of everything, the start token included, or ``placed``.

    Placed ones stand at the slots of the text contract's template, in order, wherever that has them (Liu et al. 2021).
    They live in the space that ``inputs_embeds`` receives: after whatever scale the model applies to its own
    embeddings. (Lester et al. 2021, section 2; Li & Liang 2021, section 7.2, "embedding-only".)
    """

    embeddings_PE: Tensor
    placed: bool = False

    @property
    def num_virtual_tokens(self) -> int:
        """P."""
        return self.embeddings_PE.shape[0]

    @property
    def num_numbers(self) -> int:
        """How many numbers the prompt holds."""
        return self.embeddings_PE.numel()

    def map(self, change: Callable[[Tensor], Tensor]) -> SoftPrompt:
        """The same prompt with ``change`` applied to its embeddings."""
        return SoftPrompt(embeddings_PE=change(self.embeddings_PE), placed=self.placed)

    def to(self, where: torch.device | torch.dtype | str) -> SoftPrompt:
        """On another device or in another dtype."""
        return self.map(lambda x: x.to(where))

    def frozen_copy(self) -> SoftPrompt:
        """Detached from any graph and from the storage it was trained in."""
        return self.map(lambda x: x.detach().clone())

    def check(self, geometry: Geometry) -> None:
        """Raise :class:`GeometryMismatch` unless the embeddings are as wide as the model's and leave room for text."""
        shape = list(self.embeddings_PE.shape)
        if len(shape) != 2 or not shape[0] or shape[1] != geometry.embedding_dim:
            raise GeometryMismatch(
                f"embeddings are {shape}, expected [1 or more, {geometry.embedding_dim}] "
                "(virtual tokens, width of the model's input embeddings)"
            )
        check_text_start(self.num_virtual_tokens, geometry)


@dataclass(frozen=True, kw_only=True, slots=True)
class KVPrefix:
    """Virtual tokens as keys and values: for each site one :class:`LayerKV` a layer (None where a layer has none).

    ``text_start`` is the position of the first text token; it is stored, never inferred. Virtual token j stands at
    position ``text_start - P + j``. ``visibility`` says who sees it: ``always`` everyone, also in a windowed layer;
    ``window`` the positions that the model's own rule allows; ``answer`` the source's last token, which says the
    answer's first, and what follows: an infix. (Li & Liang 2021, section 4.2 and eq. 3; infix: section 7.3.)
    With ``embeddings_PE`` the model itself reads those at the slots of the text contract's template; what it makes of
    them is replaced, for those who see the infix, by its sum with these keys and values (the authors' code).
    """

    sites: Mapping[Site, tuple[LayerKV | None, ...]]
    text_start: int
    visibility: Visibility = "always"
    embeddings_PE: Tensor | None = None

    def layers(self) -> Iterator[tuple[Site, int, LayerKV]]:
        """Every layer that has virtual tokens, as (site, layer number, its keys and values)."""
        for site, layers in self.sites.items():
            for number, layer in enumerate(layers):
                if layer is not None:
                    yield site, number, layer

    @property
    def num_virtual_tokens(self) -> int:
        """P. The same in every layer, which :meth:`check` asserts."""
        return max((layer.keys_PKH.shape[0] for _, _, layer in self.layers()), default=0)

    @property
    def num_numbers(self) -> int:
        """How many numbers the prefix holds."""
        read = 0 if self.embeddings_PE is None else self.embeddings_PE.numel()
        return read + sum(x.keys_PKH.numel() + x.values_PKH.numel() for _, _, x in self.layers())

    @property
    def placed(self) -> bool:
        """Whether the text has slots for them."""
        return self.embeddings_PE is not None

    def map(self, change: Callable[[Tensor], Tensor]) -> KVPrefix:
        """The same prefix with ``change`` applied to every tensor."""
        sites: dict[Site, tuple[LayerKV | None, ...]] = {
            site: tuple(x and LayerKV(keys_PKH=change(x.keys_PKH), values_PKH=change(x.values_PKH)) for x in layers)
            for site, layers in self.sites.items()
        }
        read = self.embeddings_PE if self.embeddings_PE is None else change(self.embeddings_PE)
        return replace(self, sites=sites, embeddings_PE=read)

    def to(self, where: torch.device | torch.dtype | str) -> KVPrefix:
        """On another device or in another dtype."""
        return self.map(lambda x: x.to(where))

    def frozen_copy(self) -> KVPrefix:
        """Detached from any graph and from the storage it was trained in."""
        return self.map(lambda x: x.detach().clone())

    def check(self, geometry: Geometry) -> None:
        """Raise :class:`GeometryMismatch` unless every site, layer and shape fits ``geometry``."""
        geometry.only(())
        for site, layers in self.sites.items():
            want = geometry.sites.get(site)
            if want is None or len(want) != len(layers):
                have = "no such site" if want is None else f"{len(want)} layers"
                raise GeometryMismatch(f"prefix has {len(layers)} layers at {site}, the model has {have}")
        for site, number, layer in self.layers():
            model = geometry.sites[site][number]
            want_shape = (self.num_virtual_tokens, model.num_kv_heads, model.head_dim)
            for name, x in (("keys", layer.keys_PKH), ("values", layer.values_PKH)):
                if tuple(x.shape) != want_shape:
                    raise GeometryMismatch(
                        f"{site} layer {number}: {name} are {list(x.shape)}, expected {list(want_shape)} "
                        "(virtual tokens, key-value heads, head width)"
                    )
        if self.visibility == "answer" and not geometry.is_causal:
            raise GeometryMismatch(
                "an infix stands between source and answer, the model does not read both as one text"
            )
        if self.embeddings_PE is not None:
            self._check_read(self.embeddings_PE, geometry)
        if self.visibility not in VISIBILITIES:
            raise GeometryMismatch(f"visibility is {self.visibility!r}, expected one of {', '.join(VISIBILITIES)}")
        check_text_start(self.text_start, geometry)

    def _check_read(self, embeddings_PE: Tensor, geometry: Geometry) -> None:
        want = [self.num_virtual_tokens, geometry.embedding_dim]
        if list(embeddings_PE.shape) != want:
            raise GeometryMismatch(f"the infix's embeddings are {list(embeddings_PE.shape)}, expected {want}")
        if self.visibility != "answer":
            raise GeometryMismatch(
                f"visibility is {self.visibility!r}, expected 'answer' for keys and values that are added to a text's"
            )
        if geometry.has_windows:
            raise GeometryMismatch(
                "an infix that the model reads needs what was read later, and layers with a window forget it; "
                "use method.place = 'infix'"
            )


# What a method makes and a model is bound to.
VirtualTokens = KVPrefix | SoftPrompt


def check_text_start(text_start: int, geometry: Geometry) -> None:
    """Raise :class:`GeometryMismatch` unless text can start at that position."""
    if text_start < 0:
        raise GeometryMismatch(f"text starts at position {text_start}, expected 0 or more")
    if geometry.max_positions is not None and text_start >= geometry.max_positions:
        raise GeometryMismatch(
            f"text would start at position {text_start}, the model has {geometry.max_positions} positions; "
            "train with fewer virtual tokens"
        )
