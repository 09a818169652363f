"""A sweep's records as tables: system by system, for each number of training pairs and each evaluation.

It reads records and predictions; nothing is run again. How tables look is shown.py's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from epigraph.errors import BadValue, ResumeMismatch
from epigraph.sweep.compare import Advantage, advantage, mean_interval
from epigraph.sweep.folder import SweepFolder
from epigraph.sweep.inputs import recipe_model, rows_of, shown_name, task_of
from epigraph.sweep.plan import Cell, Find, Plan, Record
from epigraph.sweep.shown import is_lower_better
from epigraph.tasks.base import Example, Scores, Task
from epigraph.tasks.bootstrap import Summed
from epigraph.tasks.catalogue import data_hash

ILLEGAL = "illegal_share"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One system's scores: ``half`` is None for one run, ``values`` and ``intervals`` are its runs', in the order of
    ``runs``. ``model`` is None where it is the base's; ``best`` the best of the runs, where they are an ensemble too.
    """

    system: str
    model: str | None
    limit: int | None
    num_planned: int
    mean: float
    half: float | None
    best: float | None
    values: tuple[float, ...]
    intervals: tuple[Sequence[float] | None, ...]
    runs: tuple[Record, ...]
    illegal_share: float | None
    advantage: Advantage | None
    is_at_end: bool

    @property
    def first(self) -> Record:
        """The first run's record: counts are the same in all of them."""
        return self.runs[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """One metric of one evaluation."""

    evaluation: str
    metric: str
    variant: str
    against: str | None
    rows: tuple[Row, ...]


class Results:
    """The records of ``folder`` that belong to ``plan``."""

    def __init__(self, plan: Plan, folder: SweepFolder) -> None:
        self.plan = plan
        self._folder = folder
        by_plan = {record.get("plan"): record for record in folder.records()}
        self.find: Find = lambda job: by_plan.get(job.plan)
        self._rows: dict[int, tuple[Task, list[Example]]] = {}

    def tables(self, metrics: Sequence[str] = (), against: str | None = None) -> list[Table]:
        """A table for each evaluation and each of ``metrics`` it has, the task's headline where none are named.

        Raises :class:`BadValue` for a system or a metric that is not there.
        """
        if against is not None and against not in self.plan.spec.systems:
            raise BadValue(f"--against: got {against!r}, expected one of {', '.join(self.plan.spec.systems)}")
        made = [
            self._table(number, metric, against)
            for number, part in enumerate(self.plan.spec.evaluate)
            for metric in metrics or (task_of(part, self._recipe()).headline,)
        ]
        known = {name for record in self._records() for x in record["evaluations"] for name in x["scores"]}
        unknown = [name for name in metrics if known and name not in known]
        if unknown:
            raise BadValue(f"--metric: got {unknown[0]!r}, expected one of {', '.join(sorted(known))}")
        return [table for table in made if table.rows]

    def failed(self) -> list[Record]:
        """The records of jobs that failed."""
        return [record for record in self.every() if "failed" in record]

    def every(self) -> list[Record]:
        """The records of all jobs of the plan that have one, searches and failures too."""
        found = (self.find(job) for job in self.plan.expected(self.find))
        return [record for record in found if record is not None]

    def finished(self, cell: Cell) -> list[Record]:
        """Those of the finished final jobs of one cell."""
        rates = self.plan.chosen(cell, self.find)
        jobs = [] if rates is None else self.plan.finals(cell, rates)
        records = (self.find(job) for job in jobs)
        return [record for record in records if record is not None and "failed" not in record]

    def scored_again(self, run: Record, number: int, metric: str) -> Scores:
        """A run's answers to the spec's evaluation ``number``, scored as they were, with what each row gives."""
        task, examples = self._scored_rows(number, self._entry(run, number)["data"])
        rows, texts = self._folder.read_predictions(run["key"])[self.plan.scored[run["system"]].index(number)]
        return task.score(texts, [examples[x] for x in rows], (metric,))

    def _recipe(self) -> Any:
        return self.plan.job(next(iter(self.plan.spec.systems))).recipe

    def _records(self) -> list[Record]:
        return [record for cell in self.plan.cells for record in self.finished(cell)]

    def _entry(self, run: Record, number: int) -> Mapping[str, Any]:
        """What a run's record has of the spec's evaluation ``number``; nothing where that does not score its system."""
        scored = self.plan.scored[run["system"]]
        found: Mapping[str, Any] = run["evaluations"][scored.index(number)] if number in scored else {"scores": {}}
        return found

    def _score(self, run: Record, number: int, metric: str) -> float:
        return float(self._entry(run, number)["scores"][metric])

    def _table(self, number: int, metric: str, against: str | None) -> Table:
        found = [row for cell in self.plan.cells for row in self._row(cell, number, metric, against)]
        rows = sorted(found, key=lambda row: row.limit or 0)
        variants = [self._entry(row.first, number)["variants"].get(metric, "") for row in rows]
        return Table(
            evaluation=shown_name(self.plan.spec.evaluate[number], self.plan.spec),
            metric=metric,
            variant=variants[0] if variants else "",
            against=against,
            rows=tuple(rows),
        )

    def _row(self, cell: Cell, number: int, metric: str, against: str | None) -> Iterator[Row]:
        runs = [x for x in self.finished(cell) if metric in self._entry(x, number)["scores"]]
        if not runs:
            return
        values = [self._score(run, number, metric) for run in runs]
        mean, half = mean_interval(values)
        illegal = [self._entry(x, number)["scores"].get(ILLEGAL) for x in runs]
        rates = self.plan.chosen(cell, self.find)
        yield Row(
            system=cell.system,
            model=model_of(cell, self.plan),
            limit=cell.limit if self.plan.spec.limits and runs[0]["limit"] is not None else None,
            num_planned=0 if rates is None else len(self.plan.finals(cell, rates)),
            mean=mean,
            half=half,
            best=self._best(cell, metric, values),
            values=tuple(values),
            intervals=tuple(self._entry(run, number)["intervals"].get(metric) for run in runs),
            runs=tuple(runs),
            illegal_share=None if None in illegal else mean_interval([float(x) for x in illegal])[0],
            advantage=self._advantage(runs, number, metric, against) if against not in (None, cell.system) else None,
            is_at_end=len(cell.rates) > 1 and rates in (min_rate(cell), max_rate(cell)),
        )

    def _best(self, cell: Cell, metric: str, values: Sequence[float]) -> float | None:
        if all(x.member != cell for x in self.plan.cells):
            return None
        return min(values) if is_lower_better(metric) else max(values)

    def _advantage(self, runs: Sequence[Record], number: int, metric: str, against: str | None) -> Advantage | None:
        others = [x for x in self._records() if x["system"] == against and metric in self._entry(x, number)["scores"]]
        pairs = [(run, other) for run in runs for other in partners(run, others)]
        values = [(self._score(a, number, metric), self._score(b, number, metric)) for a, b in pairs]
        sides = [(self._summed(a, number, metric), self._summed(b, number, metric)) for a, b in pairs]
        summed = [(a, b) for a, b in sides if a is not None and b is not None]
        return advantage(values, summed if len(summed) == len(pairs) else None)

    def _summed(self, run: Record, number: int, metric: str) -> Summed | None:
        """The row statistics of a run's answers, from its predictions; None where the metric has none."""
        return self.scored_again(run, number, metric).summed.get(metric)

    def _scored_rows(self, number: int, wanted: str) -> tuple[Task, list[Example]]:
        if number not in self._rows:
            part, recipe = self.plan.spec.evaluate[number], self._recipe()
            self._rows[number] = task_of(part, recipe), rows_of(part, recipe)
        task, examples = self._rows[number]
        if data_hash(examples) != wanted:
            raise ResumeMismatch(
                f"the rows of {task.name} are not those that this sweep scored, expected the same rows to compare on; "
                "give the data it ran with, or leave --against out"
            )
        return task, examples


def model_of(cell: Cell, plan: Plan) -> str | None:
    """The model of a cell's system, None for that of the base."""
    model = plan.spec.systems[(cell.member or cell).system].model
    return None if model == recipe_model(plan.spec) else model


def min_rate(cell: Cell) -> Mapping[str, float]:
    """The lowest of what was tried."""
    return min(cell.rates, key=lambda x: x["lr"])


def max_rate(cell: Cell) -> Mapping[str, float]:
    """The highest of what was tried."""
    return max(cell.rates, key=lambda x: x["lr"])


def partners(run: Record, others: Sequence[Record]) -> list[Record]:
    """Another system's runs on the same rows with the same seed; what does not matter to a system matches any."""
    names = ("limit", "draw", "seed")
    pairs = [(other, [(run[name], other[name]) for name in names]) for other in others]
    return [other for other, values in pairs if all(a == b or a is None or b is None for a, b in values)]
