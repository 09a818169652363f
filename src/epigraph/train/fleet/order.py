"""What a fleet is to do, and how far it is. It knows a recipe and users' names; it trains nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epigraph.errors import BadValue
from epigraph.tasks.users import COLUMN, Users, read_users
from epigraph.train.recipe import Recipe
from epigraph.train.recipe_file import check_recipe as recipe_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What a fleet is to do: a recipe for all, whose ``data`` is the users', and where it goes.

    ``active``: users at a time, None for as many as ``num_rows`` rows in a pass hold. ``lease_seconds``: after so long
    without a sign of life a worker's users are another's.
    """

    recipe: Recipe
    users: Users
    out: str
    device: str = "cpu"
    active: int | None = None
    num_rows: int | None = None
    lease_seconds: float = 60.0
    retry_failed: bool = False


@dataclass(kw_only=True, slots=True)
class Progress:
    """How far the fleet is, all workers together, and what this one did: users trained, their steps and tokens."""

    total: int
    done: int = 0
    failed: int = 0
    running: int = 0
    trained: int = 0
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0

    @property
    def users_an_hour(self) -> float:
        """Users that this worker trained, by the hour."""
        return 3600 * self.trained / max(self.seconds, 1e-9)

    @property
    def waiting(self) -> int:
        """Users that nobody here has begun with; other workers may."""
        return max(0, self.total - self.done - self.failed - self.running)


def order_from(given: Mapping[str, Any]) -> Order:
    """The order that plain values stand for: ``recipe`` (its tables), ``column``, and what :class:`Order` has else.

    They travel to other machines, where the rows that ``recipe`` names are read again.
    """
    recipe = recipe_of(given["recipe"])
    rest = {name: x for name, x in given.items() if name not in ("recipe", "column")}
    data, dev = recipe.data.train, recipe.data.dev
    check_recipe(recipe)
    assert data is not None
    users = read_users(Path(data), dev, column=given.get("column", COLUMN))
    return Order(recipe=recipe, users=users, **rest)


def check_recipe(recipe: Recipe) -> None:
    """Raise :class:`BadValue` for what no fleet trains: a named task's rows, a base that changes, no virtual tokens."""
    if recipe.data.task is not None:
        raise BadValue(f"data.task is {recipe.data.task!r}, a fleet's rows are its users'; give DATA and leave it out")
    if recipe.baseline is not None:
        raise BadValue(
            f"method.name is {recipe.method.name!r}, a fleet trains virtual tokens on one frozen base; "
            "use prefix-tuning, prompt-tuning or p-tuning"
        )
    if recipe.training.tensorboard:
        raise BadValue("training.tensorboard: got true, a fleet writes no such events; each user has his steps.jsonl")
    for key, given in (("base_lr", recipe.training.base_lr), ("shard_base", recipe.training.shard_base)):
        if given:
            raise BadValue(f"training.{key}: got {given}, a fleet's users share one frozen base; leave it out")
