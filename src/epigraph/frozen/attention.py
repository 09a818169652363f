"""The seam: virtual keys and values enter attention in exactly one function, registered with transformers.

Knows how one forward's prefixes meet one layer's attention; does not know how prefixes were made or trained.
What a forward carries travels down it as a keyword argument, so a checkpointed layer that runs again in the backward
pass, in whatever thread, sees the same prefixes, and nothing stays bound when a forward raises.
Legend: B batch, T text tokens (queries of this call), P virtual tokens, C text columns of keys, K key-value heads,
H head width, U distinct prefixes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from epigraph.errors import BatchMismatch, LostBinding, UnsupportedModel
from epigraph.frozen import grouped
from epigraph.frozen.cache import NONE, Held
from epigraph.frozen.packing import Packing
from epigraph.frozen.rows import Rows
from epigraph.frozen.table import Seats
from epigraph.virtual import Site

ARGUMENT = "epigraph_run"
IMPLEMENTATIONS = ("sdpa", "eager")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Slot:
    """One attention module's place in the model; ``window`` counts positions, None sees everything."""

    site: Site
    layer: int
    window: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What decides a mask beside the rows: queries and text columns of a call, and what no mask would mean there."""

    num_queries: int
    num_columns: int
    causal: bool


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Call:
    """What the seam saw of one attention call: its own keys and values ``[B, K, C, H]`` (after any rotation), how many
    queries it had, its window in positions, whether its first query was kept from the second column, and whether its
    scores are capped."""

    key: Tensor
    value: Tensor
    num_queries: int
    window: int | None
    causal: bool
    capped: bool


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Run:
    """What one forward of one model carries: its rows' prefixes and the positions of its text tokens.

    ``columns_BP``: the columns of keys whose text is an infix, to which the virtual ones are added; -1 is none.

    ``seen``, where given, collects each layer's call. ``packing``: the rows come as one, without their padding.
    ``held``: the layers whose keys and values come out of a cache with the virtual ones in front already.
    ``seats``: a packed forward whose rows are those of a table, which has their virtual tokens and their text so far.
    """

    slots: Mapping[nn.Module, Slot]
    rows: Rows | None = None
    positions_BT: Tensor | None = None
    columns_BP: Tensor | None = None
    seen: dict[nn.Module, Call] | None = None
    packing: Packing | None = None
    held: Held = NONE
    seats: Seats | None = None
    masks: dict[tuple[Any, ...], tuple[Tensor | None, Tensor | None]] = field(default_factory=dict)

    def mask(self, text_mask: Tensor | None, slot: Slot, absent: tuple[int, ...], shape: Shape) -> Tensor | None:
        """The mask over virtual and text columns, made once a forward for all layers that share it."""
        memo = (id(text_mask), slot.window, absent, shape)
        if memo not in self.masks:
            # The text mask is kept beside the result, so that its id cannot be given to another tensor meanwhile.
            virtual_BTP = self._visible(slot.window, absent)
            self.masks[memo] = (text_mask, self._widened(text_mask, virtual_BTP, shape))
        return self.masks[memo][1]

    def _widened(self, text_mask: Tensor | None, virtual_BTP: Tensor, shape: Shape) -> Tensor | None:
        assert self.rows is not None
        if text_mask is None:
            hides = shape.causal and shape.num_queries > 1
            if not hides and self.rows.even and self.columns_BP is None and bool(virtual_BTP.all()):
                return None
            # No mask means causal from the first column on, as in sdpa: a static cache has empty columns at the end.
            ones = torch.ones(shape.num_queries, shape.num_columns, dtype=torch.bool, device=virtual_BTP.device)
            text_mask = (ones.tril() if hides else ones)[None, None]
        num_rows = max(text_mask.shape[0], virtual_BTP.shape[0])
        virtual = virtual_BTP[:, None].expand(num_rows, -1, shape.num_queries, -1)
        if text_mask.dtype != torch.bool:
            hidden = torch.finfo(text_mask.dtype).min
            virtual = torch.zeros_like(virtual, dtype=text_mask.dtype).masked_fill(~virtual, hidden)
        virtual = virtual.expand(-1, text_mask.shape[1], -1, -1)
        text_mask = text_mask.expand(num_rows, -1, shape.num_queries, -1)
        if self.columns_BP is not None:
            text_mask = self._without_read(text_mask, self.columns_BP)
        return torch.cat([virtual, text_mask], dim=-1)

    def _without_read(self, text_mask: Tensor, columns_BP: Tensor) -> Tensor:
        """Who sees the infix does not see the model's own part of it alone: the sum is among the virtual ones."""
        slots_BC = text_mask.new_zeros(len(columns_BP), text_mask.shape[-1], dtype=torch.bool)
        row_N, place_N = (columns_BP >= 0).nonzero(as_tuple=True)
        slots_BC[row_N, columns_BP[row_N, place_N]] = True
        hidden_BTC = (self._asks()[:, :, None] & slots_BC[:, None, :])[:, None]
        if text_mask.dtype == torch.bool:
            return text_mask & ~hidden_BTC
        return text_mask.masked_fill(hidden_BTC, torch.finfo(text_mask.dtype).min)

    def _visible(self, window: int | None, absent: tuple[int, ...]) -> Tensor:
        """Which virtual tokens each query sees, ``[B or 1, T or 1, P]``; distance counts positions, never columns."""
        rows = self.rows
        assert rows is not None
        length_U = rows.length_U.clone()
        length_U[list(absent)] = 0
        from_text_P = torch.arange(-rows.longest, 0, device=rows.device)
        seen_BTP = (from_text_P >= -rows.pick(length_U)[:, None])[:, None, :]
        if rows.has_infix:
            seen_BTP = seen_BTP & (self._asks() | ~rows.pick(rows.late_U)[:, None])[:, :, None]
        if window is None:
            return seen_BTP
        assert self.positions_BT is not None
        at_BP = rows.pick(rows.start_U)[:, None] + from_text_P
        near_BTP = self.positions_BT[:, :, None] - at_BP[:, None, :] < window
        return seen_BTP & (near_BTP | rows.pick(rows.always_U)[:, None, None])

    def _asks(self) -> Tensor:
        """``[B, T]``: the text tokens from the source's last one on, which says the answer's first."""
        rows = self.rows
        assert rows is not None
        if rows.source_B is None or self.positions_BT is None:
            raise BatchMismatch(
                "an infix stands between source and answer, and nothing says where the sources end; "
                "bind it with sources=[number of source tokens, one a row]"
            )
        return self.positions_BT - rows.pick(rows.start_U)[:, None] >= rows.source_B[:, None] - 1


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
            run.seen[module] = _seen(module, query, key, value, attention_mask, kwargs)
        if run.seats is not None and run.packing is not None:
            slot = run.slots[module]
            query = run.packing.spread(query)
            key, value = run.seats.put(slot.layer, key, value)
            attention_mask = run.seats.mask(slot.layer, slot.window, query.dtype)
        elif run.packing is not None:
            query, key, value = (run.packing.spread(x) for x in (query, key, value))
            additive = key.dtype if name == "eager" else None
            attention_mask = run.packing.mask(run.slots[module].window, additive)
        if run.rows is not None and run.rows.longest:
            slot = run.slots[module]
            absent = run.rows.absent(slot.site, slot.layer)
            if len(absent) < len(run.rows.prefixes):
                told = attention_mask is None and _is_causal(module, None, kwargs.get("is_causal"))
                if (slot.site, slot.layer) not in run.held:
                    key, value = _in_front(run, run.rows, slot, key, value)
                num_columns = key.shape[2] - run.rows.longest
                shape = Shape(num_queries=query.shape[2], num_columns=num_columns, causal=told)
                attention_mask = run.mask(attention_mask, slot, absent, shape)
                _widen_bias(kwargs, run.rows.longest)
        if run.packing is None:
            return inner(module, query, key, value, attention_mask, **kwargs)
        if name == "sdpa" and attention_mask is not None and grouped.fits(query, key, attention_mask, kwargs):
            out, *more = grouped.attend(query, key, value, attention_mask, kwargs.get("scaling")), None
        else:
            out, *more = inner(module, query, key, value, attention_mask, **kwargs)
        return (run.packing.packed(out), *more)

    return attend


