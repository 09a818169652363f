"""Recipes from TOML and from changes by key, and what a mistake in one is answered with.

Knows which keys there are; does not know what they do.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from epigraph.errors import BadValue, RecipeError, UnknownKey
from epigraph.train.parts import DataPart, TextPart, TrainingPart
from epigraph.train.recipe import NAMED, Recipe

MAX_SHOWN_CHARS = 80
TABLES = ("data", "method", "training", "text")
# Endings of files that are rows, which newcomers give where a recipe is read.
ROWS = (".csv", ".jsonl", ".gz", ".tsv", ".json")


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
    key = _key(".".join(str(x) for number, x in enumerate(mistake["loc"]) if number != 1 or x not in NAMED))
    if mistake["type"] == "extra_forbidden":
        return UnknownKey(f"unknown key {key}; {_hint(key, mistake['loc'])}")
    if mistake["type"] == "missing":
        return BadValue(f"{key} is missing; {'give --task NAME or --data FILE' if key == 'data' else 'set it'}")
    if mistake["type"] == "union_tag_invalid":
        return BadValue(f"method.name: got {_shown(mistake['ctx']['tag'])}, expected: {' or '.join(map(repr, NAMED))}")
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
        "method": list(NAMED.values()),
        "training": [TrainingPart],
        "text": [TextPart],
    }
    keys = [f"{table}.{name}" for table in TABLES for part in parts[table] for name in part.model_fields]
    return ["model", "attention", *dict.fromkeys(keys)]
