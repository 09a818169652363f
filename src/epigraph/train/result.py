"""What a run that ended leaves in its folder: the artifact, or a baseline's file, and the summary.

Knows a prepared run and its method; does not know how it was trained.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from epigraph import artifact
from epigraph.frozen.resolve import public_name
from epigraph.frozen.saving import save_base
from epigraph.methods.base import Method
from epigraph.train import checkpoint, kept
from epigraph.train.answering import kept_tensors
from epigraph.train.folder import BASE, SUMMARY
from epigraph.train.kept import Kept
from epigraph.train.loop import Outcome
from epigraph.train.prepare import Prepared
from epigraph.train.recipe import VirtualPart
from epigraph.train.record import machine, said_plainly, versions, write_json
from epigraph.virtual import VirtualTokens


def resolved(ready: Prepared) -> dict[str, Any]:
    """The recipe with every default filled in: what was really run."""
    recipe = ready.recipe.model_dump(mode="json")
    recipe["training"] |= {"steps": ready.steps, "epochs": None, "lr": ready.recipe.lr, "precision": ready.precision}
    if isinstance(ready.recipe.method, VirtualPart):
        recipe["method"] |= {"initial": ready.recipe.method.start or "own"}
        if recipe["method"]["initial"] == "text":
            recipe["method"]["initial_text"] = ready.recipe.method.initial_text or ready.task.instruction
    recipe["text"] = ready.codec.contract.model_dump(mode="json")
    return recipe


def _without_folders(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe with names where it has paths: an artifact travels, and says nothing of its machine."""
    short = {
        **recipe,
        "model": public_name(recipe["model"]),
        "data": dict(recipe["data"]),
        "method": dict(recipe["method"]),
    }
    for table, key in (("data", "train"), ("data", "dev"), ("data", "test"), ("method", "initial_path")):
        if short[table].get(key) is not None:
            short[table][key] = Path(short[table][key]).name
    return short


def write_result(
    ready: Prepared, method: Method, outcome: Outcome, resumed_at: tuple[int, ...], folder: Path
) -> dict[str, Any]:
    """Write what ``method`` has become, and the summary, which is returned. Raises :class:`CannotWrite`."""
    tokens = method.fold()
    summary: dict[str, Any] = {
        "model": ready.frozen.name,
        "task": ready.task.name,
        "method": ready.recipe.method.name,
        "num_virtual_tokens": 0 if tokens is None else tokens.num_virtual_tokens,
        "trained_numbers": method.num_trained,
        "stored_numbers": method.num_stored,
        "trained_share": method.num_trained / ready.frozen.num_parameters,
        "model_parameters": ready.frozen.num_parameters,
        "model_bytes": ready.frozen.num_bytes,
        "steps": outcome.steps,
        "kept_step": outcome.kept_step,
        "dev": dict(outcome.kept_dev),
        "stopped_early": outcome.stopped_early,
        "tokens": outcome.tokens,
        "seconds": outcome.seconds,
        "resumed_at": list(resumed_at),
        "seed": ready.recipe.training.seed,
        "precision": ready.precision,
        "num_processes": ready.processes.num,
        "versions": versions(),
        "machine": machine(),
    }
    if tokens is None:
        path, tensors = folder / kept.FILE_NAME, kept_tensors(method)
        method.requires_grad_(False)
        summary["content_hash"] = kept.save(_kept(ready, tensors, summary), path)
    else:
        base = ready.frozen.fingerprint if method.base is None else _save_base(ready, folder / BASE)
        path = folder / artifact.FILE_NAME
        summary["content_hash"] = artifact.save(_artifact(ready, method, tokens, base, summary), path)
    summary["stored_bytes"] = summary["artifact_bytes"] = path.stat().st_size
    write_json(folder / SUMMARY, summary)
    checkpoint.clear(folder)
    return summary


def _save_base(ready: Prepared, folder: Path) -> str:
    with said_plainly(folder):
        try:
            found = save_base(ready.frozen, folder)
        except SafetensorError as wrong:
            # What a disk that is full is to safetensors.
            raise OSError(str(wrong)) from wrong
    ready.frozen.model.requires_grad_(False)
    return found


def _artifact(
    ready: Prepared, method: Method, tokens: VirtualTokens, base: str, summary: Mapping[str, Any]
) -> artifact.Artifact:
    return artifact.Artifact(
        tokens=tokens,
        geometry=ready.frozen.geometry,
        contract=ready.codec.contract,
        # By another name: who is told to use it must not take the base that the run began with.
        base_name=ready.frozen.name if method.base is None else f"jointly trained {ready.frozen.name}",
        base_fingerprint=base,
        tokenizer_fingerprint=ready.frozen.tokenizer_fingerprint,
        method=ready.recipe.method.name,
        method_config=_method_config(ready),
        provenance={**_provenance(ready, summary), **_told(ready, method)},
        extra={} if method.head is None else {f"head.{name}": x.detach() for name, x in method.head.named_parameters()},
    )


def _kept(ready: Prepared, tensors: Mapping[str, Tensor], summary: Mapping[str, Any]) -> Kept:
    return Kept(
        method=ready.recipe.method.name,
        method_config=_method_config(ready),
        contract=ready.codec.contract,
        base_name=ready.frozen.name,
        base_fingerprint=ready.frozen.fingerprint,
        tokenizer_fingerprint=ready.frozen.tokenizer_fingerprint,
        provenance=_provenance(ready, summary),
        tensors=tensors,
        fields=ready.codec.fields,
    )


def _told(ready: Prepared, method: Method) -> Mapping[str, Any]:
    baseline = ready.recipe.baseline
    return {} if baseline is None or baseline.tells is None else baseline.tells(ready.frozen, method)


def _method_config(ready: Prepared) -> dict[str, Any]:
    recipe = _without_folders(resolved(ready))
    return {name: value for name, value in recipe["method"].items() if name != "name"}


def _provenance(ready: Prepared, summary: Mapping[str, Any]) -> dict[str, Any]:
    recipe = _without_folders(resolved(ready))
    kept = ("steps", "kept_step", "dev", "seconds", "seed", "versions")
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "recipe": recipe,
        "data": {
            "task": recipe["data"]["task"],
            "file": recipe["data"]["train"],
            "rows": len(ready.rows),
            "hashes": ready.data_hashes,
        },
        **{name: summary[name] for name in kept},
    }
