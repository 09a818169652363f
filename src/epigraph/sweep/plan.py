"""Which runs a sweep is made of: search runs first, then, at the learning rates found, the final ones.

It knows specs, recipes and records of finished jobs; it reads no data and runs nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

from epigraph.errors import BadValue, RecipeError
from epigraph.frozen.ensemble import Joining
from epigraph.sweep.spec import EnsemblePart, EvaluatePart, Spec
from epigraph.train.baselines import BASELINES
from epigraph.train.recipe import Recipe
from epigraph.train.recipe_file import check_recipe

Record = Mapping[str, Any]
Rates = Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One run. ``limit``, ``draw`` and ``seed`` are None where they do not matter to its answers.

    A ``search`` job gives a development score, a ``final`` one the scores of ``evaluations``, which are those of the
    spec with ``numbers``. One with ``members`` trains nothing: it asks what those left together, by ``mean``.
    """

    kind: Literal["search", "final"]
    system: str
    limit: int | None
    draw: int | None
    seed: int | None
    recipe: Recipe
    evaluations: tuple[EvaluatePart, ...] = ()
    numbers: tuple[int, ...] = ()
    members: tuple[Job, ...] = ()
    mean: Joining | None = None

    @property
    def run(self) -> str:
        """What is trained, as hexadecimal digits: the same for a search job and the final one that goes on from it."""
        if self.members:
            return digest({"mean": self.mean, "members": [x.run for x in self.members]})
        return digest({"system": self.system, "recipe": self.recipe.model_dump(mode="json")})

    @property
    def plan(self) -> str:
        """What is asked for, as hexadecimal digits, whatever the data and the model are."""
        asked = [x.asked() for x in self.evaluations]
        return digest({"run": self.run, "kind": self.kind, "evaluate": asked})

    @property
    def trains(self) -> bool:
        """Whether there is anything to train."""
        return not self.members and is_trained(self.recipe.method.name)

    @property
    def owner(self) -> str:
        """The system of the spec that it belongs to: an ensemble to its members'."""
        return self.members[0].system if self.members else self.system


