"""Paste the tables of sweeps into results.md, from their records: run ``python docs/paste_results.py``.

The place for benchmarks/sweeps/NAME.json, which is what ``epigraph sweep show --json`` printed, is under the comment
``<!-- sweep: NAME -->`` and ends before ``<!-- end -->``.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from epigraph.sweep.shown import page

PAGE = Path(__file__).with_name("results.md")
RECORDS = PAGE.parents[1] / "benchmarks" / "sweeps"
_PLACE = re.compile(r"<!-- sweep: (?P<name>[\w-]+) -->\n.*?(?=<!-- end -->)", re.DOTALL)


def records() -> dict[str, dict[str, Any]]:
    """Every committed record by its name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RECORDS.glob("*.json"))}


def places(text: str) -> list[str]:
    """The records that ``text`` has a place for, in its order."""
    return [match["name"] for match in _PLACE.finditer(text)]


def pasted(text: str, found: Mapping[str, Mapping[str, Any]]) -> str:
    """``text`` with each record's tables at its place."""
    return _PLACE.sub(lambda match: f"<!-- sweep: {match['name']} -->\n\n{page(found[match['name']])}\n\n", text)


if __name__ == "__main__":
    before, known = PAGE.read_text(encoding="utf-8"), records()
    odd = sorted({*places(before)} ^ {*known})
    if odd:
        sys.exit(f"{odd[0]}: a record without a place in {PAGE.name}, or a place without a record; add the other")
    PAGE.write_text(pasted(before, known), encoding="utf-8")
