"""How a request's next token is chosen out of logits: penalties, cuts, temperature, its own seed, log-probabilities.

Knows numbers alone; the same for rows of a table and for transformers' ``generate``. Legend: R rows, N members of an
ensemble, V vocabulary.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

import torch
from torch import Tensor

from epigraph.contract import Decoding
from epigraph.engine.base import Sampling, TokenLogprob
from epigraph.frozen.ensemble import Mean, joined

# The share of probability that is kept lies nearly always among so many tokens, which are found without sorting all.
_FEW = 256


@dataclass(kw_only=True, slots=True)
class Draw:
    """One answer being drawn: how, and what it has said. ``ends`` are the tokens that end it.

    ``num_logprobs``: how many of the likeliest are told beside each token, None for nothing; ``word`` reads a token.
    """

    sampling: Sampling
    decoding: Decoding
    ends: frozenset[int]
    num_logprobs: int | None = None
    word: Callable[[int], str] = str
    said: list[int] = field(default_factory=list)
    counts: Counter[int] = field(default_factory=Counter)
    random: Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = Random(self.sampling.seed)

    def is_plain(self, likeliest: int) -> bool:
        """Whether the next token is the model's own likeliest."""
        penalties = self.sampling.presence_penalty, self.sampling.frequency_penalty
        is_forbidden = self._may_not_end and likeliest in self.ends
        return self.sampling.temperature == 0 and not any(penalties) and not is_forbidden

    @property
    def is_over(self) -> bool:
        """Whether the answer is as long as it may be."""
        return len(self.said) >= self.decoding.max_new_tokens

    @property
    def _changes(self) -> bool:
        penalties = self.sampling.presence_penalty, self.sampling.frequency_penalty
        return any(penalties) or self._may_not_end

    @property
    def _may_not_end(self) -> bool:
        return len(self.said) < self.decoding.min_new_tokens

    def say(self, token: int) -> None:
        """The token was said."""
        self.said.append(token)
        self.counts[token] += 1

    def changed(self, logits_xV: Tensor) -> Tensor:
        """The logits ``[..., V]`` with what was said, and what may not be said yet, taken into account."""
        if not self._changes:
            return logits_xV
        logits_xV = logits_xV.clone()
        if self.counts:
            tokens = torch.tensor(list(self.counts), device=logits_xV.device)
            often = torch.tensor(list(self.counts.values()), dtype=logits_xV.dtype, device=logits_xV.device)
            logits_xV[..., tokens] -= self.sampling.presence_penalty + self.sampling.frequency_penalty * often
        if self._may_not_end and self.ends:
            logits_xV[..., sorted(self.ends)] = -math.inf
        return logits_xV

    def drawn(self, logits_V: Tensor) -> int:
        """A token of the changed logits."""
        if self.sampling.temperature == 0:
            return int(logits_V.argmax())
        likely_V = (logits_V.double() / self.sampling.temperature).softmax(-1)
        kept, tokens = _kept(likely_V, self.sampling)
        sums = kept.cumsum(0)
        number = int(torch.searchsorted(sums, self.random.random() * float(sums[-1]), right=True))
        number = min(number, len(kept) - 1)
        return number if tokens is None else int(tokens[number])

    def told(self, logits_V: Tensor, token: int) -> TokenLogprob | None:
        """What is told of ``token`` where log-probabilities were asked for."""
        if self.num_logprobs is None:
            return None
        logs_V = logits_V.float().log_softmax(-1)
        best = logs_V.topk(min(self.num_logprobs, len(logs_V)))
        top = [(self.word(i), x) for i, x in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
        return TokenLogprob(text=self.word(token), logprob=float(logs_V[token]), top=tuple(top))


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """A token, and what is told of it where log-probabilities were asked for."""

    token: int
    told: TokenLogprob | None


def draw(draws: Sequence[Draw], logits_RV: Tensor) -> list[Drawn | None]:
    """The next token of each row; None for a row whose logits are no numbers, of a model that overflowed."""
    best = logits_RV.max(-1)
    is_wrong, likeliest = best.values.isnan().tolist(), best.indices.tolist()
    found: list[Drawn | None] = []
    for number, one in enumerate(draws):
        if is_wrong[number]:
            found.append(None)
            continue
        logits_V = logits_RV[number]
        token = likeliest[number] if one.is_plain(likeliest[number]) else one.drawn(one.changed(logits_V))
        found.append(Drawn(token=token, told=one.told(logits_V, token)))
    return found


def draw_together(one: Draw, logits_NV: Tensor, mean: Mean) -> Drawn | None:
    """One token for all members: each one's distribution is the one it would draw from alone, and they are joined."""
    if bool(logits_NV.isnan().any()):
        return None
    changed_V = joined(one.changed(logits_NV).float().log_softmax(-1), mean)
    token = one.drawn(changed_V)
    return Drawn(token=token, told=one.told(joined(logits_NV.float().log_softmax(-1), mean), token))


def _kept(likely_V: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """The probabilities that may be drawn, and their tokens; None for all of them, in the vocabulary's order."""
    size = len(likely_V)
    num = sampling.top_k or size
    if sampling.top_p >= 1 and num >= size:
        return likely_V, None
    some = likely_V.topk(min(num, size, _FEW))
    total = float(likely_V.topk(min(num, size)).values.sum()) if sampling.top_k else 1.0
    if min(num, size) > _FEW and (sampling.top_p >= 1 or float(some.values.sum()) < sampling.top_p * total):
        some = likely_V.topk(min(num, size))
    before = some.values.cumsum(0) - some.values
    # The token that reaches the share is kept, so that there always is one.
    is_kept = before < sampling.top_p * total if sampling.top_p < 1 else torch.ones_like(before, dtype=torch.bool)
    return some.values[is_kept], some.indices[is_kept]
