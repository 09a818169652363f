"""Several artifacts of one task on one frozen model, asked together in one batch. (Lester et al. 2021, section 6.)

Rows are replicated and each copy carries another member's virtual tokens; members meet in what they answer, never in
one prefix. Knows how answers are joined; does not know files or text contracts. Legend: B prompts, N members,
T text tokens, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LogitsProcessor

from epigraph.contract import Decoding
from epigraph.errors import BadValue
from epigraph.frozen.answers import row_log_probabilities
from epigraph.frozen.batch import collate
from epigraph.frozen.generate import Advance, generate
from epigraph.frozen.inputs import Encoded, fill_token
from epigraph.frozen.model import FrozenModel
from epigraph.virtual import VirtualTokens

Mean = Literal["geometric", "arithmetic"]
Joining = Literal["geometric", "arithmetic", "majority"]
MEANS: tuple[Mean, ...] = get_args(Mean)
JOININGS: tuple[Joining, ...] = get_args(Joining)
Text = Callable[[Sequence[int]], str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ensemble:
    """Virtual tokens that were trained for one task, and how what they answer becomes one answer."""

    members: tuple[VirtualTokens, ...]
    mean: Joining = "geometric"

    def __post_init__(self) -> None:
        """Raises :class:`BadValue` for no members or an unknown mean."""
        _check(self.members, self.mean, JOININGS)

    def check(self, decoding: Decoding) -> None:
        """Raise :class:`BadValue` unless the members can be asked together by ``decoding``."""
        if self.mean != "majority":
            _refuse_beams(decoding)

    def generate(
        self,
        frozen: FrozenModel,
        prompts: Sequence[Sequence[int]],
        text: Text,
        decoding: Decoding,
        *,
        batch_size: int = 64,
        advance: Advance = lambda _: None,
    ) -> list[list[int]]:
        """The new ids of each prompt, in the order given; ``text`` says what an answer's ids read, for votes."""
        if self.mean == "majority":
            return generate_majority(
                frozen, prompts, self.members, decoding, text, batch_size=batch_size, advance=advance
            )
        return generate_ensemble(
            frozen, prompts, self.members, decoding, mean=self.mean, batch_size=batch_size, advance=advance
        )

    def chances(self, scores_MBN: Tensor) -> Tensor | None:
        """``[B, N]``: log-probabilities of the choices as the members see them together; None for votes, which are
        counts and no probabilities."""
        if self.mean == "majority":
            return None
        joined_BN = scores_MBN.mean(0) if self.mean == "geometric" else scores_MBN.logsumexp(0)
        return joined_BN.log_softmax(-1)

    def choose(self, scores_MBN: Tensor) -> Tensor:
        """``[B]``: the number of the choice that the members make together, out of their log-probabilities.

        Majority: the choice that is most members' first; among equals, the one of the higher mean log-probability.
        """
        mean_BN = scores_MBN.mean(0)
        match self.mean:
            case "geometric":
                return mean_BN.argmax(1)
            case "arithmetic":
                return scores_MBN.logsumexp(0).argmax(1)
            case "majority":
                votes_BN = functional.one_hot(scores_MBN.argmax(2), scores_MBN.shape[2]).sum(0)
                tied = votes_BN == votes_BN.amax(1, keepdim=True)
                return mean_BN.masked_fill(~tied, -torch.inf).argmax(1)


def generate_ensemble(
    frozen: FrozenModel,
    prompts: Sequence[Sequence[int]],
    prefixes: Sequence[VirtualTokens],
    decoding: Decoding,
    *,
    mean: Mean = "geometric",
    batch_size: int = 64,
    advance: Advance = lambda _: None,
) -> list[list[int]]:
    """The new token ids of each prompt, its end token left out, each token the likeliest of the averaged distribution.

    ``geometric`` averages log-probabilities and renormalises, ``arithmetic`` averages probabilities; a member's
    distribution is the one it would decode with alone, a forbidden early end left out. ``batch_size`` counts rows of
    the model, N for one prompt; ``advance`` is told how many prompts are done.
    Raises :class:`BadValue` for beams, an unknown mean or no members, :class:`GeometryMismatch` for foreign members.
    """
    _check(prefixes, mean, MEANS)
    _refuse_beams(decoding)
    members = _carried(frozen, prefixes)
    new = _asked(frozen, prompts, members, decoding, batch_size, advance, _Averaged(len(members), mean))
    return new[:: len(members)]


def generate_majority(
    frozen: FrozenModel,
    prompts: Sequence[Sequence[int]],
    prefixes: Sequence[VirtualTokens],
    decoding: Decoding,
    text: Text,
    *,
    batch_size: int = 64,
    advance: Advance = lambda _: None,
) -> list[list[int]]:
    """The new token ids of each prompt's winning answer: the text that most members give, each decoding for itself.

    Among texts with equally many votes the one wins whose tokens, its end included, have the higher mean
    log-probability over all members; then the one of the earlier member. The paper does not say how it breaks ties.
    ``batch_size`` and ``advance`` as in :func:`generate_ensemble`; beams are the members' own affair and allowed.
    """
    _check(prefixes, "majority", JOININGS)
    members = _carried(frozen, prefixes)
    new = _asked(frozen, prompts, members, decoding, batch_size, advance, None)
    num = len(members)
    votes = [new[start : start + num] for start in range(0, len(new), num)]
    return [
        _elected(frozen, prompt, cast, members, decoding, text) for prompt, cast in zip(prompts, votes, strict=True)
    ]


