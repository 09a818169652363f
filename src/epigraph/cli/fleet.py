"""`epigraph fleet`: one trained prefix a user, all users in one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from epigraph.cli import show
from epigraph.cli.options import recipe_of
from epigraph.errors import BadValue

if TYPE_CHECKING:
    from epigraph.train.fleet.order import Progress

Words = Annotated[list[str] | None, typer.Argument(help="A recipe (TOML) and changes to it as key=value.")]
Flag = typer.Option
MAX_SHOWN_FAILURES = 10


def fleet(
    data: Annotated[Path, typer.Argument(help="A folder with a file of rows a user, or one file with a user column.")],
    words: Words = None,
    out: Annotated[str | None, Flag(help="Folder or fsspec address to write to; several workers may share it.")] = None,
    dev: Annotated[Path | None, Flag(help="Development rows: a folder or a file of the same kind as DATA.")] = None,
    column: Annotated[str, Flag(help="The column that names the user, where DATA is one file.")] = "user",
    model: Annotated[str | None, Flag(help="Base model: a known name, a folder, a GGUF file, a hub id.")] = None,
    method: Annotated[str | None, Flag(help="prefix-tuning, prompt-tuning or p-tuning.")] = None,
    parameterization: Annotated[str | None, Flag(help="raw, residual, mlp, ...; see the method.")] = None,
    num_virtual_tokens: Annotated[int | None, Flag(help="Virtual tokens, P.")] = None,
    steps: Annotated[int | None, Flag(help="Optimiser steps a user.")] = None,
    epochs: Annotated[float | None, Flag(help="Epochs a user, instead of steps.")] = None,
    batch_size: Annotated[int | None, Flag(help="Rows a step of one user.")] = None,
    lr: Annotated[float | None, Flag(help="Learning rate.")] = None,
    seed: Annotated[
        int | None, Flag(help="Decides every user's order and random values, as in a run of his own.")
    ] = None,
    precision: Annotated[str | None, Flag(help="auto, bf16 or fp32.")] = None,
    active: Annotated[int | None, Flag(min=1, help="Users at a time; by default as fill a pass of the model.")] = None,
    rows: Annotated[int | None, Flag(min=1, help="Rows in a pass of the model; by default 32, on a GPU 128.")] = None,
    device: Annotated[str, Flag(help="cpu, cuda, ...")] = "cpu",
    lease: Annotated[
        float, Flag(min=1, help="Seconds without a sign of life after which a worker is taken for dead.")
    ] = 60.0,
    ray: Annotated[str | None, Flag(help="Place the workers on the Ray cluster at this address.")] = None,
    workers: Annotated[int, Flag(min=1, help="Workers on the Ray cluster.")] = 2,
    retry_failed: Annotated[bool, Flag("--retry-failed", help="Try again with users that were set aside.")] = False,
    as_json: Annotated[bool, Flag("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Train one prefix a user, many users in every batch. Given again, the command goes on, or joins in."""
    flags = {
        "model": model,
        "data.train": data,
        "data.dev": dev,
        "method.name": method,
        "method.parameterization": parameterization,
        "method.num_virtual_tokens": num_virtual_tokens,
        "training.steps": steps,
        "training.epochs": epochs,
        "training.batch_size": batch_size,
        "training.lr": lr,
        "training.seed": seed,
        "training.precision": precision,
    }
    if out is None:
        raise BadValue("--out is missing; give the folder or address to write to")
    recipe = recipe_of(words or [], {key: value for key, value in flags.items() if value is not None})
    given = {
        "recipe": recipe.model_dump(mode="json"),
        "column": column,
        "out": out,
        "device": device,
        "active": active,
        "num_rows": rows,
        "lease_seconds": lease,
        "retry_failed": retry_failed,
    }
    _run(given, None if ray is None else (ray, workers), as_json)


def _run(given: Mapping[str, Any], cluster: tuple[str, int] | None, as_json: bool) -> None:
    from rich.progress import TextColumn

    # After the flags: these take seconds to import, and a mistake in a flag is answered at once.
    from epigraph.report.fleet_page import write_fleet_report
    from epigraph.train.fleet.order import order_from
    from epigraph.train.fleet.place import Place
    from epigraph.train.fleet.table import summary_of, write_users

    order = order_from(given)
    with show.progress(TextColumn("{task.fields[state]}")) as bar:
        job = bar.add_task("users", total=len(order.users.names), state="")
        report = _follow(lambda **fields: bar.update(job, **fields))
        if cluster is None:
            from epigraph.train.fleet.worker import work

            say = partial(bar.console.print, markup=False, highlight=False, soft_wrap=True)
            progress = work(order, report=report, notice=lambda words: say(f"epigraph: {words}"))
        else:
            from epigraph.train.fleet.cluster import work_on

            progress = work_on(cluster[0], given, num_workers=cluster[1], report=report)
    place = Place(order.out)
    summary = summary_of(write_users(place))
    # The page is read in a browser, from a folder.
    page = str(write_fleet_report(place.path(""))) if place.is_local else None
    about = {
        "model": order.recipe.model,
        "method": order.recipe.method.name,
        "out": order.out,
        **summary,
        "trained_here": progress.trained,
        "tokens_here": progress.tokens,
        "seconds": progress.seconds,
        "users_an_hour": progress.users_an_hour,
        "report": page,
    }
    if as_json:
        show.print_json(about)
        return
    show.print_pairs(f"{len(order.users.names):,} users on {order.recipe.model}", _shown(about))
    if summary["failures"]:
        _show_failures(summary["failures"])


def _shown(about: Mapping[str, Any]) -> dict[str, Any]:
    dev = ", ".join(f"{name} {value:.4g}" for name, value in about["dev"].items())
    return {
        "done": f"{about['done']:,} ({about['trained_here']:,} by this worker)",
        "set aside": f"{about['failed']:,}",
        "artifacts": f"{about['out']}/users/USER/artifact.safetensors, {show.size(about['stored_bytes'])} in all",
        "steps": f"{about['steps']:,}, {about['tokens']:,} tokens",
        "development": f"{dev} (mean over users)" if dev else "none",
        "time": f"{about['seconds']:.0f} s, {about['users_an_hour']:,.0f} users an hour",
        **({} if about["report"] is None else {"report": about["report"]}),
    }


def _show_failures(failures: list[dict[str, str]]) -> None:
    shown = [(x["user"], x["error"], x["reason"]) for x in failures[:MAX_SHOWN_FAILURES]]
    more = len(failures) - len(shown)
    title = "set aside, each with its reason" + (f"; {more:,} more in users.jsonl" if more else "")
    show.print_rows(title, ("user", "error", "reason"), shown)


def _follow(update: Callable[..., Any]) -> Callable[[Progress], None]:
    """Turn progress into the words beside the bar."""

    def follow(now: Progress) -> None:
        words = [f"{now.running:,} running", f"{now.waiting:,} waiting"]
        words += [f"{now.failed:,} set aside"] if now.failed else []
        rate = now.tokens / max(now.seconds, 1e-9)
        words += [f"{now.users_an_hour:,.0f} users/h", f"{rate:,.0f} tokens/s"]
        update(completed=now.done + now.failed, state="  ".join(words))

    return follow
