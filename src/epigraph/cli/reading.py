"""What `inspect --neighbours` reads from a soft prompt, as tables and as JSON.

First values are computed again from what the provenance says, which is whatever the file's author wrote.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from epigraph.cli import show
from epigraph.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from epigraph.frozen.neighbours import PromptReading, TokenReading
    from epigraph.frozen.reading import Clusters, Equals, LabelReading, Moved
    from epigraph.tuned import Tuned

MAX_SEED = 2**63
NUM_PAIRS_SHOWN = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """Everything that is read; ``moved`` is in words why it is unknown, where it is."""

    prompt: PromptReading
    clusters: Clusters
    equals: Equals
    moved: tuple[Moved, ...] | str
    labels: tuple[LabelReading, ...]


def read(tuned: Tuned, provenance: Mapping[str, Any]) -> Reading:
    """The reading of an artifact's soft prompt."""
    from epigraph.frozen import reading
    from epigraph.frozen.neighbours import read_prompt
    from epigraph.virtual import SoftPrompt

    prompt = tuned.artifact.tokens
    assert isinstance(prompt, SoftPrompt)
    found = read_prompt(tuned.frozen, prompt)
    first = first_values(tuned, provenance)
    return Reading(
        prompt=found,
        clusters=reading.read_clusters(tuned.frozen, found),
        equals=reading.read_equals(prompt),
        moved=first if isinstance(first, str) else reading.read_moved(tuned.frozen, prompt, first),
        labels=reading.read_labels(tuned.frozen, found, _labels(_method(provenance), prompt.num_virtual_tokens)),
    )


def first_values(tuned: Tuned, provenance: Mapping[str, Any]) -> Tensor | str:
    """``[P, E]`` that the prompt started from, computed again by the provenance's recipe and seed; or why not."""
    import torch

    from epigraph.methods.prompt_tuning import PromptTuningConfig
    from epigraph.train.build import first_embeddings

    method = _method(provenance)
    if method.get("name") != "prompt-tuning":
        return "its provenance has no recipe of prompt-tuning"
    if method.get("parameterization") != "raw":
        return f"behind {method.get('parameterization')!r} it started from a network's random weights"
    if method.get("initial") in ("document", "artifact"):
        return f"initial is {method['initial']!r}, which does not travel with the artifact"
    if tuned.frozen.fingerprint != tuned.artifact.base_fingerprint:
        return "the base has other weights than in training"
    wanted = ("num_virtual_tokens", "initial", "initial_text", "labels", "vocabulary_size", "uniform_range")
    try:
        config = PromptTuningConfig.model_validate({name: method[name] for name in wanted if name in method})
        seed = provenance["recipe"]["training"]["seed"]
        if config.num_virtual_tokens != tuned.artifact.tokens.num_virtual_tokens or not 0 <= seed < MAX_SEED:
            raise ValueError
        with torch.no_grad():
            return first_embeddings(
                tuned.frozen, config, config.num_virtual_tokens, seed=int(seed), instruction=config.initial_text or ""
            )
    except (ValueError, KeyError, TypeError, UserError):
        return "its provenance has no recipe that this prompt can come from"


