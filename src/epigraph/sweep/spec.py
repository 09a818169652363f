"""What a sweep compares: systems, rows, budget, search and scores, from one TOML file. It knows recipes; it runs none.

Every key is documented in docs/sweeps.md.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError, model_validator

from epigraph.errors import BadValue, RecipeError, UnknownKey
from epigraph.frozen.ensemble import Joining
from epigraph.frozen.randomized import SCHEME
from epigraph.train.parts import NonNegative, Part, Positive
from epigraph.train.recipe import METHODS, PrefixTuningPart, Recipe

Rate = Annotated[float, Field(gt=0, le=100)]
Tables = dict[str, Any]
Name = Annotated[str, Field(pattern=r"^\w[\w .,%()+-]{0,63}$")]

# What the sweep itself decides, so that no table of a spec may.
_DECIDED = {
    "data.limit": "limits",
    "data.draw": "draws",
    "training.steps": "budget",
    "training.epochs": "budget",
    "training.lr": "search",
    "training.seed": "seeds",
    "training.dev_metric": "search.metric",
}
# What may be chosen for all systems, and for none alone: each changes what is learnt from, or what is chosen.
_SHARED = ("training.dev_every", "training.patience", "training.precision")
# With a budget of steps, these would change how many rows a system sees.
_ROWS_A_STEP = ("training.batch_size", "training.accumulation")


class BudgetPart(Part):
    """``[budget]``: what every trained system may spend on one run: one of the three."""

    steps: Positive | None = None
    examples: Positive | None = None
    seconds: Annotated[float, Field(gt=0, le=1e7)] | None = None

    @model_validator(mode="after")
    def _one(self) -> BudgetPart:
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            raise ValueError(f"give one of steps, examples and seconds, got {' and '.join(given) or 'none'}")
        return self


class SearchPart(Part):
    """``[search]``: learning rates to try, as multiples of each system's own, on one development seed."""

    factors: Annotated[tuple[Rate, ...], Field(min_length=1)] = (0.3, 1.0, 3.0)
    seed: NonNegative = 1
    draw: NonNegative | None = None
    metric: str = "loss"


class EvaluatePart(Part):
    """One of ``[[evaluate]]``: what finished runs are scored on; decoding as the text contract says, but for these."""

    task: str | None = None
    split: str = "test"
    limit: Positive | None = None
    metrics: tuple[str, ...] | None = None
    num_beams: Annotated[int, Field(ge=1, le=64)] | None = None
    length_penalty: Annotated[float, Field(ge=-10, le=10)] | None = None
    max_new_tokens: Positive | None = None
    systems: tuple[Name, ...] = ()

    @model_validator(mode="after")
    def _penalises_beams(self) -> EvaluatePart:
        if self.length_penalty is not None and (self.num_beams or 1) == 1:
            raise ValueError("length_penalty chooses between beams; give num_beams, 2 or more, or leave it out")
        return self

    def asked(self) -> dict[str, Any]:
        """What decides the answers and their scores, as plain values."""
        # A key that came later is no part of it until it is given, so that older records stand.
        later = {"length_penalty"} if self.length_penalty is None else set()
        return self.model_dump(mode="json", exclude={"systems", *later})


class SystemPart(Part):
    """One of ``[systems]``: what it changes in the recipe, learning rates of its own, and whether its files stay.

    ``texts`` is ``text`` by task, in a spec of several; ``model`` the control, the base with random weights.
    """

    method: Tables
    training: Tables = Field(default_factory=dict)
    text: Tables = Field(default_factory=dict)
    texts: dict[Name, Tables] = Field(default_factory=dict)
    model: str | None = None
    lrs: Annotated[tuple[Rate, ...], Field(min_length=1)] | None = None
    keeps: bool | None = None


class EnsemblePart(Part):
    """One of ``[[ensembles]]``: the runs of a system that differ in the seed alone, asked together."""

    system: Name
    mean: Joining = "geometric"


