"""Every method side by side: E2E with 500 pairs, TREC on an encoder, three relations of LAMA; three seeds each.

Runs the real command, one process at a time; finished runs are kept in --folder and not run again. Writes one JSON
file a table, with machine, versions and what it cost in minutes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from intervals import interval

from epigraph.methods.bare import Bare
from epigraph.methods.base import Classifier, Method
from epigraph.train.evaluate import evaluate as ask
from epigraph.train.loop import dev_loss, train
from epigraph.train.loss import head_of
from epigraph.train.prepare import prepare
from epigraph.train.recipe import Recipe
from epigraph.train.recipe_file import parse_changes, read_recipe
from epigraph.train.record import machine, versions, write_json

SEEDS = (1, 2, 3)
Words = tuple[str, ...]
# The paper's places for a model that reads from left to right: (3, subject, 3, object).
PLACES = "{3} {source} {3} [MASK]"


@dataclass(frozen=True, kw_only=True)
class Table:
    """One comparison: what all runs share, what each system adds, and how they are scored.

    ``against`` is what they are measured against beside the untouched model, run in this process: a linear probe.
    """

    title: str
    train: str
    evaluate: str
    metric: str
    systems: Mapping[str, Words]
    against: str | None = None


def own(method: str, num_virtual_tokens: int, *more: str) -> Words:
    return ("--method", method, "--num-virtual-tokens", str(num_virtual_tokens), *more)


E2E = Table(
    title="SmolLM2-135M, E2E, 500 pairs once (62 steps of 8), the first 200 test tables, greedy",
    train="--model smollm2-135m --task e2e --limit 500 --steps 62 --batch-size 8 --precision fp32 "
    "data.dev_limit=32 training.dev_every=31",
    evaluate="--task e2e --split test --limit 200",
    metric="bleu",
    systems={
        "prefix 10, raw": own("prefix-tuning", 10),
        "prefix 10, MLP 512": own("prefix-tuning", 10, "method.parameterization=mlp"),
        "prompt 20, text": own("prompt-tuning", 20),
        "P-tuning 20, LSTM": own("p-tuning", 20),
        "embedding-only 10, MLP 512": own("prompt-tuning", 10, "method.parameterization=mlp", "method.mlp_width=512"),
        "infix 10, raw": own("prefix-tuning", 10, "method.place=infix"),
    },
)
TREC = Table(
    title="MiniLM (22.6 M numbers, frozen), TREC, all 4,882 training questions, 300 steps of 16, 500 test questions",
    train="--model minilm --task trec --steps 300 --batch-size 16 --precision fp32 text.pooling=mean "
    "training.dev_metric=accuracy data.dev_limit=570",
    evaluate="--task trec --split test",
    metric="accuracy",
    systems={"deep prefix 10 and head": own("prefix-tuning", 10)},
    against="linear probe",
)
LAMA = {
    f"lama-{relation}": Table(
        title=f"SmolLM2-135M, LAMA T-REx {relation}, 80 steps of 8, P@1 on the first 500 test facts",
        train=f"--model smollm2-135m --task lama-{relation} --steps 80 --batch-size 8 --precision fp32 "
        "data.dev_limit=64",
        evaluate=f"--task lama-{relation} --split test --limit 500",
        metric="p_at_1",
        systems={"P-tuning (3, subject, 3), LSTM": ("--method", "p-tuning", f"text.input_template={PLACES}")},
        against="manual template",
    )
    for relation in ("P19", "P103", "P176")
}
TABLES = {"e2e": E2E, "trec": TREC, **LAMA}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--only", help="run the systems whose name begins so and write nothing, to share the work")
    options = parser.parse_args()
    table = TABLES[options.table]
    folder = options.folder or Path("runs") / f"methods-{options.table}"
    systems = [name for name in table.systems if name.startswith(options.only or "")]
    runs = [run(table, name, seed, folder) for seed in options.seeds for name in systems]
    if options.only:
        return
    bare: dict[str, Any] = {}
    if table.against == "linear probe":
        runs += [linear_probe(table, seed, folder) for seed in options.seeds]
    else:
        found = scores(table, folder / folder_name(systems[0], options.seeds[0]), untouched=True)
        bare = {"scores": found["scores"], "intervals": found["intervals"], "name": table.against or "untouched"}
        if table.against == "manual template":
            bare |= manual_template(table, folder)
    record = {
        "title": table.title,
        "train": f"epigraph train {table.train} FLAGS --seed S --out DIR",
        "flags": {name: " ".join(words) for name, words in table.systems.items()},
        "evaluate": f"epigraph evaluate DIR {table.evaluate}",
        "metric": table.metric,
        "untouched": bare,
        "runs": runs,
        "minutes": sum(x["train_seconds"] for x in runs) / 60,
        "machine": machine(),
        "versions": versions(),
    }
    write_json(options.json, record)
    print("\n\n".join(tables(record)))


def linear_probe(table: Table, seed: int, folder: Path) -> dict[str, Any]:
    """The same head, rows, steps and seed on the encoder as it is."""
    path = folder / f"linear-probe-{seed}.json"
    if path.exists():
        return dict(json.loads(path.read_text()))
    ready = prepare(recipe_of(table, "--method", "prefix-tuning", "--seed", str(seed)))
    torch.manual_seed(seed)
    method, contract = Bare(), ready.codec.contract
    method.head = Classifier(ready.frozen.model.config.hidden_size, len(contract.labels), contract.pooling)
    dev = ready.task.load("dev")

    def score(live: Method) -> dict[str, float]:
        done = ask(ready.frozen, ready.codec, None, ready.task, dev, head=head_of(live), only=("accuracy",))
        return {"loss": dev_loss(ready.frozen, ready.dev_rows, live), "accuracy": done.scores.values["accuracy"]}

    plan = ready.recipe.training.model_copy(update={"dev_every": ready.steps // 5})
    outcome = train(ready.frozen, method, ready.rows, plan, steps=ready.steps, lr=plan.head_lr, score=score)
    done = ask(ready.frozen, ready.codec, None, ready.task, ready.task.load("test"), head=head_of(method))
    found = {
        "system": "linear probe",
        "seed": seed,
        "scores": dict(done.scores.values),
        "intervals": {name: list(pair) for name, pair in done.scores.intervals.items()},
        "num_examples": done.scores.num_examples,
        "train_seconds": outcome.seconds,
        "artifact_bytes": 0,
        "trained_numbers": method.num_trained,
        "stored_numbers": method.num_stored,
        "num_virtual_tokens": 0,
        "dev": dict(outcome.kept_dev),
    }
    write_json(path, found)
    return found


def manual_template(table: Table, folder: Path) -> dict[str, Any]:
    """LAMA's own words for the relation, asked of the model as it is; how many facts it cannot be asked, too."""
    path = folder / "manual-template.json"
    if not path.exists():
        ready = prepare(recipe_of(table, "--method", "prefix-tuning"))
        limit = int(table.evaluate.partition("--limit ")[2])
        done = ask(ready.frozen, ready.codec, None, ready.task, ready.task.load("test")[:limit])
        found = done.to_json(0)
        write_json(path, {**found, "template": ready.codec.contract.input_template, "of": limit})
    return dict(json.loads(path.read_text()))


