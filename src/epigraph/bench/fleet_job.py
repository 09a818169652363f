"""What the parts of the fleet's bench share: how much is measured, a prepared run, and users out of its rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch

from epigraph.train.prepare import Prepared, prepare
from epigraph.train.recipe import Recipe
from epigraph.train.recipe_file import check_recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How much is measured.

    ``num_users`` users with ``num_pairs`` pairs each take ``rounds`` rounds of ``steps`` steps; so do ``at_once`` users
    on a GPU, with ``batch_size`` rows a step. ``many`` users of a tiny model take ``many_steps`` steps each.
    """

    num_users: int = 32
    num_pairs: int = 50
    rounds: int = 7
    steps: int = 4
    at_once: tuple[int, ...] = (8, 64, 256, 1024)
    batch_size: int = 4
    many: int = 10_000
    many_pairs: int = 4
    many_steps: int = 4


FULL = Sizes()
QUICK = Sizes(num_users=4, num_pairs=6, rounds=2, steps=1, at_once=(2, 4), many=100)
# The rounds, one step before them, and one more whose memory is looked at.
SPARE_STEPS = 2


@dataclass(kw_only=True)
class Job:
    """What is measured: a model, a task whose rows are shared out among users, where it runs, and how much of it."""

    model: str
    task: str
    device: torch.device
    sizes: Sizes

    @property
    def num_steps(self) -> int:
        """The steps that every user takes."""
        return self.sizes.rounds * self.sizes.steps + SPARE_STEPS

    def recipe(self, num_rows: int = 1, batch_size: int = 1) -> Recipe:
        """The recipe of all users."""
        return check_recipe(
            {
                "model": self.model,
                "data": {"task": self.task, "limit": num_rows, "dev_limit": 1},
                "method": {"name": "prefix-tuning"},
                "training": {"batch_size": batch_size, "steps": self.num_steps},
            }
        )

    @cached_property
    def ready(self) -> Prepared:
        """The model, and as many rows as any part needs."""
        sizes = self.sizes
        most = max([sizes.num_users, *(sizes.at_once if self.device.type == "cuda" else ())])
        return prepare(self.recipe(most * sizes.num_pairs), device=str(self.device))

    def users(self, num: int, batch_size: int) -> list[Prepared]:
        """Users with rows of their own; where a task has fewer rows than they need, some share them."""
        ready, size = self.ready, self.sizes.num_pairs
        recipe = self.recipe(len(ready.rows), batch_size)
        return [
            replace(
                ready,
                recipe=recipe,
                rows=tuple(ready.rows[(user * size + i) % len(ready.rows)] for i in range(size)),
                dev_rows=(),
                dev_examples=(),
            )
            for user in range(num)
        ]