def answer_log_probability(
    frozen: FrozenModel, prompt: Sequence[int], answer: Sequence[int], prefixes: Sequence[VirtualTokens]
) -> float:
    """The mean log-probability, in nats, of the tokens of ``answer`` behind ``prompt``, over tokens and ``prefixes``.

    An end token counts where ``answer`` holds it. Raises :class:`BadValue` for an answer without tokens.
    """
    if not answer:
        raise BadValue("the answer to be scored has no tokens, expected one or more; an empty answer is its end token")
    row = Encoded(ids=tuple(prompt), scored=(False,) * len(prompt), answer=tuple(answer))
    if frozen.kind == "causal":
        scored = (*row.scored, *[True] * len(answer))
        row = Encoded(ids=(*prompt, *answer), scored=scored)
    batch = collate([row] * len(prefixes), fill_token(frozen.tokenizer)).to(frozen.device)
    with torch.inference_mode():
        return float(row_log_probabilities(frozen, batch, list(prefixes)).mean()) / len(answer)


class _Averaged(LogitsProcessor):
    """Gives the N adjacent copies of a prompt one distribution, so that they take the same token."""

    def __init__(self, num_members: int, mean: Mean) -> None:
        self.num_members = num_members
        self.mean = mean

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Log-probabilities ``[B N, V]`` of logits ``[B N, V]``."""
        logs_BNV = scores.float().log_softmax(-1).unflatten(0, (-1, self.num_members))
        return joined(logs_BNV, self.mean).repeat_interleave(self.num_members, 0)


def joined(logs_xNV: Tensor, mean: Mean) -> Tensor:
    """``[..., V]``: the log-probabilities of N members ``[..., N, V]`` as one distribution's."""
    together: Tensor = logs_xNV.mean(-2) if mean == "geometric" else logs_xNV.logsumexp(-2)
    return together.log_softmax(-1)


def _asked(
    frozen: FrozenModel,
    prompts: Sequence[Sequence[int]],
    members: Sequence[VirtualTokens],
    decoding: Decoding,
    batch_size: int,
    advance: Advance,
    averaged: _Averaged | None,
) -> list[list[int]]:
    """N answers a prompt, one a member, side by side."""
    num = len(members)
    # Copies of a prompt are as long as each other, so that sorting by length never parts them.
    return generate(
        frozen,
        [prompt for prompt in prompts for _ in members],
        [*members] * len(prompts),
        decoding,
        batch_size=num * max(1, batch_size // num),
        advance=lambda rows: advance(rows // num),
        processor=averaged,
    )


def _elected(
    frozen: FrozenModel,
    prompt: Sequence[int],
    cast: Sequence[list[int]],
    members: Sequence[VirtualTokens],
    decoding: Decoding,
    text: Text,
) -> list[int]:
    first: dict[str, list[int]] = {}
    for ids in cast:
        first.setdefault(text(ids), ids)
    votes = Counter(text(ids) for ids in cast)
    best = max(votes.values())
    tied = [ids for said, ids in first.items() if votes[said] == best]
    if len(tied) == 1:
        return tied[0]
    return max(tied, key=lambda ids: answer_log_probability(frozen, prompt, _ended(frozen, ids, decoding), members))


def _ended(frozen: FrozenModel, ids: Sequence[int], decoding: Decoding) -> list[int]:
    """The answer with the end token that decoding took off, unless it was cut for its length."""
    eos = frozen.tokenizer.eos_token_id
    return [*ids] if eos is None or len(ids) >= decoding.max_new_tokens else [*ids, int(eos)]


def _carried(frozen: FrozenModel, prefixes: Sequence[VirtualTokens]) -> list[VirtualTokens]:
    with torch.no_grad():
        return [frozen.carried(tokens) for tokens in prefixes]


def check_mean(mean: str, known: Sequence[str] = JOININGS, name: str = "mean") -> None:
    """Raise :class:`BadValue` for what is no way to join answers, and by name for virtual tokens one after another."""
    if mean.startswith("concat"):
        raise BadValue(
            f"{name} is {mean!r}, which is refused: each member was trained to stand alone before the text, none to "
            f"have another beside it; expected one of {', '.join(known)}"
        )
    if mean not in known:
        raise BadValue(f"{name} is {mean!r}, expected one of {', '.join(known)}")


def _check(prefixes: Sequence[VirtualTokens], mean: str, known: Sequence[str]) -> None:
    check_mean(mean, known)
    if not prefixes:
        raise BadValue("the ensemble has no members, expected the virtual tokens of one artifact or more")


def _refuse_beams(decoding: Decoding) -> None:
    if decoding.num_beams > 1:
        raise BadValue(
            f"num_beams is {decoding.num_beams}, expected 1: the members of an ensemble are averaged token by token, "
            "which is built for greedy decoding only; use 1 beam, or the majority vote, where each decodes for itself"
        )
