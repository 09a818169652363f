"""A recipe: everything that decides a training run, typed and checked. It knows no model and no data.

Every key of every table below is documented in docs/recipes.md.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from epigraph.contract import Layout
from epigraph.errors import BadValue, RecipeError, UnknownKey
from epigraph.methods.p_tuning import PTuningConfig
from epigraph.methods.prefix_tuning import PrefixTuningConfig
from epigraph.methods.prompt_tuning import PromptTuningConfig

MAX_COUNT = (1 << 63) - 1
MAX_SHOWN_CHARS = 80
Positive = Annotated[int, Field(ge=1, le=MAX_COUNT)]
NonNegative = Annotated[int, Field(ge=0, le=MAX_COUNT)]

# Where no learning rate is given. The paper's own (Li & Liang 2021, table 6: 5e-5 to 8e-5) is for an MLP and thousands
# of steps. raw: tried on 200 E2E development tables, docs/results.md. The MLPs': a first trial, not swept.
# Prompts: docs/results.md.
DEFAULT_LR = {
    "prefix-tuning": {"raw": 2e-2, "mlp": 1e-3, "mlp-code": 1e-3},
    "prompt-tuning": {"raw": 1e-1, "residual": 1e-2, "mlp": 1e-3},
    "p-tuning": {"raw": 1e-1, "lstm": 1e-2, "mlp": 1e-3},
}

TABLES = ("data", "method", "training", "text")
# Endings of files that are rows, which newcomers give where a recipe is read.
ROWS = (".csv", ".jsonl", ".gz", ".tsv", ".json")


class Part(BaseModel):
    """A table of a recipe: unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PrefixTuningPart(PrefixTuningConfig):
    """``[method]`` with ``name = "prefix-tuning"``, the default."""

    name: Literal["prefix-tuning"] = "prefix-tuning"


class PromptTuningPart(PromptTuningConfig):
    """``[method]`` with ``name = "prompt-tuning"``."""

    name: Literal["prompt-tuning"] = "prompt-tuning"


class PTuningPart(PTuningConfig):
    """``[method]`` with ``name = "p-tuning"``."""

    name: Literal["p-tuning"] = "p-tuning"


METHODS: Mapping[str, type[PrefixTuningPart | PromptTuningPart | PTuningPart]] = {
    "prefix-tuning": PrefixTuningPart,
    "prompt-tuning": PromptTuningPart,
    "p-tuning": PTuningPart,
}


def _with_name(table: Any) -> Any:
    return {"name": "prefix-tuning", **table} if isinstance(table, Mapping) else table


MethodPart = Annotated[
    PrefixTuningPart | PromptTuningPart | PTuningPart, Field(discriminator="name"), BeforeValidator(_with_name)
]


class DataPart(Part):
    """``[data]``: a named task, or files of one's own."""

    task: str | None = None
    train: Path | None = None
    dev: Path | None = None
    test: Path | None = None
    limit: Positive | None = None
    dev_limit: Positive = 64

    @model_validator(mode="after")
    def _one_source(self) -> DataPart:
        if (self.task is None) == (self.train is None):
            got = "both" if self.task else "neither"
            raise ValueError(f"give either task or train (a file of your own), got {got}")
        return self


class TextPart(Part):
    """``[text]``: the text contract, where what task and model ask for is not wanted."""

    input_template: str | None = None
    target_template: str | None = None
    target_sentinel: bool = False
    layout: Layout | None = None
    labels: tuple[str, ...] | None = None
    label_words: tuple[str, ...] | None = None
    pooling: Literal["first", "mean"] = "first"
    ends_source: bool | None = None
    bos: bool | None = None
    eos: bool | None = None
    stop: tuple[str, ...] = ()
    max_source_tokens: Positive | None = None
    max_target_tokens: Positive | None = None


class TrainingPart(Part):
    """``[training]``: the loop."""

    steps: Positive | None = None
    epochs: Annotated[float, Field(gt=0, le=1e9)] | None = None
    batch_size: Positive = 8
    accumulation: Positive = 1
    lr: Annotated[float, Field(gt=0, le=100)] | None = None
    head_lr: Annotated[float, Field(gt=0, le=100)] = 5e-3
    base_lr: Annotated[float, Field(gt=0, le=100)] | None = None
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: NonNegative = 0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    reduction: Literal["token-mean", "example-sum"] = "token-mean"
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    buckets: bool = True
    checkpoint_activations: bool = False
    shard_base: bool = False
    seed: NonNegative = 0
    dev_every: NonNegative | None = None
    dev_metric: str = "loss"
    patience: Positive | None = None
    checkpoint_every: NonNegative | None = None
    tensorboard: bool = False

    @model_validator(mode="after")
    def _one_length(self) -> TrainingPart:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give steps or epochs, not both")
        return self

    @model_validator(mode="after")
    def _exact_enough(self) -> TrainingPart:
        if self.base_lr is not None and self.precision == "bf16":
            raise ValueError("base_lr trains the model's own weights, which bf16 is too coarse for; set precision fp32")
        if self.base_lr is not None and self.shard_base:
            raise ValueError("shard_base is for a frozen base, got base_lr, which trains it; leave one of them out")
        return self


