"""Our training step beside PEFT's: on the same batches, and each side with its own way of making them.

Sides take turns, so that what else a machine does meets all of them. Legend: P virtual tokens.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from epigraph.bench import peers
from epigraph.bench.clock import extra_bytes, ratios, seconds, spread, timed
from epigraph.bench.job import LR, PROMPT_LENGTH, Job
from epigraph.bench.sides import Ours, Side, Theirs
from epigraph.frozen.batch import Batch, num_scored
from epigraph.frozen.inputs import fill_token
from epigraph.methods.bare import Bare
from epigraph.train.baselines.peft_peers import wrapped
from epigraph.train.batches import endless
from epigraph.train.build import make_method
from epigraph.train.loop import dev_loss
from epigraph.train.loss import denominator

# Steps on the same batches: a seventh of them a repeat.
SAME_STEPS = 50
ADAPTER_WIDTHS = (4, 116)
Advance = Callable[[], None]


def same_batches(job: Job, advance: Advance) -> dict[str, Any]:
    """A: identical padded batches in identical order, from the same prefix; losses are compared step by step."""
    ours = job.ours()
    theirs = peers.prefix_side(job.plain(), job.first(), LR)
    batches = list(itertools.islice(itertools.cycle(job.batches()), SAME_STEPS))
    took, losses = _in_turns([ours, theirs], batches, advance, job.device)
    blocks = {name: _blocks(values, job.repeats) for name, values in took.items()}
    apart = [abs(x - y) for x, y in zip(losses[ours.name], losses[theirs.name], strict=True)]
    largest = max(batches, key=lambda batch: batch.ids_BT.numel())
    return {
        "ratio_same_batches": ratios(blocks[theirs.name], blocks[ours.name]),
        "steps": len(batches),
        "real_tokens": sum(batch.num_tokens for batch in batches),
        "padded_tokens": sum(batch.ids_BT.numel() for batch in batches),
        "largest_loss_difference": max(apart),
        "seconds_a_step": {name: spread(values) for name, values in blocks.items()},
        "extra_bytes": {side.name: extra_bytes(partial(side.step, largest), job.device) for side in (ours, theirs)},
    }


def own_batching(job: Job, advance: Advance) -> dict[str, Any]:
    """B: one epoch, each side with its own batches; the same first values and learning rate, several seeds.

    ``Trainer``'s grouping by length takes part in the first seed's epoch.
    """
    plain, first = job.plain(), job.first()
    repeats = [_epoch(job, plain, first, seed, advance, by_length=seed == 0) for seed in range(job.num_seeds)]
    ours, random_order, by_length = grouped = repeats[0]["blocks"]
    blocks = {name: [x for repeat in repeats for x in repeat["blocks"][name]] for name in (ours, random_order)}

    def of_all(what: str) -> dict[str, list[Any]]:
        return {name: [x[what][name] for x in repeats if name in x[what]] for name in (ours, random_order, by_length)}

    return {
        "ratio_own_batching": ratios(blocks[random_order], blocks[ours]),
        "ratio_own_batching_by_length": ratios(grouped[by_length], grouped[ours]),
        "epoch_seconds": {name: spread(values) for name, values in of_all("seconds").items()},
        "dev_loss": {name: spread(values) for name, values in of_all("dev_loss").items()},
        "tokens_computed": of_all("tokens"),
        "rows": len(job.ready.rows),
    }


def _epoch(
    job: Job, plain: torch.nn.Module, first: Any, seed: int, advance: Advance, *, by_length: bool
) -> dict[str, Any]:
    ready, rows = job.ready, job.ready.rows
    frozen, fill = ready.frozen, fill_token(ready.frozen.tokenizer)
    scored_per_row = sum(map(num_scored, rows)) / len(rows)
    ours = job.ours(divisor=lambda batch: denominator(len(batch.ids_BT), "token-mean", scored_per_row))
    num_steps = math.ceil(len(rows) / job.batch_size)
    own = itertools.islice(endless(rows, job.batch_size, seed, fill, buckets=True), num_steps)
    theirs = [
        peers.trainer_side(
            plain, first, rows, LR, name=name, batch_size=job.batch_size, seed=seed, by_length=way, fill=fill
        )
        for name, way in (("PEFT, Trainer", False), ("PEFT, Trainer by length", True))[: 1 + by_length]
    ]
    work: dict[str, tuple[Any, list[Any]]] = {ours.name: (ours, list(own))}
    work |= {side.name: (side, list(side.batches())) for side in theirs}
    blocks: dict[str, list[float]] = {name: [] for name in work}
    for block in range(job.repeats):
        for name in _rotated(list(work), block):
            side, batches = work[name]
            start, end = (round(len(batches) * x / job.repeats) for x in (block, block + 1))
            blocks[name].append(seconds(partial(_steps, side, batches[start:end]), job.device))
            advance()
    prefixes = {ours.name: ours.method} | {
        side.name: _Folded(peers.prefix_of(side.model, first, frozen)) for side in theirs
    }
    return {
        "blocks": blocks,
        "seconds": {name: sum(values) for name, values in blocks.items()},
        "dev_loss": {name: dev_loss(frozen, ready.dev_rows, method) for name, method in prefixes.items()},
        "tokens": {
            ours.name: sum(batch.num_tokens for batch in work[ours.name][1]),
            **{side.name: sum(x["input_ids"].numel() for x in work[side.name][1]) for side in theirs},
        },
    }


def context(job: Job, advance: Advance) -> dict[str, Any]:
    """C: what else one would train, in the same run: seconds a step, numbers trained, memory; ours and PEFT's."""
    found: dict[str, Any] = {}
    baseline = job.ours()
    for make in (_prefixes, _prompts, _p_tuning, _lora, _adapters, _full):
        for side, all_batches in make(job):
            batches = all_batches[: job.repeats]
            base_batches = job.batches()[: job.repeats]
            side.step(batches[0])
            took, against = [], []
            for batch, other in zip(batches, base_batches, strict=True):
                took.append(seconds(partial(side.step, batch), job.device))
                against.append(seconds(partial(baseline.step, other), job.device))
            largest = max(batches, key=lambda batch: batch.ids_BT.numel())
            found[side.name] = {
                "seconds_a_step": spread(took),
                "times_our_prefix": ratios(took, against),
                "trained_numbers": _num_trained(side),
                "extra_bytes": extra_bytes(partial(side.step, largest), job.device),
            }
            advance()
    return found


