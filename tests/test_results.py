"""docs/results.md shows what was measured: its tables are the committed records, number by number."""

from __future__ import annotations

import importlib.util
import json
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from conftest import benchmark

ROOT = Path(__file__).parents[1]
RECORDS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


def page() -> str:
    return (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def paste() -> ModuleType:
    """docs/paste_results.py, which is no package."""
    spec = importlib.util.spec_from_file_location("paste_results", ROOT / "docs" / "paste_results.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_records() -> None:
    assert RECORDS


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem)
def test_the_page_shows_the_record(record: Path) -> None:
    # A record is named after its benchmark, and its setting where there are several: e2e-100.json is of e2e.py.
    module, found = benchmark(record.stem.partition("-")[0]), json.loads(record.read_text())
    for table in module.tables(found):
        assert table in page()


def test_the_page_shows_the_record_of_every_sweep(paste: ModuleType) -> None:
    found = paste.records()
    assert found
    assert sorted(paste.places(page())) == sorted(found)
    assert paste.pasted(page(), found) == page()


def test_another_number_is_another_page(paste: ModuleType) -> None:
    found: dict[str, Any] = deepcopy(paste.records())
    name, record = next(iter(found.items()))
    sweep = record["sweeps"][0] if "sweeps" in record else record
    sweep["tables"][0]["rows"][0]["mean"] += 1
    assert paste.pasted(page(), found) != page()
    assert paste.places(page()).count(name) == 1


def test_a_record_of_a_sweep_says_what_it_took_and_where(paste: ModuleType) -> None:
    for record in paste.records().values():
        for sweep in record.get("sweeps", [record]):
            for key in ("title", "num_runs", "train_seconds", "machines", "versions", "tables"):
                assert sweep[key], key
            assert sweep["failed"] == []
            for row in (row for table in sweep["tables"] for row in table["rows"]):
                assert len(row["runs"]) == row["num_planned"]
