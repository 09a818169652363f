"""Keys and values of many answers in the making, a row each: virtual tokens in the first columns, text behind them.

A row comes and goes without its neighbours noticing. It knows columns; who asks for what is the stepper's business.
Legend: R rows, B rows of one forward, K key-value heads, C columns, H head width, P virtual tokens, T queries of the
longest row of a forward, S new tokens of a forward, row after row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from epigraph.virtual import KVPrefix, LayerGeometry


class Table:
    """One ``[R, K, C, H]`` of keys and one of values for every layer, with room that grows and is given back.

    What no row uses is zero: what is hidden counts nothing, but nothing times infinity would, in a neighbour's answer.
    ``num_virtual_R``, ``always_R`` and ``has_LR`` say of each row how many virtual tokens it begins with, whether they
    are visible from everywhere, and which layers have them.
    """

    def __init__(self, layers: Sequence[LayerGeometry], dtype: torch.dtype, device: torch.device) -> None:
        self._layers = tuple(layers)
        self._dtype = dtype
        self._device = device
        self.num_rows = self.num_columns = 0
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.num_virtual_R = torch.zeros(0, dtype=torch.long, device=device)
        self.always_R = torch.zeros(0, dtype=torch.bool, device=device)
        self.has_LR = torch.zeros(len(layers), 0, dtype=torch.bool, device=device)

    def bytes_for(self, num_rows: int, num_columns: int) -> int:
        """What keys and values of so many rows and columns take."""
        numbers = sum(2 * x.num_kv_heads * x.head_dim for x in self._layers)
        return num_rows * num_columns * numbers * self._dtype.itemsize

    def resize(self, num_rows: int, num_columns: int, used_rows: int, used_columns: int) -> None:
        """Have room for exactly so many; of the rows and columns in use nothing is lost."""
        for number, layer in enumerate(self._layers):
            for stored in (self.keys, self.values):
                new = torch.zeros(
                    num_rows, layer.num_kv_heads, num_columns, layer.head_dim, dtype=self._dtype, device=self._device
                )
                if number < len(stored):
                    new[:used_rows, :, :used_columns] = stored[number][:used_rows, :, :used_columns]
                    stored[number] = new
                else:
                    stored.append(new)
        self.num_virtual_R, self.always_R = (_resized(x, num_rows) for x in (self.num_virtual_R, self.always_R))
        self.has_LR = _resized(self.has_LR, num_rows)
        self.num_rows, self.num_columns = num_rows, num_columns

    def begin(self, row: int, prefix: KVPrefix | None) -> int:
        """Let ``row`` begin with these keys and values; how many columns they take."""
        num_virtual = 0 if prefix is None else prefix.num_virtual_tokens
        self.num_virtual_R[row] = num_virtual
        self.always_R[row] = prefix is not None and prefix.visibility == "always"
        self.has_LR[:, row] = False
        if prefix is not None:
            for _, number, layer in prefix.layers():
                self.has_LR[number, row] = True
                self.keys[number][row, :, :num_virtual] = layer.keys_PKH.transpose(0, 1)
                self.values[number][row, :, :num_virtual] = layer.values_PKH.transpose(0, 1)
        return num_virtual

    def clear(self, row: int, num_columns: int) -> None:
        """Forget the first ``num_columns`` of a row, all that it used."""
        for stored in (*self.keys, *self.values):
            stored[row, :, :num_columns] = 0

    def move(self, source: int, target: int, num_columns: int) -> None:
        """Row ``target``, which is clear, becomes what ``source`` is, which uses its first ``num_columns``."""
        for stored in (*self.keys, *self.values):
            stored[target, :, :num_columns] = stored[source, :, :num_columns]
        for told in (self.num_virtual_R, self.always_R):
            told[target] = told[source]
        self.has_LR[:, target] = self.has_LR[:, source]
        self.clear(source, num_columns)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Seats:
    """Where one forward's new tokens go, and what they see.

    ``rows`` are B rows of the table; token s goes to column ``column_S[s]`` of row ``row_S[s]``, counted over all rows.
    ``asks_BT``: the column of each query, for padding any that is filled. ``num_columns``: C, as far as any row goes.
    ``partial``: the layers in which some of the rows have no virtual tokens, though they have some elsewhere.
    """

    table: Table
    rows: slice | Tensor
    row_S: Tensor
    column_S: Tensor
    asks_BT: Tensor
    num_columns: int
    partial: frozenset[int] = frozenset()
    masks: dict[tuple[int | None, int], Tensor] = field(default_factory=dict)

    def put(self, number: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the new tokens' keys and values ``[1, K, S, H]`` of a layer; its rows, ``[B, K, C, H]`` each."""
        stored = self.table.keys[number], self.table.values[number]
        for kept, new in zip(stored, (key, value), strict=True):
            kept[self.row_S, :, self.column_S] = new[0].transpose(0, 1)
        keys, values = (x[self.rows, :, : self.num_columns] for x in stored)
        return keys, values

    def mask(self, number: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """``[B, 1, T, C]``, added to scores: 0 where a query sees a column. Column and position differ by the same
        number all along a row, so that columns tell distances."""
        memo = (window, number if number in self.partial else -1)
        if memo not in self.masks:
            sees_BTC = self._sees(window, self.table.has_LR[number, self.rows] if number in self.partial else None)
            hidden = torch.finfo(dtype).min
            self.masks[memo] = torch.zeros_like(sees_BTC, dtype=dtype).masked_fill(~sees_BTC, hidden)[:, None]
        return self.masks[memo]

    def _sees(self, window: int | None, has_B: Tensor | None) -> Tensor:
        column_C = torch.arange(self.num_columns, device=self.asks_BT.device)
        distance_BTC = self.asks_BT[:, :, None] - column_C
        is_virtual_B1C = (column_C < self.table.num_virtual_R[self.rows][:, None])[:, None]
        sees_BTC = distance_BTC >= 0
        if window is not None:
            sees_BTC = sees_BTC & (
                (distance_BTC < window) | (is_virtual_B1C & self.table.always_R[self.rows][:, None, None])
            )
        if has_B is not None:
            sees_BTC = sees_BTC & (~is_virtual_B1C | has_B[:, None, None])
        return sees_BTC


def _resized(x: Tensor, num_rows: int) -> Tensor:
    """The same ``[..., R]`` with another R."""
    new = x.new_zeros(*x.shape[:-1], num_rows)
    both = min(num_rows, x.shape[-1])
    new[..., :both] = x[..., :both]
    return new
