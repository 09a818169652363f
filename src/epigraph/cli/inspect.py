"""`epigraph inspect`: what an artifact is. No model is loaded but for a reading, ``--neighbours`` and ``--mass``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from epigraph.cli import mass as masses
from epigraph.cli import reading as readings
from epigraph.cli import show
from epigraph.errors import BadValue

if TYPE_CHECKING:
    from epigraph.tuned import Tuned

Flag = typer.Option


def inspect(
    artifact: Annotated[Path, typer.Argument(help="An artifact, or the folder a run wrote.")],
    neighbours: Annotated[
        bool, Flag("--neighbours", help="Of a soft prompt: the tokens nearest to each virtual token; loads the base.")
    ] = False,
    mass: Annotated[
        bool, Flag("--mass", help="The attention that text gives each virtual token, by layer; loads the base.")
    ] = False,
    texts: Annotated[
        Path | None, Flag(help="For --mass: a source a line. Default: test rows of its task, or a sample.")
    ] = None,
    picture: Annotated[Path | None, Flag(help="For --mass: the PNG to draw; its record lies beside it.")] = None,
    model: Annotated[str | None, Flag(help="Where the base is, if not where it was in training.")] = None,
    allow_base: Annotated[str | None, Flag(help="Fingerprint of a base with other weights to admit.")] = None,
    as_json: Annotated[bool, Flag("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Geometry, text contract, provenance and size of an artifact."""
    from epigraph import artifact as files

    found = files.inspect(files.find(artifact))
    _check_flags({"--model": model, "--allow-base": allow_base}, "--neighbours or --mass", neighbours or mass)
    _check_flags({"--texts": texts, "--picture": picture}, "--mass", mass)
    if neighbours:
        _refuse_keys(found["kind"])
    if picture is not None:
        masses.check_picture(picture)
    tuned = _load(artifact, model, allow_base, eager=mass) if neighbours or mass else None
    reading = readings.read(tuned, found["provenance"]) if tuned is not None and neighbours else None
    record = masses.measure(tuned, found, texts) if tuned is not None and mass else None
    if record is not None and picture is not None:
        masses.write_picture(picture, record)
    if as_json:
        more = {"neighbours": reading and readings.as_json(reading), "mass": record}
        show.print_json({**found, **{name: value for name, value in more.items() if value is not None}})
        return
    summaries = (readings.summary(reading) if reading else {}) | (masses.summary(record) if record else {})
    show.print_pairs(str(artifact), _in_words(found) | summaries)
    if reading is not None:
        readings.print_tables(reading)
    if record is not None:
        masses.print_tables(record)


def _check_flags(given: Mapping[str, object], needed: str, is_there: bool) -> None:
    for name, value in given.items():
        if value is not None and not is_there:
            raise BadValue(f"got {name} {str(value)!r} without {needed}, which it is for; add {needed}")


def _refuse_keys(kind: str) -> None:
    if kind != "soft":
        raise BadValue(
            f"--neighbours: the artifact holds keys and values (kind {kind!r}), expected a soft prompt (kind 'soft'), "
            "whose virtual tokens lie among the vocabulary's; leave --neighbours out"
        )


def _load(artifact: Path, model: str | None, allow_base: str | None, *, eager: bool) -> Tuned:
    from epigraph.tuned import Tuned

    return Tuned.load(artifact, model=model, attention_name="eager" if eager else "sdpa", allow_base=allow_base)


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
