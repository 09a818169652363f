"""The pages in docs/ say what the code says: names, defaults, help, messages, and examples that run."""

from __future__ import annotations

import ast
import contextlib
import os
import pkgutil
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from pydantic import BaseModel

import epigraph
from conftest import tiny_model, tiny_tokenizer
from console import make_targets
from epigraph import errors
from epigraph.errors import BadValue, CountMismatch, DataError, EpigraphError
from epigraph.tasks import calibration
from epigraph.tasks.base import Example, Scores, Task
from epigraph.tasks.catalogue import PROBES, TASKS, own_data
from epigraph.train.baselines import BASELINES
from epigraph.train.recipe import DEFAULT_LR, METHODS, NAMED, Recipe
from epigraph.train.recipe_file import known_keys
from forked import Forks

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *ROOT.glob("*.md"), *(ROOT / "src").rglob("*.md")])
SOURCES = sorted((ROOT / "src").rglob("*.py"))
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
    without = {"--out", "--device", "--dry-run", "--overwrite", "--resume", "--json", "--help"}
    assert {flag for cell, _ in tied for flag in re.findall(r"`(--[a-z-]+)`", cell)} == flags - without
    assert {key for _, cell in tied for key in re.findall(r"`([a-z_.]+)`", cell)} <= set(known_keys())


def example_commands() -> Iterator[tuple[str, list[str]]]:
    """Every ``epigraph`` line of every shell block: its page, and its words."""
    for path in PAGES:
        for kind, text in FENCE.findall(path.read_text(encoding="utf-8")):
            if kind == "sh":
                lines = (shlex.split(line, comments=True) for line in text.replace("\\\n", " ").splitlines())
                yield from ((path.name, words) for words in lines if words[:1] == ["epigraph"])


def test_commands_and_flags_in_examples_are_real(paste: dict[str, Any]) -> None:
    examples = list(example_commands())
    assert len(examples) > 20
    known, help_of = set(paste["commands"]()), cache(paste["help_of"])
    for name, (_, *words) in examples:
        command = max((tuple(words[:n]) for n in range(3) if tuple(words[:n]) in known), key=len)
        assert command, f"{name}: epigraph {' '.join(words)}"
        flags = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert flags <= set(re.findall(r"--[a-z-]+", help_of(command))), f"{name}: {' '.join(words)}"


# Recipes

ROW = re.compile(r"^\| `([a-z_.]+)` \| (.+?) \| (.+?) \| (.+) \|$", re.MULTILINE)


def documented() -> dict[tuple[str, str], tuple[str, str]]:
    """The cells for type and default of every key of docs/recipes.md, by its method, or "", and the key."""
    found = {}
    for section in re.split(r"^(?=#+ )", page("recipes.md"), flags=re.MULTILINE):
        title = section.split("\n", 1)[0].lstrip("# ")
        names = title.split(", ")
        for key, kind, default, _ in ROW.findall(section):
            found |= dict.fromkeys([(name if name in NAMED else "", key) for name in names], (kind, default))
    return found


def recipe_fields() -> dict[tuple[str, str], Any]:
    """Every field of a recipe, by the method it belongs to, or "", and its dotted key."""
    found: dict[tuple[str, str], Any] = {("", name): Recipe.model_fields[name] for name in ("model", "attention")}
    for table in ("data", "training", "text"):
        part = Recipe.model_fields[table].annotation
        assert part is not None
        assert issubclass(part, BaseModel)
        found |= {("", f"{table}.{name}"): field for name, field in part.model_fields.items()}
    for method, config in NAMED.items():
        found |= {(method, f"method.{name}"): field for name, field in config.model_fields.items()}
    return found


def test_every_recipe_key_is_documented_and_no_other() -> None:
    assert sorted(documented()) == sorted(recipe_fields())
    assert {key for _, key in recipe_fields()} == set(known_keys())


def choices(annotation: Any) -> set[str]:
    """Every word that a field may be set to, where it may be set to some words only."""
    if get_origin(annotation) is Literal:
        return {str(x) for x in get_args(annotation)}
    return {x for inner in get_args(annotation) for x in choices(inner)}


@pytest.mark.parametrize("key", [key for key, field in recipe_fields().items() if choices(field.annotation)])
def test_every_choice_of_a_key_is_documented_and_no_other(key: tuple[str, str]) -> None:
    type_cell, _ = documented()[key]
    assert set(re.findall(r'`"([^"]+)"`', type_cell)) == choices(recipe_fields()[key].annotation)


