"""A small training run as a process of its own, to be killed: imported by the process that forks it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import torch

from conftest import save_tiny
from epigraph import files
from epigraph.train import checkpoint
from epigraph.train.build import make_method
from epigraph.train.prepare import prepare
from epigraph.train.recipe_file import check_recipe
from epigraph.train.run import run

ROWS = [{"source": f"{a}+{b}", "target": str(a + b)} for a in range(6) for b in range(6)]
STEPS = 16


def write_inputs(folder: Path) -> dict[str, Any]:
    """A tiny model and rows in ``folder``; the recipe's tables that use them."""
    save_tiny(folder / "model")
    for name, rows in (("train", ROWS), ("dev", ROWS[::5])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": str(folder / "model"),
        "data": {"train": str(folder / "train.jsonl"), "dev": str(folder / "dev.jsonl")},
        "method": {"num_virtual_tokens": 3, "dropout": 0.1, "parameterization": "mlp", "mlp_width": 24},
        "training": {
            "steps": STEPS,
            "batch_size": 4,
            "accumulation": 2,
            "lr": 0.03,
            "warmup_steps": 3,
            "precision": "fp32",
            "dev_every": 3,
            "checkpoint_every": 1,
            "seed": 3,
        },
    }


def job(tables: dict[str, Any], folder: str, saving: Synchronized[int]) -> None:
    """Train, or go on training; ``saving`` is 1 while a checkpoint is being written, and counts its files up by 2."""
    torch.set_num_threads(1)
    write = files.write_whole

    def watched(path: Path, pieces: Iterable[files.Bytes]) -> None:
        saving.value += 1
        write(path, pieces)
        saving.value += 1

    checkpoint.write_whole = watched
    ready = prepare(check_recipe(tables))
    run(ready, make_method(ready), Path(folder), resume=True)