Sides = Iterator[tuple[Side, Sequence[Batch]]]


def _prefixes(job: Job) -> Sides:
    yield job.ours(name="prefix-tuning, epigraph"), job.batches()
    yield peers.prefix_side(job.plain(), job.first(), LR, "prefix-tuning, PEFT"), job.batches()


def _prompts(job: Job) -> Sides:
    ready = job.with_method(name="prompt-tuning", num_virtual_tokens=PROMPT_LENGTH)
    yield Ours(ready.frozen, make_method(ready), LR, name="prompt-tuning, epigraph"), job.batches()
    made = wrapped(job.plain(), "PromptTuning", num_virtual_tokens=PROMPT_LENGTH)
    yield Theirs("prompt-tuning, PEFT", made, LR), job.batches()


def _p_tuning(job: Job) -> Sides:
    ready = job.with_method(name="p-tuning", num_virtual_tokens=PROMPT_LENGTH)
    yield Ours(ready.frozen, make_method(ready), LR, name="p-tuning (LSTM), epigraph"), job.batches(rows=ready.rows)
    options = {"encoder_reparameterization_type": "LSTM", "encoder_hidden_size": ready.frozen.geometry.embedding_dim}
    made = wrapped(job.plain(), "PromptEncoder", num_virtual_tokens=PROMPT_LENGTH, **options)
    yield Theirs("p-tuning (LSTM), PEFT", made, LR), job.batches()


def _lora(job: Job) -> Sides:
    for side in peers.lora_sides(job.ready.recipe.model, job.ready.frozen, LR):
        yield side, job.batches()


def _adapters(job: Job) -> Sides:
    for width in ADAPTER_WIDTHS:
        yield peers.adapter_side(job.ready.recipe.model, job.ready.frozen, LR, width), job.batches()


def _full(job: Job) -> Sides:
    """Last: these change the copy of the model that they train, which nobody uses after them."""
    from epigraph.frozen.model import FrozenModel

    trained = FrozenModel(job.plain(), job.ready.frozen.tokenizer, name="trained")  # type: ignore[arg-type]
    method = Bare()
    method.base = trained.model.requires_grad_(True)
    yield Ours(trained, method, 1e-5, name="full fine-tuning, epigraph"), job.batches()
    yield Theirs("full fine-tuning, transformers", job.plain().requires_grad_(True), 1e-5), job.batches()


class _Folded(Bare):
    """Virtual tokens that somebody else trained, as a method that has them."""

    def __init__(self, tokens: Any) -> None:
        super().__init__()
        self._tokens = tokens

    def forward(self) -> Any:
        return self._tokens


def _in_turns(
    sides: Sequence[Any], batches: Sequence[Batch], advance: Advance, device: torch.device
) -> tuple[Mapping[str, list[float]], Mapping[str, list[float]]]:
    """Each batch by each side, the first one changing; seconds and losses."""
    took: dict[str, list[float]] = {side.name: [] for side in sides}
    losses: dict[str, list[float]] = {side.name: [] for side in sides}
    for number, batch in enumerate(batches):
        for side in _rotated(sides, number):
            spent, loss = timed(partial(side.step, batch), device)
            took[side.name].append(spent)
            losses[side.name].append(loss)
        advance()
    return took, losses


def _steps(side: Any, batches: Sequence[Any]) -> None:
    for batch in batches:
        side.step(batch)


def _rotated(values: Sequence[Any], by: int) -> list[Any]:
    by %= len(values)
    return [*values[by:], *values[:by]]


def _blocks(values: Sequence[float], number: int) -> list[float]:
    """The mean of each of so many parts in a row."""
    edges = [round(len(values) * x / number) for x in range(number + 1)]
    return [statistics.mean(values[start:end]) for start, end in itertools.pairwise(edges)]


def _num_trained(side: Any) -> int:
    module = side.method if isinstance(side, Ours) else side.model
    return sum(x.numel() for x in module.parameters() if x.requires_grad)