def recipe_of(table: Table, *more: str) -> Recipe:
    """What the command line would make of the table's flags."""
    names = {"--model": "model", "--task": "data.task", "--method": "method.name", "--seed": "training.seed"}
    words, changes = [*table.train.split(), *more], []
    while words:
        word = words.pop(0)
        if word.startswith("--"):
            word = f"{names.get(word, 'training.' + word[2:].replace('-', '_'))}={words.pop(0)}"
        changes.append(word)
    return read_recipe(None, parse_changes(changes))


def tables(found: Mapping[str, Any]) -> list[str]:
    """What docs/results.md shows of a record."""
    return [markdown(found)]


def markdown(found: Mapping[str, Any]) -> str:
    """The record as the table of docs/results.md: every seed, the mean, what was trained and stored."""
    seeds = sorted({x["seed"] for x in found["runs"]})
    lines = [["", *(f"seed {seed}" for seed in seeds), "mean", "± (95 %, t)", "trained numbers", "stored", "file"]]
    lines.append(["---"] * len(lines[0]))
    if found["untouched"]:
        bare = found["untouched"]["scores"][found["metric"]]
        lines.append([found["untouched"]["name"], *["" for _ in seeds], f"{bare:.1f}", "", "0", "0", ""])
    for system in dict.fromkeys(x["system"] for x in found["runs"]):
        rows = sorted((x for x in found["runs"] if x["system"] == system), key=lambda x: x["seed"])
        values = [x["scores"][found["metric"]] for x in rows]
        mean, half = interval(values)
        size = f"{rows[0]['artifact_bytes'] / 1000:.0f} KB"
        counts = [f"{rows[0][key]:,}" for key in ("trained_numbers", "stored_numbers")]
        each = [f"{x:.1f}" for x in values]
        lines.append(
            [
                system,
                *each,
                f"**{mean:.1f}**",
                f"{half:.1f}",
                *counts,
                size,
            ]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def run(table: Table, system: str, seed: int, folder: Path) -> dict[str, Any]:
    out = folder / folder_name(system, seed)
    if not (out / "summary.json").exists():
        words = [*table.train.split(), *table.systems[system]]
        epigraph("train", *words, "--seed", str(seed), "--out", str(out), "--overwrite")
    summary = json.loads((out / "summary.json").read_text())
    found = scores(table, out)
    print(f"{system}, seed {seed}: {found['scores'][table.metric]:.1f}", file=sys.stderr, flush=True)
    kept = ("artifact_bytes", "trained_numbers", "stored_numbers", "num_virtual_tokens", "dev")
    return {
        "system": system,
        "seed": seed,
        "scores": found["scores"],
        "intervals": found["intervals"],
        "num_examples": found["num_examples"],
        **{name: found[name] for name in ("num_dropped", "num_candidates") if name in found},
        "train_seconds": summary["seconds"],
        **{name: summary[name] for name in kept},
    }


def scores(table: Table, out: Path, *, untouched: bool = False) -> dict[str, Any]:
    """The record of an evaluation, made unless it is there."""
    split = table.evaluate.partition("--split ")[2].split()[0]
    path = out / "evaluations" / f"{'before' if untouched else 'after'}-{split}.json"
    if not path.exists():
        flags = ["--untouched"] if untouched else []
        epigraph("evaluate", str(out), *table.evaluate.split(), *flags)
    return dict(json.loads(path.read_text()))


def folder_name(system: str, seed: int) -> str:
    words = "".join(x if x.isalnum() else " " for x in system.lower()).split()
    return f"{'-'.join(words)}-{seed}"


def epigraph(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "epigraph", *words], check=True)


if __name__ == "__main__":
    main()
