"""Virtual tokens that stand in the text: token ids that are slots become rows of the prompt that a batch row carries.

Knows ids and embeddings; does not know templates, which decide where slots stand. Legend: B batch, T text tokens,
P virtual tokens, E width of embeddings.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from epigraph.errors import BatchMismatch, LostBinding
from epigraph.frozen.inputs import FIRST_SLOT
from epigraph.frozen.rows import Rows


def has_slots(ids_BT: Tensor | None) -> bool:
    """Whether any of the ids is a virtual token's slot."""
    return ids_BT is not None and ids_BT.numel() > 0 and int(ids_BT.max()) >= FIRST_SLOT


def refuse_slots(ids_BT: Tensor | None) -> None:
    """Raise :class:`LostBinding` for a text with slots where nothing is bound to fill them."""
    if has_slots(ids_BT):
        raise LostBinding("the text has slots for virtual tokens and nothing is bound to fill them; call bind() first")


def note_slots(rows: Rows, ids_BT: Tensor) -> None:
    """Remember where the text's slots are; raise :class:`BatchMismatch` unless each row has what it carries there."""
    _check(rows, ids_BT)
    rows.columns_BP = _columns(rows, ids_BT) if rows.has_read else None


def infix_columns(rows: Rows) -> Tensor | None:
    """``[B, P]``: for each virtual token of a row, padded on the left, the column of its slot; -1 where it has none.

    None where no row has an infix that the model reads; raises :class:`BatchMismatch` where it was not read.
    """
    if rows.has_read and rows.columns_BP is None:
        raise BatchMismatch(
            "the cache holds a text that was read without its infix; read the text in the same bind() as what follows"
        )
    return rows.columns_BP


def _check(rows: Rows, ids_BT: Tensor) -> None:
    counts = [0 if x is None else len(x) for x in rows.prompts]
    want_B = rows.pick(torch.tensor([*counts, 0], device=ids_BT.device))
    slots_BT = ids_BT >= FIRST_SLOT
    got_B = slots_BT.sum(1)
    last_B = torch.where(slots_BT, ids_BT - FIRST_SLOT, -1).amax(1)
    wrong = ((got_B != want_B) | (last_B != want_B - 1)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        want = int(want_B.expand(len(ids_BT))[row])
        raise BatchMismatch(
            f"row {row} of the batch has {int(got_B[row])} slots for virtual tokens and carries {want} to fill them; "
            "write the text by the template that the virtual tokens were trained with"
        )


def filled(embeddings: nn.Module, rows: Rows, ids_BT: Tensor) -> Tensor:
    """``[B, T, E]``: the embeddings of the text with each slot's virtual token in its place, with the graph to it."""
    slots_BT = ids_BT >= FIRST_SLOT
    text_BTE: Tensor = embeddings(torch.where(slots_BT, 0, ids_BT))
    prompts_UPE, number_B = _prompts(rows, text_BTE)
    place_BT = torch.where(slots_BT, ids_BT - FIRST_SLOT, 0)
    return torch.where(slots_BT[..., None], prompts_UPE[number_B[:, None], place_BT], text_BTE)


def _prompts(rows: Rows, like_BTE: Tensor) -> tuple[Tensor, Tensor]:
    """``[U, P, E]``: the distinct prompts, padded, one of zeros behind them; ``[B]``: which one each row carries."""
    if rows.stack is not None and rows.user_B is not None:
        prompts_UPE = rows.stack.tokens.embeddings_PE
        assert prompts_UPE is not None, "slots are expected of placed prompts only"
        return prompts_UPE.to(like_BTE), rows.user_B
    longest = max(0 if x is None else len(x) for x in rows.prompts)
    padded = [
        like_BTE.new_zeros(longest, like_BTE.shape[-1])
        if x is None
        else nn.functional.pad(x.to(like_BTE), (0, 0, 0, longest - len(x)))
        for x in rows.prompts
    ]
    prompts_UPE = torch.stack([*padded, like_BTE.new_zeros(longest, like_BTE.shape[-1])])
    if rows.row_of is None:
        return prompts_UPE, torch.zeros(len(like_BTE), dtype=torch.long, device=like_BTE.device)
    return prompts_UPE, rows.row_of


def _columns(rows: Rows, ids_BT: Tensor) -> Tensor:
    length_B = rows.pick(rows.length_U).expand(len(ids_BT))
    slots_BT = (ids_BT >= FIRST_SLOT) & rows.pick(rows.reads_U)[:, None]
    columns_BP = torch.full((len(ids_BT), rows.longest), -1, device=ids_BT.device)
    row_N, column_N = slots_BT.nonzero(as_tuple=True)
    place_N = ids_BT[row_N, column_N] - FIRST_SLOT + rows.longest - length_B[row_N]
    columns_BP[row_N, place_N] = column_N
    return columns_BP


def text_positions(tokens: Tensor, given: dict[str, object]) -> Tensor:
    """``[B or 1, T]``: the number of each text token in its row, counted from the row's first real token."""
    positions = given.get("position_ids")
    if isinstance(positions, Tensor):
        return positions
    mask = given.get("attention_mask")
    num_tokens = tokens.shape[1]
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -num_tokens:]
    start = past_length(given)
    return torch.arange(start, start + num_tokens, device=tokens.device)[None]


def past_length(given: dict[str, object]) -> int:
    """How many text tokens the cache already holds."""
    past = given.get("past_key_values")
    return 0 if past is None else int(past.get_seq_length())  # type: ignore[attr-defined]
