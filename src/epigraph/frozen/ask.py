"""Asking a model behind virtual tokens, as its contract says: free text, the likeliest of some answers, a head's class.

The one way for evaluation, development scores and use. Knows contracts; does not know tasks or scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from epigraph.contract import Decoding
from epigraph.errors import BadValue
from epigraph.frozen.answers import Head
from epigraph.frozen.choose import classify, rank
from epigraph.frozen.ensemble import Ensemble
from epigraph.frozen.generate import generate
from epigraph.frozen.inputs import Codec, Encoded
from epigraph.frozen.model import FrozenModel
from epigraph.virtual import VirtualTokens

Advance = Callable[[int], None]


def answers(
    frozen: FrozenModel,
    codec: Codec,
    asked: Sequence[Encoded],
    rows: Sequence[Mapping[str, str]],
    tokens: VirtualTokens | Ensemble | None,
    *,
    head: Head | None = None,
    candidates: Sequence[str] = (),
    decoding: Decoding | None = None,
    batch_size: int = 64,
    advance: Advance = lambda _: None,
    **options: Any,
) -> list[str]:
    """One answer a row, in order. ``asked`` are the rows as ids, ``rows`` the same as fields of the template.

    Where the contract has labels the answer is one of them, with ``candidates`` one of those: the likeliest, or by an
    ensemble's joined opinion. A masked model without either says the one token that it finds likeliest at the
    mask. Otherwise the answer is decoded; ``options`` go to transformers' ``generate``.
    Raises :class:`BadValue` for a contract that needs a head and has none.
    """
    contract = codec.contract
    if contract.layout in ("label", "tags"):
        if head is None or isinstance(tokens, Ensemble):
            why = "several heads cannot be asked together" if head is not None else "the artifact holds none"
            raise BadValue(f"layout {contract.layout!r} is answered by a head: {why}; ask one artifact that has one")
        chosen = classify(frozen, asked, head, tokens, batch_size=batch_size, advance=advance)
        return [" ".join(contract.labels[number] for number in numbers) for numbers in chosen]
    choices = contract.labels or tuple(candidates)
    if choices or contract.layout == "cloze":
        likely = _joined(frozen, codec, rows, choices or None, tokens, batch_size, advance)
        return [choices[number] if choices else codec.text([number]) for number in likely]
    decoding = decoding or contract.decoding
    prompts = [x.ids for x in asked]
    if isinstance(tokens, Ensemble):
        new = tokens.generate(frozen, prompts, codec.text, decoding, batch_size=batch_size, advance=advance)
    else:
        new = generate(frozen, prompts, tokens, decoding, batch_size=batch_size, advance=advance, **options)
    return [codec.text(ids) for ids in new]


def _joined(
    frozen: FrozenModel,
    codec: Codec,
    rows: Sequence[Mapping[str, str]],
    choices: Sequence[str] | None,
    tokens: VirtualTokens | Ensemble | None,
    batch_size: int,
    advance: Advance,
) -> list[int]:
    if not isinstance(tokens, Ensemble):
        scores_BN = rank(frozen, codec, rows, choices, tokens, batch_size=batch_size, advance=advance)
        return [int(x) for x in scores_BN.argmax(1)]
    # Each row once a member, side by side in the same batches.
    num_members = len(tokens.members)
    copies = [row for row in rows for _ in tokens.members]
    scores = rank(
        frozen,
        codec,
        copies,
        choices,
        tokens.members * len(rows),
        batch_size=num_members * max(1, batch_size // num_members),
        advance=lambda count: advance(count // num_members),
    )
    return [int(x) for x in tokens.choose(scores.unflatten(0, (-1, num_members)).transpose(0, 1))]
