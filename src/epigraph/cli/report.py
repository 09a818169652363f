"""``epigraph report``: the page of a training run or of a fleet, and the short of a run on the screen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from epigraph.cli import show
from epigraph.report.comparisons import Clipped, comparisons
from epigraph.report.fleet_page import write_fleet_report
from epigraph.report.fleet_records import is_fleet
from epigraph.report.page import write_report
from epigraph.report.records import Run, read_run
from epigraph.report.scores import before_and_after, headline_metric

NUM_SIDE_BY_SIDE = 3


def report(
    folder: Annotated[Path, typer.Argument(help="The output folder of a training run, or of a fleet.")],
    out: Annotated[Path | None, typer.Option(help="The file to write instead of FOLDER/report.html.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the path and the size as JSON.")] = False,
) -> None:
    """Write what a run, or a fleet, learnt as one HTML file that needs nothing else; show a run before and after."""
    path = (write_fleet_report if is_fleet(folder) else write_report)(folder, out)
    if as_json:
        typer.echo(json.dumps({"report": str(path), "bytes": path.stat().st_size}))
        return
    if not is_fleet(folder):
        _print_side_by_side(read_run(folder))
    typer.echo(str(path))


def _print_side_by_side(run: Run) -> None:
    before, after = before_and_after(run.evaluations)
    metric = headline_metric(run.evaluations, run.development)
    if before is None or after is None or metric is None:
        return
    heads = [f"{name} ({metric} {x.scores.get(metric, 0):.1f})" for name, x in (("before", before), ("after", after))]
    rows = [
        (row.source.glance, _glance(row.before), _glance(row.after))
        for row in comparisons(before, after, NUM_SIDE_BY_SIDE)
    ]
    show.print_rows(f"{after.split}, {after.num_examples} rows", ("source", *heads), rows)


def _glance(text: Clipped | None) -> str:
    return "" if text is None else text.glance