class Spec(Part):
    """A whole sweep, or one for each of ``tasks``, of which ``task`` is the one that a folder is for."""

    name: Name
    title: str = ""
    tasks: tuple[Name, ...] = ()
    task: Name | None = None
    base: Tables
    budget: BudgetPart
    search: SearchPart = SearchPart()
    limits: tuple[Positive, ...] = ()
    draws: tuple[NonNegative, ...] = ()
    seeds: Annotated[tuple[NonNegative, ...], Field(min_length=1)] = (1,)
    keeps: bool = False
    evaluate: Annotated[tuple[EvaluatePart, ...], Field(min_length=1)]
    ensembles: tuple[EnsemblePart, ...] = ()
    systems: Annotated[dict[Name, SystemPart], Field(min_length=1)]

    @model_validator(mode="after")
    def _each_once(self) -> Spec:
        given: dict[str, Sequence[object]] = {"limits": self.limits, "draws": self.draws, "seeds": self.seeds}
        given |= {"factors": self.search.factors, "tasks": self.tasks, "ensembles": self.ensembles}
        for name, values in given.items():
            if any(x in values[:number] for number, x in enumerate(values)):
                raise ValueError(f"{name}: got {list(values)}, expected each once")
        return self

    @model_validator(mode="after")
    def _the_same_for_all(self) -> Spec:
        if "method" in self.base:
            raise ValueError("base.method: got a method, expected none: every system names its own")
        for key in _given(self.base):
            if key in _DECIDED:
                raise ValueError(f"base.{key} is decided by {_DECIDED[key]}; leave it out")
        own = (*_DECIDED, *_SHARED, *(_ROWS_A_STEP if self.budget.steps is not None else ()))
        for name, system in self.systems.items():
            for key in _given({"training": system.training}):
                if key in own:
                    raise ValueError(f"systems.{name}.{key} has to be the same for all systems; set it in base")
        return self

    @model_validator(mode="after")
    def _controls(self) -> Spec:
        control = f"{SCHEME}{self.base.get('model', Recipe.model_fields['model'].default)}"
        for name, system in self.systems.items():
            if system.model not in (None, control):
                raise ValueError(
                    f"systems.{name}.model: got {system.model!r}, expected {control!r}, which is the control, or none: "
                    "all systems have the base's model"
                )
        return self

    @model_validator(mode="after")
    def _names_what_is_there(self) -> Spec:
        named = [(f"evaluate.{i}.systems", x) for i, part in enumerate(self.evaluate) for x in part.systems]
        for where, name in [*named, *((f"ensembles.{i}.system", x.system) for i, x in enumerate(self.ensembles))]:
            if name not in self.systems:
                raise ValueError(f"{where}: got {name!r}, expected one of {', '.join(self.systems)}")
        unscored = [name for name in self.systems if not self.scored(name)]
        if unscored:
            raise ValueError(f"evaluate: nothing scores {unscored[0]}; take it out, or name it in one of their systems")
        return self

    @model_validator(mode="after")
    def _ensembles_have_members(self) -> Spec:
        if self.ensembles and len(self.seeds) < 2:
            raise ValueError("ensembles: the members are the runs of a system's seeds, got one seed; give more seeds")
        for name in {x.system for x in self.ensembles}:
            method = self.method_of(name)
            if method not in METHODS or "base_lr" in self.systems[name].training:
                raise ValueError(
                    f"ensembles: {name} has no virtual tokens on a frozen model to be asked together; leave it out"
                )
        return self

    @model_validator(mode="after")
    def _tasks_are_the_tasks(self) -> Spec:
        if self.tasks and "task" in self.base.get("data", {}):
            raise ValueError("base.data.task is decided by tasks; leave it out")
        if self.task is not None and self.task not in self.tasks:
            raise ValueError(f"task: got {self.task!r}, expected one of tasks")
        for name, system in self.systems.items():
            for task in system.texts:
                if task not in self.tasks:
                    raise ValueError(f"systems.{name}.texts: got {task!r}, expected one of tasks")
        return self

    def of_task(self, task: str) -> Spec:
        """The sweep of one of ``tasks``."""
        base = {**self.base, "data": {**self.base.get("data", {}), "task": task}}
        systems = {
            name: x.model_copy(update={"text": {**x.text, **x.texts.get(task, {})}, "texts": {}})
            for name, x in self.systems.items()
        }
        return self.model_copy(
            update={"name": f"{self.name} {task}", "tasks": (), "task": None, "base": base, "systems": systems}
        )

    def scored(self, system: str) -> tuple[int, ...]:
        """The numbers of the evaluations that score that system."""
        return tuple(i for i, part in enumerate(self.evaluate) if not part.systems or system in part.systems)

    def method_of(self, system: str) -> str:
        """The name of that system's method."""
        return str(self.systems[system].method.get("name", PrefixTuningPart().name))

    def keeps_files(self, system: str) -> bool:
        """Whether the artifacts of that system's scored runs stay."""
        own = self.systems[system].keeps
        return self.keeps if own is None else own


def read_spec(path: Path) -> Spec:
    """The spec in a TOML file, for the task that it names, if any; raises the leaves of :class:`RecipeError`."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadValue(f"no spec at {path}; give the path of a TOML file") from None
    except (OSError, ValueError, RecursionError) as wrong:
        raise BadValue(f"{path} is not a readable TOML file: {wrong}") from None
    try:
        spec = Spec.model_validate(tables)
    except ValidationError as wrong:
        # A key that is misspelt says more than that the right one is missing.
        mistakes = sorted(wrong.errors(), key=lambda x: x["type"] != "extra_forbidden")
        raise _one_line(path, mistakes[0]) from None
    return spec if spec.task is None else spec.of_task(spec.task)


def _given(tables: Mapping[str, Any]) -> Iterator[str]:
    for table, values in tables.items():
        if isinstance(values, Mapping):
            yield from (f"{table}.{name}" for name in values)


def _one_line(path: Path, mistake: Mapping[str, Any]) -> RecipeError:
    key = ".".join(map(str, mistake["loc"]))
    where = f"{path.name}: {key}" if key else path.name
    if mistake["type"] == "extra_forbidden":
        near = get_close_matches(str(mistake["loc"][-1]), _names(), n=1)
        return UnknownKey(f"{where}: unknown key; {f'did you mean {near[0]}?' if near else 'see docs/sweeps.md'}")
    if mistake["type"] == "missing":
        return BadValue(f"{where} is missing; set it")
    said = str(mistake["msg"]).removeprefix("Value error, ")
    if mistake["type"] == "value_error":
        return BadValue(f"{where}: {said}")
    return BadValue(f"{where}: got {mistake['input']!r:.80}, expected: {said.removeprefix('Input should be ')}")


def _names() -> list[str]:
    parts: tuple[type[BaseModel], ...] = (Spec, BudgetPart, SearchPart, EvaluatePart, EnsemblePart, SystemPart)
    return [name for part in parts for name in part.model_fields]
