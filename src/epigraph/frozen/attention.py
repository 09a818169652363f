"""The seam: virtual keys and values enter attention in exactly one function, registered with transformers.

Knows how one forward's prefixes meet one layer's attention; does not know how prefixes were made or trained.
What a forward carries travels down it as a keyword argument, so a checkpointed layer that runs again in the backward
pass, in whatever thread, sees the same prefixes, and nothing stays bound when a forward raises.
Legend: B batch, T text tokens (queries of this call), P virtual tokens, C text columns of keys, K key-value heads,
H head width, U distinct prefixes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from epigraph.errors import BatchMismatch, LostBinding, UnsupportedModel
from epigraph.virtual import KVPrefix, LayerKV, Site

ARGUMENT = "epigraph_run"
IMPLEMENTATIONS = ("sdpa", "eager")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Slot:
    """One attention module's place in the model; ``window`` counts positions, None sees everything."""

    site: Site
    layer: int
    window: int | None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Call:
    """What the seam saw of one attention call: its own keys and values ``[B, K, C, H]`` (after any rotation), its
    window in positions, whether its first query was kept from the second column, and whether its scores are capped."""

    key: Tensor
    value: Tensor
    window: int | None
    causal: bool
    capped: bool


class Rows:
    """Which prefix each row of a batch carries. ``row_of[b]`` numbers a prefix, -1 is none; None: all carry the first.

    ``length_U``, ``start_U`` and ``always_U`` describe the distinct prefixes, with one empty prefix at the end for
    the rows that carry none.
    """

    def __init__(self, prefixes: Sequence[KVPrefix], row_of: Sequence[int] | None, device: torch.device) -> None:
        self.prefixes = tuple(prefixes)
        self.row_of = None if row_of is None else torch.tensor(row_of, device=device)
        lengths = [p.num_virtual_tokens for p in prefixes]
        self.longest = max(lengths, default=0)
        self.even = len(set(lengths)) <= 1 and (row_of is None or min(row_of, default=0) >= 0)
        self.length_U = torch.tensor([*lengths, 0], device=device)
        self.start_U = torch.tensor([*(p.text_start for p in prefixes), 0], device=device)
        self.always_U = torch.tensor([*(p.visibility == "always" for p in prefixes), True], device=device)

    def check(self, num_rows: int) -> None:
        """Raise :class:`BatchMismatch` unless a batch of ``num_rows`` rows can carry these prefixes."""
        if self.row_of is not None and len(self.row_of) != num_rows:
            raise BatchMismatch(
                f"prefixes are bound for {len(self.row_of)} rows, the batch has {num_rows}; bind one prefix a row "
                "(with copies=num_beams under beam search), or a single prefix for all"
            )

    def pick(self, values_U: Tensor) -> Tensor:
        """``[B]`` (or ``[1]`` where all rows carry the same prefix) out of one value a distinct prefix."""
        return values_U[:1] if self.row_of is None else values_U[self.row_of]

    def absent(self, site: Site, layer: int) -> tuple[int, ...]:
        """The numbers of the distinct prefixes that have no virtual tokens in this layer."""
        return tuple(number for number, prefix in enumerate(self.prefixes) if _at(prefix, site, layer) is None)

    def stacked(self, site: Site, layer: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """The rows' virtual keys and values, left-padded, each ``[B or 1, K, P, H]`` in ``like``'s dtype."""
        keys, values = [], []
        for prefix in self.prefixes:
            kv = _at(prefix, site, layer)
            k, v = (None, None) if kv is None else (kv.keys_PKH, kv.values_PKH)
            keys.append(self._padded(k, like))
            values.append(self._padded(v, like))
        if self.row_of is not None and not self.even:
            keys.append(self._padded(None, like))
            values.append(self._padded(None, like))
        both = (torch.stack(x).transpose(1, 2) for x in (keys, values))
        k_UKPH, v_UKPH = ((x if self.row_of is None else x[self.row_of]) for x in both)
        return k_UKPH, v_UKPH

    def _padded(self, x_PKH: Tensor | None, like: Tensor) -> Tensor:
        if x_PKH is None:
            return like.new_zeros(self.longest, like.shape[1], like.shape[3])
        x_PKH = x_PKH.to(like.dtype)
        missing = self.longest - x_PKH.shape[0]
        return nn.functional.pad(x_PKH, (0, 0, 0, 0, missing, 0)) if missing else x_PKH


def _at(prefix: KVPrefix, site: Site, layer: int) -> LayerKV | None:
    layers = prefix.sites.get(site)
    return None if layers is None else layers[layer]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Run:
    """What one forward of one model carries: its rows' prefixes and the positions of its text tokens.

    ``seen``, where given, collects each layer's call.
    """

    slots: Mapping[nn.Module, Slot]
    rows: Rows | None = None
    positions_BT: Tensor | None = None
    seen: dict[nn.Module, Call] | None = None
    masks: dict[tuple[Any, ...], tuple[Tensor | None, Tensor | None]] = field(default_factory=dict)

    def mask(
        self, text_mask: Tensor | None, window: int | None, absent: tuple[int, ...], query: Tensor, key: Tensor
    ) -> Tensor | None:
        """The mask over virtual and text columns, made once a forward for all layers that share it."""
        memo = (id(text_mask), window, absent, key.shape[2])
        if memo not in self.masks:
            # The text mask is kept beside the result, so that its id cannot be given to another tensor meanwhile.
            virtual_BTP = self._visible(window, absent)
            self.masks[memo] = (text_mask, self._widened(text_mask, virtual_BTP, query.shape[2], key.shape[2]))
        return self.masks[memo][1]

    def _widened(
        self, text_mask: Tensor | None, virtual_BTP: Tensor, num_queries: int, num_columns: int
    ) -> Tensor | None:
        assert self.rows is not None
        if text_mask is None:
            if num_queries == 1 and self.rows.even and bool(virtual_BTP.all()):
                return None
            # No mask means causal from the first column on, as in sdpa: a static cache has empty columns at the end.
            ones = torch.ones(num_queries, num_columns, dtype=torch.bool, device=virtual_BTP.device)
            text_mask = (ones.tril() if num_queries > 1 else ones)[None, None]
        num_rows = max(text_mask.shape[0], virtual_BTP.shape[0])
        virtual = virtual_BTP[:, None].expand(num_rows, -1, num_queries, -1)
        if text_mask.dtype != torch.bool:
            hidden = torch.finfo(text_mask.dtype).min
            virtual = torch.zeros_like(virtual, dtype=text_mask.dtype).masked_fill(~virtual, hidden)
        virtual = virtual.expand(-1, text_mask.shape[1], -1, -1)
        return torch.cat([virtual, text_mask.expand(num_rows, -1, -1, -1)], dim=-1)

    def _visible(self, window: int | None, absent: tuple[int, ...]) -> Tensor:
        """Which virtual tokens each query sees, ``[B or 1, T or 1, P]``; distance counts positions, never columns."""
        rows, positions_BT = self.rows, self.positions_BT
        assert rows is not None
        assert positions_BT is not None
        length_U = rows.length_U.clone()
        length_U[list(absent)] = 0
        from_text_P = torch.arange(-rows.longest, 0, device=positions_BT.device)
        real_B1P = (from_text_P >= -rows.pick(length_U)[:, None])[:, None, :]
        if window is None:
            return real_B1P
        at_BP = rows.pick(rows.start_U)[:, None] + from_text_P
        near_BTP = positions_BT[:, :, None] - at_BP[:, None, :] < window
        return real_B1P & (near_BTP | rows.pick(rows.always_U)[:, None, None])


def inner_attention(module: nn.Module, name: str) -> Callable[..., Any]:
    """The attention the model would have used without the seam."""
    if name == "eager":
        eager: Callable[..., Any] = sys.modules[type(module).__module__].__dict__["eager_attention_forward"]
        return eager
    found: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS[name]
    return found


def _attention(name: str) -> Callable[..., Any]:
    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> Any:
        """Attention of one layer, ``query [B, N, T, H]``, ``key`` and ``value [B, K, C, H]``, with the virtual ones."""
        run: Run | None = kwargs.pop(ARGUMENT, None)
        inner = inner_attention(module, name)
        if run is None:
            raise LostBinding(
                f"{type(module).__name__} ran outside the forward of its model, where no prefix can follow; "
                "call the whole model, FrozenModel.model(...), not a part of it"
            )
        if run.seen is not None:
            causal = _is_causal(module, attention_mask, kwargs.get("is_causal"))
            window, capped = kwargs.get("sliding_window"), kwargs.get("softcap") is not None
            run.seen[module] = Call(key=key, value=value, window=window, causal=causal, capped=capped)
        if run.rows is not None and run.rows.longest:
            slot = run.slots[module]
            absent = run.rows.absent(slot.site, slot.layer)
            attention_mask = run.mask(attention_mask, slot.window, absent, query, key)
            k_BKPH, v_BKPH = run.rows.stacked(slot.site, slot.layer, key)
            num_rows = key.shape[0]
            key = torch.cat([k_BKPH.expand(num_rows, -1, -1, -1), key], dim=2)
            value = torch.cat([v_BKPH.expand(num_rows, -1, -1, -1), value], dim=2)
        return inner(module, query, key, value, attention_mask, **kwargs)

    return attend


def _is_causal(module: nn.Module, mask: Tensor | None, told: bool | None) -> bool:
    if mask is None:
        return bool(getattr(module, "is_causal", True) if told is None else told)
    # Boolean masks say True for seen, additive ones 0; of one token nothing can be told, and nothing is asked.
    hidden = mask[..., 0, -1] if mask.shape[-1] > 1 else mask.new_zeros(1)
    return bool((~hidden if mask.dtype == torch.bool else hidden < 0).all())


def register() -> None:
    """Make the seam known to transformers, once for each attention it can call. Harmless when repeated."""
    for name in IMPLEMENTATIONS:
        AttentionInterface.register(seam_name(name), _attention(name))
        AttentionMaskInterface.register(seam_name(name), ALL_MASK_ATTENTION_FUNCTIONS[name])


def install(model: PreTrainedModel, name: str) -> None:
    """Let the model attend through the seam around ``name``; raises :class:`UnsupportedModel` where it cannot."""
    register()
    try:
        # A model that cannot attend by `name` must not attend by the seam around it either.
        model.set_attn_implementation(name)
        model.set_attn_implementation(seam_name(name))
    except (ValueError, ImportError) as wrong:
        reason = str(wrong).splitlines()[0]
        raise UnsupportedModel(f"{type(model).__name__} cannot attend by {name}: {reason}") from wrong
    if model.config._attn_implementation != seam_name(name):
        raise UnsupportedModel(f"{type(model).__name__} does not let its attention be chosen; no prefix can reach it")


def seam_name(name: str) -> str:
    """What the seam around the attention ``name`` is called inside transformers."""
    return f"epigraph_{name}"
