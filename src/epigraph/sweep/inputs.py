"""What all jobs of a sweep read: the task's rows and the model, by their hashes, and names for jobs made of these.

A record of other rows, of another model or of another recipe is never taken for the one that is wanted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from epigraph.frozen.fingerprint import fingerprint
from epigraph.frozen.resolve import resolve
from epigraph.sweep.plan import Job, Plan, check_search, digest
from epigraph.sweep.spec import EvaluatePart, Spec
from epigraph.tasks.base import Example, Task
from epigraph.tasks.catalogue import data_hash, find
from epigraph.train.prepare import dev_split, find_task
from epigraph.train.recipe import Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """Hashes of the rows to train on and to score, and of the model; ``num_rows`` are those of each evaluation.

    ``controls`` has the hashes of other models by their names, ``length`` is the mean length of a training pair, in
    characters.
    """

    base: str
    data: Mapping[str, str]
    evaluate: tuple[str, ...]
    num_rows: tuple[int, ...]
    controls: Mapping[str, str] = field(default_factory=dict)
    length: float = 1.0

    def run(self, job: Job) -> str:
        """The name of the folder in which ``job`` trains."""
        base = self.controls.get(job.recipe.model, self.base)
        return digest({"run": job.run, "base": base, "data": dict(self.data)})

    def key(self, job: Job) -> str:
        """The name of ``job``'s record."""
        return digest({"run": self.run(job), "plan": job.plan, "evaluate": [self.evaluate[x] for x in job.numbers]})


def read_inputs(plan: Plan) -> Inputs:
    """Read all rows and hash them. Raises what reading them raises, before anything is trained."""
    recipe = plan.job(next(iter(plan.spec.systems))).recipe
    task, data = find_task(recipe), recipe.data
    dev = dev_split(recipe, task)
    check_search(plan, has_dev=data.dev_share is not None or dev is not None, metrics=task.better_when_higher)
    splits = {"train": data.train_split}
    if dev is not None and data.dev_share is None:
        splits["dev"] = dev
    read = {name: task.load(split) for name, split in splits.items()}
    scored = [rows_of(part, recipe) for part in plan.spec.evaluate]
    base = recipe_model(plan.spec)
    controls = {x.model for x in plan.spec.systems.values() if x.model is not None}
    return Inputs(
        base=fingerprint(resolve(base)),
        data={name: data_hash(rows) for name, rows in read.items()},
        evaluate=tuple(data_hash(rows) for rows in scored),
        num_rows=tuple(map(len, scored)),
        controls={name: fingerprint(resolve(name)) for name in sorted(controls)},
        length=_length(read["train"], 4 * (recipe.text.max_source_tokens or task.max_source_tokens)),
    )


def recipe_model(spec: Spec) -> str:
    """The base's model, which all systems but controls have."""
    return str(spec.base.get("model", Recipe.model_fields["model"].default))


def _length(examples: Sequence[Example], most: int) -> float:
    """Mean characters of a pair, sources longer than ``most`` counted as cut there."""
    some = examples[:256]
    texts = [
        (sum(map(len, (x.source, *x.further.values()))), len(x.references[0]) if x.references else 0) for x in some
    ]
    return max(1.0, sum(min(source, most) + target for source, target in texts) / max(1, len(texts)))


def task_of(part: EvaluatePart, recipe: Recipe) -> Task:
    """The task that is scored: a named one, else the one that is trained on."""
    return find(part.task) if part.task is not None else find_task(recipe)


def rows_of(part: EvaluatePart, recipe: Recipe) -> list[Example]:
    """The rows that are scored."""
    return task_of(part, recipe).load(part.split)[: part.limit]


def shown_name(part: EvaluatePart, spec: Spec) -> str:
    """What is scored, in words: task, split and how many rows at most."""
    data = spec.base.get("data", {})
    task = part.task or data.get("task") or "own rows"
    limited = "" if part.limit is None else f", first {part.limit}"
    beams = "" if part.num_beams in (None, 1) else f", {part.num_beams} beams"
    penalty = "" if part.length_penalty is None else f", length penalty {part.length_penalty:g}"
    return f"{task}, {part.split}{limited}{beams}{penalty}"
