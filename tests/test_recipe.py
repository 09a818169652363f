"""Recipes: every mistake is one line that names the key."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epigraph.errors import BadValue, RecipeError, UnknownKey
from epigraph.train.recipe import Recipe
from epigraph.train.recipe_file import check_recipe, known_keys, parse_changes, read_recipe

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
        (["method.name=lorra"], "method.name: got \"lorra\", expected: 'prefix-tuning' or 'prompt-tuning'"),
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


any_value = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(1 << 70)
    | st.floats()
    | st.text(max_size=6)
    | st.text("x\x1b\n\u202e", min_size=90, max_size=120)
    | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
key_parts = st.sampled_from(sorted({part for key in known_keys() for part in key.split(".")})) | st.text(max_size=4)


def answer(work: Callable[[], object]) -> object:
    """What ``work`` makes, or the mistake it names, which is one short line that can be printed."""
    try:
        return work()
    except RecipeError as mistake:
        said = str(mistake)
        assert said.isprintable(), said
        assert len(said) < 700, said
        return said


@settings(deadline=None, max_examples=400)
@given(st.dictionaries(key_parts, any_value | st.dictionaries(key_parts, any_value, max_size=4), max_size=4))
def test_any_tables_give_a_recipe_or_a_named_mistake(tables: dict[str, object]) -> None:
    assert isinstance(answer(lambda: check_recipe(tables)), Recipe | str)
    assert isinstance(answer(lambda: check_recipe({**tables, **GOOD})), Recipe | str)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.lists(key_parts, min_size=1, max_size=3).map(".".join), any_value), max_size=3))
def test_any_changes_give_a_recipe_or_a_named_mistake(changes: list[tuple[str, object]]) -> None:
    assert isinstance(answer(lambda: read_recipe(None, {"data.task": "cards", **dict(changes)})), Recipe | str)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.text(max_size=20) | st.tuples(key_parts, st.text(max_size=12)).map("=".join), max_size=3))
def test_any_words_give_a_recipe_or_a_named_mistake(words: list[str]) -> None:
    made = answer(lambda: read_recipe(None, {"data.task": "cards", **parse_changes(words)}))
    assert isinstance(made, Recipe | str)


TABLES = ["[data]\n", "[training]\n", "[method]\n", 'task = "cards"\n', "steps = 3\n", "lr = 1e-3\n", "[[x]]\n"]
MARKS = [
    "[",
    "]",
    "{",
    "=",
    ".",
    '"',
    "'''",
    "\n",
    "#",
    "a",
    "1",
    "-",
    "inf",
    "nan",
    "1979-05-27",
    "\\u0041",
    "\x00",
    ",",
]
toml_pieces = st.sampled_from([*TABLES, *MARKS, "\u202e"])


@settings(deadline=None, max_examples=400)
@given(data=st.binary(max_size=60) | st.lists(toml_pieces, max_size=15).map(lambda x: "".join(x).encode()))
def test_any_file_gives_a_recipe_or_a_named_mistake(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(data)
    assert isinstance(answer(lambda: read_recipe(path, {})), Recipe | str)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = " + "[" * 5000 + "]" * 5000, "nested too deep"),
        ("model = " + "9" * 5000, "Exceeds the limit"),
        (
            "training.steps = 0x" + "f" * 5000,
            "training.steps: got a value of type int, expected: less than or equal to",
        ),
        ("training.seed = 18446744073709551616", "training.seed: got 18446744073709551616, expected: less than"),
        ("training.epochs = inf", "training.epochs: got Infinity, expected: less than or equal to 1000000000"),
        ("model." + "a." * 3000 + "a = 1", "model: got a value of type dict, expected: a valid string"),
        (f'attention = "{"y" * 100_000}"', 'attention: got "yyyyyyyyyyyyyy'),
        ('"\\u001b[2J" = 1', "unknown key '\\x1b[2J'; see docs/recipes.md for all keys"),
    ],
)
def test_hostile_files_are_one_short_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(f'data = {{ task = "cards" }}\n{text}\n', encoding="utf-8")
    said = answer(lambda: read_recipe(path, {}))
    assert isinstance(said, str)
    assert message in said


@pytest.mark.parametrize("path", [Path("a\0b"), Path("x" * 5000), Path("a\nb"), Path(".")])
def test_paths_that_cannot_be_read_are_one_line(path: Path) -> None:
    assert isinstance(answer(lambda: read_recipe(path, {})), str)


counts = st.none() | st.integers(1, 1 << 40)
recipes = st.fixed_dictionaries(
    {"data": st.fixed_dictionaries({"task": st.text(min_size=1, max_size=8), "limit": counts})},
    optional={
        "model": st.text(max_size=8),
        "attention": st.sampled_from(["sdpa", "eager"]),
        "text": st.fixed_dictionaries(
            {}, optional={"input_template": st.text(max_size=8), "bos": st.booleans(), "stop": st.lists(st.text())}
        ),
        "training": st.fixed_dictionaries(
            {},
            optional={
                "epochs": st.floats(0, 1e9, exclude_min=True),
                "lr": st.floats(0, 100, exclude_min=True),
                "max_grad_norm": st.floats(0, exclude_min=True),
                "seed": st.integers(0, (1 << 63) - 1),
                "warmup_steps": st.integers(0, 1000),
            },
        ),
        "method": st.fixed_dictionaries({}, optional={"initial_std": st.floats(0, 100, exclude_min=True)}),
    },
)


@settings(deadline=None, max_examples=200)
@given(tables=recipes)
def test_a_resolved_recipe_is_the_same_recipe(tables: dict[str, object]) -> None:
    """What a run writes into recipe.json reads back as what it ran with."""
    recipe = check_recipe(tables)
    again = check_recipe(json.loads(json.dumps(recipe.model_dump(mode="json"))))
    assert again == recipe
    assert again.steps_for(1000) == recipe.steps_for(1000) >= 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["data.foo=1"], "unknown key data.foo; did you mean data.dev?"),
        (["training=5"], "training is a table, got 5; set its keys, for example training.steps=..."),
        (["=5"], "got '=5', expected key=value, for example training.lr=1e-3"),
    ],
)
def test_changes_that_newcomers_make(changes: list[str], words: str) -> None:
    with pytest.raises(RecipeError) as wrong:
        read_recipe(None, {"data.task": "cards", **parse_changes(changes)})
    assert str(wrong.value) == words


def test_rows_are_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("source,target\na,b\n")
    with pytest.raises(
        RecipeError, match=r"rows\.csv looks like rows, expected a recipe .TOML.; give rows as --data rows"
    ):
        read_recipe(tmp_path / "rows.csv", {})
