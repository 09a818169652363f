"""Which virtual tokens each row of a batch carries, stacked as attention and the embeddings take them.

Knows nothing of models. Legend: B batch, P virtual tokens, E width of embeddings, K key-value heads, H head width,
U distinct virtual tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from epigraph.errors import BadValue, BatchMismatch
from epigraph.virtual import KVPrefix, LayerKV, Site, VirtualTokens

# What a row carries in attention whose virtual tokens stand in its text.
_NOTHING = KVPrefix(sites={}, text_start=0)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Stacked:
    """The virtual tokens of U users in one, each tensor with U in front; row b of a batch carries number ``row_of[b]``.

    What U separate ones would be, for less: users who are trained together have one length and one place.
    """

    tokens: VirtualTokens
    row_of: Sequence[int]

    def one(self, number: int) -> VirtualTokens:
        """Those of one user."""
        return self.tokens.map(lambda x: x[number])


# What binds: one for all rows, one a row, or the bare model; and several users' in one, a row each.
Carried = VirtualTokens | Sequence[VirtualTokens | None] | None
Bound = Carried | Stacked


class Rows:
    """Which virtual tokens each row of a batch carries. ``row_of[b]`` numbers them, -1 is none; None: all the first.

    ``length_U``, ``start_U``, ``always_U`` and ``late_U`` describe the distinct prefixes, with one empty prefix at the
    end for the rows that carry none. ``copies`` rows in a row are beams of one text; ``source_B`` is the number of
    text tokens in each row that ask, which an infix needs. ``stack``: in all but numbers its rows carry one thing.
    """

    def __init__(
        self,
        tokens: Sequence[VirtualTokens],
        row_of: Sequence[int] | None,
        device: torch.device,
        *,
        copies: int = 1,
        sources: Sequence[int] | None = None,
        stack: Stacked | None = None,
    ) -> None:
        self.stack = stack
        self.user_B = None if stack is None else torch.tensor(list(stack.row_of), device=device)
        self.tokens = tuple(tokens)
        self.prefixes = tuple(x if isinstance(x, KVPrefix) else _NOTHING for x in tokens)
        self.prompts = tuple(x.embeddings_PE for x in tokens)
        self.reads_U = torch.tensor([*(p.placed for p in self.prefixes), False], device=device)
        self.has_read = any(p.placed for p in self.prefixes)
        # Where in the cache a read infix stands, from the forward that read it on: see placed.note_slots.
        self.columns_BP: Tensor | None = None
        self.copies = copies
        self.device = device
        self.row_of = None if row_of is None else torch.tensor(row_of, device=device)
        lengths = [p.num_virtual_tokens for p in self.prefixes]
        self.longest = max(lengths, default=0)
        self.even = len(set(lengths)) <= 1 and (row_of is None or min(row_of, default=0) >= 0)
        self.length_U = torch.tensor([*lengths, 0], device=device)
        self.start_U = torch.tensor([*(p.text_start for p in self.prefixes), 0], device=device)
        self.always_U = torch.tensor([*(p.visibility != "window" for p in self.prefixes), True], device=device)
        self.late_U = torch.tensor([*(p.visibility == "answer" for p in self.prefixes), False], device=device)
        self.has_infix = any(p.visibility == "answer" for p in self.prefixes)
        self.source_B = None if sources is None else torch.tensor(list(sources), device=device)

    def for_batch(self, num_rows: int) -> Rows:
        """These rows for a batch of ``num_rows``: all of them, or one a text where beams are not laid out yet.

        Raises :class:`BatchMismatch` unless such a batch can carry them.
        """
        bound = self.row_of if self.user_B is None else self.user_B
        if bound is None or len(bound) == num_rows:
            return self
        if self.row_of is not None and self.copies > 1 and len(bound) == num_rows * self.copies:
            sources = None if self.source_B is None else self.source_B.tolist()[:: self.copies]
            return Rows(self.tokens, self.row_of.tolist()[:: self.copies], self.device, sources=sources)
        raise BatchMismatch(
            f"prefixes are bound for {len(bound)} rows, the batch has {num_rows}; bind one prefix a row "
            "(with copies=num_beams under beam search), or a single prefix for all"
        )

    def pick(self, values_U: Tensor) -> Tensor:
        """``[B]`` (or ``[1]`` where all rows carry the same prefix) out of one value a distinct prefix."""
        return values_U[:1] if self.row_of is None else values_U[self.row_of]

    def absent(self, site: Site, layer: int) -> tuple[int, ...]:
        """The numbers of the distinct prefixes that have no virtual tokens in this layer."""
        return tuple(number for number, prefix in enumerate(self.prefixes) if _at(prefix, site, layer) is None)

    def num_columns(self, site: Site, layer: int) -> int:
        """P, or 0 in a layer where no prefix has virtual tokens."""
        return self.longest if len(self.absent(site, layer)) < len(self.prefixes) else 0

    def stacked(self, site: Site, layer: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """The rows' virtual keys and values, left-padded, each ``[B or 1, K, P, H]`` in ``like``'s dtype."""
        if self.stack is not None:
            assert isinstance(self.stack.tokens, KVPrefix), "placed prompts have nothing in front"
            kv = _at(self.stack.tokens, site, layer)
            assert kv is not None, "num_columns is 0 there"
            both_UPKH = (x.to(like.dtype) for x in (kv.keys_PKH, kv.values_PKH))
            k_BKPH, v_BKPH = (x[self.user_B].transpose(1, 2) for x in both_UPKH)
            return k_BKPH, v_BKPH
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


def rows_for(
    tokens: Bound,
    carried: Callable[..., VirtualTokens],
    device: torch.device,
    *,
    copies: int,
    sources: Sequence[int] | None,
) -> Rows:
    """What ``bind()`` was given, as rows; ``carried`` makes each one ready, once however many rows carry it."""
    laid_out = None if sources is None else [number for number in sources for _ in range(copies)]
    if tokens is None:
        return Rows([], None, device)
    if isinstance(tokens, Stacked):
        made = replace(tokens, tokens=carried(tokens.tokens, several=True))
        return Rows([made.one(0)], None, device, sources=sources, stack=made)
    if isinstance(tokens, VirtualTokens):
        return Rows([carried(tokens)], None, device, sources=laid_out)
    distinct: dict[int, tuple[int, VirtualTokens]] = {}
    row_of: list[int] = []
    for one in _several(tokens):
        if one is None:
            row_of += [-1] * copies
            continue
        if id(one) not in distinct:
            distinct[id(one)] = (len(distinct), carried(one))
        row_of += [distinct[id(one)][0]] * copies
    if not row_of:
        raise BatchMismatch("bind() was given no rows; give one prefix, or one a row")
    return Rows([one for _, one in distinct.values()], row_of, device, copies=copies, sources=laid_out)


def _several(tokens: object) -> Sequence[VirtualTokens | None]:
    """Rows of virtual tokens; raises :class:`BadValue` for what is none, a path or a Tuned, say."""
    rows: Sequence[Any] = tokens if isinstance(tokens, list | tuple) else [tokens]
    wrong = next((type(one).__name__ for one in rows if not (one is None or isinstance(one, VirtualTokens))), None)
    if wrong is not None:
        raise BadValue(f"bind() was given a {wrong}, expected virtual tokens; write epigraph.load(path).prefix")
    return rows
