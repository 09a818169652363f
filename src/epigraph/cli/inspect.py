"""`epigraph inspect`: what an artifact is. No model is loaded but for ``--neighbours``, which reads a soft prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from epigraph.cli import show
from epigraph.cli.options import load_tuned
from epigraph.errors import BadValue

if TYPE_CHECKING:
    from epigraph.frozen.neighbours import LabelReading, PromptReading, TokenReading

Flag = typer.Option


def inspect(
    artifact: Annotated[Path, typer.Argument(help="An artifact, or the folder a run wrote.")],
    neighbours: Annotated[
        bool, Flag("--neighbours", help="Of a soft prompt: the tokens nearest to each virtual token; loads the base.")
    ] = False,
    model: Annotated[str | None, Flag(help="Where the base is, if not where it was in training.")] = None,
    allow_base: Annotated[str | None, Flag(help="Fingerprint of a base with other weights to admit.")] = None,
    as_json: Annotated[bool, Flag("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Geometry, text contract, provenance and size of an artifact."""
    from epigraph import artifact as files

    found = files.inspect(files.find(artifact))
    _check_flags(found["kind"], neighbours=neighbours, model=model, allow_base=allow_base)
    reading, labels = _read(artifact, found, model, allow_base) if neighbours else (None, ())
    if as_json:
        show.print_json(found if reading is None else {**found, "neighbours": _as_json(reading, labels)})
        return
    show.print_pairs(str(artifact), _in_words(found) | ({} if reading is None else _summary(reading)))
    if reading is not None:
        _print_reading(reading, labels)


def _check_flags(kind: str, *, neighbours: bool, model: str | None, allow_base: str | None) -> None:
    for name, value in (("--model", model), ("--allow-base", allow_base)):
        if value is not None and not neighbours:
            raise BadValue(f"got {name} {value!r} without --neighbours, which alone loads a model; add --neighbours")
    if neighbours and kind != "soft":
        raise BadValue(
            f"--neighbours: the artifact holds keys and values (kind {kind!r}), expected a soft prompt (kind 'soft'), "
            "whose virtual tokens lie among the vocabulary's; leave --neighbours out"
        )


def _read(
    artifact: Path, found: Mapping[str, Any], model: str | None, allow_base: str | None
) -> tuple[PromptReading, tuple[LabelReading, ...]]:
    from epigraph.frozen.neighbours import read_labels, read_prompt
    from epigraph.virtual import SoftPrompt

    tuned = load_tuned(artifact, model=model, precision="fp32", device="cpu", allow_base=allow_base)
    prompt = tuned.artifact.tokens
    assert isinstance(prompt, SoftPrompt)
    reading = read_prompt(tuned.frozen, prompt)
    return reading, read_labels(tuned.frozen, reading, _labels(found["provenance"], prompt.num_virtual_tokens))


def _labels(provenance: Mapping[str, Any], num_virtual_tokens: int) -> list[str]:
    """The labels that the prompt started from, as far as its provenance says so in a way that can be true."""
    recipe = provenance.get("recipe")
    method = recipe.get("method") if isinstance(recipe, dict) else None
    # Behind an MLP a prompt starts from the MLP's random weights, whatever `initial` says.
    if not isinstance(method, dict) or method.get("initial") != "labels" or method.get("parameterization") == "mlp":
        return []
    labels = method.get("labels")
    if not isinstance(labels, list) or len(labels) > num_virtual_tokens:
        return []
    return labels if all(isinstance(label, str) for label in labels) else []


def _as_json(reading: PromptReading, labels: tuple[LabelReading, ...]) -> dict[str, Any]:
    pair = reading.closest_pair
    return {
        **asdict(reading),
        "closest_pair": None
        if pair is None
        else {"numbers": [pair.number, pair.closest], "cosine": pair.closest_cosine},
        "labels": [asdict(label) for label in labels],
    }


def _summary(reading: PromptReading) -> dict[str, str]:
    pair = reading.closest_pair
    return {
        "closest two": "there is only one" if pair is None else f"{pair.number} and {_closest(pair)} (cosine)",
        "norm 1": f"{reading.mean_norm:.4g}, the vocabulary's mean",
    }


def _print_reading(reading: PromptReading, labels: tuple[LabelReading, ...]) -> None:
    rows = [
        (
            str(token.number),
            f"{token.relative_norm:.3g}",
            ", ".join(f"{_quoted(near.token)} {near.cosine:.2f}" for near in token.nearest),
            _closest(token),
        )
        for token in reading.tokens
    ]
    show.print_rows("Neighbours", ("virtual", "norm", "nearest, by cosine", "closest other"), rows)
    if reading.duplicates:
        doubled = [(_quoted(one.token), ", ".join(map(str, one.numbers))) for one in reading.duplicates]
        show.print_rows("Duplicates", ("nearest", "of virtual tokens"), doubled)
    if labels:
        left = [(str(x.number), _quoted(x.label), _listed(x.tokens), _listed(x.kept)) for x in labels]
        show.print_rows("Labels", ("virtual", "label", "its tokens", "still near"), left)


def _closest(token: TokenReading) -> str:
    return "none" if token.closest_cosine is None else f"{token.closest}, {token.closest_cosine:.2f}"


def _quoted(token: str) -> str:
    """In quotes, a line break escaped: a token can be a blank, a comma or a quote."""
    return json.dumps(token, ensure_ascii=False)


def _listed(tokens: tuple[str, ...]) -> str:
    return ", ".join(map(_quoted, tokens)) or "none"


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
