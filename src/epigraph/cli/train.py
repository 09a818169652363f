"""`epigraph train`: a recipe or flags to a trained artifact."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from epigraph.cli import show
from epigraph.cli.options import recipe_of
from epigraph.errors import BadValue

if TYPE_CHECKING:
    from epigraph.train.prepare import Prepared

Words = Annotated[list[str] | None, typer.Argument(help="A recipe (TOML) and changes to it as key=value.")]
Flag = typer.Option


def train(
    words: Words = None,
    model: Annotated[str | None, Flag(help="Base model: a known name, a folder, a GGUF file, a hub id.")] = None,
    task: Annotated[str | None, Flag(help="A named task; see `epigraph data list`.")] = None,
    data: Annotated[Path | None, Flag(help="Training rows of your own: JSON Lines or CSV.")] = None,
    dev: Annotated[Path | None, Flag(help="Development rows of your own.")] = None,
    method: Annotated[
        str | None, Flag(help="prefix-tuning, prompt-tuning, p-tuning, or a baseline: lora, full, ...")
    ] = None,
    parameterization: Annotated[str | None, Flag(help="raw, mlp, mlp-code, residual or lstm; see the method.")] = None,
    initial: Annotated[
        str | None, Flag(help="First values: text, document, random, labels, ...; see the method.")
    ] = None,
    num_virtual_tokens: Annotated[int | None, Flag(help="Virtual tokens, P.")] = None,
    limit: Annotated[int | None, Flag(help="Draw this many (source, reference) pairs by the seed.")] = None,
    steps: Annotated[int | None, Flag(help="Optimiser steps.")] = None,
    epochs: Annotated[float | None, Flag(help="Epochs, instead of steps.")] = None,
    batch_size: Annotated[int | None, Flag(help="Rows a batch.")] = None,
    lr: Annotated[float | None, Flag(help="Learning rate.")] = None,
    seed: Annotated[int | None, Flag(help="Decides the draw, the order and every random value.")] = None,
    precision: Annotated[str | None, Flag(help="auto, bf16 or fp32.")] = None,
    out: Annotated[Path | None, Flag(help="Folder to write to.")] = None,
    device: Annotated[str, Flag(help="cpu, cuda, ...")] = "cpu",
    dry_run: Annotated[bool, Flag("--dry-run", help="Check everything, say what a run costs, train nothing.")] = False,
    resume: Annotated[
        bool, Flag("--resume", help="Go on with the run in --out; without other words, with its own recipe.")
    ] = False,
    overwrite: Annotated[bool, Flag("--overwrite", help="Write over a run that is already in --out.")] = False,
    as_json: Annotated[bool, Flag("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Train virtual tokens on a task or on rows of your own."""
    flags = {
        "model": model,
        "data.task": task,
        "data.train": data,
        "data.dev": dev,
        "data.limit": limit,
        "method.name": method,
        "method.parameterization": parameterization,
        "method.initial": initial,
        "method.num_virtual_tokens": num_virtual_tokens,
        "training.steps": steps,
        "training.epochs": epochs,
        "training.batch_size": batch_size,
        "training.lr": lr,
        "training.seed": seed,
        "training.precision": precision,
    }
    given = {key: value for key, value in flags.items() if value is not None}
    if out is None and not dry_run:
        raise BadValue("--out is missing; give the folder to write to (or --dry-run to see the cost first)")
    if resume and (overwrite or dry_run):
        raise BadValue(f"got --resume with {'--overwrite' if overwrite else '--dry-run'}, expected one of them")
    recipe = _recipe(words or [], given, out if resume else None)
    # After the recipe: these take seconds to import, and a mistake in a flag is answered at once.
    from epigraph.train.folder import check_base_is_kept, check_output
    from epigraph.train.parallel import joined
    from epigraph.train.prepare import prepare

    def check_folder() -> None:
        if out is not None and not dry_run and not resume:
            check_output(out, overwrite=overwrite)
            check_base_is_kept(out, recipe.model)

    with joined(device) as processes:
        if dry_run and processes.num > 1:
            raise BadValue(f"--dry-run: got {processes.num} processes, expected one; start it without a launcher")
        processes.from_main(check_folder)
        ready = prepare(recipe, device=device, processes=processes)
        if dry_run:
            _dry_run(ready, as_json)
            return
        assert out is not None
        _run(ready, out, as_json, resume=resume)


