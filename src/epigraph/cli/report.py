"""``epigraph report``: the page of a training run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from epigraph.report.page import write_report


def report(
    folder: Annotated[Path, typer.Argument(help="The output folder of a training run.")],
    out: Annotated[Path | None, typer.Option(help="The file to write instead of FOLDER/report.html.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the path and the size as JSON.")] = False,
) -> None:
    """Write what a run learnt as one HTML file that needs nothing else, and print its path."""
    path = write_report(folder, out)
    typer.echo(json.dumps({"report": str(path), "bytes": path.stat().st_size}) if as_json else str(path))