Find = Callable[[Job], Record | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One system on one number of training pairs: its ``searches``, and what the learning rate is chosen from.

    An ensemble's has the ``member`` that it is made of, in place of both.
    """

    system: str
    limit: int | None
    rates: tuple[Rates, ...] = ()
    searches: tuple[Job, ...] = ()
    member: Cell | None = None
    mean: Joining | None = None


class Plan:
    """All jobs of a spec. ``steps`` are those that a budget of seconds comes to, by system."""

    def __init__(self, spec: Spec, steps: Mapping[str, int] | None = None) -> None:
        """Raises :class:`RecipeError` for a system whose recipe is none, naming the system."""
        self.spec = spec
        self._steps = steps or {}
        alone = tuple(self._cells())
        self.cells = (*alone, *(x for part in spec.ensembles for x in self._together(part, alone)))
        # By system, ensembles among them, which of the spec's evaluations score it.
        self.scored = {x.system: spec.scored((x.member or x).system) for x in self.cells}

    def job(self, system: str, *, rates: Rates | None = None) -> Job:
        """A final job of ``system``, with the most training pairs: what costs are estimated by."""
        limit = max(self.spec.limits, default=None)
        return self._job("final", system, limit, self._draws[0], self.spec.seeds[0], rates or self._rates(system)[0])

    def finals(self, cell: Cell, rates: Rates) -> list[Job]:
        """The final jobs of ``cell`` at those learning rates."""
        if cell.member is not None:
            members = self.finals(cell.member, rates)
            return [_ensemble(cell, [x for x in members if x.draw == draw]) for draw in self._draws]
        # What trains nothing answers alike whatever the seed is; what reads no training rows, whatever is drawn, too.
        seeds = self.spec.seeds if self._is_trained(cell.system) else self.spec.seeds[:1]
        draws = self._draws if self._uses_rows(cell.system) else self._draws[:1]
        return [self._job("final", cell.system, cell.limit, draw, seed, rates) for draw in draws for seed in seeds]

    def chosen(self, cell: Cell, find: Find) -> Rates | None:
        """The learning rates of the best development score; None until all are there, and where all runs failed."""
        if cell.member is not None:
            return self.chosen(cell.member, find)
        if not cell.searches:
            return cell.rates[0]
        found = [find(job) for job in cell.searches]
        if any(record is None for record in found):
            return None
        sign = 1 if self.spec.search.metric == "loss" else -1
        scored = [
            (sign * record["dev"][self.spec.search.metric], number)
            for number, record in enumerate(found)
            if record is not None and "failed" not in record
        ]
        return cell.rates[min(scored)[1]] if scored else None

    def ready(self, find: Find) -> list[Job]:
        """The jobs that can be done as far as is known: searches, then the final ones, draw by draw and seed by seed,
        so that a sweep that is cut short has a bit of every system."""
        jobs = [job for cell in self.cells for job in cell.searches]
        finals: list[Job] = []
        for cell in self.cells:
            rates = self.chosen(cell, find)
            finals += [] if rates is None else self.finals(cell, rates)
        alone = [job for job in finals if not job.members]
        together = [job for job in finals if job.members and all(_is_done(find(x)) for x in job.members)]
        return [*jobs, *sorted(alone, key=lambda x: (x.recipe.data.draw or 0, x.recipe.training.seed)), *together]

    def expected(self, find: Find) -> Iterator[Job]:
        """All jobs, those too whose learning rate is not chosen yet: they stand at the first of them."""
        for cell in self.cells:
            yield from cell.searches
            yield from self.finals(cell, self.chosen(cell, find) or (cell.member or cell).rates[0])

    def goes_on(self, job: Job) -> bool:
        """Whether ``job`` is a search job that may be taken up by a final one: its draw and seed are among those."""
        return job.kind == "search" and job.draw in self._draws and job.seed in self.spec.seeds

    @property
    def _draws(self) -> tuple[int | None, ...]:
        return self.spec.draws or (None,)

    def _cells(self) -> Iterator[Cell]:
        for system in self.spec.systems:
            rates = self._rates(system)
            limits = self.spec.limits or (None,)
            for limit in limits if self._uses_rows(system) else limits[:1]:
                searches = self._searches(system, limit, rates) if len(rates) > 1 else ()
                yield Cell(system=system, limit=limit, rates=rates, searches=searches)

    def _together(self, part: EnsemblePart, cells: Sequence[Cell]) -> Iterator[Cell]:
        name = f"{part.system}, ensemble of {len(self.spec.seeds)} ({part.mean})"
        for cell in cells:
            if cell.system == part.system:
                yield Cell(system=name, limit=cell.limit, member=cell, mean=part.mean)

    def _searches(self, system: str, limit: int | None, rates: tuple[Rates, ...]) -> tuple[Job, ...]:
        search = self.spec.search
        draw = self._draws[0] if search.draw is None else search.draw
        return tuple(self._job("search", system, limit, draw, search.seed, x) for x in rates)

    def _rates(self, system: str) -> tuple[Rates, ...]:
        """What is tried: each of a system's own rates times each factor, or the rates that the spec names."""
        if not self._is_trained(system):
            return ({},)
        given, recipe = self.spec.systems[system].lrs, self._recipe(system, {})
        if given is not None:
            return tuple({"lr": x} for x in given)
        own = {"lr": recipe.lr, "head_lr": recipe.training.head_lr, "base_lr": recipe.training.base_lr}
        return tuple(
            {name: min(100.0, float(f"{x * factor:.4g}")) for name, x in own.items() if x is not None}
            for factor in self.spec.search.factors
        )

    def _is_trained(self, system: str) -> bool:
        return is_trained(self.spec.method_of(system))

    def _uses_rows(self, system: str) -> bool:
        return uses_rows(self.spec.method_of(system))

    def _job(
        self,
        kind: Literal["search", "final"],
        system: str,
        limit: int | None,
        draw: int | None,
        seed: int,
        rates: Rates,
    ) -> Job:
        reads, numbers = self._uses_rows(system), self.spec.scored(system) if kind == "final" else ()
        data = {name: x for name, x in (("limit", limit), ("draw", draw)) if x is not None}
        return Job(
            kind=kind,
            system=system,
            limit=limit if reads else None,
            draw=draw if reads else None,
            seed=seed if self._is_trained(system) else None,
            recipe=self._recipe(system, {"data": data, "training": {"seed": seed, **rates}}),
            evaluations=tuple(self.spec.evaluate[x] for x in numbers),
            numbers=numbers,
        )

    def _recipe(self, system: str, changes: Mapping[str, Mapping[str, Any]]) -> Recipe:
        part, tables = self.spec.systems[system], deepcopy(self.spec.base)
        tables |= {} if part.model is None else {"model": part.model}
        decided = {"dev_metric": self.spec.search.metric}
        layers = (
            {"method": part.method, "training": part.training, "text": part.text},
            {"training": decided},
            changes,
        )
        for layer in layers:
            for table, values in layer.items():
                tables[table] = {**tables.get(table, {}), **values}
        try:
            tables["training"]["steps"] = self._num_steps(system, check_recipe(tables))
            return check_recipe(tables)
        except RecipeError as wrong:
            raise type(wrong)(f"systems.{system}: {wrong}") from None

    def _num_steps(self, system: str, recipe: Recipe) -> int:
        budget, training = self.spec.budget, recipe.training
        if budget.examples is not None:
            return ceil(budget.examples / (training.batch_size * training.accumulation))
        # Before a system's pace is known a budget of seconds is one step.
        return budget.steps or self._steps.get(system, 1)


def _ensemble(cell: Cell, members: Sequence[Job]) -> Job:
    first = members[0]
    return Job(
        kind="final",
        system=cell.system,
        limit=first.limit,
        draw=first.draw,
        seed=None,
        recipe=first.recipe,
        evaluations=first.evaluations,
        numbers=first.numbers,
        members=tuple(members),
        mean=cell.mean,
    )


def _is_done(record: Record | None) -> bool:
    return record is not None and "failed" not in record


def is_trained(method: str) -> bool:
    """Whether the method of that name trains anything."""
    return method not in BASELINES or BASELINES[method].trains


def uses_rows(method: str) -> bool:
    """Whether the method's answers depend on the training rows."""
    return method not in BASELINES or BASELINES[method].trains or BASELINES[method].text is not None


def check_search(plan: Plan, *, has_dev: bool, metrics: tuple[str, ...]) -> None:
    """Raises :class:`BadValue` where learning rates are to be chosen and there is nothing to choose them by."""
    metric = plan.spec.search.metric
    if metric not in ("loss", *metrics):
        raise BadValue(f"search.metric: got {metric!r}, expected one of {', '.join(('loss', *metrics))}")
    if not has_dev and any(cell.searches for cell in plan.cells):
        raise BadValue(
            "search: there are no development rows to choose a learning rate by; "
            "give base.data.dev or base.data.dev_share, or one factor"
        )


def digest(value: Any) -> str:
    """The first 24 hexadecimal digits of the SHA-256 of ``value`` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:24]
