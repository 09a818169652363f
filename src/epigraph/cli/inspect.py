"""`epigraph inspect`: what an artifact is, without loading any model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

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
    show.print_pairs(str(artifact), _in_words(found))


def _in_words(found: Mapping[str, Any]) -> dict[str, Any]:
    is_soft = found["kind"] == "soft"
    kind = "input embeddings" if is_soft else f"keys and values, {found['visibility']}"
    sites = {site: len(layers) for site, layers in found["geometry"]["sites"].items()}
    provenance, contract = found["provenance"], found["contract"]
    # Provenance is whatever the file's author wrote; the format does not say what is in it.
    data, scores = (x if isinstance(x, dict) else {} for x in (provenance.get("data"), provenance.get("dev")))
    return {
        "method": f"{found['method']['name']}, {found['num_virtual_tokens']} virtual tokens: {kind}",
        "base": f"{found['base']['name']} ({found['base']['fingerprint'][:12]})",
        "sites": ", ".join(f"{site}, {count} layers" for site, count in sites.items()),
        "text starts at": f"position {found['num_virtual_tokens'] if is_soft else found['text_start']}",
        "size": f"{show.size(found['num_bytes'])}, {found['num_numbers']:,} numbers in {found['dtype']}",
        "text": f"{contract['input_template']!r} then {contract['target_template']!r}"
        if contract["chat_template_hash"] is None
        else f"chat template {contract['chat_template_hash'][:12]}",
        "trained on": f"{data.get('task') or data.get('file') or 'not said'}, {provenance.get('created', 'not said')}",
        "development": ", ".join(f"{name} {_number(value)}" for name, value in scores.items()) or "none",
        "content hash": found["content_hash"][:12],
    }


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
