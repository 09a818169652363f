"""Quality at scale: 64 users trained together and each alone, scored on rows that nobody trained on.

A user is a restaurant and its food in E2E: twelve tables of it to learn from, four to be asked. Both ways are the real
commands' own functions, one recipe and one seed; solo runs that are in --folder are not run again. Writes one JSON file
with machine and versions. About half an hour on two idle cores; what either costs is `epigraph bench fleet`'s to say.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from epigraph import artifact
from epigraph.frozen.generate import generate
from epigraph.frozen.inputs import Codec
from epigraph.frozen.model import FrozenModel
from epigraph.methods.base import flatten
from epigraph.tasks.base import Example, Scores
from epigraph.tasks.bootstrap import compare
from epigraph.tasks.catalogue import find
from epigraph.train.build import make_method
from epigraph.train.fleet.order import order_from
from epigraph.train.fleet.worker import work
from epigraph.train.prepare import draw, find_task, load_base, precision_of, prepare_on
from epigraph.train.recipe import Recipe
from epigraph.train.recipe_file import check_recipe
from epigraph.train.record import machine, versions, write_json
from epigraph.train.run import run

NUM_USERS, NUM_TRAIN, NUM_TEST = 64, 12, 4
METRICS = {"bleu": "BLEU", "ser": "SER, %"}
TRAINING = {"steps": 12, "batch_size": 4, "seed": 1, "precision": "fp32", "dev_every": 0}
SYSTEMS = {"fleet": "together, in one run", "solo": "each in a run of his own", "untouched": "untouched"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=Path("runs/fleet"))
    parser.add_argument("--users", type=int, default=NUM_USERS)
    options = parser.parse_args()
    folder, users = options.folder, choose(options.users)
    write_rows(folder / "data", users)
    given = {"recipe": recipe_tables(folder / "data"), "out": str(folder / "fleet")}
    progress = work(order_from(given), report=lambda x: print(f"\r{x.done} of {x.total} users", end="", flush=True))
    recipe = check_recipe(given["recipe"])
    frozen = load_base(recipe, precision_of(recipe, "cpu"), "cpu")
    for name in users:
        train_alone(frozen, folder, name)
    found = {
        "users": len(users),
        "train_rows": NUM_TRAIN,
        "test_rows": NUM_TEST,
        "recipe": {**TRAINING, "model": recipe.model, "method": recipe.method.name, "num_virtual_tokens": 10},
        "trained": progress.done,
        "prefix_difference": difference(folder, list(users)),
        **scores(frozen, folder, users),
        "machine": machine(),
        "versions": versions(),
    }
    write_json(options.json, found)
    print("\n\n".join(tables(found)))


def choose(number: int) -> dict[str, list[Example]]:
    """The restaurants and foods with the most tables, and as many tables of each as are needed."""
    groups: dict[str, list[Example]] = defaultdict(list)
    for example in find("e2e").load("train"):
        slots = dict(x.split(" : ", 1) for x in example.source.split(" | ") if " : " in x)
        groups["-".join(slots.get(key, "none").strip() for key in ("name", "food"))].append(example)
    most = sorted(groups, key=lambda name: (-len(groups[name]), name))[:number]
    needed = NUM_TRAIN + NUM_TEST
    # Spread over the group, whose tables come in an order.
    return {f"user-{n:02d}": groups[name][:: len(groups[name]) // needed][:needed] for n, name in enumerate(most)}


def write_rows(folder: Path, users: dict[str, list[Example]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, examples in users.items():
        rows = [{"source": x.source, "target": x.references[0]} for x in examples[:NUM_TRAIN]]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def recipe_tables(data: Path) -> dict[str, Any]:
    return {"data": {"train": str(data)}, "method": {"num_virtual_tokens": 10}, "training": TRAINING}


def train_alone(frozen: FrozenModel, folder: Path, name: str) -> None:
    """One user's run, as `epigraph train` makes it."""
    out = folder / "solo" / name
    if not (out / "summary.json").exists():
        recipe: Recipe = check_recipe(recipe_tables(folder / "data" / f"{name}.jsonl"))
        task = find_task(recipe)
        ready = prepare_on(frozen, recipe, task, draw(recipe, task), precision="fp32")
        run(ready, make_method(ready), out)


def difference(folder: Path, users: Sequence[str]) -> dict[str, float]:
    """How far prefixes trained together are from those trained alone, relative: the median user and the worst."""
    found = []
    for name in users:
        ours, theirs = (flatten(artifact.load(path / name / artifact.FILE_NAME).tokens) for path in both(folder))
        found.append(float((ours - theirs).norm() / theirs.norm()))
    return {"median": statistics.median(found), "max": max(found)}


def both(folder: Path) -> tuple[Path, Path]:
    return folder / "fleet" / "users", folder / "solo"


def scores(frozen: FrozenModel, folder: Path, users: dict[str, list[Example]]) -> dict[str, Any]:
    """All users' answers scored as one set of rows, a system at a time, and the two ways against each other."""
    task, asked = find("e2e"), [x for examples in users.values() for x in examples[NUM_TRAIN:]]
    said: dict[str, list[str]] = {}
    for system, path in zip(SYSTEMS, (*both(folder), None), strict=True):
        opened = [artifact.load((path or folder / "solo") / name / artifact.FILE_NAME) for name in users]
        # All users' rows at once, each behind its own prefix: one contract, one batch.
        codec = Codec(frozen.tokenizer, opened[0].contract)
        carried = [None if path is None else one.tokens for one in opened for _ in range(NUM_TEST)]
        prompts = [codec.source({"source": x.source}).ids for x in asked]
        print(f"\nasking: {SYSTEMS[system]}", flush=True)
        said[system] = [codec.text(ids) for ids in generate(frozen, prompts, carried, codec.contract.decoding)]
    found: dict[str, Scores] = {system: task.score(texts, asked, METRICS) for system, texts in said.items()}
    same = sum(one == other for one, other in zip(said["fleet"], said["solo"], strict=True))
    against = {name: asdict(compare(found["fleet"].summed[name], found["solo"].summed[name])) for name in METRICS}
    return {
        "scores": {system: {"values": dict(x.values), "intervals": dict(x.intervals)} for system, x in found.items()},
        "fleet_against_solo": against,
        "same_answers": same,
        "answers": len(asked),
    }


def tables(found: dict[str, Any]) -> list[str]:
    """What docs/results.md shows of a record."""
    lines = [["", *METRICS.values()], ["---"] * (1 + len(METRICS))]
    for system, words in SYSTEMS.items():
        values, intervals = (found["scores"][system][x] for x in ("values", "intervals"))
        cells = [f"{values[x]:.1f} ({intervals[x][0]:.1f} to {intervals[x][1]:.1f})" for x in METRICS]
        lines.append([words, *cells])
    return ["\n".join("| " + " | ".join(line) + " |" for line in lines)]


if __name__ == "__main__":
    main()
