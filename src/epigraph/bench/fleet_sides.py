"""The same users' steps taken three ways: together as a fleet, as the rows of one single run, and everybody alone.

Sides know their users; how often they take turns is not their business.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from epigraph.errors import TrainingFailed
from epigraph.frozen.batch import collate
from epigraph.frozen.inputs import Encoded, fill_token
from epigraph.methods.base import Method, flatten
from epigraph.train.batches import Share, endless_numbers, share
from epigraph.train.fleet.together import Together
from epigraph.train.loop import Descent, factor
from epigraph.train.parallel import ALONE
from epigraph.train.prepare import Prepared
from epigraph.train.run import plan_of
from epigraph.train.stop import Stop
from epigraph.virtual import KVPrefix


class Side(Protocol):
    """What takes steps of all users."""

    name: str

    def take(self, steps: int) -> None:
        """So many steps of everybody."""

    def tokens(self) -> int:
        """How many tokens were read so far."""


class Fleet:
    """All users in one fleet; batches are made as it goes, those of the other sides beforehand."""

    name = "fleet"

    def __init__(self, users: Sequence[Prepared], method: Method, num_rows: int) -> None:
        self._together = Together(users[0], copy.deepcopy(method), room=len(users), num_rows=num_rows)
        self.members = [self._together.enter(str(number), ready) for number, ready in enumerate(users)]

    def take(self, steps: int) -> None:
        """Raises :class:`TrainingFailed` where a user's loss is no number."""
        for _ in range(steps):
            failed = self._together.step()
            if failed:
                raise TrainingFailed(str(next(iter(failed.values()))))

    def tokens(self) -> int:
        """How many tokens were read so far."""
        return sum(x.at.tokens for x in self.members)

    def losses(self) -> list[list[float]]:
        """Each user's, step by step."""
        return [[record["loss"] for record in x.records] for x in self.members]

    def prefixes(self) -> list[Tensor]:
        """What each user has now, as one vector."""
        return [_numbers(self._together.result(x)) for x in self.members]


class Batched:
    """One run of one prefix whose batches are, step by step, all rows that the users read then."""

    name = "one run"

    def __init__(self, users: Sequence[Prepared], method: Method) -> None:
        rows = [row for ready in users for row in ready.rows]
        self._run = _Run(users[0], method, rows, _joined([_batches(ready) for ready in users]))

    def take(self, steps: int) -> None:
        """So many steps."""
        self._run.take(steps)

    def tokens(self) -> int:
        """How many tokens were read so far."""
        return self._run.tokens


class Alone:
    """A run a user, one after the other: what `epigraph train` does, but for what it does between steps."""

    name = "alone"

    def __init__(self, users: Sequence[Prepared], method: Method) -> None:
        self._runs = [_Run(ready, method, ready.rows, _batches(ready)) for ready in users]

    def take(self, steps: int) -> None:
        """So many steps of the first user, then of the second, and so on."""
        for run in self._runs:
            run.take(steps)

    def tokens(self) -> int:
        """How many tokens were read so far."""
        return sum(run.tokens for run in self._runs)

    def losses(self) -> list[list[float]]:
        """Each user's, step by step."""
        return [run.losses for run in self._runs]

    def prefixes(self) -> list[Tensor]:
        """What each user has now, as one vector."""
        return [_numbers(run.method) for run in self._runs]


class _Run:
    """A run of the trainer's own loop, taken up and left as often as one likes."""

    def __init__(
        self, ready: Prepared, method: Method, rows: Sequence[Encoded], batches: Iterator[list[Encoded]]
    ) -> None:
        self.method = copy.deepcopy(method)
        self.losses: list[float] = []
        self.tokens = 0
        self._ready, self._plan = ready, plan_of(ready, self.method)
        frozen, fill = ready.frozen, fill_token(ready.frozen.tokenizer)
        self._descent = Descent(frozen, self.method, self._plan, rows, ready.recipe.lr, ALONE, Stop())
        made = itertools.islice(batches, ready.steps)
        self._shares: list[Share] = [share(collate(x, fill), 0, 1).to(frozen.device) for x in made]

    def take(self, steps: int) -> None:
        for _ in range(steps):
            at = len(self.losses)
            lr = self._ready.recipe.lr * factor(self._plan, self._ready.steps, at)
            record = self._descent.step([self._shares[at]], lr)
            self.losses.append(record["loss"])
            self.tokens += record["tokens"]


def _batches(ready: Prepared) -> Iterator[list[Encoded]]:
    """A user's rows, batch by batch, in the order that his run has."""
    plan = ready.recipe.training
    numbers = endless_numbers(ready.rows, plan.batch_size, plan.seed, buckets=plan.buckets)
    return ([ready.rows[i] for i in batch] for batch in numbers)


def _joined(every: Sequence[Iterator[list[Encoded]]]) -> Iterator[list[Encoded]]:
    """One batch out of everybody's, for ever."""
    return ([row for batch in batches for row in batch] for batches in zip(*every, strict=True))


def _numbers(method: Method) -> Tensor:
    made = method.fold()
    assert isinstance(made, KVPrefix)
    return flatten(made).detach().flatten().to("cpu", torch.float64)