def test_every_method_has_a_page_of_its_name() -> None:
    assert METHODS
    for name in METHODS:
        assert f"[{name}.md]({name}.md)" in page("recipes.md")
        assert page(f"{name}.md").startswith("# ")


@pytest.mark.parametrize("key", recipe_fields())
def test_the_documented_default_is_the_real_one(key: tuple[str, str]) -> None:
    _, written = documented()[key]
    field = recipe_fields()[key]
    real = None if field.is_required() else field.default
    value = None if written == "none" else tomllib.loads(f"value = {written.strip('`')}")["value"]
    assert value == (list(real) if isinstance(real, tuple) else real)


def test_every_baseline_has_a_section_and_its_learning_rate_in_the_page() -> None:
    text = page("baselines.md")
    titles = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert {name for title in titles for name in re.split(", | and ", title)} >= set(BASELINES)
    rates = dict(re.findall(r"^\| `([a-z-]+)` \| ([\d.e-]+) \|$", text, re.MULTILINE))
    assert {name: float(x) for name, x in rates.items()} == {
        name: DEFAULT_LR[name]["weights"] for name, x in BASELINES.items() if x.trains and x.loop is None
    }


@pytest.mark.parametrize("method", METHODS)
def test_the_documented_learning_rates_are_the_real_ones(method: str) -> None:
    rates = dict(re.findall(r"^\| `([a-z-]+)` \| ([\d.e-]+) \|$", page(f"{method}.md"), re.MULTILINE))
    assert {name: float(x) for name, x in rates.items()} == DEFAULT_LR[method]


def test_examples_of_recipes_are_recipes() -> None:
    from epigraph.train.recipe_file import check_recipe

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


TEXTS = ("The Vaults is a pub.", "A pub.")
# Answers that are said freely and are one of a few all the same: some label of every such task.
LABELS = ("True", "entailment", "choice1", "duplicate", "equivalent", "yes")


def scored(task: Task, references: tuple[str, ...]) -> Scores:
    among = (references[0], "another")
    row = Example(source="name : The Vaults | Type : pub", references=references, candidates=among, group="one")
    rows = [row] * 2
    return task.score(["The Vaults is a pub."] * 2, rows)


def reported(task: Task) -> set[str]:
    """Every metric that a task's scorer reports, or says that it cannot compute here."""
    scores = None
    for references in (task.labels[:1] or TEXTS, *((label,) for label in LABELS)):
        with contextlib.suppress(BadValue, CountMismatch):
            scores = scored(task, references)
            break
    assert scores is not None, task.name
    assert set(scores.values) <= set(scores.variants)
    assert {task.headline, *task.better_when_higher} <= {*scores.values, *scores.missing}
    return {*scores.values, *scores.missing}


def test_every_metric_of_every_task_is_documented_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without Java its metrics are named all the same, and at once.
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    (tmp_path / "rows.csv").write_text("source,target\nred,warm\n")
    named = [make() for name, make in TASKS.items() if name not in PROBES] + [PROBES["lama-P19"]()]
    tasks = [own_data(tmp_path / "rows.csv", None, None, "rows"), *named]
    # Tasks that share a scorer report the same.
    distinct = {repr(task.score): task for task in tasks}
    names = {name for task in distinct.values() for name in reported(task)} | {*calibration.METRICS}
    assert names == set(re.findall(r"^\| `(\w+)` \|", page("metrics.md"), re.MULTILINE))


# Public names


def offered() -> dict[str, str]:
    """What ``epigraph/__init__.py`` names for others, each with the module that it says the name is from."""
    body = ast.parse((ROOT / "src" / "epigraph" / "__init__.py").read_text(encoding="utf-8")).body
    names = {x.name: "epigraph" for x in body if isinstance(x, ast.FunctionDef | ast.ClassDef)}
    for checking in (x for x in body if isinstance(x, ast.If) and ast.unparse(x.test) == "TYPE_CHECKING"):
        for line in checking.body:
            assert isinstance(line, ast.ImportFrom)
            names |= {alias.asname or alias.name: str(line.module) for alias in line.names}
    return {name: module for name, module in names.items() if not name.startswith("_")}


def test_all_is_what_the_package_offers() -> None:
    assert sorted(epigraph.__all__) == sorted(offered())
    for name, module in offered().items():
        assert getattr(epigraph, name).__module__ == module
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = epigraph.nothing