class Recipe(Part):
    """Everything that decides a training run."""

    model: str = "smollm2-135m"
    attention: Literal["sdpa", "eager"] = "sdpa"
    data: DataPart
    method: MethodPart = PrefixTuningPart()
    training: TrainingPart = TrainingPart()
    text: TextPart = TextPart()

    @property
    def lr(self) -> float:
        """The learning rate in force."""
        return self.training.lr or DEFAULT_LR[self.method.name][self.method.parameterization]

    def steps_for(self, num_rows: int) -> int:
        """Optimiser steps in force: as given, or as many as the epochs hold; by default five epochs, at least 200."""
        given = self.training
        if given.steps is not None:
            return given.steps
        rows_a_step = given.batch_size * given.accumulation
        if given.epochs is not None:
            return max(1, round(given.epochs * num_rows / rows_a_step))
        return max(200, round(5 * num_rows / rows_a_step))


def read_recipe(path: Path | None, changes: Mapping[str, Any]) -> Recipe:
    """A TOML file (or nothing), then ``changes`` by dotted key. Raises the leaves of :class:`RecipeError`."""
    tables: dict[str, Any] = {}
    if path is not None and path.suffix in ROWS:
        raise BadValue(
            f"{_key(str(path), 500)} looks like rows, expected a recipe (TOML); give rows as --data {path.name}"
        )
    if path is not None:
        try:
            tables = _toml(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise BadValue(f"no recipe at {_key(str(path), 500)}; give the path of a TOML file") from None
        except (OSError, ValueError) as wrong:
            why = _key((isinstance(wrong, OSError) and wrong.strerror) or str(wrong), 500)
            raise BadValue(f"{_key(str(path), 500)} is not a readable TOML file: {why}") from None
    for key, value in changes.items():
        _put(tables, key, value)
    return check_recipe(tables)


def parse_changes(pairs: Sequence[str]) -> dict[str, Any]:
    """``training.lr=1e-3`` and the like, values read as TOML, plain words as strings."""
    changes: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise BadValue(f"got {pair[:MAX_SHOWN_CHARS]!r}, expected key=value, for example training.lr=1e-3")
        try:
            changes[key] = _toml(f"value = {text}")["value"]
        except ValueError:
            changes[key] = text
    return changes


def check_recipe(tables: Mapping[str, Any]) -> Recipe:
    """A recipe out of nested tables; the first mistake is raised, in one line."""
    try:
        return Recipe.model_validate(dict(tables))
    except ValidationError as wrong:
        raise _one_line(wrong.errors()[0]) from None


def _toml(text: str) -> dict[str, Any]:
    """Raises ValueError, and nothing else, for what is not TOML."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _put(tables: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    table = tables
    for number, name in enumerate(parents):
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise BadValue(f"{_key('.'.join(parents[: number + 1]))} is not a table, so {_key(dotted)} cannot be set")
    table[last] = value


def _one_line(mistake: Mapping[str, Any]) -> RecipeError:
    # A method's keys come with the method's name between table and key.
    key = _key(".".join(str(x) for number, x in enumerate(mistake["loc"]) if number != 1 or x not in METHODS))
    if mistake["type"] == "extra_forbidden":
        return UnknownKey(f"unknown key {key}; {_hint(key, mistake['loc'])}")
    if mistake["type"] == "missing":
        return BadValue(f"{key} is missing; {'give --task NAME or --data FILE' if key == 'data' else 'set it'}")
    if mistake["type"] == "union_tag_invalid":
        return BadValue(
            f"method.name: got {_shown(mistake['ctx']['tag'])}, expected: {' or '.join(map(repr, METHODS))}"
        )
    got = _shown(mistake["input"])
    if mistake["type"] == "model_type":
        example = next(x for x in known_keys() if x.startswith(f"{key}."))
        return BadValue(f"{key} is a table, got {got}; set its keys, for example {example}=...")
    where = f"{key}: " if key else ""
    if mistake["type"] == "value_error":
        return BadValue(f"{where}{str(mistake['msg']).removeprefix('Value error, ')}")
    return BadValue(f"{where}got {got}, expected: {mistake['msg'].removeprefix('Input should be ')}")


def _key(text: str, most: int = MAX_SHOWN_CHARS) -> str:
    """``text`` as it is, or in quotes where it cannot be printed; cut where it is long."""
    cut = text if len(text) <= most else text[:most] + "..."
    return cut if cut.isprintable() else repr(cut)


def _shown(value: object) -> str:
    """``value`` as JSON, cut where it is long; what JSON cannot hold, by the name of its type."""
    try:
        text = json.dumps(value, default=str)
    except (TypeError, ValueError, RecursionError):
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= MAX_SHOWN_CHARS else text[:MAX_SHOWN_CHARS] + "..."


def _hint(key: str, where: Sequence[Any]) -> str:
    names = known_keys() if "." in key else [*TABLES, *known_keys()]
    if key in names:
        return f"{where[1]} has none of that name; see docs/recipes.md for the keys of each method"
    near = difflib.get_close_matches(key, names, n=1) or [x for x in names if x.endswith("." + key)]
    return f"did you mean {near[0]}?" if near else "see docs/recipes.md for all keys"


def known_keys() -> list[str]:
    """Every key of a recipe, dotted; a method's keys are those of any method."""
    parts: dict[str, list[type[BaseModel]]] = {
        "data": [DataPart],
        "method": list(METHODS.values()),
        "training": [TrainingPart],
        "text": [TextPart],
    }
    keys = [f"{table}.{name}" for table in TABLES for part in parts[table] for name in part.model_fields]
    return ["model", "attention", *dict.fromkeys(keys)]