def _recipe(words: list[str], flags: Mapping[str, Any], resumed: Path | None) -> Any:
    """The recipe of file, changes and flags; of a run that goes on, without any, the one it was begun with."""
    from epigraph.train.recipe_file import check_recipe

    if resumed is not None and not words and not flags:
        from epigraph.train.folder import given_tables

        return check_recipe(given_tables(resumed))
    return recipe_of(words, flags)


def _run(ready: Prepared, out: Path, as_json: bool, *, resume: bool) -> None:
    from rich.progress import TextColumn

    from epigraph.train.build import make_method
    from epigraph.train.run import run

    processes = ready.processes
    method = processes.together(lambda: make_method(ready))
    with show.progress(TextColumn("{task.fields[state]}"), shown=processes.is_main) as bar:
        job = bar.add_task("training", total=ready.steps, state="")
        summary = run(
            ready,
            method,
            out,
            resume=resume,
            report=_follow(lambda **fields: bar.update(job, **fields)),
            notice=lambda words: bar.console.print(f"epigraph: {words}", markup=False, highlight=False, soft_wrap=True),
        )
    if not processes.is_main:
        return
    if as_json:
        show.print_json(summary)
        return
    from epigraph.train.folder import RESULTS

    [file] = [name for name in RESULTS if (out / name).exists()]
    show.print_pairs(
        f"{ready.task.name} on {ready.frozen.name}",
        {
            file.partition(".")[0]: out / file,
            "size": f"{show.size((out / file).stat().st_size)}, {summary['num_virtual_tokens']} virtual tokens",
            "trained numbers": f"{summary['trained_numbers']:,} ({summary['stored_numbers']:,} stored), "
            f"{100 * summary['trained_numbers'] / summary['model_parameters']:.2g} % of the model's",
            "steps": f"{summary['steps']} (kept: step {summary['kept_step']}{_taken_up(summary)})",
            "development": ", ".join(f"{name} {value:.4g}" for name, value in summary["dev"].items()) or "none",
            "time": f"{summary['seconds']:.0f} s",
        },
    )


def _taken_up(summary: Mapping[str, Any]) -> str:
    steps = summary["resumed_at"]
    return f"; resumed after step {', '.join(map(str, steps))}" if steps else ""


def _follow(update: Callable[..., Any]) -> Callable[[Mapping[str, Any]], None]:
    """Turn training records into the words beside the bar; the loss shown is a moving average."""
    loss, tokens, start = 0.0, 0, time.perf_counter()

    def follow(record: Mapping[str, Any]) -> None:
        nonlocal loss, tokens
        if "loss" not in record:
            return
        loss = 0.9 * loss + 0.1 * record["loss"] if tokens else record["loss"]
        tokens += record["tokens"]
        rate = tokens / max(time.perf_counter() - start, 1e-9)
        update(completed=record["step"], state=f"loss {loss:.3f}  lr {record['lr']:.1e}  {rate:,.0f} tokens/s")

    return follow


def _dry_run(ready: Prepared, as_json: bool) -> None:
    from epigraph.train.dry import cost

    found = cost(ready)
    if as_json:
        show.print_json(found)
        return
    show.print_pairs(
        f"what training {ready.task.name} on {ready.frozen.name} would cost",
        {
            "rows": f"{found['rows']:,} ({found['truncated_rows']:,} truncated)",
            "tokens an epoch": f"{found['tokens']:,} ({found['scored_tokens']:,} scored)",
            "longest row": f"{found['longest_row']:,} tokens",
            "steps": f"{found['steps']:,} of {found['rows_per_step']} rows ({found['epochs']:.1f} epochs)",
            "trained numbers": f"{found['trained_numbers']:,} ({found['stored_numbers']:,} stored)",
            "peak memory": show.size(found["peak_memory_bytes"]),
            "time": f"{found['seconds'] / 60:.1f} minutes, from {found['timed_steps']} timed steps",
        },
    )
