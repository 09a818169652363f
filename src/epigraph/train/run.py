"""One training run, from a recipe to a folder: artifact, records, summary. What `epigraph train` does.

The folder holds artifact.safetensors, recipe.json, steps.jsonl, summary.json; the artifact appears last, whole.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from epigraph import artifact
from epigraph.errors import OutputExists
from epigraph.frozen.model import public_name
from epigraph.methods.base import Method
from epigraph.train.evaluate import evaluate
from epigraph.train.loop import Outcome, dev_loss, train
from epigraph.train.prepare import Prepared
from epigraph.train.record import Lines, machine, versions, write_json
from epigraph.virtual import KVPrefix

# With no dev_every in the recipe, development scores are taken this many times.
DEFAULT_DEV_SCORES = 5


def check_output(folder: Path, *, overwrite: bool) -> None:
    """Raise :class:`OutputExists` when ``folder`` holds a run that would be lost."""
    if (folder / artifact.FILE_NAME).exists() and not overwrite:
        raise OutputExists(f"{folder} already holds {artifact.FILE_NAME}; choose another --out, or pass --overwrite")
    if folder.exists() and not folder.is_dir():
        raise OutputExists(f"{folder} is a file, expected a folder to write to; choose another --out")


def run(
    ready: Prepared, method: Method, folder: Path, *, report: Callable[[Mapping[str, Any]], None] = lambda _: None
) -> dict[str, Any]:
    """Train ``method`` on what ``ready`` holds and write ``folder``; returns the summary, also written there."""
    folder.mkdir(parents=True, exist_ok=True)
    _clear(folder)
    write_json(folder / "recipe.json", resolved(ready))
    lines = Lines(folder / "steps.jsonl")

    def record(entry: Mapping[str, Any]) -> None:
        lines.write(entry)
        report(entry)

    plan = ready.recipe.training
    if plan.dev_every is None:
        plan = plan.model_copy(update={"dev_every": max(1, ready.steps // DEFAULT_DEV_SCORES)})
    try:
        outcome = train(
            ready.frozen,
            method,
            ready.rows,
            plan,
            steps=ready.steps,
            lr=ready.recipe.lr,
            score=_dev_score(ready) if ready.dev_rows and plan.dev_every else None,
            report=record,
        )
    finally:
        lines.close()
    return _finish(ready, method, outcome, folder)


def _clear(folder: Path) -> None:
    """Take an earlier run's files away: its scores beside this run's artifact would be a lie."""
    for name in (artifact.FILE_NAME, "summary.json", "steps.jsonl", "report.html"):
        (folder / name).unlink(missing_ok=True)
    for record in (folder / "evaluations").glob("*.json"):
        record.unlink()


def resolved(ready: Prepared) -> dict[str, Any]:
    """The recipe with every default filled in: what was really run."""
    recipe = ready.recipe.model_dump(mode="json")
    recipe["training"] |= {"steps": ready.steps, "epochs": None, "lr": ready.recipe.lr}
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
        if short[table][key] is not None:
            short[table][key] = Path(short[table][key]).name
    return short


def _dev_score(ready: Prepared) -> Callable[[Method], dict[str, float]]:
    plan = ready.recipe.training
    examples = [] if plan.dev_metric == "loss" else ready.task.load("dev")[: ready.recipe.data.dev_limit]

    def score(method: Method) -> dict[str, float]:
        values = {"loss": dev_loss(ready.frozen, ready.dev_rows, method)}
        if examples:
            done = evaluate(ready.frozen, ready.codec, method.fold(), ready.task, examples)
            values |= done.scores.values
        return values

    return score


def _finish(ready: Prepared, method: Method, outcome: Outcome, folder: Path) -> dict[str, Any]:
    prefix = method.fold()
    summary: dict[str, Any] = {
        "model": ready.frozen.name,
        "task": ready.task.name,
        "method": ready.recipe.method.name,
        "num_virtual_tokens": prefix.num_virtual_tokens,
        "trained_numbers": method.num_trained,
        "stored_numbers": prefix.num_numbers,
        "model_parameters": ready.frozen.num_parameters,
        "model_bytes": ready.frozen.num_bytes,
        "steps": outcome.steps,
        "kept_step": outcome.kept_step,
        "dev": dict(outcome.kept_dev),
        "stopped_early": outcome.stopped_early,
        "tokens": outcome.tokens,
        "seconds": outcome.seconds,
        "seed": ready.recipe.training.seed,
        "versions": versions(),
        "machine": machine(),
    }
    path = folder / artifact.FILE_NAME
    summary["content_hash"] = artifact.save(_artifact(ready, prefix, summary), path)
    summary["artifact_bytes"] = path.stat().st_size
    write_json(folder / "summary.json", summary)
    return summary


def _artifact(ready: Prepared, prefix: KVPrefix, summary: Mapping[str, Any]) -> artifact.Artifact:
    recipe = _without_folders(resolved(ready))
    kept = ("steps", "kept_step", "dev", "seconds", "seed", "versions")
    return artifact.Artifact(
        prefix=prefix,
        geometry=ready.frozen.geometry,
        contract=ready.codec.contract,
        base_name=ready.frozen.name,
        base_fingerprint=ready.frozen.fingerprint,
        tokenizer_fingerprint=ready.frozen.tokenizer_fingerprint,
        method=ready.recipe.method.name,
        method_config={name: value for name, value in recipe["method"].items() if name != "name"},
        provenance={
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "recipe": recipe,
            "data": {
                "task": recipe["data"]["task"],
                "file": recipe["data"]["train"],
                "rows": len(ready.rows),
                "hashes": ready.data_hashes,
            },
            **{name: summary[name] for name in kept},
        },
    )
