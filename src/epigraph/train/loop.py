"""The training loop: steps, schedule, clipping, development scores, early stopping, and taking a run up again.

Knows a frozen model, a method and rows of ids; does not know tasks, recipes on disk, checkpoints or artifacts.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW

from epigraph.errors import TrainingFailed
from epigraph.frozen.batch import num_scored
from epigraph.frozen.inputs import Encoded, fill_token
from epigraph.frozen.model import FrozenModel
from epigraph.methods.base import Method
from epigraph.train.adafactor import Adafactor
from epigraph.train.batches import Share, ahead, endless, in_order, share
from epigraph.train.best import Best
from epigraph.train.loss import denominator, head_of, lesson_losses, token_losses
from epigraph.train.parallel import ALONE, Processes
from epigraph.train.parts import TrainingPart
from epigraph.train.state import Position, State, gather, put_back
from epigraph.train.stop import Stop

OPTIMIZERS = {"adamw": AdamW, "adafactor": Adafactor}
Record = Mapping[str, Any]
Score = Callable[[Method], Mapping[str, float]]
Parts = tuple[Method, Any, Best, torch.device]


class Steps(Protocol):
    """What takes the steps of a run: by gradients (:class:`Descent`), or by trying (:mod:`epigraph.train.discrete`).

    A step takes ``num_windows`` times ``training.accumulation`` batches.
    """

    num_windows: int

    @property
    def best(self) -> Best:
        """The best development score so far."""

    @property
    def parts(self) -> Parts:
        """What :func:`gather` and :func:`put_back` take."""

    def position(self, step: int, tokens: int, seconds: float) -> Position:
        """Where the run is after ``step``."""

    def step(self, shares: Sequence[Share], lr: float) -> dict[str, Any]:
        """Change the method once; the step's record."""


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
    processes: Processes = ALONE,
    stop: Stop | None = None,
    steps_by: Callable[..., Steps] | None = None,
) -> Outcome:
    """Train ``method`` in place on ``rows``; the best development score's virtual tokens are kept.

    ``report`` gets one record a step (loss in nats a token or an example, learning rate, gradient norm, tokens,
    seconds) and one a development score. From ``begin``, the run goes on as the one that saved it would have: on a
    CPU bit for bit. Raises :class:`TrainingFailed` when the loss is no number any more.

    Several ``processes`` share out each batch's rows and add up their gradients, so that all take the same step, and
    that of one process up to rounding. A ``stop`` that was asked of one of them reaches all of them with that sum.

    ``steps_by`` makes what takes the steps, in the place of :class:`Descent` and with its arguments.
    """
    frozen.checkpoint_activations(plan.checkpoint_activations)
    run = (steps_by or Descent)(frozen, method, plan, rows, lr, processes, Stop() if stop is None else stop)
    processes.same(method.state_dict().values())
    if begin is not None:
        put_back(begin, *run.parts)
    at = begin.position if begin is not None else Position()
    start = time.perf_counter() - at.seconds
    num_batches = plan.accumulation * run.num_windows
    with contextlib.closing(
        _windows(frozen, rows, plan, processes, num_batches, skip=at.step * num_batches)
    ) as windows:
        while at.step < steps and not run.best.is_enough:
            step = at.step + 1
            record = run.step(next(windows), lr * factor(plan, steps, step - 1))
            report({"step": step, **record, "seconds": time.perf_counter() - start})
            if score is not None and (step == steps or (plan.dev_every and step % plan.dev_every == 0)):
                values = score(method)
                report({"step": step, "dev": dict(values), "seconds": time.perf_counter() - start})
                run.best.take(step, values, method.state_dict())
            at = run.position(step, at.tokens + record["tokens"], time.perf_counter() - start)
            if saver is not None and saver.is_due(step):
                saver.save(State(position=at, tensors=gather(*run.parts)))
    if run.best.parameters:
        method.load_state_dict(run.best.parameters)
    frozen.checkpoint_activations(False)
    return Outcome(
        steps=at.step,
        kept_step=run.best.step or at.step,
        kept_dev=run.best.values,
        stopped_early=at.step < steps,
        seconds=time.perf_counter() - start,
        tokens=at.tokens,
    )


def _windows(
    frozen: FrozenModel,
    rows: Sequence[Encoded],
    plan: TrainingPart,
    processes: Processes,
    num_batches: int,
    *,
    skip: int,
) -> Generator[list[Share]]:
    """This process's share of each step's ``num_batches`` behind the first ``skip``, on the model's device.

    Those of the next step are being made meanwhile.
    """
    fill = fill_token(frozen.tokenizer)
    batches = endless(rows, plan.batch_size, plan.seed, fill, buckets=plan.buckets, skip=skip)
    shares = (share(batch, processes.rank, processes.num) for batch in batches)
    if frozen.device.type == "cuda":
        shares = (x.pinned() for x in shares)
    with contextlib.closing(ahead(shares)) as made:
        while True:
            yield [x.to(frozen.device) for x in itertools.islice(made, num_batches)]


