"""`epigraph bench train`: all parts in order, each written as soon as it is there; earlier parts are kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from epigraph.bench import compare, evaluation, growth, peers, share
from epigraph.bench.job import Job
from epigraph.errors import BadValue
from epigraph.frozen.loading import has_fast_bf16
from epigraph.train.prepare import prepare
from epigraph.train.recipe_file import check_recipe
from epigraph.train.record import machine, versions, write_json

Advance = Callable[[], None]
PARTS: Mapping[str, Callable[[Job, Advance], dict[str, Any]]] = {
    "same_batches": compare.same_batches,
    "own_batching": compare.own_batching,
    "share": share.share,
    "profile": share.profile,
    "context": compare.context,
    "prefix_lengths": growth.prefix_lengths,
    "text_lengths": growth.text_lengths,
    "models": growth.models,
    "evaluation": evaluation.evaluation,
}


def run(
    path: Path,
    parts: Sequence[str],
    settings: Mapping[str, Any],
    *,
    device: str = "cpu",
    begin: Callable[[str], Advance] = lambda _: lambda: None,
) -> dict[str, Any]:
    """Run ``parts`` and write ``path`` after each; parts that the file has from this machine and not asked for stay.

    ``settings``: model, task, rows, batch_size, repeats, seeds, precision. Raises :class:`BadValue` for another
    machine's or other settings' record.
    """
    peers.check_installed()
    recipe = check_recipe(
        {
            "model": settings["model"],
            "data": {"task": settings["task"], "limit": settings["rows"], "dev_limit": settings["dev_rows"]},
            "method": {"name": "prefix-tuning"},
            "training": {"precision": settings["precision"], "batch_size": settings["batch_size"]},
        }
    )
    ready = prepare(recipe, device=device)
    head = {
        "settings": {**settings, "precision": ready.precision},
        "machine": {**machine(), "fast_bf16": has_fast_bf16(ready.frozen.device)},
        "versions": {**versions(), "peft": metadata.version("peft")},
    }
    record = {**head, "parts": kept(path, head)}
    job = Job(
        ready=ready,
        batch_size=settings["batch_size"],
        repeats=settings["repeats"],
        num_seeds=settings["seeds"],
    )
    for part in parts:
        record["parts"][part] = PARTS[part](job, begin(part))
        write_json(path, record)
    return record


def kept(path: Path, head: Mapping[str, Any]) -> dict[str, Any]:
    """The parts that ``path`` has; raises :class:`BadValue` for another head's, or for no record."""
    if not path.exists():
        return {}
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
        before, parts = {name: there[name] for name in head}, dict(there["parts"])
    except (OSError, ValueError, KeyError, TypeError):
        raise BadValue(f"{path} is there and is no record of this command; give another file") from None
    if before != head:
        names = ", ".join(name for name in head if before[name] != head[name])
        raise BadValue(f"{path} is of other {names}, and numbers of two are not mixed; give another file")
    return parts
