"""The training loop: steps, schedule, clipping, development scores, early stopping.

Knows a frozen model, a method and rows of ids; does not know tasks, recipes on disk or artifacts.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from epigraph.errors import TrainingFailed
from epigraph.frozen.inputs import Encoded, fill_token
from epigraph.frozen.model import FrozenModel
from epigraph.methods.base import Method
from epigraph.train.batches import Batch, endless, in_order
from epigraph.train.loss import denominator, token_losses
from epigraph.train.recipe import TrainingPart

Record = Mapping[str, Any]
Score = Callable[[Method], Mapping[str, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a run ended: the step whose virtual tokens were kept, its development score, and the seconds it took."""

    steps: int
    kept_step: int
    kept_dev: Mapping[str, float]
    stopped_early: bool
    seconds: float
    tokens: int


def train(
    frozen: FrozenModel,
    method: Method,
    rows: Sequence[Encoded],
    plan: TrainingPart,
    *,
    steps: int,
    lr: float,
    score: Score | None = None,
    report: Callable[[Record], None] = lambda _: None,
) -> Outcome:
    """Train ``method`` in place on ``rows``; the best development score's virtual tokens are kept.

    ``report`` gets one record a step (loss in nats a token or an example, learning rate, gradient norm, tokens,
    seconds) and one a development score. Raises :class:`TrainingFailed` when the loss is no number any more.
    """
    accelerator = Accelerator(cpu=frozen.device.type == "cpu")
    optimizer = AdamW((x for x in method.parameters() if x.requires_grad), lr=lr, weight_decay=plan.weight_decay)
    schedule = LambdaLR(optimizer, _factor(plan, steps))
    method, optimizer = accelerator.prepare(method.to(frozen.device), optimizer)
    frozen.checkpoint_activations(plan.checkpoint_activations)
    batches = endless(rows, plan.batch_size, plan.seed, fill_token(frozen.tokenizer), buckets=plan.buckets)
    scored = max(1.0, sum(sum(row.scored[1:]) for row in rows) / len(rows))
    keep = _Keeper(method, plan)
    start, tokens, step = time.perf_counter(), 0, 0
    for step in range(1, steps + 1):
        record = _step(frozen, method, _window(batches, plan, frozen), plan, scored, accelerator, optimizer)
        tokens += record["tokens"]
        report({"step": step, **record, "lr": schedule.get_last_lr()[0], "seconds": time.perf_counter() - start})
        schedule.step()
        if score is not None and (step == steps or (plan.dev_every and step % plan.dev_every == 0)):
            values = score(method)
            report({"step": step, "dev": dict(values), "seconds": time.perf_counter() - start})
            if keep.is_enough(step, values):
                break
    keep.restore()
    frozen.checkpoint_activations(False)
    return Outcome(
        steps=step,
        kept_step=keep.step or step,
        kept_dev=keep.values,
        stopped_early=step < steps,
        seconds=time.perf_counter() - start,
        tokens=tokens,
    )


def dev_loss(frozen: FrozenModel, rows: Sequence[Encoded], method: Method, batch_size: int = 16) -> float:
    """The mean negative log-likelihood, in nats, of the scored tokens of ``rows``."""
    prefix = method.fold()
    total, count = 0.0, 0
    with torch.inference_mode():
        for batch in in_order(rows, batch_size, fill_token(frozen.tokenizer)):
            losses = token_losses(frozen, batch.to(frozen.device), prefix)
            total += float(losses.sum())
            count += losses.numel()
    return total / max(count, 1)


def _window(batches: Iterator[Batch], plan: TrainingPart, frozen: FrozenModel) -> list[Batch]:
    return [batch.to(frozen.device) for batch in itertools.islice(batches, plan.accumulation)]


def _step(
    frozen: FrozenModel,
    method: Method,
    batches: Sequence[Batch],
    plan: TrainingPart,
    scored_per_row: float,
    accelerator: Accelerator,
    optimizer: Any,
) -> dict[str, Any]:
    method.train()
    num_rows = sum(len(batch.ids_BT) for batch in batches)
    divisor = denominator(num_rows, plan.reduction, scored_per_row)
    total, count = 0.0, 0
    for batch in batches:
        losses_S = token_losses(frozen, batch, method())
        accelerator.backward(losses_S.sum() / divisor)
        total += losses_S.detach().sum().item()
        count += losses_S.numel()
    loss = total / (num_rows if plan.reduction == "example-sum" else max(count, 1))
    if not math.isfinite(loss):
        raise TrainingFailed(f"the loss became {loss}; lower training.lr or raise training.warmup_steps")
    norm = accelerator.clip_grad_norm_(method.parameters(), plan.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return {"loss": loss, "grad_norm": float(norm or 0.0), "tokens": sum(batch.num_tokens for batch in batches)}


def _factor(plan: TrainingPart, steps: int) -> Callable[[int], float]:
    def factor(step: int) -> float:
        if step < plan.warmup_steps:
            return (step + 1) / (plan.warmup_steps + 1)
        done = (step - plan.warmup_steps) / max(1, steps - plan.warmup_steps)
        match plan.schedule:
            case "constant":
                return 1.0
            case "linear":
                return max(0.0, 1.0 - done)
            case "cosine":
                return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))

    return factor


class _Keeper:
    """Remembers the best development score's parameters, and how long ago it was."""

    def __init__(self, method: Method, plan: TrainingPart) -> None:
        self._method = method
        self._plan = plan
        self._best: dict[str, Any] | None = None
        self._since = 0
        self.step = 0
        self.values: Mapping[str, float] = {}

    def is_enough(self, step: int, values: Mapping[str, float]) -> bool:
        """Take a score in; True when patience has run out."""
        metric = self._plan.dev_metric
        sign = -1 if metric == "loss" else 1
        if not self.values or sign * values[metric] > sign * self.values[metric]:
            self._best, self.step, self.values, self._since = deepcopy(self._method.state_dict()), step, values, 0
        else:
            self._since += 1
        return self._plan.patience is not None and self._since >= self._plan.patience

    def restore(self) -> None:
        """Put the best parameters back."""
        if self._best is not None:
            self._method.load_state_dict(self._best)
