"""One user of a fleet: what a run of his own would have beside the model, between the steps that all take together.

Knows a prepared run; does not know whom he trains with.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from epigraph.frozen.batch import length, num_scored
from epigraph.frozen.inputs import Encoded
from epigraph.train.batches import endless_numbers
from epigraph.train.best import Best
from epigraph.train.loop import Outcome, factor
from epigraph.train.loss import denominator
from epigraph.train.parts import TrainingPart
from epigraph.train.prepare import Prepared
from epigraph.train.state import Position, State

Window = list[list[Encoded]]
_BEST = "best."


class Member:
    """A user's place in his own run: order of rows, schedule, best development score, generator of dropout, records.

    ``generator_state`` is torch's global generator as it is when a run of his own begins to train; ``begin`` takes his
    run up where it was saved.
    """

    def __init__(
        self,
        name: str,
        ready: Prepared,
        plan: TrainingPart,
        generator_state: Tensor,
        begin: State | None = None,
    ) -> None:
        self.name, self.ready, self.plan = name, ready, plan
        self.at = Position() if begin is None else begin.position
        self.records: list[dict[str, Any]] = []
        self.generator = torch.Generator()
        self.generator.set_state(generator_state if begin is None else begin.tensors["generator.cpu"])
        self.best = Best(plan)
        if begin is not None:
            self._take_up(begin)
        self._scored_per_row = max(1.0, sum(num_scored(row) for row in ready.rows) / len(ready.rows))
        self._start = time.perf_counter() - self.at.seconds
        self._numbers = self._order()

    @property
    def lr(self) -> float:
        """The learning rate of the step to come."""
        return self.ready.recipe.lr * factor(self.plan, self.ready.steps, self.at.step)

    @property
    def is_done(self) -> bool:
        """He has had all his steps, or his patience ran out."""
        return self.at.step >= self.ready.steps or self.best.is_enough

    @property
    def is_scored(self) -> bool:
        """A development score is due after the step that was just taken."""
        step, every = self.at.step, self.plan.dev_every
        return bool(self.ready.dev_rows and every) and (step == self.ready.steps or step % (every or 1) == 0)

    def window(self) -> Window:
        """The rows of the next step, batch by batch."""
        return [[self.ready.rows[i] for i in next(self._numbers)] for _ in range(self.plan.accumulation)]

    def denominator(self, window: Window) -> float:
        """What the summed token losses of his rows in a step are divided by."""
        return denominator(sum(map(len, window)), self.plan.reduction, self._scored_per_row)

    def took(self, window: Window, total: float, norm: float, lr: float) -> None:
        """Note a step: the sum of his token losses in nats, his gradient's norm, and the learning rate."""
        rows = [row for batch in window for row in batch]
        per = len(rows) if self.plan.reduction == "example-sum" else max(sum(map(num_scored, rows)), 1)
        # As a batch counts them: an answer that is not in the ids themselves counts too.
        tokens = sum(len(row.ids) if any(row.scored) else length(row) for row in rows)
        seconds = time.perf_counter() - self._start
        self.at = self.at.model_copy(
            update={"step": self.at.step + 1, "tokens": self.at.tokens + tokens, "seconds": seconds}
        )
        record = {"loss": total / per, "grad_norm": norm, "tokens": tokens, "lr": lr, "seconds": seconds}
        self.records.append({"step": self.at.step, **record})

    def scored(self, values: Mapping[str, float], parameters: Mapping[str, Tensor]) -> None:
        """Note a development score of ``parameters``."""
        seconds = time.perf_counter() - self._start
        self.records.append({"step": self.at.step, "dev": dict(values), "seconds": seconds})
        self.best.take(self.at.step, values, parameters)
        self.at = self.at.model_copy(update=self.best.kept)

    def mask(self, shape: torch.Size, dtype: torch.dtype, share: float) -> Tensor:
        """What dropout multiplies with, as :func:`torch.nn.functional.dropout` draws it on a CPU from his generator."""
        return torch.empty(shape, dtype=dtype).bernoulli_(1 - share, generator=self.generator).div_(1 - share)

    def outcome(self) -> Outcome:
        """How his run ended."""
        return Outcome(
            steps=self.at.step,
            kept_step=self.best.step or self.at.step,
            kept_dev=self.best.values,
            stopped_early=self.at.step < self.ready.steps,
            seconds=self.at.seconds,
            tokens=self.at.tokens,
        )

    def state(self, stacked: Mapping[str, Tensor]) -> State:
        """His run as it would be saved if it were one of his own; ``stacked`` is what the stack has of it."""
        tensors = {**stacked, "generator.cpu": self.generator.get_state()}
        if self.best.parameters:
            # With the buffers that a method's state has and training does not change.
            method = {name: x for name, x in stacked.items() if name.startswith("method.")}
            tensors |= {_BEST + name.removeprefix("method."): x.clone() for name, x in method.items()}
            tensors |= {_BEST + name: x for name, x in self.best.parameters.items()}
        return State(position=self.at, tensors=tensors)

    def _take_up(self, begin: State) -> None:
        self.best.step, self.best.values, self.best.since = self.at.kept_step, self.at.kept_values, self.at.since
        kept = {name: x for name, x in begin.tensors.items() if name.startswith(_BEST)}
        self.best.parameters = {name.removeprefix(_BEST): x for name, x in kept.items()}

    def _order(self) -> Iterator[list[int]]:
        plan, skip = self.plan, self.at.step * self.plan.accumulation
        return endless_numbers(self.ready.rows, plan.batch_size, plan.seed, buckets=plan.buckets, skip=skip)
