"""A causal model that reads and says for many rows at once, each behind its own virtual tokens; rows come and go.

One forward reads some rows' text, another says every row's next token: what a server batches. The numbers are those of
``bind()`` (see attention.py); only where keys and values are kept differs. It knows no sampling and no time.
Legend: B rows of a forward, T new tokens of its longest row, S new tokens of all its rows, V vocabulary, E width of
embeddings, P virtual tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from epigraph.errors import BatchMismatch, TextTooLong, UnsupportedModel
from epigraph.frozen.attention import ARGUMENT, Run
from epigraph.frozen.inputs import FIRST_SLOT
from epigraph.frozen.model import FrozenModel
from epigraph.frozen.packing import Packing
from epigraph.frozen.scored import scored
from epigraph.frozen.table import Seats, Table
from epigraph.virtual import KVPrefix, SoftPrompt, VirtualTokens

DEFAULT_ROWS = 64
DEFAULT_BYTES = 2 << 30
# Columns are made in such steps, so that room is not made anew for every token.
_COLUMNS = 64


@dataclass(kw_only=True, slots=True, eq=False)
class Row:
    """One text in the making. ``place`` is its row of the table, ``num_columns`` how many of that are filled.

    ``unread`` are the ids that the model has not read yet, the first of them next.
    """

    tokens: VirtualTokens | None
    unread: list[int]
    place: int
    most_columns: int
    num_columns: int = 0
    shift: int = 0
    absent: frozenset[int] = field(default_factory=frozenset)


class Stepper:
    """Rows of one frozen model, at most ``max_rows``, whose keys and values take at most ``max_bytes``.

    Raises :class:`UnsupportedModel` for a model that it cannot run: see :func:`refuse_stepping`.
    """

    def __init__(self, frozen: FrozenModel, *, max_rows: int = DEFAULT_ROWS, max_bytes: int = DEFAULT_BYTES) -> None:
        refuse_stepping(frozen)
        self.frozen = frozen
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._table = Table(frozen.geometry.sites["decoder.self"], frozen.model.dtype, frozen.device)
        self._rows: list[Row] = []

    @property
    def num_rows(self) -> int:
        """How many rows there are now."""
        return len(self._rows)

    def check(self, tokens: VirtualTokens | None, num_tokens: int, num_new: int, num_rows: int = 1) -> None:
        """Raise :class:`TextTooLong` for what there would never be room for, however long it waited."""
        num_columns = _columns(tokens, num_tokens, num_new)
        limit = self.frozen.geometry.max_positions
        end = num_columns + (0 if tokens is None else _shift(tokens))
        if limit is not None and end > limit:
            raise TextTooLong(
                f"virtual tokens, text and answer reach position {end}, {self.frozen.name} has {limit}; shorten the "
                "text or ask for fewer new tokens"
            )
        if num_rows > self._max_rows or self._table.bytes_for(num_rows, num_columns) > self._max_bytes:
            raise TextTooLong(
                f"{num_rows} rows of {num_columns} tokens, virtual ones and the answer included, are more than the "
                f"engine has room for ({self._max_rows} rows, {self._max_bytes:,} bytes); shorten the text, ask for "
                "fewer new tokens, or start it with more room"
            )

    def has_room(self, tokens: VirtualTokens | None, num_tokens: int, num_new: int, num_rows: int = 1) -> bool:
        """Whether so many more rows like this one fit beside those that are there."""
        rows = len(self._rows) + num_rows
        return rows <= self._max_rows and self._room(rows, _columns(tokens, num_tokens, num_new)) is not None

    def admit(self, tokens: VirtualTokens | None, ids: Sequence[int], num_new: int) -> Row:
        """A row that begins with ``tokens``, as :meth:`FrozenModel.carried` gave them, and has ``ids`` to read.

        Raises :class:`BatchMismatch` where the text's slots are not those of ``tokens``.
        """
        _check_slots(tokens, ids)
        row = Row(
            tokens=tokens,
            unread=list(ids),
            place=len(self._rows),
            most_columns=_columns(tokens, len(ids), num_new),
            shift=0 if tokens is None else _shift(tokens),
            absent=_absent(tokens),
        )
        room = self._room(len(self._rows) + 1, row.most_columns)
        assert room is not None, "has_room says so before"
        if room != (self._table.num_rows, self._table.num_columns):
            self._table.resize(*room, len(self._rows), max((x.num_columns for x in self._rows), default=0))
        row.num_columns = self._table.begin(row.place, tokens if isinstance(tokens, KVPrefix) else None)
        self._rows.append(row)
        return row

    def leave(self, row: Row) -> None:
        """The row ends, and the last one takes its place."""
        last = self._rows.pop()
        self._table.clear(row.place, row.num_columns)
        if last is not row:
            self._table.move(last.place, row.place, last.num_columns)
            last.place = row.place
            self._rows[row.place] = last

    def step(self, rows: Sequence[Row], news: Sequence[Sequence[int]]) -> Tensor:
        """Let each row have its new ids, one or more; the logits behind the last of each, ``[B, V]`` float32."""
        with torch.inference_mode():
            return self._step(rows, news)

    def _step(self, rows: Sequence[Row], news: Sequence[Sequence[int]]) -> Tensor:
        longest, device = max(len(x) for x in news), self.frozen.device
        place_S = [b * longest + t for b, new in enumerate(news) for t in range(len(new))]
        row_S = [row.place for row, new in zip(rows, news, strict=True) for _ in new]
        column_S = [row.num_columns + t for row, new in zip(rows, news, strict=True) for t in range(len(new))]
        shift_S = [row.shift for row, new in zip(rows, news, strict=True) for _ in new]
        ids, place, at, columns, shift = torch.tensor(
            [[x for new in news for x in new], place_S, row_S, column_S, shift_S], device=device
        )
        packing = Packing(shape=(len(rows), longest), place_S=place)
        asks_BT = columns.new_zeros(len(rows) * longest).index_copy(0, place, columns).unflatten(0, packing.shape)
        for row, new in zip(rows, news, strict=True):
            row.num_columns += len(new)
        seats = Seats(
            table=self._table,
            rows=_as_slice([row.place for row in rows], device),
            row_S=at,
            column_S=columns,
            asks_BT=asks_BT,
            num_columns=max(row.num_columns for row in rows),
            partial=frozenset().union(*(row.absent for row in rows)),
        )
        return self._forward(rows, news, ids, columns + shift, packing, seats)

    def _forward(
        self,
        rows: Sequence[Row],
        news: Sequence[Sequence[int]],
        ids_S: Tensor,
        positions_S: Tensor,
        packing: Packing,
        seats: Seats,
    ) -> Tensor:
        frozen = self.frozen
        last_BT = torch.zeros(packing.shape, dtype=torch.bool, device=frozen.device)
        last_BT[torch.arange(len(rows)), torch.tensor([len(new) - 1 for new in news])] = True
        positions = (positions_S + (frozen.position_offset or 0))[None]
        # Of four dimensions, so that the model hands it on as it is; what is seen is the table's to say.
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=frozen.device)
        run = Run(slots=frozen.slots, packing=packing, seats=seats)
        with scored(frozen.model, last_BT, packing):
            out = frozen.model(
                **self._inputs(rows, ids_S, seats),
                position_ids=positions,
                attention_mask=mask,
                use_cache=False,
                **{ARGUMENT: run},
            )
        logits_BV: Tensor = out.logits[0].float()
        return logits_BV

    def _inputs(self, rows: Sequence[Row], ids_S: Tensor, seats: Seats) -> dict[str, Tensor]:
        """The new tokens as ids, or where some are slots of the text, all as embeddings with those filled."""
        placed = [row for row in rows if isinstance(row.tokens, SoftPrompt)]
        is_slot_S = ids_S >= FIRST_SLOT
        if not placed or not bool(is_slot_S.any()):
            return {"input_ids": ids_S[None]}
        embeds_SE = self.frozen.text_embeddings(torch.where(is_slot_S, 0, ids_S))
        for row in placed:
            assert isinstance(row.tokens, SoftPrompt)
            own_S = is_slot_S & (seats.row_S == row.place)
            embeds_SE[own_S] = row.tokens.embeddings_PE[ids_S[own_S] - FIRST_SLOT].to(embeds_SE)
        return {"inputs_embeds": embeds_SE[None]}

    def _room(self, num_rows: int, num_columns: int) -> tuple[int, int] | None:
        """Rows and columns that the table must have, as now, grown, or no more than is needed; None for no way."""
        table = self._table
        needed = max(num_columns, max((row.most_columns for row in self._rows), default=0))
        needed = -(-needed // _COLUMNS) * _COLUMNS
        now = (table.num_rows, table.num_columns)
        if num_rows <= now[0] and needed <= now[1]:
            return now
        rows = now[0] if num_rows <= now[0] else min(max(2 * now[0], num_rows), self._max_rows)
        for wanted in ((rows, max(now[1], needed)), (num_rows, needed)):
            if table.bytes_for(*wanted) <= self._max_bytes:
                return wanted
        # Rounding up must not refuse what check() let pass.
        exact = max(num_columns, max((row.most_columns for row in self._rows), default=0))
        return (num_rows, exact) if table.bytes_for(num_rows, exact) <= self._max_bytes else None


def refuse_stepping(frozen: FrozenModel) -> None:
    """Raise :class:`UnsupportedModel` unless a token is computed from itself, its position and attention alone."""
    if frozen.kind != "causal":
        raise UnsupportedModel(f"{frozen.name} is no decoder of its own; ask it by generate()")
    if frozen.position_offset is None or frozen.geometry.position_kind == "relative" or not frozen.packs:
        raise UnsupportedModel(
            f"{frozen.name} takes no positions, or mixes neighbours beside attention, so that its rows cannot be read "
            "one behind the other; ask it by generate()"
        )


def can_carry(tokens: VirtualTokens | None) -> bool:
    """Whether a row can begin with these: all but an infix, which some of the text sees and some does not."""
    return not isinstance(tokens, KVPrefix) or (tokens.visibility != "answer" and not tokens.placed)


def _columns(tokens: VirtualTokens | None, num_tokens: int, num_new: int) -> int:
    front = tokens.num_virtual_tokens if isinstance(tokens, KVPrefix) else 0
    return front + num_tokens + num_new


def _shift(tokens: VirtualTokens) -> int:
    """What a position is beyond its column."""
    return tokens.text_start - tokens.num_virtual_tokens if isinstance(tokens, KVPrefix) else 0


def _absent(tokens: VirtualTokens | None) -> frozenset[int]:
    if not isinstance(tokens, KVPrefix):
        return frozenset()
    return frozenset(number for number, x in enumerate(tokens.sites["decoder.self"]) if x is None)


def _check_slots(tokens: VirtualTokens | None, ids: Sequence[int]) -> None:
    got = [x - FIRST_SLOT for x in ids if x >= FIRST_SLOT]
    want = list(range(tokens.num_virtual_tokens)) if isinstance(tokens, SoftPrompt) else []
    if sorted(got) != want:
        raise BatchMismatch(
            f"the text has {len(got)} slots for virtual tokens and carries {len(want)} to fill them; write the text by "
            "the template that the virtual tokens were trained with"
        )


def _as_slice(places: Sequence[int], device: torch.device) -> slice | Tensor:
    """Rows that stand side by side are a view of the table, others a copy."""
    first = places[0]
    if list(places) == list(range(first, first + len(places))):
        return slice(first, first + len(places))
    return torch.tensor(places, device=device)
