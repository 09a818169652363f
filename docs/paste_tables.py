"""Paste the tables of the benches' records into performance.md: run ``python docs/paste_tables.py``.

The place for a table of training is under the comment ``<!-- table: PART -->``, for one of serving under
``<!-- serving: PART -->``, of the local engine under ``<!-- local: PART -->``, of the fleet under
``<!-- fleet: PART -->``; all end before the next ``<!-- end -->``. Where a record or a part of it was not made yet, its
places stay as they are.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from epigraph.report.performance import about, draw, read, shown_part

PAGE = Path(__file__).with_name("performance.md")
RECORDS = {
    "table": PAGE.parents[1] / "benchmarks" / "training.json",
    "serving": PAGE.parents[1] / "benchmarks" / "serving.json",
    "local": PAGE.parents[1] / "benchmarks" / "serving_local.json",
    "fleet": PAGE.parents[1] / "benchmarks" / "fleet.json",
}


def pasted(page: str, record: dict[str, Any], mark: str = "table") -> str:
    """``page`` with each part's table of ``record`` at its place, where comments begin with ``mark``."""
    place = re.compile(rf"<!-- {mark}: (?P<part>\w+) -->\n.*?(?=<!-- end -->)", re.DOTALL)

    def table(match: re.Match[str]) -> str:
        name = match["part"]
        if name != "machine" and name not in record["parts"]:
            return match[0]
        shown = about(record) if name == "machine" else shown_part(name, record["parts"][name])
        return f"<!-- {mark}: {name} -->\n\n{shown}\n\n"

    return place.sub(table, page)


if __name__ == "__main__":
    found = {mark: read(path) for mark, path in RECORDS.items() if path.exists()}
    page = PAGE.read_text(encoding="utf-8")
    for mark, record in found.items():
        # The local engine's picture would take the place of vLLM's.
        if mark != "local" and (mark != "fleet" or "ten_thousand" in record["parts"]):
            draw(record, PAGE.parent)
        page = pasted(page, record, mark)
    PAGE.write_text(page, encoding="utf-8")