def _method(provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    recipe = provenance.get("recipe")
    method = recipe.get("method") if isinstance(recipe, dict) else None
    return method if isinstance(method, dict) else {}


def _labels(method: Mapping[str, Any], num_virtual_tokens: int) -> list[str]:
    """The labels that the prompt started from, as far as its provenance says so in a way that can be true."""
    # Behind an MLP a prompt starts from the MLP's random weights, whatever `initial` says.
    if method.get("initial") != "labels" or method.get("parameterization") == "mlp":
        return []
    labels = method.get("labels")
    if not isinstance(labels, list) or len(labels) > num_virtual_tokens:
        return []
    return labels if all(isinstance(label, str) for label in labels) else []


def as_json(reading: Reading) -> dict[str, Any]:
    """Everything, as plain values."""
    pair, moved, clusters = reading.prompt.closest_pair, reading.moved, reading.clusters
    return {
        **asdict(reading.prompt),
        "closest_pair": None
        if pair is None
        else {"numbers": [pair.number, pair.closest], "cosine": pair.closest_cosine},
        "clusters": {
            **asdict(clusters),
            "above_random": list(clusters.above(clusters.random_bar)),
            "above_direction": list(clusters.above(clusters.direction_bar)),
        },
        "equals": asdict(reading.equals),
        "moved": {"unknown": moved} if isinstance(moved, str) else [asdict(one) for one in moved],
        "labels": [asdict(label) for label in reading.labels],
    }


def summary(reading: Reading) -> dict[str, str]:
    """The reading in a few lines."""
    pair, equals = reading.prompt.closest_pair, reading.equals
    return {
        "closest two": "there is only one" if pair is None else f"{pair.number} and {_closest(pair)} (cosine)",
        "equal pairs": f"{equals.num_pairs:,} with a cosine over {equals.limit}{_pairs(equals)}",
        "tight": _tight(reading.clusters),
        "moved": _moved(reading.moved),
        "norm 1": f"{reading.prompt.mean_norm:.4g}, the vocabulary's mean",
    }


def _pairs(equals: Equals) -> str:
    shown = ", ".join(f"{one} and {other}" for one, other, _ in equals.first[:NUM_PAIRS_SHOWN])
    more = ", ..." if equals.num_pairs > NUM_PAIRS_SHOWN else ""
    return f": {shown}{more}" if shown else ""


def _tight(clusters: Clusters) -> str:
    if clusters.random_bar is None or clusters.direction_bar is None:
        return "too few tokens to compare"
    total = len(clusters.tightness)
    random, near = (len(clusters.above(bar)) for bar in (clusters.random_bar, clusters.direction_bar))
    return (
        f"{random} of {total} above {clusters.random_bar:.2f} (random tokens), {near} above "
        f"{clusters.direction_bar:.2f} (tokens near a random direction)"
    )


def _moved(moved: tuple[Moved, ...] | str) -> str:
    if isinstance(moved, str):
        return f"unknown: {moved}"
    distance, cosine = (sum(x) / len(moved) for x in zip(*((one.distance, one.cosine) for one in moved), strict=True))
    return f"by {distance:.2f} from the first values (1: the size of an embedding), cosine {cosine:.2f}; means"


def print_tables(reading: Reading) -> None:
    """The virtual tokens one by one, duplicates, and what is left of labels."""
    header = ("virtual", "norm", "moved", "tight", "nearest, by cosine", "closest other")
    moved = ["?"] * len(reading.prompt.tokens)
    if not isinstance(reading.moved, str):
        moved = [f"{one.distance:.2f}" for one in reading.moved]
    rows = [
        (
            str(token.number),
            f"{token.relative_norm:.3g}",
            moved[token.number],
            "?" if tight is None else f"{tight:.2f}",
            ", ".join(f"{_quoted(near.token)} {near.cosine:.2f}" for near in token.nearest),
            _closest(token),
        )
        for token, tight in zip(reading.prompt.tokens, reading.clusters.tightness, strict=True)
    ]
    show.print_rows("Neighbours", header, rows)
    if reading.prompt.duplicates:
        doubled = [(_quoted(one.token), ", ".join(map(str, one.numbers))) for one in reading.prompt.duplicates]
        show.print_rows("Duplicates", ("nearest", "of virtual tokens"), doubled)
    if reading.labels:
        show.print_rows(
            "Labels", ("virtual", "label", "its tokens", "still near", "near virtual"), _label_rows(reading)
        )


def _label_rows(reading: Reading) -> list[tuple[str, ...]]:
    return [
        (str(x.number), _quoted(x.label), _listed(x.tokens), _listed(x.kept), ", ".join(map(str, x.found_at)) or "none")
        for x in reading.labels
    ]


def _closest(token: TokenReading) -> str:
    return "none" if token.closest_cosine is None else f"{token.closest}, {token.closest_cosine:.2f}"


def _quoted(token: str) -> str:
    """In quotes, a line break escaped: a token can be a blank, a comma or a quote."""
    return json.dumps(token, ensure_ascii=False)


def _listed(tokens: tuple[str, ...]) -> str:
    return ", ".join(map(_quoted, tokens)) or "none"