def _seen(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, kwargs: Mapping[str, Any]
) -> Call:
    return Call(
        key=key,
        value=value,
        num_queries=query.shape[2],
        window=kwargs.get("sliding_window"),
        causal=_is_causal(module, mask, kwargs.get("is_causal")),
        capped=kwargs.get("softcap") is not None,
    )


def _in_front(run: Run, rows: Rows, slot: Slot, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    k_BKPH, v_BKPH = rows.stacked(slot.site, slot.layer, key)
    if run.columns_BP is not None:
        k_BKPH, v_BKPH = k_BKPH + _at_columns(key, run.columns_BP), v_BKPH + _at_columns(value, run.columns_BP)
    num_rows = key.shape[0]
    key = torch.cat([k_BKPH.expand(num_rows, -1, -1, -1), key], dim=2)
    return key, torch.cat([v_BKPH.expand(num_rows, -1, -1, -1), value], dim=2)


def _at_columns(x_BKCH: Tensor, columns_BP: Tensor) -> Tensor:
    """``[B, K, P, H]``: what stands in those columns, 0 for none."""
    there_BKPH = (columns_BP >= 0)[:, None, :, None].expand(-1, x_BKCH.shape[1], -1, x_BKCH.shape[3])
    index_BKPH = columns_BP.clamp(min=0)[:, None, :, None].expand_as(there_BKPH)
    return x_BKCH.gather(2, index_BKPH) * there_BKPH


def _widen_bias(kwargs: dict[str, Any], num_virtual: int) -> None:
    """Virtual tokens have no position: T5's bias, which is a function of distance, is 0 for them."""
    bias = kwargs.get("position_bias")
    if bias is not None:
        kwargs["position_bias"] = nn.functional.pad(bias, (num_virtual, 0))


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
