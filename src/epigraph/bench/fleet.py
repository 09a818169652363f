"""`epigraph bench fleet`: many users trained together beside the same users otherwise; each part is written at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from epigraph.bench import fleet_many, fleet_parts
from epigraph.bench.fleet_job import FULL, QUICK, Job
from epigraph.bench.train import kept
from epigraph.frozen.loading import has_fast_bf16, usable_device
from epigraph.train.prepare import precision_of
from epigraph.train.record import machine, versions, write_json

Advance = Callable[[], None]
PARTS: Mapping[str, Callable[[Job, Advance], dict[str, Any]]] = {
    "overhead": fleet_parts.overhead,
    "users": fleet_parts.users,
    "ten_thousand": fleet_many.ten_thousand,
}


def run(
    path: Path,
    parts: Sequence[str],
    *,
    model: str,
    task: str = "e2e",
    device: str = "cpu",
    quick: bool = False,
    begin: Callable[[str], Advance] = lambda _: lambda: None,
) -> dict[str, Any]:
    """Run ``parts`` and write ``path`` after each; parts that the file has from this machine and not asked for stay.

    Raises :class:`BadValue` for another machine's or other settings' record.
    """
    job = Job(model=model, task=task, device=usable_device(device), sizes=QUICK if quick else FULL)
    head = _head(job, device)
    record = {**head, "parts": kept(path, head)}
    for part in parts:
        record["parts"][part] = PARTS[part](job, begin(part))
        write_json(path, record)
    return record


def _head(job: Job, device: str) -> dict[str, Any]:
    settings = {
        "model": job.model,
        "task": job.task,
        "device": device,
        "precision": precision_of(job.recipe(), device),
        **asdict(job.sizes),
    }
    head = {
        "settings": settings,
        "machine": {**machine(), "fast_bf16": has_fast_bf16(job.device)},
        "versions": versions(),
    }
    # As it is read back: lists, where sizes have tuples.
    same: dict[str, Any] = json.loads(json.dumps(head))
    return same
