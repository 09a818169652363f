"""Which transformers does the seam work on? Look at every fact and run the oracles in several environments.

Run `make test-matrix`, or `python tests/matrix.py ENVIRONMENT...`: each is a folder of a virtual environment with one
version of transformers in it. Facts come first and without conftest.py, so that they speak even where epigraph cannot
be imported; a table is printed, then every fact that broke and every oracle that failed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
FACTS = ("--noconftest", "tests/contract")
ORACLES = tuple(
    f"tests/test_{name}.py"
    for name in (
        "attention",
        "silent_failures",
        "versions",
        "prefix_tuning",
        "lowering",
        "prompt_tuning",
        "train",
        "inputs",
    )
)
VERSION = "from importlib.metadata import version; print(version('transformers'))"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What one run of pytest came to; ``failed`` maps each failed test to its first line."""

    passed: int
    skipped: int
    failed: Mapping[str, str]
    seconds: float

    @property
    def holds(self) -> bool:
        """Something ran and nothing failed."""
        return bool(self.passed) and not self.failed

    def __str__(self) -> str:
        parts = {"passed": self.passed, "failed": len(self.failed), "skipped": self.skipped}
        return ", ".join(f"{count} {what}" for what, count in parts.items() if count or what == "passed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One environment of the matrix."""

    version: str
    facts: Outcome
    oracles: Outcome


def main(environments: Sequence[str]) -> int:
    rows = []
    for environment in environments:
        rows.append(look(Path(environment) / "bin" / "python"))
        print(f"{rows[-1].version}: done", file=sys.stderr, flush=True)
    print(table(rows))
    return 0 if rows and all(row.facts.holds and row.oracles.holds for row in rows) else 1


def look(python: Path, facts: Sequence[str] = FACTS, oracles: Sequence[str] = ORACLES) -> Row:
    """Facts and oracles with the transformers of that ``python``."""
    done = subprocess.run([python, "-c", VERSION], capture_output=True, text=True, check=True)
    return Row(version=done.stdout.strip(), facts=run(python, facts), oracles=run(python, oracles))


def run(python: Path, tests: Sequence[str]) -> Outcome:
    """One run of pytest; that it could not even begin counts as a failure."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *tests]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        cases = ElementTree.parse(report).findall(".//testcase") if report.exists() else []
    failed = {name(case): first_line(wrong) for case in cases if (wrong := broken(case)) is not None}
    if not failed and (done.returncode or not cases):
        said = (done.stderr or done.stdout).strip().splitlines()
        failed = {"pytest": said[-1] if said else f"ended with {done.returncode}"}
    skipped = sum(case.find("skipped") is not None for case in cases)
    passed = len(cases) - skipped - sum(broken(case) is not None for case in cases)
    return Outcome(passed=passed, skipped=skipped, failed=failed, seconds=time.perf_counter() - start)


def broken(case: ElementTree.Element) -> ElementTree.Element | None:
    wrong = case.find("failure")
    return case.find("error") if wrong is None else wrong


def name(case: ElementTree.Element) -> str:
    return f"{case.get('classname', '')}::{case.get('name', '')}".removeprefix("tests.")


def first_line(wrong: ElementTree.Element) -> str:
    """A broken fact's own sentence, or the first line of any other failure."""
    text = wrong.get("message") or wrong.text or "failed"
    return text.split("BrokenFact: ", 1)[-1].splitlines()[0]


def table(rows: Sequence[Row]) -> str:
    """A line a version, and below it what failed, by name."""
    lines = ["| transformers | facts | oracles | seconds |", "|---|---|---|---|"]
    lines += [f"| {x.version} | {x.facts} | {x.oracles} | {x.facts.seconds + x.oracles.seconds:.0f} |" for x in rows]
    for row in rows:
        for kind, outcome in (("fact", row.facts), ("oracle", row.oracles)):
            lines += [f"\n{row.version}: {kind} broken: {test}\n  {said}" for test, said in outcome.failed.items()]
        if row.facts.holds and not row.oracles.holds:
            lines.append(f"\n{row.version}: every fact holds; what changed has no fact yet, add one in tests/contract")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
