"""Whether an engine's answers are transformers': a sample of them, so that no number of a wrong engine is recorded."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from epigraph.bench.serve_load import Ask
from epigraph.contract import Decoding
from epigraph.engine.shelf import Shelf
from epigraph.errors import CannotServe
from epigraph.frozen.generate import generate
from epigraph.frozen.model import FrozenModel
from epigraph.virtual import VirtualTokens

# Where the two best tokens are nearer than this, either may be said: design, guarantee 3.
TIE = 1e-3


def check(
    frozen: FrozenModel,
    shelf: Shelf,
    asks: Sequence[Ask],
    answers: Sequence[Sequence[int]],
    num_sampled: int,
    *,
    may_end: bool = True,
) -> dict[str, Any]:
    """How many of a sample are equal to what transformers says greedily, and how many are but for a tie.

    ``may_end``: the engine goes on past the end token, which transformers does not; else neither may say it.
    Raises :class:`CannotServe` for any other in fp32; a model in bf16 rounds, and its answers are only counted.
    """
    numbers = random.Random(0).sample(range(len(asks)), min(num_sampled, len(asks)))
    carried = _opened(shelf, [asks[i].name for i in numbers])
    tokens = [carried[asks[i].name] for i in numbers]
    said = _greedy(frozen, [asks[i].ids for i in numbers], tokens, len(answers[0]), may_end)
    equal = ties = 0
    for number, want, prefix in zip(numbers, said, tokens, strict=True):
        got = list(answers[number])[: len(want)]
        if got == want:
            equal += 1
        elif _is_tie(frozen, asks[number].ids, prefix, want, got):
            ties += 1
    if equal + ties < len(numbers) and frozen.model.dtype == torch.float32:
        raise CannotServe(
            f"{len(numbers) - equal - ties} of {len(numbers)} answers of the engine are not what transformers says; "
            "nothing was recorded"
        )
    return {"sampled": len(numbers), "equal": equal, "but_for_a_tie": ties, "distinct": len(set(map(tuple, said)))}


def _opened(shelf: Shelf, names: Sequence[str | None]) -> Mapping[str | None, VirtualTokens | None]:
    return {name: None if name is None else shelf.open(name).artifact.tokens for name in set(names)}


def _greedy(
    frozen: FrozenModel,
    texts: Sequence[Sequence[int]],
    tokens: Sequence[VirtualTokens | None],
    num_new: int,
    may_end: bool,
) -> list[list[int]]:
    """What transformers says to each text, the end token included where it comes to one."""
    least = 0 if may_end else num_new
    said = generate(frozen, texts, tokens, Decoding(max_new_tokens=num_new, min_new_tokens=least))
    end = frozen.tokenizer.eos_token_id
    return [ids if len(ids) == num_new else [*ids, end] for ids in said]


def _is_tie(
    frozen: FrozenModel,
    ids: Sequence[int],
    prefix: VirtualTokens | None,
    want: Sequence[int],
    got: Sequence[int],
) -> bool:
    first = next(i for i, (x, y) in enumerate(zip(want, got, strict=True)) if x != y)
    with torch.inference_mode(), frozen.bind(prefix):
        logits_V = frozen.model(input_ids=torch.tensor([[*ids, *want[:first]]])).logits[0, -1]
    best = logits_V.topk(2).values
    return bool(best[0] - logits_V[got[first]] <= best[0] - best[1] < TIE)
