"""Specs of sweeps: what is read, what is refused and how, and that docs/sweeps.md and sweeps/ say what is so."""

from __future__ import annotations

import re
import tomllib
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from epigraph.errors import BadValue, RecipeError, UnknownKey
from epigraph.sweep.plan import Plan
from epigraph.sweep.spec import BudgetPart, EnsemblePart, EvaluatePart, SearchPart, Spec, SystemPart, read_spec
from epigraph.tasks.superglue_patterns import PLACED

ROOT = Path(__file__).parents[1]
SPECS = sorted((ROOT / "sweeps").rglob("*.toml"))
TEXT = """
name = "small"
seeds = [1, 2]

[base.data]
task = "cards"

[budget]
steps = 10

[[evaluate]]
limit = 5

[systems.prefix]
method = { num_virtual_tokens = 4 }
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "spec.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_small_spec_has_its_defaults(tmp_path: Path) -> None:
    spec = read_spec(written(tmp_path, TEXT))
    assert spec.search == SearchPart(factors=(0.3, 1.0, 3.0), seed=1, draw=None, metric="loss")
    assert (spec.limits, spec.draws, spec.keeps) == ((), (), False)
    assert spec.evaluate == (EvaluatePart(split="test", limit=5),)


@pytest.mark.parametrize(
    ("old", "new", "kind", "said"),
    [
        ("[budget]", "[budgets]", UnknownKey, r"spec.toml: budgets: unknown key; did you mean budget\?"),
        ("steps = 10", "step = 10", UnknownKey, r"spec.toml: budget.step: unknown key; did you mean steps\?"),
        ("steps = 10", "steps = 10\nseconds = 3", BadValue, "give one of steps, examples and seconds, got steps and"),
        ("steps = 10", "", BadValue, "give one of steps, examples and seconds, got none"),
        ("steps = 10", "steps = 0", BadValue, "spec.toml: budget.steps: got 0, expected: greater than or equal to 1"),
        ("seeds = [1, 2]", "seeds = [1, 1]", BadValue, r"seeds: got \[1, 1\], expected each once"),
        ("seeds = [1, 2]", "seeds = []", BadValue, "spec.toml: seeds: got"),
        ("[[evaluate]]\nlimit = 5", "", BadValue, "spec.toml: evaluate is missing"),
        ('name = "small"', 'name = "a|b"', BadValue, "spec.toml: name: got 'a|b', expected"),
        ("[base.data]", "[base.training]\nlr = 1\n[base.data]", BadValue, "base.training.lr is decided by search"),
        ("[base.data]", "[base.data]\nlimit = 9", BadValue, "base.data.limit is decided by limits"),
        ("[base.data]", "[base.method]\n[base.data]", BadValue, "base.method: got a method, expected none"),
        ("= 4 }", "= 4 }\ntraining = { patience = 1 }", BadValue, "has to be the same for all systems; set it in base"),
        ("= 4 }", "= 4 }\ntraining = { batch_size = 1 }", BadValue, "systems.prefix.training.batch_size has to be the"),
        ("= 4 }", "= 4 }\ndata = { task = 'e2e' }", UnknownKey, "systems.prefix.data: unknown key"),
        ("[budget]", "[budget", BadValue, "is not a readable TOML file"),
        ("limit = 5", "length_penalty = 0.8", BadValue, r"evaluate.0: length_penalty chooses between beams; give num"),
        ("limit = 5", 'systems = ["prefi"]', BadValue, r"evaluate.0.systems: got 'prefi', expected one of prefix"),
        ("= 4 }", "= 4 }\n[systems.bare]\nmethod = {}", None, ""),
        (
            "limit = 5",
            'systems = ["prefix"]\n[systems.bare]\nmethod = {}',
            BadValue,
            "nothing scores bare; take it out",
        ),
        (
            "= 4 }",
            "= 4 }\nmodel = 'minilm'",
            BadValue,
            "model: got 'minilm', expected 'random:smollm2-135m', which is the",
        ),
        ("= 4 }", "= 4 }\nmodel = 'random:smollm2-135m'", None, ""),
        ("[[evaluate]]", "[[ensembles]]\nsystem = 'prefix'\n[[evaluate]]", None, ""),
        ("[[evaluate]]", "[[ensembles]]\nsystem = 'prefi'\n[[evaluate]]", BadValue, "ensembles.0.system: got 'prefi'"),
        (
            "[[evaluate]]",
            "[[ensembles]]\nsystem = 'prefix'\nmean = 'x'\n[[evaluate]]",
            BadValue,
            "ensembles.0.mean: got",
        ),
        (
            "num_virtual_tokens = 4 }",
            "name = 'full' }\n[[ensembles]]\nsystem = 'prefix'",
            BadValue,
            "prefix has no virtual",
        ),
        (
            "seeds = [1, 2]",
            "seeds = [1]\nensembles = [{ system = 'prefix' }]",
            BadValue,
            "got one seed; give more seeds",
        ),
        ("seeds = [1, 2]", "tasks = ['e2e']", BadValue, "base.data.task is decided by tasks; leave it out"),
        ("seeds = [1, 2]", "task = 'e2e'", BadValue, "task: got 'e2e', expected one of tasks"),
        ("= 4 }", "= 4 }\ntexts = { e2e = {} }", BadValue, r"systems.prefix.texts: got 'e2e', expected one of tasks"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    tmp_path: Path, old: str, new: str, kind: type[Exception] | None, said: str
) -> None:
    assert old in TEXT
    if kind is None:
        # So near to a mistake that it must be none.
        Plan(read_spec(written(tmp_path, TEXT.replace(old, new))))
        return
    with pytest.raises(kind, match=said) as caught:
        read_spec(written(tmp_path, TEXT.replace(old, new)))
    assert "\n" not in str(caught.value)


def test_a_systems_own_mistake_names_the_system(tmp_path: Path) -> None:
    spec = read_spec(written(tmp_path, TEXT.replace("num_virtual_tokens", "num_virtual_token")))
    with pytest.raises(UnknownKey, match=r"systems.prefix: unknown key method.num_virtual_token; did you mean"):
        Plan(spec)


def test_batches_may_differ_where_the_budget_counts_examples(tmp_path: Path) -> None:
    text = TEXT.replace("steps = 10", "examples = 64") + "training = { batch_size = 4 }\n[systems.other]\nmethod = {}\n"
    plan = Plan(read_spec(written(tmp_path, text)))
    trained = {x.system: x.recipe.training for cell in plan.cells for x in cell.searches}
    assert {name: (x.batch_size, x.steps) for name, x in trained.items()} == {"prefix": (4, 16), "other": (8, 8)}


SEVERAL = TEXT.replace("seeds = [1, 2]", 'tasks = ["e2e", "rte"]').replace('task = "cards"', "")


def test_a_spec_of_several_tasks_is_one_of_each(tmp_path: Path) -> None:
    text = SEVERAL + 'text = { stop = ["x"] }\ntexts = { rte = { input_template = "{source}" } }\n'
    spec = read_spec(written(tmp_path, text))
    plans = {task: Plan(spec.of_task(task)).job("prefix").recipe for task in spec.tasks}
    assert {task: (x.data.task, x.text.input_template, x.text.stop) for task, x in plans.items()} == {
        "e2e": ("e2e", None, ("x",)),
        "rte": ("rte", "{source}", ("x",)),
    }
    assert read_spec(written(tmp_path, f'task = "rte"\n{text}')) == spec.of_task("rte")


def test_a_key_that_came_later_changes_no_name_until_it_is_given() -> None:
    """What an evaluation was called by before there was a length penalty: its records stand."""
    names = {"task", "split", "limit", "metrics", "num_beams", "max_new_tokens"}
    assert set(EvaluatePart(num_beams=6).asked()) == names
    assert set(EvaluatePart(num_beams=6, length_penalty=0.8).asked()) == {*names, "length_penalty"}


@pytest.mark.parametrize("path", SPECS, ids=lambda path: str(path.relative_to(ROOT / "sweeps").with_suffix("")))
def test_every_spec_in_sweeps_is_one(path: Path) -> None:
    spec = read_spec(path)
    assert path.stem in spec.name
    assert spec.title
    for one in [spec.of_task(task) for task in spec.tasks] or [spec]:
        Plan(one)


def test_the_specs_have_the_patterns_of_the_tasks_with_places() -> None:
    for path in (ROOT / "sweeps" / "3-superglue").glob("cloze*.toml"):
        spec = read_spec(path)
        for name in ("p-tuning", "p-tuning-joint"):
            given = {task: x["input_template"] for task, x in spec.systems[name].texts.items()}
            assert given == {task: PLACED[task] for task in spec.tasks}


def test_there_are_specs_and_each_has_its_name() -> None:
    assert len(SPECS) >= 8
    names = [read_spec(path).name for path in SPECS]
    assert len(set(names)) == len(names)


FENCE = re.compile(r"^```toml\n(.*?)^```$", re.DOTALL | re.MULTILINE)
KEY = re.compile(r"^\| `([a-z_.]+)` \| .* \| .* \| .* \|$", re.MULTILINE)


def page() -> str:
    return (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")


def test_every_key_is_documented_and_no_other() -> None:
    parts: dict[str, Any] = {"budget": BudgetPart, "search": SearchPart, "evaluate": EvaluatePart}
    parts |= {"ensembles": EnsemblePart, "systems.name": SystemPart}
    keys = [f"{table}.{name}" for table, part in parts.items() for name in part.model_fields]
    alone = [name for name in Spec.model_fields if name not in (*parts, "systems")]
    assert sorted([*keys, *alone]) == sorted(KEY.findall(page()))


def test_the_example_of_the_page_is_a_spec(tmp_path: Path) -> None:
    examples = FENCE.findall(page())
    assert examples
    for text in examples:
        Plan(read_spec(written(tmp_path, text)))


def test_values_that_no_recipe_takes_are_refused_before_anything_runs() -> None:
    tables = deepcopy(tomllib.loads(TEXT))
    tables["base"]["training"] = {"batch_size": 0}
    with pytest.raises(RecipeError, match=r"systems.prefix: training.batch_size: got 0"):
        Plan(Spec.model_validate(tables))
