"""`epigraph inspect`: what an artifact is, without loading any model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from epigraph.cli import show


def inspect(
    artifact: Annotated[Path, typer.Argument(help="An artifact, or the folder a run wrote.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Geometry, text contract, provenance and size of an artifact."""
    from epigraph import artifact as files

    found = files.inspect(files.find(artifact))
    if as_json:
        show.print_json(found)
        return
    show.print_pairs(str(artifact), {name: value for name, value in found.items() if not isinstance(value, dict)})
