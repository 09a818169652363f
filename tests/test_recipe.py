"""Recipes: every mistake is one line that names the key."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epigraph.errors import BadValue, RecipeError, UnknownKey
from epigraph.train.recipe import Recipe, check_recipe, known_keys, parse_changes, read_recipe

GOOD = {"data": {"task": "cards"}}


def test_a_file_then_changes(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('[data]\ntask = "cards"\n[training]\nsteps = 7\nlr = 1e-3\n')
    recipe = read_recipe(path, parse_changes(["training.lr=5e-4", "method.parameterization=mlp", "data.limit=9"]))
    assert (recipe.training.steps, recipe.lr, recipe.data.limit) == (7, 5e-4, 9)
    assert recipe.method.parameterization == "mlp"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["training.step=3"], "unknown key training.step; did you mean training.steps?"),
        (["metod.name=x"], "unknown key metod; did you mean method?"),
        (["training.batch_size=many"], 'training.batch_size: got "many", expected: a valid integer'),
        (["training.steps=0"], "training.steps: got 0, expected: greater than or equal to 1"),
        (["method.name=lora"], "method.name: got \"lora\", expected: 'prefix-tuning'"),
        (["training.steps=5", "training.epochs=1"], "training: give steps or epochs, not both"),
        (["data.train=x.jsonl"], "data: give either task or train (a file of your own), got both"),
        (["nonsense"], "got 'nonsense', expected key=value, for example training.lr=1e-3"),
        (["zzz=1"], "unknown key zzz; see docs/recipes.md for all keys"),
        (["steps=1"], "unknown key steps; did you mean training.steps?"),
        (["model=y", "model.name=x"], "model is not a table, so model.name cannot be set"),
    ],
)
def test_mistakes_are_one_line(changes: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_recipe(None, {"data.task": "cards", **parse_changes(changes)})
    assert "\n" not in str(caught.value)
    assert message in str(caught.value)


def test_no_data_says_what_to_give() -> None:
    with pytest.raises(BadValue, match="data is missing; give --task NAME or --data FILE"):
        check_recipe({})


def test_a_broken_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("[data\n")
    with pytest.raises(BadValue, match="not a readable TOML file"):
        read_recipe(path, {})
    with pytest.raises(BadValue, match="no recipe at"):
        read_recipe(tmp_path / "none.toml", {})


def test_every_key_can_be_set_and_misspelt() -> None:
    for key in known_keys():
        with pytest.raises(UnknownKey, match=f"did you mean {key.replace('.', '[.]')}"):
            read_recipe(None, {"data.task": "cards", f"{key}x": 1})


def test_default_steps_are_five_epochs_but_at_least_200() -> None:
    recipe = check_recipe(GOOD)
    assert recipe.steps_for(100) == 200
    assert recipe.steps_for(8000) == 5000
    assert check_recipe({**GOOD, "training": {"epochs": 2}}).steps_for(80) == 20


@given(st.dictionaries(st.text(max_size=8), st.one_of(st.integers(), st.text(max_size=5), st.none()), max_size=4))
def test_any_tables_give_a_recipe_or_a_named_mistake(tables: dict[str, object]) -> None:
    try:
        made: object = check_recipe({**tables, **GOOD})
    except RecipeError as mistake:
        made = str(mistake)
    assert isinstance(made, Recipe) or (isinstance(made, str) and "\n" not in made)


@given(st.lists(st.text(max_size=20), max_size=3))
def test_any_words_parse_or_are_named(words: list[str]) -> None:
    try:
        said = ""
        parse_changes(words)
    except BadValue as mistake:
        said = str(mistake)
    assert "\n" not in said
