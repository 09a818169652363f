"""Class vectors, read where the answer stands: at the mask, in the space of a masked model's own words (WARP).

Knows models and what they call their words; does not know how class vectors are trained.
(Hambardzumyan et al. 2021, section 3.) Legend: S rows, C classes, D width of states, W width at the mask.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from epigraph.contract import Mask, TextContract, pieces_of
from epigraph.errors import BadValue
from epigraph.frozen.batch import Batch
from epigraph.frozen.model import FrozenModel
from epigraph.frozen.scored import wanted


def states_at_masks(frozen: FrozenModel, batch: Batch) -> Tensor:
    """``[S, W]``: what the model makes of the scored places, row after row, one mask a row.

    Of a masked model, what its words' vectors are multiplied by: the head's transform of the last state. Of an encoder
    without such a head, the last state itself.
    """
    words = frozen.model.get_output_embeddings()
    if words is None:
        return frozen.hidden(batch.ids_BT, batch.mask_BT)[batch.scored_BT]
    seen: list[Tensor] = []
    with frozen.scored(batch.scored_BT):
        own = wanted(frozen.model)

        def note(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            # Another thread's forward of the same model passes here, too.
            if wanted(frozen.model) is own:
                seen.append(args[0][0])

        handle = words.register_forward_pre_hook(note)
        try:
            frozen.model(input_ids=batch.ids_BT, attention_mask=batch.mask_BT)
        finally:
            handle.remove()
    return seen[0]


def width_at_mask(frozen: FrozenModel) -> int:
    """W: the width of the vectors of the model's words, or of its states where it says no words."""
    words = frozen.model.get_output_embeddings()
    width = frozen.model.config.hidden_size if words is None else words.weight.shape[1]
    return int(width)


def first_class_vectors(frozen: FrozenModel, contract: TextContract) -> Tensor | None:
    """``[C, W]``: for each label the mean of the vectors that its word's tokens have in the model's own head.

    A model without one has input embeddings in their place; None where those are of another width than its states.
    Raises :class:`BadValue` for a word without tokens.
    """
    words = frozen.model.get_output_embeddings()
    if words is None and frozen.geometry.embedding_dim != width_at_mask(frozen):
        return None
    has_blank = any(isinstance(x, Mask) and x.after_blank for x in pieces_of(contract.input_template))
    rows = []
    with torch.no_grad():
        for word in contract.label_words or contract.labels:
            # As it would be said there: with the blank before the mask.
            text = f" {word}" if has_blank and not word.startswith(" ") else word
            ids = frozen.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
            if not ids:
                raise BadValue(f"the tokenizer makes nothing of the label word {word!r}; give other label_words")
            rows.append((frozen.embed(ids) if words is None else words.weight[ids]).float().mean(0))
    return torch.stack(rows)
