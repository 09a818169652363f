"""Rows of token ids as one padded batch. It knows no text and no model.

Legend: B batch, T text tokens, A answer tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from epigraph.frozen.inputs import Encoded, pad


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Right-padded rows: ids, mask and which tokens are scored, each ``[B, T]``.

    ``answer_BA`` and ``said_BA``: what is to be said or chosen where that is not in the ids themselves, and its mask.
    """

    ids_BT: Tensor
    mask_BT: Tensor
    scored_BT: Tensor
    answer_BA: Tensor
    said_BA: Tensor

    def to(self, device: torch.device) -> Batch:
        """On another device."""
        return Batch(
            ids_BT=self.ids_BT.to(device),
            mask_BT=self.mask_BT.to(device),
            scored_BT=self.scored_BT.to(device),
            answer_BA=self.answer_BA.to(device),
            said_BA=self.said_BA.to(device),
        )

    @property
    def num_tokens(self) -> int:
        """Real tokens, padding left out; a decoder's own among them."""
        return int(self.mask_BT.sum()) + (0 if bool(self.scored_BT.any()) else int(self.said_BA.sum()))

    @property
    def sources(self) -> list[int]:
        """How many tokens of each continuation stand before its first scored one."""
        first = torch.where(self.scored_BT.any(1), self.scored_BT.int().argmax(1), self.mask_BT.sum(1))
        return [int(x) for x in first]


def collate(rows: Sequence[Encoded], fill: int) -> Batch:
    """One batch out of rows."""
    ids, mask = pad([row.ids for row in rows], fill, left=False)
    scored, _ = pad([[int(x) for x in row.scored] for row in rows], 0, left=False)
    answer, said = pad([row.answer for row in rows], fill, left=False)
    return Batch(ids_BT=ids, mask_BT=mask, scored_BT=scored.bool(), answer_BA=answer, said_BA=said.bool())


def length(row: Encoded) -> int:
    """How many tokens a model reads for a row."""
    return len(row.ids) + len(row.answer)


def num_scored(row: Encoded) -> int:
    """How many tokens of a row the loss counts; the first token of a text is never predicted."""
    return len(row.answer) or sum(row.scored[1:])