def test_a_star_import_gives_every_public_name(forks: Forks) -> None:
    """In a process of its own, where nothing of the package was imported before."""
    code = "from epigraph import *; import epigraph; print(*sorted(set(epigraph.__all__) & set(globals())))"
    process = forks.start(["-c", code])
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.split() == sorted(epigraph.__all__)


def test_the_python_page_lists_the_public_names_and_no_other() -> None:
    found = re.search(r"public interface:(.*?)\.\s", page("python.md"), re.DOTALL)
    assert found
    assert sorted(re.findall(r"`(\w+)`", found.group(1))) == sorted(epigraph.__all__)


def test_examples_take_public_names_from_the_package() -> None:
    used: set[str] = set()
    for path in PAGES:
        for kind, text in FENCE.findall(path.read_text(encoding="utf-8")):
            if kind in ("python", "pycon"):
                used |= set(re.findall(r"\bepigraph\.(\w+)\(", text))
                for names in re.findall(r"from epigraph import (.+)", text):
                    used |= set(names.split(", "))
    assert len(used) > 3
    modules = {module.name for module in pkgutil.iter_modules(epigraph.__path__)}
    assert used <= {*epigraph.__all__, *modules}


# Environment and Makefile


def variables_read(source: str) -> set[str]:
    """The environment variables that ``source`` asks for; where it computes the name, the code that does so."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Attribute(value=inner, attr="get" | "setdefault" | "pop"), args=[name, *_]):
                asked = ast.unparse(inner) == "os.environ"
            case ast.Call(func=ast.Attribute(attr="getenv") | ast.Name(id="getenv"), args=[name, *_]):
                asked = True
            case ast.Subscript(value=inner, slice=name, ctx=ast.Load()):
                asked = ast.unparse(inner) == "os.environ"
            case ast.Compare(left=name, ops=[ast.In() | ast.NotIn()], comparators=[inner]):
                asked = ast.unparse(inner) == "os.environ"
            case _:
                continue
        if asked:
            found.add(str(name.value) if isinstance(name, ast.Constant) else ast.unparse(name))
    return found


def test_every_environment_variable_is_documented() -> None:
    sources = [path.read_text(encoding="utf-8") for path in SOURCES]
    read = {name for source in sources for name in variables_read(source)}
    read |= set(re.findall(r"\bEPIGRAPH_[A-Z]+(?:_[A-Z]+)*\b", "".join(sources)))
    assert {"EPIGRAPH_HOME", "EPIGRAPH_DATA"} <= read
    [paragraph] = re.findall(r"^\*\*Environment\.\*\*.*?\n\n", page("commands.md"), re.DOTALL | re.MULTILINE)
    assert read <= {name.partition("=")[0] for name in in_code(paragraph)}


def test_reading_a_variable_is_seen_in_every_spelling() -> None:
    for spelling in ("os.environ.get(X)", "os.environ[X]", "os.getenv(X)", "X in os.environ", "getenv(X, 1)"):
        assert variables_read(spelling.replace("X", "'NAME'")) == {"NAME"}
        assert variables_read(spelling.replace("X", "name")) == {"name"}
    assert variables_read("{**os.environ}; os.environ['A'] = 'b'; rows.get('c')") == set()


def test_every_make_target_is_documented_and_no_other() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE)) | {"help"} == make_targets()
    for path in PAGES:
        named = re.findall(r"(?:^|`)make ([a-z-]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert path.name == "CHANGELOG.md" or set(named) <= make_targets(), path.name


# Links


def anchors(path: Path) -> set[str]:
    """The names that a page's headings have as link targets."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", x.lower()).replace(" ", "-") for x in headings}


def links(path: Path) -> list[tuple[str, str]]:
    """Every link of a page to a file of ours, and the anchor in it or nothing."""
    return re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", FENCE.sub("", path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target, anchor in links(path):
        there = (path.parent / target).resolve() if target else path
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), f"{target}#{anchor}"


def test_every_page_can_be_reached() -> None:
    """From README.md or docs/architecture.md, link by link."""
    reached: set[Path] = set()
    ahead = [ROOT / "README.md", DOCS / "architecture.md"]
    while ahead:
        here = ahead.pop()
        if here not in reached:
            reached.add(here)
            targets = ((here.parent / target).resolve() for target, _ in links(here) if target)
            ahead += [there for there in targets if there.suffix == ".md" and there.is_file()]
    assert {path.name for path in [*DOCS.glob("*.md"), *ROOT.glob("*.md")] if path not in reached} == set()


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
