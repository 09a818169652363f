"""The house's bounds: a tree that breaks one is told which, and ours breaks none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import health

ROOT = Path(__file__).parents[1]


def tree(folder: Path, **files: str) -> Path:
    """A package `odd` with those modules; a double underscore in a name is a folder."""
    (folder / "odd").mkdir()
    for name, text in {"__init__": "", **files}.items():
        file = folder / "odd" / f"{name}.py"
        file.write_text(text)
    return folder


def function(name: str, num_lines: int) -> str:
    return f"def {name}():\n" + "    x = 1\n" * (num_lines - 1)


def problems(folder: Path) -> list[str]:
    return health.problems(health.survey(folder))


def test_a_module_that_is_too_long(tmp_path: Path) -> None:
    folder = tree(tmp_path, long="x = 1\n" * 301, just="x = 1\n" * 300)
    assert problems(folder) == ["odd.long has 301 lines, at most 300 are allowed; split it"]


@pytest.mark.parametrize(("num_long", "told"), [(1, False), (2, True)])
def test_functions_that_are_too_long(tmp_path: Path, num_long: int, told: bool) -> None:
    """Of ten functions one may be long."""
    bodies = [function(f"f{i}", 31 if i < num_long else 2) for i in range(10)]
    folder = tree(tmp_path, some="\n".join(bodies))
    want = ["p90 of function length is 31 lines, at most 30 are allowed; shorten the longest"]
    assert problems(folder) == (want if told else [])


CYCLES = {
    "two": {"a": "from odd import b\n", "b": "import odd.a\n"},
    "three, by names within modules": {
        "a": "from odd.b import x\n",
        "b": "from odd.c import y\n",
        "c": "from odd.a import z\n",
    },
    "relative": {"a": "from . import b\n", "b": "from .a import x\n"},
    "within a function": {"a": "from odd import b\n", "b": "def f():\n    from odd.a import x\n"},
    "the package itself": {"__init__": "from odd.a import x\n", "a": "from odd import y\n"},
}


@pytest.mark.parametrize("kind", CYCLES)
def test_an_import_cycle(tmp_path: Path, kind: str) -> None:
    found = problems(tree(tmp_path, **CYCLES[kind]))
    assert len(found) == 1
    assert found[0].startswith("import cycle: odd")
    names = found[0].removeprefix("import cycle: ").removesuffix("; none is allowed").split(" -> ")
    assert names[0] == names[-1]
    assert len(names) == len(CYCLES[kind]) + 1


def test_the_order_of_a_cycle_is_that_of_its_imports(tmp_path: Path) -> None:
    found = problems(tree(tmp_path, **CYCLES["three, by names within modules"]))
    assert any(f"odd.{x} -> odd.{y}" in found[0] for x, y in ("ab", "bc", "ca"))
    assert not any(f"odd.{y} -> odd.{x}" in found[0] for x, y in ("ab", "bc", "ca"))


def test_imports_for_types_alone_make_no_cycle(tmp_path: Path) -> None:
    typed = "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from odd.a import x\n"
    assert problems(tree(tmp_path, a="from odd import b\n", b=typed)) == []


def test_an_empty_folder_is_no_healthy_tree(tmp_path: Path) -> None:
    assert problems(tmp_path) == ["no modules found; give the folder that holds the packages"]


def test_what_is_counted(tmp_path: Path) -> None:
    method = "class C:\n    async def m(self): ...\n\n\n"
    head = '@decorated\ndef outer():\n    """Two\n    lines."""\n\n'
    nested = f"{head}    def inner():\n        return 1\n\n    return inner\n"
    [_, module] = health.survey(tree(tmp_path, one=method + nested))
    assert module.functions == (("odd.one.C.m", 1), ("odd.one.outer", 8), ("odd.one.outer.inner", 2))
    assert module.lines == 13


@pytest.mark.parametrize(("share", "want"), [(0.5, 5), (0.9, 9), (1.0, 10)])
def test_percentiles(share: float, want: int) -> None:
    assert health.percentile(list(range(10, 0, -1)), share) == want


def test_the_command_fails_on_a_bad_tree_and_says_why(tmp_path: Path) -> None:
    folder = tree(tmp_path, a="from odd import b\n", b="from odd import a\n" + "x = 1\n" * 300)
    command = [sys.executable, str(ROOT / "tests" / "health.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "health: odd.b has 301 lines" in done.stdout
    assert "health: import cycle: " in done.stdout
    assert "in a cycle" in done.stdout


def test_the_real_tree_is_well() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "health.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "no cycle" in done.stdout
    assert done.stdout.endswith("health: nothing to complain about\n")
