"""Paste the tables of a benchmark's record into performance.md: run ``python docs/paste_tables.py``.

The place for a table is under the comment ``<!-- table: PART -->`` and ends before the next heading or comment.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from epigraph.report.performance import SHOW, about, draw, read

PAGE = Path(__file__).with_name("performance.md")
RECORD = PAGE.parents[1] / "benchmarks" / "training.json"
_PLACE = re.compile(r"<!-- table: (?P<part>\w+) -->\n.*?(?=<!-- end -->)", re.DOTALL)


def pasted(page: str, record: dict[str, Any]) -> str:
    """``page`` with each part's table of ``record`` at its place."""

    def table(match: re.Match[str]) -> str:
        name = match["part"]
        shown = about(record) if name == "machine" else SHOW[name](record["parts"][name])
        return f"<!-- table: {name} -->\n\n{shown}\n\n"

    return _PLACE.sub(table, page)


if __name__ == "__main__":
    found = read(RECORD)
    draw(found, PAGE.parent)
    PAGE.write_text(pasted(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
