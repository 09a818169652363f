"""From a recipe to everything a run needs: model, task, rows of ids, contract, method. Nothing is written here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from epigraph.errors import BadValue, DataNotFound
from epigraph.frozen.inputs import Codec, Encoded
from epigraph.frozen.loading import has_fast_bf16, usable_device
from epigraph.frozen.model import FrozenModel
from epigraph.tasks.base import Example, Task
from epigraph.tasks.catalogue import data_hash, draw_pairs, find, own_data
from epigraph.train.contract import text_for
from epigraph.train.evaluate import answerable, lesson
from epigraph.train.parallel import ALONE, Processes
from epigraph.train.recipe import Recipe
from epigraph.train.sharding import shard_base
from epigraph.train.tensorboard import board_class

# Where development rows come from unless the recipe names a split; a task may have none of that name.
DEV_SPLIT = "dev"
DTYPES = {"bf16": "bfloat16", "fp32": "float32"}
Drawn = tuple[list[Example], list[Example]]


def precision_for(asked: str, device: str) -> str:
    """The precision in force: ``auto`` is bf16 where the device computes in it, else fp32."""
    if asked != "auto":
        return asked
    return "bf16" if has_fast_bf16(usable_device(device)) else "fp32"


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """Everything a run needs."""

    recipe: Recipe
    frozen: FrozenModel
    task: Task
    codec: Codec
    rows: tuple[Encoded, ...]
    dev_rows: tuple[Encoded, ...]
    examples: tuple[Example, ...]
    dev_examples: tuple[Example, ...]
    data_hashes: dict[str, str]
    steps: int
    precision: str
    processes: Processes = ALONE


def find_task(recipe: Recipe) -> Task:
    """The recipe's task: a named one, or one made of the user's own files."""
    data = recipe.data
    if data.task is not None:
        return find(data.task)
    assert data.train is not None
    return own_data(data.train, data.dev, data.test, data.train.stem, own_labels(recipe))


def own_labels(recipe: Recipe) -> tuple[str, ...]:
    """The labels that rows of a user's own are checked against.

    Of tags a row has as many as words: they are checked where they are laid on the words.
    """
    return () if recipe.text.layout == "tags" else recipe.text.labels or ()


def prepare(recipe: Recipe, *, device: str = "cpu", processes: Processes = ALONE) -> Prepared:
    """Read and check everything; every mistake in recipe, data and model shows here, before any training.

    Data come first: they are quick to read, and their mistakes are the likeliest. Each of several ``processes``
    prepares the same, on a device of its own; a mistake that one of them finds is raised by all.
    """
    return processes.together(lambda: _prepare(recipe, processes.device(device), processes))


def _prepare(recipe: Recipe, device: str, processes: Processes) -> Prepared:
    if recipe.training.tensorboard:
        board_class()
    task = find_task(recipe)
    drawn = draw(recipe, task)
    precision = precision_of(recipe, device)
    frozen = processes.together(lambda: load_base(recipe, precision, device, processes))
    if recipe.training.shard_base:
        shard_base(frozen, usable_device(device), processes.num)
    return prepare_on(frozen, recipe, task, drawn, precision=precision, processes=processes)


def precision_of(recipe: Recipe, device: str) -> str:
    """The precision in force of a whole recipe: the model's own weights are trained in fp32."""
    return "fp32" if recipe.trains_base else precision_for(recipe.training.precision, device)


def prepare_on(
    frozen: FrozenModel, recipe: Recipe, task: Task, drawn: Drawn, *, precision: str, processes: Processes = ALONE
) -> Prepared:
    """What is left of preparing once there is a base: rows of ids, and the text contract."""
    pairs, dev = drawn
    codec = Codec(frozen.tokenizer, *text_for(recipe, task, frozen, pairs))
    pairs, _ = answerable(codec, task, pairs)
    dev, _ = answerable(codec, task, dev) if dev else ([], [])
    rows, some = tuple(lesson(codec, example) for example in pairs), tuple(dev[: recipe.data.dev_limit])
    return Prepared(
        recipe=recipe,
        frozen=frozen,
        task=task,
        codec=codec,
        rows=rows,
        dev_rows=tuple(lesson(codec, example) for example in some),
        examples=tuple(pairs),
        dev_examples=some,
        data_hashes={"train": data_hash(pairs), **({"dev": data_hash(dev)} if dev else {})},
        steps=recipe.steps_for(len(rows)),
        precision=precision,
        processes=processes,
    )


def dev_split(recipe: Recipe, task: Task) -> str | None:
    """The split of ``task`` that development rows come from, unless they are a share of the training pairs; None where
    the recipe names none and the task has no ``dev``."""
    return recipe.data.dev_split or (DEV_SPLIT if DEV_SPLIT in task.splits else None)


def draw(recipe: Recipe, task: Task) -> Drawn:
    """Training pairs and development examples; raises for a development metric that they do not have.

    With ``dev_share`` the development examples are pairs of the training split too, that many for each training pair,
    of sources that no training pair has. (Li & Liang 2021, section 6.3: 30 % of the training size.)
    """
    pairs, dev = _drawn(recipe, task)
    _check_dev_metric(recipe, task, dev)
    return pairs, dev


def _drawn(recipe: Recipe, task: Task) -> Drawn:
    data, examples = recipe.data, task.load(recipe.data.train_split)
    seed = recipe.training.seed if data.draw is None else data.draw
    pairs = draw_pairs(examples, data.limit, seed)
    if data.dev_share is None:
        split = dev_split(recipe, task)
        return pairs, [] if split is None else task.load(split)
    if data.limit is None:
        raise BadValue("data.dev_share is a share of data.limit, which is not given; give both")
    taken = {pair.source for pair in pairs}
    every = draw_pairs(examples, sum(len(x.references) for x in examples), seed)
    return pairs, [x for x in every if x.source not in taken][: max(1, round(data.dev_share * data.limit))]


def load_base(recipe: Recipe, precision: str, device: str, processes: Processes = ALONE) -> FrozenModel:
    """The frozen model on ``device``; one that is to be sharded comes by way of the CPU, since it may not fit there."""
    if recipe.training.shard_base and processes.num == 1:
        raise BadValue(
            "training.shard_base shares the base out among several processes, got one; "
            "start with torchrun or accelerate launch, or leave it out"
        )
    where = "cpu" if recipe.training.shard_base else device
    return FrozenModel.load(recipe.model, dtype=DTYPES[precision], attention_name=recipe.attention, device=where)


def _check_dev_metric(recipe: Recipe, task: Task, dev: Sequence[Example]) -> None:
    metric, known = recipe.training.dev_metric, ("loss", *task.better_when_higher)
    if metric not in known:
        raise BadValue(f"training.dev_metric: got {metric!r}, expected one of {', '.join(known)}")
    if not dev and (metric != "loss" or recipe.training.patience is not None):
        raise DataNotFound(
            "choosing by a development score (training.dev_metric, training.patience) needs development rows; "
            "give --dev FILE (data.dev)"
        )
