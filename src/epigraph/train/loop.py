"""The training loop: steps, schedule, clipping, development scores, early stopping, and taking a run up again.

Knows a frozen model, a method and rows of ids; does not know tasks, recipes on disk, checkpoints or artifacts.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import AdamW

from epigraph.errors import TrainingFailed
from epigraph.frozen.batch import Batch, num_scored
from epigraph.frozen.inputs import Encoded, fill_token
from epigraph.frozen.model import FrozenModel
from epigraph.methods.base import Method
from epigraph.train.adafactor import Adafactor
from epigraph.train.batches import endless, in_order
from epigraph.train.best import Best
from epigraph.train.loss import denominator, head_of, token_losses
from epigraph.train.recipe import TrainingPart
from epigraph.train.state import Position, State, gather, put_back

OPTIMIZERS = {"adamw": AdamW, "adafactor": Adafactor}
Record = Mapping[str, Any]
Score = Callable[[Method], Mapping[str, float]]


class Saver(Protocol):
    """Where the state of a run goes, and when."""

    def is_due(self, step: int) -> bool:
        """The state after ``step`` is wanted."""

    def save(self, state: State) -> None:
        """Keep it. May raise, to end the run here."""


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
    begin: State | None = None,
    saver: Saver | None = None,
) -> Outcome:
    """Train ``method`` in place on ``rows``; the best development score's virtual tokens are kept.

    ``report`` gets one record a step (loss in nats a token or an example, learning rate, gradient norm, tokens,
    seconds) and one a development score. From ``begin``, the run goes on as the one that saved it would have: on a
    CPU bit for bit. Raises :class:`TrainingFailed` when the loss is no number any more.
    """
    frozen.checkpoint_activations(plan.checkpoint_activations)
    run = _Run(frozen, method, plan, rows, lr)
    if begin is not None:
        put_back(begin, *run.parts)
    at = begin.position if begin is not None else Position()
    skip = at.step * plan.accumulation
    batches = endless(rows, plan.batch_size, plan.seed, fill_token(frozen.tokenizer), buckets=plan.buckets, skip=skip)
    start = time.perf_counter() - at.seconds
    while at.step < steps and not run.best.is_enough:
        step = at.step + 1
        window = [batch.to(frozen.device) for batch in itertools.islice(batches, plan.accumulation)]
        record = run.step(window, lr * _factor(plan, steps, step - 1))
        report({"step": step, **record, "seconds": time.perf_counter() - start})
        if score is not None and (step == steps or (plan.dev_every and step % plan.dev_every == 0)):
            values = score(run.method)
            report({"step": step, "dev": dict(values), "seconds": time.perf_counter() - start})
            run.best.take(step, values)
        at = run.position(step, at.tokens + record["tokens"], time.perf_counter() - start)
        if saver is not None and saver.is_due(step):
            saver.save(State(position=at, tensors=gather(*run.parts)))
    run.best.restore()
    frozen.checkpoint_activations(False)
    return Outcome(
        steps=at.step,
        kept_step=run.best.step or at.step,
        kept_dev=run.best.values,
        stopped_early=at.step < steps,
        seconds=time.perf_counter() - start,
        tokens=at.tokens,
    )


def dev_loss(frozen: FrozenModel, rows: Sequence[Encoded], method: Method, batch_size: int = 16) -> float:
    """The mean negative log-likelihood, in nats, of the scored tokens of ``rows``."""
    total, count = 0.0, 0
    with torch.inference_mode():
        folded = method.fold()
        tokens = None if folded is None else frozen.carried(folded)
        for batch in in_order(rows, batch_size, fill_token(frozen.tokenizer)):
            losses = token_losses(frozen, batch.to(frozen.device), tokens, head_of(method))
            total += float(losses.sum())
            count += losses.numel()
    return total / max(count, 1)


class _Run:
    """The moving parts of a run: the method, its optimiser, and the best development score so far."""

    def __init__(
        self, frozen: FrozenModel, method: Method, plan: TrainingPart, rows: Sequence[Encoded], lr: float
    ) -> None:
        self._frozen = frozen
        self._plan = plan
        self._scored_per_row = max(1.0, sum(num_scored(row) for row in rows) / len(rows))
        self._accelerator = Accelerator(cpu=frozen.device.type == "cpu")
        groups = _groups(method.to(frozen.device), plan, lr)
        optimizer = OPTIMIZERS[plan.optimizer](groups, weight_decay=plan.weight_decay)
        self.method, self.optimizer = self._accelerator.prepare(method, optimizer)
        self.best = Best(self.method, plan)

    @property
    def parts(self) -> tuple[Method, Any, Best, torch.device]:
        """What :func:`gather` and :func:`put_back` take."""
        return self.method, self.optimizer, self.best, self._frozen.device

    def position(self, step: int, tokens: int, seconds: float) -> Position:
        """Where the run is after ``step``."""
        best = self.best
        kept = {"kept_step": best.step, "kept_values": dict(best.values), "since": best.since}
        return Position(step=step, tokens=tokens, seconds=seconds, **kept)

    def step(self, batches: Sequence[Batch], lr: float) -> dict[str, Any]:
        """One optimiser step; its record."""
        self.method.train()
        num_rows = sum(len(batch.ids_BT) for batch in batches)
        divisor = denominator(num_rows, self._plan.reduction, self._scored_per_row)
        total, count = 0.0, 0
        for batch in batches:
            losses_S = token_losses(self._frozen, batch, self.method(), head_of(self.method))
            self._accelerator.backward(losses_S.sum() / divisor)
            total += losses_S.detach().sum().item()
            count += losses_S.numel()
        loss = total / (num_rows if self._plan.reduction == "example-sum" else max(count, 1))
        if not math.isfinite(loss):
            raise TrainingFailed(f"the loss became {loss}; lower training.lr or raise training.warmup_steps")
        norm = self._accelerator.clip_grad_norm_(self.method.parameters(), self._plan.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["share"]
        self.optimizer.step()
        self.optimizer.zero_grad()
        tokens = sum(batch.num_tokens for batch in batches)
        return {"loss": loss, "grad_norm": float(norm or 0.0), "tokens": tokens, "lr": lr}


def _groups(method: Method, plan: TrainingPart, lr: float) -> list[dict[str, Any]]:
    """The method's own parameters, its head's and the base's, each with its share of the learning rate."""
    parts: dict[str, list[Tensor]] = {"own": [], "head": [], "base": []}
    for name, x in method.named_parameters():
        if x.requires_grad:
            parts[part if (part := name.partition(".")[0]) in parts else "own"].append(x)
    rates = {"own": lr, "head": plan.head_lr, "base": plan.base_lr or 0.0}
    return [{"params": params, "share": rates[part] / lr} for part, params in parts.items() if params]


def _factor(plan: TrainingPart, steps: int, step: int) -> float:
    """What the learning rate is multiplied by after ``step`` of ``steps``."""
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
