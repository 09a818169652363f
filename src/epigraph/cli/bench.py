"""`epigraph bench`: measure beside the peers, and show what was measured."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress

from epigraph.cli import show
from epigraph.cli.options import check_positive
from epigraph.errors import BadValue

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.command()
def train(
    json_path: Annotated[Path, typer.Option("--json", metavar="FILE", help="Where the record goes; parts add up.")],
    part: Annotated[
        list[str] | None, typer.Option(metavar="PART", help="Only this part; give it again for more. Default: all.")
    ] = None,
    model: Annotated[str, typer.Option(help="Base model: a known name, a folder or a hub id.")] = "smollm2-135m",
    task: Annotated[str, typer.Option(help="Task whose rows are trained on.")] = "e2e",
    rows: Annotated[int, typer.Option(help="Rows of an epoch.")] = 480,
    dev_rows: Annotated[int, typer.Option(help="Development rows that both sides' results are judged on.")] = 200,
    batch_size: Annotated[int, typer.Option(help="Rows a step.")] = 8,
    repeats: Annotated[int, typer.Option(help="Repeats, in turns; medians of them are reported.")] = 7,
    seeds: Annotated[int, typer.Option(help="Epochs of the comparison with own batches, a seed each.")] = 3,
    precision: Annotated[
        str, typer.Option(help="auto, bf16 or fp32; auto: bf16 where the device computes in it.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    pictures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also draw the growth of cost there, as a PNG.")
    ] = None,
) -> None:
    """Time training beside PEFT, on one machine, in one process: ratios, the share of its matmul ceiling, a profile."""
    from epigraph.bench.train import PARTS, run
    from epigraph.report.performance import draw, tables

    check_positive(rows=rows, dev_rows=dev_rows, batch_size=batch_size, repeats=repeats, seeds=seeds)
    chosen = _chosen(part, PARTS)
    settings: dict[str, Any] = {
        "model": model,
        "task": task,
        "rows": rows,
        "dev_rows": dev_rows,
        "batch_size": batch_size,
        "repeats": repeats,
        "seeds": seeds,
        "precision": precision,
    }
    with show.progress() as bar:
        record = run(json_path, chosen, settings, device=device, begin=_begin(bar))
    if pictures is not None:
        draw(record, pictures)
    print(tables(record))


@app.command()
def serve(
    json_path: Annotated[Path, typer.Option("--json", metavar="FILE", help="Where the record goes; parts add up.")],
    engine: Annotated[str, typer.Option(help="What serves: vllm or local.")] = "vllm",
    part: Annotated[
        list[str] | None, typer.Option(metavar="PART", help="Only this part; give it again for more. Default: all.")
    ] = None,
    model: Annotated[str, typer.Option(help="Base model: a known name, a folder or a hub id.")] = "smollm2-135m",
    compiled: Annotated[bool, typer.Option("--compiled", help="Let vLLM compile the model (torch.compile).")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Eight requests, one pair: does it run at all?")] = False,
    pictures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also draw the cost of more and more prefixes there, as a PNG.")
    ] = None,
) -> None:
    """Time an engine with everybody's own prefix in one batch beside the bare model: on vLLM beside LoRA adapters, too,
    the local one beside PEFT's switching."""
    from epigraph.bench import serve as on_vllm
    from epigraph.bench import serve_local as local
    from epigraph.report.performance import draw, tables

    if engine not in ("vllm", "local"):
        raise BadValue(f"--engine is {engine!r}, expected vllm or local")
    if engine == "local" and compiled:
        raise BadValue("--compiled is vLLM's; leave it out, or take --engine vllm")
    chosen = _chosen(part, on_vllm.PARTS if engine == "vllm" else local.PARTS)
    with show.progress() as bar:
        if engine == "vllm":
            record = on_vllm.run(json_path, chosen, model=model, quick=quick, compiled=compiled, begin=_begin(bar))
        else:
            record = local.run(json_path, chosen, model=model, quick=quick, begin=_begin(bar))
    if pictures is not None:
        draw(record, pictures)
    print(tables(record))


@app.command()
def fleet(
    json_path: Annotated[Path, typer.Option("--json", metavar="FILE", help="Where the record goes; parts add up.")],
    part: Annotated[
        list[str] | None, typer.Option(metavar="PART", help="Only this part; give it again for more. Default: all.")
    ] = None,
    model: Annotated[str, typer.Option(help="Base model: a known name, a folder or a hub id.")] = "smollm2-135m",
    task: Annotated[str, typer.Option(help="Task whose rows are shared out among users.")] = "e2e",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    quick: Annotated[bool, typer.Option("--quick", help="A few users, two rounds: does it run at all?")] = False,
    pictures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also draw thousands of users there, as a PNG.")
    ] = None,
) -> None:
    """Time many users trained together beside one run on the same batches, and beside each user alone."""
    from epigraph.bench.fleet import PARTS, run
    from epigraph.report.performance import draw, tables

    chosen = _chosen(part, PARTS)
    with show.progress() as bar:
        record = run(json_path, chosen, model=model, task=task, device=device, quick=quick, begin=_begin(bar))
    if pictures is not None:
        draw(record, pictures)
    print(tables(record))


@app.command("show")
def show_record(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A record that `epigraph bench` wrote.")],
    pictures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also draw the growth of cost there, as a PNG.")
    ] = None,
) -> None:
    """Print the tables of a record, as Markdown."""
    from epigraph.report.performance import draw, read, tables

    record = read(file)
    if pictures is not None:
        draw(record, pictures)
    print(tables(record))


def _chosen(given: list[str] | None, parts: Collection[str]) -> list[str]:
    """The parts that are asked for; all, where none is."""
    wrong = [name for name in given or () if name not in parts]
    if wrong:
        raise BadValue(f"--part is {wrong[0]!r}, expected one of {', '.join(parts)}")
    return given or list(parts)


def _begin(bar: Progress) -> Callable[[str], Callable[[], None]]:
    """A line of progress for each part, when it begins."""

    def begin(name: str) -> Callable[[], None]:
        job = bar.add_task(name, total=None)
        return lambda: bar.advance(job)

    return begin
