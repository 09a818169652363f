"""E2E with few pairs: what a user gets by default, against random first values and the untouched model.

Runs the real command, one process at a time; finished runs are kept in --folder and not run again. Writes one JSON
file with machine and versions. About an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from epigraph.train.record import machine, versions, write_json

SEEDS = (1, 2, 3)
TRAIN = (
    "--model smollm2-135m --task e2e --method prefix-tuning --num-virtual-tokens 10 "
    "--limit {limit} --steps 200 --batch-size 8"
)
SYSTEMS = {
    "text KV (default)": [],
    "random normal 1.0": ["--initial", "random", "method.initial_std=1.0"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=500, help="training pairs; a folder holds runs of one number")
    parser.add_argument("--folder", type=Path, default=Path("runs/e2e"))
    parser.add_argument("--split", default="test")
    parser.add_argument("--only", choices=SYSTEMS, help="run this system and write nothing, to share the work")
    options = parser.parse_args()
    if options.only:
        for seed in SEEDS:
            run(options.only, SYSTEMS[options.only], seed, options)
        return
    rows = [run(system, flags, seed, options) for system, flags in SYSTEMS.items() for seed in SEEDS]
    bare = evaluate(options.folder / f"text-kv-default-{SEEDS[0]}", options.split, "--untouched")
    found = {
        "train": f"epigraph train {TRAIN.format(limit=options.limit)} --seed S --out DIR",
        "evaluate": f"epigraph evaluate DIR --task e2e --split {options.split}",
        "untouched": {"scores": bare["scores"], "intervals": bare["intervals"]},
        "runs": rows,
        "mean": {system: mean(rows, system) for system in SYSTEMS},
        "variants": bare["variants"],
        "machine": machine(),
        "versions": versions(),
    }
    write_json(options.json, found)
    print("\n\n".join(tables(found)))


def tables(found: dict[str, Any]) -> list[str]:
    """What docs/results.md shows of a record."""
    return [table(found), metrics_table(found)]


def table(found: dict[str, Any]) -> str:
    """The record as the Markdown table of docs/results.md: every seed, the mean, size and time."""
    seeds = sorted({row["seed"] for row in found["runs"]})
    header = ["", *(f"seed {seed}" for seed in seeds), "mean", "trained numbers", "file", "training, s"]
    lines = [header, ["---"] * len(header)]
    bare = found["untouched"]["scores"]["bleu"]
    lines.append(["untouched", *["" for _ in seeds], f"{bare:.1f}", "0", "", ""])
    for system, mean in found["mean"].items():
        rows = {row["seed"]: row for row in found["runs"] if row["system"] == system}
        bleus = [f"{rows[seed]['scores']['bleu']:.1f}" for seed in seeds]
        first = rows[seeds[0]]
        seconds = statistics.median(row["train_seconds"] for row in rows.values())
        average = f"**{mean['bleu']:.1f}** (sd {mean['bleu_sd']:.1f})"
        size = f"{first['artifact_bytes'] / 1000:.0f} KB"
        lines.append([system, *bleus, average, f"{first['trained_numbers']:,}", size, f"{seconds:.0f}"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


METRICS = {"bleu": "BLEU", "nist": "NIST", "meteor": "METEOR", "rouge_l": "ROUGE-L", "cider": "CIDEr", "ser": "SER, %"}


def metrics_table(found: dict[str, Any]) -> str:
    """The challenge's five metrics and the slot error rate, each as the mean over seeds."""
    lines = [["", *METRICS.values()], ["---"] * (1 + len(METRICS))]
    systems = {"untouched": [found["untouched"]]}
    systems |= {system: [row for row in found["runs"] if row["system"] == system] for system in found["mean"]}
    for system, rows in systems.items():
        means = [statistics.mean(row["scores"][metric] for row in rows) for metric in METRICS]
        lines.append([system, *(f"{x:.2f}" if x < 10 else f"{x:.1f}" for x in means)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def run(system: str, flags: list[str], seed: int, options: argparse.Namespace) -> dict[str, Any]:
    name = "".join(x if x.isalnum() else "-" for x in system.lower()).replace("--", "-").strip("-")
    out = options.folder / f"{name}-{seed}"
    if not (out / "summary.json").exists():
        epigraph(
            "train",
            *TRAIN.format(limit=options.limit).split(),
            *flags,
            "--seed",
            str(seed),
            "--out",
            str(out),
            "--overwrite",
        )
    summary = json.loads((out / "summary.json").read_text())
    scores = evaluate(out, options.split)
    print(f"{system}, seed {seed}: BLEU {scores['scores']['bleu']:.1f}", file=sys.stderr)
    return {
        "system": system,
        "seed": seed,
        "scores": scores["scores"],
        "intervals": scores["intervals"],
        "artifact_bytes": summary["artifact_bytes"],
        "trained_numbers": summary["trained_numbers"],
        "train_seconds": summary["seconds"],
        "dev": summary["dev"],
        "num_examples": scores["num_examples"],
    }


def evaluate(out: Path, split: str, *flags: str) -> dict[str, Any]:
    """The record of an evaluation, made unless it is there."""
    path = out / "evaluations" / f"{'before' if flags else 'after'}-{split}.json"
    if not path.exists():
        epigraph("evaluate", str(out), "--task", "e2e", "--split", split, *flags)
    return dict(json.loads(path.read_text()))


def epigraph(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "epigraph", *words], check=True)


def mean(rows: list[dict[str, Any]], system: str) -> dict[str, float]:
    """Mean and standard deviation of BLEU over seeds."""
    values = [row["scores"]["bleu"] for row in rows if row["system"] == system]
    return {"bleu": statistics.mean(values), "bleu_sd": statistics.stdev(values), "seeds": len(values)}


if __name__ == "__main__":
    main()
