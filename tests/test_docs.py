"""The pages in docs/ say what the code says: names, defaults, help, messages, and examples that run."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel

import epigraph
from conftest import tiny_model, tiny_tokenizer
from epigraph import errors
from epigraph.errors import DataError, EpigraphError
from epigraph.tasks.catalogue import TASKS, own_data
from epigraph.tasks.metrics import score_generation
from epigraph.train.recipe import DEFAULT_LR, Recipe, known_keys

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def in_code(text: str) -> set[str]:
    """Every name between backticks."""
    return set(re.findall(r"`([^`\n]+)`", FENCE.sub("", text)))


# Commands


@pytest.fixture(scope="module")
def paste() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "paste_help.py"))


def test_the_pasted_help_is_the_real_one(paste: dict[str, Any]) -> None:
    text = page("commands.md")
    assert paste["pasted"](text) == text, "run: python docs/paste_help.py"


def test_every_command_has_its_help_once(paste: dict[str, Any]) -> None:
    assert sorted(paste["places"](page("commands.md"))) == sorted(paste["commands"]())
    assert ("models", "fetch") in paste["commands"]()


def test_the_pasted_help_is_what_a_shell_prints(paste: dict[str, Any]) -> None:
    """The slow twin: in a process of its own, as a user runs it."""
    environment = {**os.environ, **paste["TERMINAL"]}
    words = [sys.executable, "-c", "import sys; sys.argv[0] = 'epigraph'; from epigraph.cli import main; main()"]
    done = subprocess.run([*words, "train", "--help"], env=environment, capture_output=True, text=True, check=True)
    assert [x.rstrip() for x in done.stdout.strip().splitlines()] == paste["help_of"](("train",)).splitlines()


def test_every_flag_of_train_is_tied_to_a_key_or_said_to_have_none(paste: dict[str, Any]) -> None:
    flags = set(re.findall(r"^  (--[a-z-]+)", paste["help_of"](("train",)), re.MULTILINE))
    section = FENCE.sub("", page("commands.md").split("## epigraph train")[1].split("\n## ")[0])
    tied = re.findall(r"^\| (`--.*?) \| (`.*?`) \|$", section, re.MULTILINE)
    without = {"--out", "--device", "--dry-run", "--overwrite", "--json", "--help"}
    assert {flag for cell, _ in tied for flag in re.findall(r"`(--[a-z-]+)`", cell)} == flags - without
    assert {key for _, cell in tied for key in re.findall(r"`([a-z_.]+)`", cell)} <= set(known_keys())


# Recipes

ROW = re.compile(r"^\| `([a-z_.]+)` \| (.+?) \| (.+?) \| (.+) \|$", re.MULTILINE)


def documented_keys() -> dict[str, str]:
    """Every key of docs/recipes.md with its default as written there."""
    return {key: default for key, _, default, _ in ROW.findall(page("recipes.md"))}


def test_every_recipe_key_is_documented_and_no_other() -> None:
    assert sorted(documented_keys()) == sorted(known_keys())


@pytest.mark.parametrize("key", known_keys())
def test_the_documented_default_is_the_real_one(key: str) -> None:
    fields: Any = Recipe.model_fields
    *table, name = key.split(".")
    if table:
        part = fields[table[0]].annotation
        assert issubclass(part, BaseModel)
        fields = part.model_fields
    written, real = documented_keys()[key], fields[name].default
    value = None if written == "none" else tomllib.loads(f"value = {written.strip('`')}")["value"]
    assert value == (list(real) if isinstance(real, tuple) else real)


def test_the_documented_learning_rates_are_the_real_ones() -> None:
    rates = dict(re.findall(r"^\| `(raw|mlp|mlp-code)` \| ([\d.e-]+) \|$", page("prefix-tuning.md"), re.MULTILINE))
    assert {name: float(x) for name, x in rates.items()} == DEFAULT_LR
    line = next(x for x in page("recipes.md").splitlines() if x.startswith("| `training.lr`"))
    assert {name: float(x) for name, x in re.findall(r"`(raw|mlp|mlp-code)` ([\d.e-]+)", line)} == DEFAULT_LR


def test_examples_of_recipes_are_recipes() -> None:
    from epigraph.train.recipe import check_recipe

    examples = [text for kind, text in FENCE.findall(page("recipes.md")) if kind == "toml"]
    assert len(examples) == 3
    for text in examples:
        check_recipe(tomllib.loads(text))


# Data

MARKED = re.compile(r"<!-- (file|printed): ([\w.-]+) -->\n```\w+\n(.*?)```", re.DOTALL)


def marked(kind: str) -> dict[str, str]:
    return {name: text for found, name, text in MARKED.findall(page("data.md")) if found == kind}


@pytest.mark.parametrize("name", sorted({**marked("file"), **marked("printed")}))
def test_rows_in_the_page_read_or_fail_as_printed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for file, text in marked("file").items():
        Path(file).write_text(text, encoding="utf-8")
    if name not in marked("printed"):
        assert own_data(Path(name), None, None, "mine").load("train")
        return
    with pytest.raises(DataError) as caught:
        own_data(Path(name), None, None, "mine")
    assert f"epigraph: {caught.value}\n" == marked("printed")[name]


def test_every_task_is_documented() -> None:
    assert set(TASKS) <= in_code(page("data.md"))


def test_every_known_model_is_documented() -> None:
    from epigraph.frozen.catalogue import MODELS

    rows = dict(re.findall(r"^\| `([\w-]+)` \|.*\| (.*?) \|$", page("models.md"), re.MULTILINE))
    assert {name: model.licence for name, model in MODELS.items()}.items() <= rows.items()


# Errors, metrics, names


def leaves(kind: type[EpigraphError] = EpigraphError) -> Iterator[type[EpigraphError]]:
    below = [x for x in kind.__subclasses__() if x.__module__ == errors.__name__]
    if not below:
        yield kind
    for inner in below:
        yield from leaves(inner)


@pytest.mark.parametrize("leaf", sorted(leaves(), key=lambda x: x.__name__))
def test_every_error_is_documented_with_an_example_and_what_to_do(leaf: type[EpigraphError]) -> None:
    found = re.search(rf"^##+ .*`{leaf.__name__}`\n(.*?)(?=^##|\Z)", page("errors.md"), re.DOTALL | re.MULTILINE)
    assert found, f"docs/errors.md has no section for {leaf.__name__}"
    for part in ("\nWhen: ", "```text\n", "\nDo: "):
        assert part in found.group(1)


def test_the_errors_page_names_no_error_that_is_not() -> None:
    named = set(re.findall(r"^##+ .*`(\w+)`$", page("errors.md"), re.MULTILINE))
    assert named <= {name for name in vars(errors) if isinstance(getattr(errors, name), type)}


def test_every_metric_is_documented() -> None:
    names = set(score_generation(["a b"], [["a b", "c"]]).values)
    assert names
    assert names == set(re.findall(r"^\| `(\w+)` \|", page("metrics.md"), re.MULTILINE))


def test_every_public_name_is_documented_and_exists() -> None:
    assert set(epigraph.__all__) <= in_code(page("python.md"))
    for name in epigraph.__all__:
        assert getattr(epigraph, name) is not None


# Links


def anchors(path: Path) -> set[str]:
    """The names that a page's headings have as link targets."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", x.lower()).replace(" ", "-") for x in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", text):
        there = (path.parent / target).resolve() if target else path
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), f"{target}#{anchor}"


# Examples


def test_the_examples_of_the_python_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block, one after the other, with a tiny random model in the place of the real one."""
    monkeypatch.chdir(tmp_path)
    base = tmp_path / "base"
    tiny_model("llama").save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    blocks = [text for kind, text in FENCE.findall(page("python.md")) if kind == "python"]
    assert len(blocks) > 8
    here: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block.replace('"smollm2-135m"', repr(str(base))), "docs/python.md", "exec"), here)
    assert here["answers"] == [here["tuned"].generate([text])[0] for text in here["texts"]]
    assert here["losses"][-1] < 0.9 * here["losses"][0]
    with torch.no_grad():
        bare = here["frozen"].model(input_ids=here["ids"]).logits
    assert torch.equal(bare, tiny_model("llama")(input_ids=here["ids"]).logits)


def test_the_example_of_the_metrics_page_runs() -> None:
    [block] = [text for kind, text in FENCE.findall(page("metrics.md")) if kind == "python"]
    here: dict[str, Any] = {}
    exec(compile(block, "docs/metrics.md", "exec"), here)
    assert here["scores"].values["exact_match"] == 100
