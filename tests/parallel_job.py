"""Small training runs in all processes of a launch, and in one: started by its test, and imported by it."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import resume_job
from epigraph.errors import BadValue, EpigraphError, Interrupted
from epigraph.train.build import make_method
from epigraph.train.parallel import Processes, joined
from epigraph.train.prepare import prepare
from epigraph.train.recipe_file import check_recipe
from epigraph.train.run import run
from folders import save_family, write_rows

LABELS = ("odd", "even")
SOFT = {"name": "prompt-tuning", "num_virtual_tokens": 3, "initial": "vocabulary"}
RAW = {"num_virtual_tokens": 3, "dropout": 0.1}
HEAD = {"labels": LABELS}
PLAN = {"steps": 8, "batch_size": 4, "accumulation": 1, "dev_every": 4, "checkpoint_every": 0}
STOPPED_AFTER = 5
SHARDED = {"shard_base": True}

# Tables to change in the recipe of `resume_job`. 35 rows in batches of 4: the last batch of an epoch has 3.
CASES: dict[str, dict[str, dict[str, Any]]] = {
    "an MLP with dropout": {"training": {"accumulation": 2, "steps": 12}},
    "batches of one row": {"method": RAW, "training": {"batch_size": 1}},
    "a soft prompt": {"method": SOFT, "training": {"reduction": "example-sum", "optimizer": "adafactor"}},
    "a head": {"method": RAW, "text": HEAD},
    "a base trained with it": {"method": SOFT, "training": {"base_lr": 1e-4}},
    "stopped and resumed": {"training": {"checkpoint_every": 1000, "accumulation": 2}},
    "a metric": {"method": RAW, "training": {"dev_metric": "bleu", "dev_every": 2, "patience": 2}},
    "sharded": {"training": {"checkpoint_activations": True, "dev_metric": "bleu", **SHARDED}},
    "sharded soft prompt": {"method": SOFT, "training": {"batch_size": 1, "accumulation": 3, **SHARDED}},
    "sharded head": {"method": RAW, "text": HEAD, "training": SHARDED},
}


def write_inputs(folder: Path) -> dict[str, dict[str, Any]]:
    """Models and rows in ``folder``; the recipe's tables of every case."""
    tables = resume_job.write_inputs(folder)
    tables["data"]["limit"] = 35
    tables["text"] = {"max_target_tokens": 3}
    encoder = save_family("bert", folder / "encoder")
    labelled = write_rows(
        folder / "labelled.jsonl", [{"source": f"{n} " * (1 + n % 4), "target": LABELS[n % 2]} for n in range(35)]
    )
    return {name: _changed(tables, case, encoder, labelled) for name, case in CASES.items()}


def _changed(tables: dict[str, Any], case: dict[str, Any], encoder: Path, labelled: Path) -> dict[str, Any]:
    new = deepcopy(tables)
    new["training"] |= {**PLAN, **case.get("training", {})}
    new["method"] = case.get("method", new["method"])
    new["text"] |= case.get("text", {})
    if "labels" in new["text"]:
        new["model"] = str(encoder)
        new["data"] = {"train": str(labelled), "dev": str(labelled)}
    return new


def go(tables: dict[str, Any], folder: Path, processes: Processes) -> dict[str, Any]:
    """Train; what this process knows afterwards: its parameters, the summary, and how much of the base it holds.

    A run in several processes whose recipe allows it is stopped after a step, by a signal to the last of them, and
    taken up again.
    """
    recipe = check_recipe(tables)
    if processes.num == 1:
        recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"shard_base": False})})
    ready = prepare(recipe, processes=processes)
    method = make_method(ready)
    if processes.num > 1 and recipe.training.checkpoint_every:
        with pytest.raises(Interrupted, match=f"stopped after step {STOPPED_AFTER} of"):
            run(ready, method, folder, report=partial(_ask_for_a_stop, processes))
        method = make_method(ready)
    summary = run(ready, method, folder, resume=True)
    weights = [getattr(x, "to_local", lambda x=x: x)().numel() for x in ready.frozen.model.parameters()]
    return {
        "summary": summary,
        "parameters": {name: x.tolist() for name, x in method.state_dict().items() if not name.startswith("base.")},
        "generator": torch.get_rng_state().tolist(),
        "held": sum(weights) / ready.frozen.num_parameters,
    }


def _ask_for_a_stop(processes: Processes, record: Mapping[str, Any]) -> None:
    """Between two steps, so that the sum of the next one carries it."""
    if processes.rank == processes.num - 1 and "loss" in record and record["step"] == STOPPED_AFTER - 1:
        signal.raise_signal(signal.SIGTERM)


def agree(processes: Processes) -> list[str]:
    """What this process hears of failures that only one of them has, at two places at once and one after the other."""
    heard: list[str] = []

    def fails(rank: int, *, at: str) -> Any:
        if processes.rank == rank:
            raise BadValue(f"{at} in process {rank}")

    for rank in range(processes.num):
        for at, work in (
            ("inner", lambda fresh, rank: fresh.together(lambda: fresh.together(lambda: fails(rank, at="inner")))),
            # The others are asked at the inner place while this one has failed at the outer already.
            ("outer", lambda fresh, rank: fresh.together(lambda: fails(rank, at="outer") or fresh.together(int))),
        ):
            try:
                work(Processes(rank=processes.rank, num=processes.num), rank)
            except EpigraphError as error:
                heard.append(f"{at}: {error}")
    try:
        Processes(rank=processes.rank, num=processes.num).from_main(lambda: 1 // 0)
    except (EpigraphError, ZeroDivisionError) as error:
        heard.append(f"main: {type(error).__name__}")
    return heard


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with joined("cpu") as processes:
        tables = json.loads((folder / "tables.json").read_text())
        # Each in a folder of its own: what another than the main process wrote would be there.
        out = folder / f"together-{processes.rank}"
        found = {name: go(x, out / name, processes) for name, x in tables.items()}
        found["agree"] = {"heard": agree(processes)}
        (folder / f"found-{processes.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    main(Path(sys.argv[1]))
