"""Every site of an encoder-decoder, all of them, a soft prompt and full fine-tuning, against the untouched model.

The models are small and know English: the tests' own T5 (span corruption, then LM-adapted) and BART, trained from
scratch on $EPIGRAPH_DATA and then frozen. Writes one JSON file and prints the table of docs/results.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from intervals import interval

from epigraph.methods.bare import Bare
from epigraph.methods.base import Method
from epigraph.train.build import make_method
from epigraph.train.loop import dev_loss, train
from epigraph.train.prepare import Prepared, prepare
from epigraph.train.recipe_file import check_recipe
from epigraph.train.record import machine, versions, write_json

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import trained

SEEDS = (1, 2, 3)
SITES = ("encoder.self", "decoder.self", "decoder.cross")
PREFIX = {"name": "prefix-tuning", "num_virtual_tokens": 10}
METHODS: Mapping[str, Mapping[str, Any] | None] = {
    **{f"prefix, {site} alone": {**PREFIX, "sites": [site]} for site in SITES},
    "prefix, all three sites": PREFIX,
    "prompt tuning": {"name": "prompt-tuning", "num_virtual_tokens": 20},
    "full fine-tuning": None,
}
MODELS: Mapping[str, Callable[[], Path]] = {
    "T5, LM-adapted": lambda: trained.trained_t5("lm"),
    "BART": trained.trained_bart,
}
TRAINING = {"steps": 60, "batch_size": 16, "precision": "fp32"}
DATA = {"task": "e2e", "limit": 500, "dev_limit": 100}
FULL_LR = 1e-3


def measured(model: str, seeds: Sequence[int] = SEEDS) -> Iterator[dict[str, Any]]:
    """One record a method and seed: the development loss (nats a token) before and after."""
    bare = ready_for(model, PREFIX, seed=0)
    untouched = dev_loss(bare.frozen, bare.dev_rows, Bare())
    for name, method in METHODS.items():
        for seed in seeds:
            start = time.perf_counter()
            ready = ready_for(model, method or PREFIX, seed=seed, **({} if method else {"base_lr": FULL_LR}))
            live: Method = make_method(ready) if method else fine_tuning(ready)
            lr = ready.recipe.lr if method else FULL_LR
            train(ready.frozen, live, ready.rows, ready.recipe.training, steps=ready.steps, lr=lr)
            yield {
                "model": model,
                "system": name,
                "seed": seed,
                "untouched": untouched,
                "dev_loss": dev_loss(ready.frozen, ready.dev_rows, live),
                "trained_numbers": live.num_trained,
                "seconds": time.perf_counter() - start,
            }


def ready_for(model: str, method: Mapping[str, Any], **training: float) -> Prepared:
    """What the command line would make of it; the task's text is E2E's own."""
    tables = {"data": DATA, "method": dict(method), "training": {**TRAINING, **training}}
    return prepare(check_recipe({"model": str(MODELS[model]()), **tables}))


def fine_tuning(ready: Prepared) -> Bare:
    """No virtual tokens, all weights of the model."""
    live = Bare()
    live.base = ready.frozen.model.requires_grad_(True)
    return live


def by_system(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The runs of each system, in order of the table."""
    return {name: [run for run in runs if run["system"] == name] for name in METHODS}


def tables(found: Mapping[str, Any]) -> list[str]:
    """What docs/results.md shows of a record."""
    return [markdown(model, [run for run in found["runs"] if run["model"] == model]) for model in MODELS]


def markdown(model: str, runs: Sequence[Mapping[str, Any]]) -> str:
    """One table a model."""
    lines = [[model, "development loss", "trained numbers"], ["---"] * 3]
    lines.append(["untouched", f"{runs[0]['untouched']:.2f}", "0"])
    for name, rows in by_system(runs).items():
        mean, half = interval([row["dev_loss"] for row in rows])
        lines.append([name, f"{mean:.2f} ± {half:.2f}", f"{rows[0]['trained_numbers']:,}"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    runs = [run for model in MODELS for run in measured(model)]
    found = {
        "training": TRAINING,
        "data": DATA,
        "methods": METHODS,
        "full_lr": FULL_LR,
        "runs": runs,
        "minutes": sum(run["seconds"] for run in runs) / 60,
        "machine": machine(),
        "versions": versions(),
    }
    write_json(options.json, found)
    print("\n\n".join(tables(found)))


if __name__ == "__main__":
    main()
