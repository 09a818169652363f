"""Templates to HTML, and HTML to a file that is there whole or not at all. It knows no records.

All text in the records is untrusted: templates escape everything but pictures, which escape their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from epigraph.errors import OutputExists
from epigraph.files import write_whole
from epigraph.report import words


def rendered(template: str, values: Mapping[str, Any]) -> str:
    """The page of ``template``; the same values give the same text."""
    environment = Environment(
        loader=PackageLoader("epigraph.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": words.count,
        "size": words.size,
        "percent": words.percent,
        "metric": words.metric_name,
        "decimal": words.decimal,
        "duration": words.duration,
    }
    return environment.get_template(template).render(values)


def out_for(folder: Path, out: Path | None) -> Path:
    """Where the page of ``folder`` goes; raises :class:`OutputExists` where ``out`` is a folder."""
    out = folder / "report.html" if out is None else out
    if out.is_dir():
        raise OutputExists(f"{out} is a folder, expected the name of a file to write; try {out / 'report.html'}")
    return out


def write_page(page: str, out: Path) -> Path:
    """Write it; an older page there is replaced, at once and whole."""
    out.parent.mkdir(parents=True, exist_ok=True)
    # A lone surrogate is valid in JSON and in no encoding.
    write_whole(out, [page.encode("utf-8", errors="replace")])
    return out
