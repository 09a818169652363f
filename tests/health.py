"""How is the code doing? Modules, lengths of functions and import cycles of a source tree, against the house's bounds.

Run `make health`, or `python tests/health.py FOLDER`, the folder that holds the packages. A function's length is from
`def` to its last line, docstring counted, decorators not; a function within another counts by itself and as a part of
the other. Imports within functions count as edges too; those under TYPE_CHECKING do not.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

MAX_MODULE_LINES = 300
MAX_P90 = 30
NUM_SHOWN = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Module:
    """One file: its lines, ``(name, lines)`` of its functions, and which modules it imports."""

    name: str
    lines: int
    functions: tuple[tuple[str, int], ...]
    imports: frozenset[str]


def main(folder: str) -> int:
    modules = survey(Path(folder))
    print(describe(modules))
    broken = problems(modules)
    print("\n".join(f"health: {problem}" for problem in broken) or "health: nothing to complain about")
    return 1 if broken else 0


def survey(folder: Path) -> list[Module]:
    """Every module below ``folder``."""
    files = {dotted(file.relative_to(folder)): file for file in sorted(folder.rglob("*.py"))}
    return [read(name, file, files) for name, file in files.items()]


def dotted(file: Path) -> str:
    return ".".join(file.with_suffix("").parts).removesuffix(".__init__")


def read(name: str, file: Path, known: Mapping[str, Path]) -> Module:
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text, filename=str(file))
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    found = (target for node in running(tree) for target in targets(node, package, known) if target in known)
    return Module(
        name=name,
        lines=len(text.splitlines()),
        functions=tuple((f"{name}.{label}", count) for label, count in functions(tree)),
        imports=frozenset(found) - {name},
    )


def functions(node: ast.AST, within: str = "") -> Iterator[tuple[str, int]]:
    """(name, lines) of every function, with the classes and functions around it in its name."""
    for child in ast.iter_child_nodes(node):
        label = within
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            label = f"{within}.{child.name}".removeprefix(".")
            if not isinstance(child, ast.ClassDef):
                yield label, (child.end_lineno or child.lineno) - child.lineno + 1
        yield from functions(child, label)


def running(node: ast.AST) -> Iterator[ast.AST]:
    """Every node that is not under ``if TYPE_CHECKING``."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from running(other)
        else:
            yield from running(child)


def targets(node: ast.AST, package: str, known: Collection[str]) -> Iterator[str]:
    """The modules that an import means."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*parents, *([node.module] if node.module else [])])
        # `from package import module` means the module; anything else is a name within the package.
        yield from (inner if (inner := f"{base}.{alias.name}") in known else base for alias in node.names)


def percentile(values: Sequence[int], share: float) -> int:
    """The smallest value that at least ``share`` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)] if ordered else 0


def describe(modules: Sequence[Module]) -> str:
    """The state of things, in lines."""
    by_lines = sorted(modules, key=lambda x: -x.lines)[:NUM_SHOWN]
    called = sorted((x for module in modules for x in module.functions), key=lambda x: -x[1])
    lengths = [count for _, count in called]
    return "\n".join(
        [
            f"{len(modules)} modules, {sum(x.lines for x in modules):,} lines",
            "longest modules: " + ", ".join(f"{x.name} {x.lines}" for x in by_lines),
            f"{len(called)} functions, lines with docstring: median {percentile(lengths, 0.5)}, "
            f"p90 {percentile(lengths, 0.9)}, longest {max(lengths, default=0)}",
            "longest functions: " + ", ".join(f"{name} {count}" for name, count in called[:NUM_SHOWN]),
            f"{sum(len(x.imports) for x in modules)} imports between modules, "
            f"{'in a cycle' if cycle(modules) else 'no cycle'}",
        ]
    )


def problems(modules: Sequence[Module]) -> list[str]:
    """What breaks a bound, a line each."""
    found = [] if modules else ["no modules found; give the folder that holds the packages"]
    found += [
        f"{x.name} has {x.lines} lines, at most {MAX_MODULE_LINES} are allowed; split it"
        for x in modules
        if x.lines > MAX_MODULE_LINES
    ]
    p90 = percentile([count for module in modules for _, count in module.functions], 0.9)
    if p90 > MAX_P90:
        found.append(f"p90 of function length is {p90} lines, at most {MAX_P90} are allowed; shorten the longest")
    if around := cycle(modules):
        found.append(f"import cycle: {' -> '.join(around)}; none is allowed")
    return found


def cycle(modules: Sequence[Module]) -> list[str]:
    """One cycle of imports, its first module named again at the end, or nothing."""
    try:
        TopologicalSorter({x.name: x.imports for x in modules}).prepare()
    except CycleError as error:
        # Its list goes from the imported to the importer.
        return [str(name) for name in reversed(error.args[1])]
    return []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if sys.argv[1:] else str(Path(__file__).parents[1] / "src")))
