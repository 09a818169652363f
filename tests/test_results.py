"""docs/results.md shows what was measured: its tables are the committed records, number by number."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
RECORDS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


def benchmark(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_records() -> None:
    assert RECORDS


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem)
def test_the_page_shows_the_record(record: Path) -> None:
    # e2e-100.json is of e2e.py, with another setting.
    module, found = benchmark(record.stem.partition("-")[0]), json.loads(record.read_text())
    page = (ROOT / "docs" / "results.md").read_text()
    assert module.table(found) in page
    assert module.metrics_table(found) in page
