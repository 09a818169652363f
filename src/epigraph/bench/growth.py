"""Cost as work grows: with the number of virtual tokens, with the length of texts, with the size of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from epigraph.bench import peers
from epigraph.bench.clock import extra_bytes, ratios, seconds, spread
from epigraph.bench.job import LR, NUM_VIRTUAL_TOKENS, Job
from epigraph.frozen.batch import Batch, collate
from epigraph.frozen.inputs import Encoded, fill_token
from epigraph.train.prepare import prepare
from epigraph.train.recipe_file import check_recipe

PREFIX_LENGTHS = (1, 8, 32, 128, 512)
TEXT_LENGTHS = (128, 512, 1024, 2048)
TOKENS_A_BATCH = 2048
MODELS = ("smollm2-135m", "gemma-3-270m")
REPEATS = 3
Advance = Callable[[], None]


def prefix_lengths(job: Job, advance: Advance) -> dict[str, Any]:
    """Seconds a step with 1 to 512 virtual tokens, batches of E2E rows."""
    plain, batches = job.plain(), job.batches()[:REPEATS]
    return {str(number): _both(job, plain, batches, number, advance) for number in PREFIX_LENGTHS}


def text_lengths(job: Job, advance: Advance) -> dict[str, Any]:
    """Seconds a step with texts of 128 to 2,048 tokens, as many rows as make 2,048; the second half of each is scored.

    All rows of a batch are of one length, so that padding plays no part.
    """
    plain = job.plain()
    stream = [token for row in job.ready.rows for token in row.ids]
    fill = fill_token(job.ready.frozen.tokenizer)
    found = {}
    for length in TEXT_LENGTHS:
        batches = [collate(list(_cut(stream, length, start)), fill) for start in range(REPEATS)]
        found[str(length)] = _both(job, plain, batches, NUM_VIRTUAL_TOKENS, advance)
    return found


def models(job: Job, advance: Advance) -> dict[str, Any]:
    """Seconds a step on models of two sizes, the same rows in each one's own tokens."""
    found = {}
    for name in MODELS:
        recipe = check_recipe({**job.ready.recipe.model_dump(), "model": name})
        there = replace(job, ready=prepare(recipe, device=str(job.device)))
        batches = there.batches()[:REPEATS]
        found[name] = {
            "parameters": there.ready.frozen.num_parameters,
            **_both(there, there.plain(), batches, NUM_VIRTUAL_TOKENS, advance),
        }
    return found


def _both(job: Job, plain: Any, batches: Sequence[Batch], num_virtual_tokens: int, advance: Advance) -> dict[str, Any]:
    ours = job.ours(num_virtual_tokens)
    theirs = peers.prefix_side(plain, job.first(num_virtual_tokens), LR)
    took: dict[str, list[float]] = {ours.name: [], theirs.name: []}
    for side in (ours, theirs):
        side.step(batches[0])
    for batch in batches:
        for side in (ours, theirs):
            took[side.name].append(seconds(partial(side.step, batch), job.device))
        advance()
    return {
        "real_tokens": [batch.num_tokens for batch in batches],
        "seconds_a_step": {name: spread(values) for name, values in took.items()},
        "ratio": ratios(took[theirs.name], took[ours.name]),
        "extra_bytes": {side.name: extra_bytes(partial(side.step, batches[-1]), job.device) for side in (ours, theirs)},
    }


def _cut(stream: Sequence[int], length: int, start: int) -> Iterator[Encoded]:
    """As many texts of ``length`` as make a batch, out of one stream of tokens; another ``start``, other texts."""
    for number in range(TOKENS_A_BATCH // length):
        at = (start * TOKENS_A_BATCH + number * length) % (len(stream) - length)
        yield Encoded(ids=tuple(stream[at : at + length]), scored=tuple(x >= length // 2 for x in range(length)))
