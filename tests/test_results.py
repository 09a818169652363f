"""docs/results.md shows what was measured: its tables are the committed records, number by number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import benchmark

ROOT = Path(__file__).parents[1]
RECORDS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


def test_there_are_records() -> None:
    assert RECORDS


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem)
def test_the_page_shows_the_record(record: Path) -> None:
    # A record is named after its benchmark, and its setting where there are several: e2e-100.json is of e2e.py.
    module, found = benchmark(record.stem.partition("-")[0]), json.loads(record.read_text())
    page = (ROOT / "docs" / "results.md").read_text()
    for table in module.tables(found):
        assert table in page
