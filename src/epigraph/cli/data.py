"""``epigraph data``: which data sets there are, where their files lie, and how to get them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn
from rich.table import Table

from epigraph.errors import DataError
from epigraph.tasks import catalogue, fetch, probing
from epigraph.tasks.base import Loader, Task

app = typer.Typer(
    name="data", help="Data sets: which there are, where they are, how to get them.", no_args_is_help=True
)

_Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
_Rows = Annotated[bool, typer.Option("--rows", help="Count rows too, which reads every file.")]
_Name = Annotated[str, typer.Argument(help="A data set of `epigraph data list`.")]
_Mirror = Annotated[str | None, typer.Option("--from", help="A mirror that has the same files.")]


@app.command("list")
def list_tasks(rows: _Rows = False, as_json: _Json = False) -> None:
    """List the data sets by what they are about, and which of their splits are here."""
    tasks = [_described(line, rows) for line in _lines()]
    if as_json:
        typer.echo(json.dumps({"tasks": tasks}, indent=2))
        return
    table = Table("name", "splits", "what")
    for group in catalogue.GROUPS:
        table.add_section()
        table.add_row(f"[bold]{group}[/bold]", "", "")
        for task in (x for x in tasks if x["group"] == group):
            several = f"; {len(task['names'])} tasks" if len(task["names"]) > 1 else ""
            table.add_row(task["name"], _splits(task), escape(task["summary"] + several))
    Console().print(table)
    if rows:
        typer.echo("Numbers are rows, and references in brackets where a row has several.")
    typer.echo("`epigraph data path NAME` says how to get what is not here.")
    typer.echo(f"`epigraph data fetch NAME` gets {', '.join(fetch.FETCHED)}.")


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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Line:
    """One line of the list: a task, or many that read the same files."""

    group: str
    name: str
    names: tuple[str, ...]
    summary: str
    splits: Mapping[str, Loader]
    files: Mapping[str, str]


def _lines() -> Iterator[_Line]:
    # One line for all relations of T-REx: 41 of them would hide the rest, and each would read the same files.
    relations = tuple(probing.task_name(x) for x in probing.RELATIONS)
    for group, tasks in catalogue.GROUPS.items():
        for name in (x for x in tasks if x not in relations):
            task = tasks[name]()
            yield _Line(
                group=group, name=name, names=(name,), summary=task.summary, splits=task.splits, files=task.files
            )
        if tasks is catalogue.PROBES:
            name, whole = probing.task_name("RELATION"), {x: partial(probing.load_every_fact, x) for x in fetch.SPLITS}
            yield _Line(group=group, name=name, names=relations, summary=probing.SUMMARY, splits=whole, files={})


def _described(line: _Line, with_rows: bool) -> dict[str, Any]:
    """The splits that are here, each with its numbers where it was read, and the reason for the first that is not."""
    here: dict[str, dict[str, int] | None] = {}
    reasons: dict[str, str] = {}
    for split, load in line.splits.items():
        # A split whose file is named is here; others are made of several files, and only reading them tells.
        if split in line.files and not with_rows:
            here[split] = None
            continue
        try:
            examples = load()
        except DataError as error:
            reasons[split] = str(error).splitlines()[0]
        else:
            here[split] = {"examples": len(examples), "references": sum(len(x.references) for x in examples)}
    return {
        "group": line.group,
        "name": line.name,
        "names": list(line.names),
        "summary": line.summary,
        "splits": here if with_rows else dict.fromkeys(here),
        "not_here": [*reasons],
        "missing": next(iter(reasons.values()), None),
    }


def _splits(task: Mapping[str, Any]) -> str:
    """``train 300 (411), dev 36`` and, where there are some, which are not here."""
    words = [name if size is None else f"{name} {_numbers(size)}" for name, size in task["splits"].items()]
    absent = [f"not here: {', '.join(task['not_here'])}"] if task["not_here"] else []
    return "\n".join([*([", ".join(words)] if words else []), *absent])


def _numbers(size: Mapping[str, int]) -> str:
    several = f" ({size['references']:,})" if size["references"] != size["examples"] else ""
    return f"{size['examples']:,}{several}"
