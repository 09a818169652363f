"""Asking a model behind virtual tokens, as its contract says: free text, the likeliest of some answers, a head's class.

The one way for evaluation, development scores and use. Knows contracts; does not know tasks or scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from epigraph.contract import Decoding, TextContract
from epigraph.errors import BadValue
from epigraph.frozen.answers import Head
from epigraph.frozen.choose import classify, rank, rank_own
from epigraph.frozen.ensemble import Ensemble
from epigraph.frozen.generate import generate
from epigraph.frozen.inputs import Codec, Encoded
from epigraph.frozen.model import FrozenModel
from epigraph.virtual import VirtualTokens

Advance = Callable[[int], None]
Decode = Callable[..., list[list[int]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """One answer a row, in order. Where answers were chosen and not said, ``choices`` are what each row chose among,
    and ``log_chances`` ``[N]`` how likely each of them was, normalised over the row's choices; else both are empty."""

    texts: list[str]
    choices: Sequence[Sequence[str]] = ()
    log_chances: Sequence[Tensor] = ()


def ask(
    frozen: FrozenModel,
    codec: Codec,
    asked: Sequence[Encoded],
    rows: Sequence[Mapping[str, str]],
    tokens: VirtualTokens | Ensemble | None,
    *,
    head: Head | None = None,
    candidates: Sequence[str] = (),
    own: Sequence[Sequence[str]] = (),
    decoding: Decoding | None = None,
    batch_size: int = 64,
    advance: Advance = lambda _: None,
    decode: Decode | None = None,
    **options: Any,
) -> Answers:
    """The answer to each row. ``asked`` are the rows as ids, ``rows`` the same as fields of the template.

    Where the contract has labels the answer is one of them, with ``candidates`` one of those, with ``own`` one of the
    row's own: the likeliest, or by an ensemble's joined opinion. A masked model without any of these says the one token
    that it finds likeliest at the mask. Otherwise the answer is decoded; ``options`` go to transformers' ``generate``.
    ``decode`` decodes in the place of :func:`generate`: another library's model, which chooses among no answers.
    Raises :class:`BadValue` for a contract that needs a head and has none.
    """
    contract = codec.contract
    choices = contract.labels or tuple(candidates)
    if decode is not None and (choices or any(own) or contract.layout != "continuation"):
        raise BadValue(
            "another library's model says its answers, and this task has them chosen; take a task without labels"
        )
    if contract.layout in ("label", "tags"):
        return _classified(frozen, contract, asked, tokens, head, batch_size, advance)
    if any(own):
        return _chosen_own(frozen, codec, rows, own, tokens, batch_size, advance)
    if choices or contract.layout == "cloze":
        return _chosen(frozen, codec, rows, choices, tokens, batch_size, advance)
    decoding = decoding or contract.decoding
    prompts = [x.ids for x in asked]
    if decode is not None:
        new = decode(prompts, decoding, batch_size=batch_size, advance=advance)
    elif isinstance(tokens, Ensemble):
        new = tokens.generate(frozen, prompts, codec.text, decoding, batch_size=batch_size, advance=advance)
    else:
        new = generate(frozen, prompts, tokens, decoding, batch_size=batch_size, advance=advance, **options)
    return Answers(texts=[codec.text(ids) for ids in new])


def _classified(
    frozen: FrozenModel,
    contract: TextContract,
    asked: Sequence[Encoded],
    tokens: VirtualTokens | Ensemble | None,
    head: Head | None,
    batch_size: int,
    advance: Advance,
) -> Answers:
    if head is None or isinstance(tokens, Ensemble):
        why = "several heads cannot be asked together" if head is not None else "the artifact holds none"
        raise BadValue(f"layout {contract.layout!r} is answered by a head: {why}; ask one artifact that has one")
    found = classify(frozen, asked, head, tokens, batch_size=batch_size, advance=advance)
    texts = [" ".join(contract.labels[number] for number in logs_WC.argmax(-1).tolist()) for logs_WC in found]
    if contract.layout == "tags":
        return Answers(texts=texts)
    return Answers(texts=texts, choices=[contract.labels] * len(texts), log_chances=[logs_WC[0] for logs_WC in found])


def _chosen(
    frozen: FrozenModel,
    codec: Codec,
    rows: Sequence[Mapping[str, str]],
    choices: Sequence[str],
    tokens: VirtualTokens | Ensemble | None,
    batch_size: int,
    advance: Advance,
) -> Answers:
    likely, chances_BN = _joined(frozen, codec, rows, choices or None, tokens, batch_size, advance)
    if not choices:
        return Answers(texts=[codec.text([number]) for number in likely])
    texts = [choices[number] for number in likely]
    if chances_BN is None:
        return Answers(texts=texts)
    return Answers(texts=texts, choices=[choices] * len(texts), log_chances=list(chances_BN))


def _chosen_own(
    frozen: FrozenModel,
    codec: Codec,
    rows: Sequence[Mapping[str, str]],
    own: Sequence[Sequence[str]],
    tokens: VirtualTokens | Ensemble | None,
    batch_size: int,
    advance: Advance,
) -> Answers:
    if not isinstance(tokens, Ensemble):
        scores = rank_own(frozen, codec, rows, own, tokens, batch_size=batch_size, advance=advance)
        texts = [texts[int(scores_N.argmax())] for texts, scores_N in zip(own, scores, strict=True)]
        return Answers(texts=texts, choices=own, log_chances=[scores_N.log_softmax(-1) for scores_N in scores])
    members = [rank_own(frozen, codec, rows, own, member, batch_size=batch_size) for member in tokens.members]
    advance(len(rows))
    opinions = [torch.stack(scores)[:, None] for scores in zip(*members, strict=True)]
    texts = [texts[int(tokens.choose(scores_M1N))] for texts, scores_M1N in zip(own, opinions, strict=True)]
    chances = [tokens.chances(scores_M1N) for scores_M1N in opinions]
    known = [chances_1N[0] for chances_1N in chances if chances_1N is not None]
    return Answers(texts=texts, choices=own, log_chances=known) if known else Answers(texts=texts)


def _joined(
    frozen: FrozenModel,
    codec: Codec,
    rows: Sequence[Mapping[str, str]],
    choices: Sequence[str] | None,
    tokens: VirtualTokens | Ensemble | None,
    batch_size: int,
    advance: Advance,
) -> tuple[list[int], Tensor | None]:
    """The number of each row's choice, and ``[B, N]`` log-probabilities of the choices, where there are any."""
    if not isinstance(tokens, Ensemble):
        scores_BN = rank(frozen, codec, rows, choices, tokens, batch_size=batch_size, advance=advance)
        return [int(x) for x in scores_BN.argmax(1)], scores_BN.log_softmax(1)
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
    scores_MBN = scores.unflatten(0, (-1, num_members)).transpose(0, 1)
    return [int(x) for x in tokens.choose(scores_MBN)], tokens.chances(scores_MBN)
