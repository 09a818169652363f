"""``epigraph data``: which data sets there are, where their files lie, and how to get them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn
from rich.table import Table

from epigraph.errors import DataError
from epigraph.tasks import catalogue, fetch, probing
from epigraph.tasks.base import Loader, Task

app = typer.Typer(
    name="data", help="Data sets: which there are, where they are, how to get them.", no_args_is_help=True
)

_Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
_Name = Annotated[str, typer.Argument(help="A data set of `epigraph data list`.")]
_Mirror = Annotated[str | None, typer.Option("--from", help="A mirror that has the same files.")]


@app.command("list")
def list_tasks(as_json: _Json = False) -> None:
    """List the data sets with the size of every split, or how to get them."""
    alone = (make() for name, make in catalogue.TASKS.items() if name not in catalogue.PROBES)
    tasks = [_described(task.name, [task.name], task.summary, task.splits) for task in alone]
    # One line for all relations: 41 of them would hide the rest, and each would read the same files.
    whole = {split: partial(probing.load_every_fact, split) for split in fetch.SPLITS}
    tasks.append(_described(probing.task_name("RELATION"), [*catalogue.PROBES], probing.SUMMARY, whole))
    if as_json:
        typer.echo(json.dumps({"tasks": tasks}, indent=2))
        return
    table = Table("name", "what", "splits")
    for task in tasks:
        sizes = [f"{x}: {size['examples']:,} ({size['references']:,})" for x, size in task["splits"].items()]
        missing = [f"not here: {task['missing']}"] if task["missing"] else []
        names = task["names"]
        several = f"; {len(names)} tasks, {names[0]} to {names[-1]}" if len(names) > 1 else ""
        table.add_row(task["name"], task["summary"] + several, "\n".join(sizes + missing))
    Console().print(table)
    typer.echo("Sizes are examples, and references in brackets.")


@app.command("path")
def path(name: _Name, as_json: _Json = False) -> None:
    """Print where the files of a data set are, one a line."""
    _print_files(name, _files(catalogue.find(name)), as_json)


@app.command("fetch")
def fetch_files(name: _Name, mirror: _Mirror = None, as_json: _Json = False) -> None:
    """Fetch a data set from its official address, checked; what is there already stays."""
    task = catalogue.find(name)
    if name not in fetch.FETCHED:
        _print_files(name, _files(task), as_json)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bars: dict[str, TaskID] = {}

        def show(file: str, done: int, total: int | None) -> None:
            if file not in bars:
                bars[file] = progress.add_task(file, total=total)
            progress.update(bars[file], completed=done)

        files = fetch.fetch(name, address=mirror, progress=show)
    _print_files(name, {x.name.split(".")[0]: str(x) for x in files}, as_json)


def _files(task: Task) -> dict[str, str]:
    """The files of ``task``; where it has none, loading says what to do."""
    if not task.files:
        for split in task.splits:
            task.load(split)
    return dict(task.files)


def _print_files(name: str, files: dict[str, str], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"name": name, "files": files}, indent=2))
        return
    for file in files.values():
        typer.echo(file)


def _described(name: str, names: list[str], summary: str, loaders: Mapping[str, Loader]) -> dict[str, Any]:
    splits: dict[str, dict[str, int]] = {}
    missing = None
    for split, load in loaders.items():
        try:
            examples = load()
        except DataError as error:
            missing = missing or str(error).splitlines()[0]
        else:
            splits[split] = {"examples": len(examples), "references": sum(len(x.references) for x in examples)}
    return {"name": name, "names": names, "summary": summary, "splits": splits, "missing": missing}
