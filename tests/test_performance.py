"""docs/performance.md shows the record of the training bench, number by number."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from epigraph.report.performance import SHOW, read

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "benchmarks" / "training.json"
PAGE = ROOT / "docs" / "performance.md"


def test_the_page_shows_the_record() -> None:
    pasted = runpy.run_path(str(ROOT / "docs" / "paste_tables.py"))["pasted"]
    page, record = PAGE.read_text(encoding="utf-8"), read(RECORD)
    assert re.findall("<!-- table: (?!machine)([a-z_]+) -->", page) == [
        name for name in SHOW if name in record["parts"]
    ]
    assert all(SHOW[name](part) in page for name, part in record["parts"].items())
    assert pasted(page, record) == page


def test_another_number_would_be_seen() -> None:
    pasted = runpy.run_path(str(ROOT / "docs" / "paste_tables.py"))["pasted"]
    page, record = PAGE.read_text(encoding="utf-8"), read(RECORD)
    record["parts"]["same_batches"]["ratio_same_batches"]["median"] += 1
    assert pasted(page, record) != page
