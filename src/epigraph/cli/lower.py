"""`epigraph lower`: a soft prompt as keys and values, for engines that take nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from epigraph.cli import show
from epigraph.errors import OutputExists

Flag = typer.Option


def lower(
    artifact: Annotated[Path, typer.Argument(help="An artifact of a soft prompt, or the folder a run wrote.")],
    out: Annotated[Path, Flag(help="Where the new artifact goes.")],
    model: Annotated[str | None, Flag(help="Where the base is, if not where it was in training.")] = None,
    allow_base: Annotated[str | None, Flag(help="Fingerprint of a base with other weights to admit.")] = None,
    as_json: Annotated[bool, Flag("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Make keys and values of a soft prompt, exactly and once: the form that vLLM serves. The base is loaded."""
    from torch import float32

    from epigraph import artifact as files
    from epigraph.engine.lowered import in_front, lower_artifact, refuse_lowered
    from epigraph.tuned import load_base

    content, header, _ = files.read(files.find(artifact))
    refuse_lowered(in_front(content))
    if out.exists() or out.is_symlink():
        raise OutputExists(f"{out} exists already; give --out another name, or take it away")
    frozen = load_base(artifact, content.base_name, model=model)
    made = lower_artifact(content, frozen, header.content_hash, allow_base)
    # Whole precision: rounding would be a second one, behind that of the soft prompt.
    written = {
        "file": str(out),
        "content_hash": files.save(made, out, dtype=float32),
        "lowered_from": header.content_hash,
        "num_virtual_tokens": made.tokens.num_virtual_tokens,
        "num_bytes": out.stat().st_size,
    }
    if as_json:
        show.print_json(written)
        return
    show.print_pairs(
        str(out),
        {
            "virtual tokens": f"{written['num_virtual_tokens']}, keys and values in float32",
            "made from": header.content_hash[:12],
            "content hash": str(written["content_hash"])[:12],
            "size": show.size(out.stat().st_size),
        },
    )
