"""A cache for decoding: each layer begins with its rows' virtual keys and values, copied there once and not every step.

Knows columns of keys and values; does not know which of them a token sees, which stays the seam's (attention.py).
Legend: B rows, P virtual tokens, C text columns so far, T text tokens of this step, K key-value heads, H head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from epigraph.errors import BatchMismatch
from epigraph.frozen.rows import Rows
from epigraph.virtual import Site

# Layers whose cached keys and values begin with the virtual ones, by site and number.
Held = frozenset[tuple[Site, int]]
NONE: Held = frozenset()
# Virtual keys and values ``[B or 1, K, P, H]`` for rows of text keys ``[B, K, T, H]``.
Virtual = Callable[[Tensor], tuple[Tensor, Tensor]]


class PrefixedLayer(DynamicLayer):
    """One layer's ``keys`` and ``values [B, K, P + C, H]``, views of tensors that have room for the text to come.

    Whatever transformers asks is answered for text alone, so that the model's own masks and positions stay as they are.
    Text is written in place: this is for decoding, and keeps no graph.
    """

    def __init__(self, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._room = room
        # The rows' virtual keys and values, asked for when it is known how many rows there are, and of what shape.
        self._virtual: Virtual | None = None
        self._num_virtual = 0
        self._stored: tuple[Tensor, ...] = ()

    def carry(self, virtual: Virtual, num_virtual: int) -> None:
        """Begin with these, P of them, when the first text comes."""
        self._virtual, self._num_virtual = virtual, num_virtual

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make room for the rows of ``key_states [B, K, T, H]``, and copy their virtual keys and values into it."""
        super().lazy_initialization(key_states, value_states)
        num_rows, num_heads, num_tokens, width = key_states.shape
        num_columns = self._num_virtual + max(self._room, num_tokens)
        self._stored = tuple(key_states.new_empty(num_rows, num_heads, num_columns, width) for _ in range(2))
        if self._virtual is not None:
            for stored, virtual_BKPH in zip(self._stored, self._virtual(key_states), strict=True):
                stored[:, :, : self._num_virtual] = virtual_BKPH
        self._show(self._num_virtual)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write ``[B, K, T, H]`` behind what is there; all of it, ``[B, K, P + C, H]``."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin = self._num_columns()
        end = begin + key_states.shape[2]
        if end > self._stored[0].shape[2]:
            self._stored = tuple(_grown(x, begin, 2 * end) for x in self._stored)
        for stored, new in zip(self._stored, (key_states, value_states), strict=True):
            stored[:, :, begin:end] = new
        return self._show(end)

    def get_seq_length(self) -> int:
        """C: the virtual columns are not the text's."""
        return self._num_columns() - self._num_virtual if self.is_initialized else 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row b goes on with the text of row ``beam_idx[b]``, and keeps the virtual tokens that are bound to it."""
        for text_BKCH in self._text():
            text_BKCH.copy_(text_BKCH.index_select(0, beam_idx.to(text_BKCH.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Other rows, each behind the virtual tokens that are bound to it."""
        self._refill([x.repeat_interleave(repeats, dim=0) for x in self._text()])

    def batch_select_indices(self, indices: Tensor) -> None:
        """Other rows, each behind the virtual tokens that are bound to it."""
        self._refill([x[indices] for x in self._text()])

    def reset(self) -> None:
        """Begin again, with the same virtual tokens."""
        self.keys = self.values = None
        self.is_initialized = False

    def _num_columns(self) -> int:
        assert self.keys is not None
        # Not counted apart from them, because crop() cuts what is shown.
        return self.keys.shape[2]

    def _show(self, num_columns: int) -> tuple[Tensor, Tensor]:
        keys, values = (x[:, :, :num_columns] for x in self._stored)
        self.keys, self.values = keys, values
        return keys, values

    def _text(self) -> list[Tensor]:
        """``[B, K, C, H]`` of keys and of values; nothing where no text has come."""
        columns = slice(self._num_virtual, self._num_virtual + self.get_seq_length())
        return [x[:, :, columns] for x in self._stored] if self.is_initialized else []

    def _refill(self, texts: list[Tensor]) -> None:
        if texts:
            self.reset()
            self.update(*texts)


class PrefixedCache(DynamicCache):
    """A cache of one attention site that begins with the virtual tokens of the ``bind()`` in which it is first used.

    ``room`` text columns are made at once, more as they are needed. Layers that transformers gives a window keep its
    own cache, which forgets old text, and the seam puts their virtual tokens in front at every step; so it does where
    an infix is added to the model's own keys.
    """

    def __init__(self, config: PreTrainedConfig, *, room: int, site: Site = "decoder.self") -> None:
        super().__init__(config=config)
        self.layers = [PrefixedLayer(room) if type(x) is DynamicLayer else x for x in self.layers]
        self._site = site
        self._rows: Rows | None = None
        self._held = NONE

    def held(self, rows: Rows | None) -> Held:
        """The layers that hold the virtual tokens of ``rows``; :class:`BatchMismatch` for those of another bind()."""
        if self._rows is None and rows is not None:
            self._carry(rows)
        if rows is None or rows is not self._rows:
            found = "outside of any" if rows is None else "in another"
            raise BatchMismatch(
                f"the cache begins with the virtual tokens of one bind() and is used {found}; "
                "make a new cache for each bind()"
            )
        return self._held

    def _carry(self, rows: Rows) -> None:
        self._rows = rows
        held: set[tuple[Site, int]] = set()
        for number, layer in enumerate(self.layers):
            num_virtual = 0 if rows.has_read else rows.num_columns(self._site, number)
            if num_virtual and isinstance(layer, PrefixedLayer):
                layer.carry(_stacked(rows, self._site, number), num_virtual)
                held.add((self._site, number))
        self._held = frozenset(held)


def cache_for(config: PreTrainedConfig, room: int) -> PrefixedCache | EncoderDecoderCache:
    """An empty cache for one ``generate()``, with room for so many text tokens; an encoder's come all at once."""
    decoder = config.get_text_config(decoder=True)
    own = PrefixedCache(decoder, room=room)
    if not config.is_encoder_decoder:
        return own
    return EncoderDecoderCache(own, PrefixedCache(decoder, room=0, site="decoder.cross"))


def held(past: object, rows: Rows | None) -> Held:
    """The layers of a forward whose keys come out of ``past`` with the virtual ones of ``rows`` in front already."""
    if isinstance(past, EncoderDecoderCache):
        return held(past.self_attention_cache, rows) | held(past.cross_attention_cache, rows)
    return past.held(rows) if isinstance(past, PrefixedCache) else NONE


def _stacked(rows: Rows, site: Site, layer: int) -> Virtual:
    return lambda like: rows.for_batch(like.shape[0]).stacked(site, layer, like)


def _grown(x_BKCH: Tensor, num_used: int, num_columns: int) -> Tensor:
    grown = x_BKCH.new_empty(*x_BKCH.shape[:2], num_columns, x_BKCH.shape[3])
    grown[:, :, :num_used] = x_BKCH[:, :, :num_used]
    return grown