def dev_loss(
    frozen: FrozenModel,
    rows: Sequence[Encoded],
    method: Method,
    batch_size: int = 16,
    processes: Processes = ALONE,
) -> float:
    """The mean negative log-likelihood, in nats, of the scored tokens of ``rows``, of which each process reads some."""
    sums = torch.zeros(2, dtype=torch.float64)
    with torch.inference_mode():
        folded = method.fold()
        tokens = None if folded is None else frozen.carried(folded)
        for batch in in_order(rows, batch_size * processes.num, fill_token(frozen.tokenizer)):
            own = share(batch, processes.rank, processes.num).to(frozen.device)
            if method.foreign is not None:
                losses = method.foreign.losses(own.batch)
            else:
                losses = token_losses(frozen, own.batch, tokens, head_of(method))
            sums += own.weight * torch.tensor([float(losses.sum()), losses.numel()], dtype=torch.float64)
    processes.add([sums])
    return float(sums[0] / sums[1].clamp(min=1))


class Descent:
    """The moving parts of a run: the method, its optimiser, and the best development score so far."""

    num_windows = 1

    def __init__(
        self,
        frozen: FrozenModel,
        method: Method,
        plan: TrainingPart,
        rows: Sequence[Encoded],
        lr: float,
        processes: Processes,
        stop: Stop,
    ) -> None:
        self._frozen = frozen
        self._plan = plan
        self._scored_per_row = max(1.0, sum(num_scored(row) for row in rows) / len(rows))
        self._processes, self._stop = processes, stop
        self.method = method.to(frozen.device)
        nameless = [{**x, "params": [one for _, one in x["params"]]} for x in groups(method, plan, lr)]
        self.optimizer = OPTIMIZERS[plan.optimizer](nameless, weight_decay=plan.weight_decay)
        self.best = Best(plan)

    @property
    def parts(self) -> Parts:
        """What :func:`gather` and :func:`put_back` take."""
        return self.method, self.optimizer, self.best, self._frozen.device

    def position(self, step: int, tokens: int, seconds: float) -> Position:
        """Where the run is after ``step``."""
        return Position(step=step, tokens=tokens, seconds=seconds, **self.best.kept)

    def step(self, shares: Sequence[Share], lr: float) -> dict[str, Any]:
        """One optimiser step; its record."""
        loss, tokens = self.gradients(shares)
        norm = clip_grad_norm_(self.method.parameters(), self._plan.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["share"]
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {"loss": loss, "grad_norm": float(norm), "tokens": tokens, "lr": lr}

    def gradients(self, shares: Sequence[Share]) -> tuple[float, int]:
        """Leave the gradients of all processes' rows; the loss, and how many tokens were read.

        Raises :class:`TrainingFailed` when the loss is no number any more.
        """
        num_rows = sum(own.num_rows for own in shares)
        total, count, tokens = self._backward(shares, num_rows)
        loss = total / (num_rows if self._plan.reduction == "example-sum" else max(count, 1))
        if not math.isfinite(loss):
            raise TrainingFailed(f"the loss became {loss}; lower training.lr or raise training.warmup_steps")
        return loss, tokens

    def _backward(self, shares: Sequence[Share], num_rows: int) -> tuple[float, int, int]:
        """Leave the gradients of all processes' rows; the sum of their losses, their scored tokens, their tokens."""
        self.method.train()
        divisor = denominator(num_rows, self._plan.reduction, self._scored_per_row)
        total, count = 0.0, 0
        for own in shares:
            losses_S = lesson_losses(self._frozen, own.batch, self.method) * own.weight
            (losses_S.sum() / divisor).backward()
            total += losses_S.detach().sum().item()
            count += losses_S.numel() * own.weight
        numbers = [total, count, sum(own.num_tokens for own in shares), *self._stop.flags()]
        total, num_scored, num_tokens, *asked = self._processes.add_gradients(self.method.parameters(), numbers)
        self._stop.hear(asked)
        return total, int(num_scored), int(num_tokens)


def groups(method: Method, plan: TrainingPart, lr: float) -> list[dict[str, Any]]:
    """The method's own parameters, its head's and the base's, each with its share of the learning rate.

    By name: ``params`` is a list of names and parameters.
    """
    parts: dict[str, list[tuple[str, Tensor]]] = {"own": [], "head": [], "base": []}
    for name, x in method.named_parameters():
        if x.requires_grad:
            parts[part if (part := name.partition(".")[0]) in parts else "own"].append((name, x))
    rates = {"own": lr, "head": plan.head_lr, "base": plan.base_lr or 0.0}
    return [{"params": params, "share": rates[part] / lr} for part, params in parts.items() if params]


def factor(plan: TrainingPart, steps: int, step: int) -> float:
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
