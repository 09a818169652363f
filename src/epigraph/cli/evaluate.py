"""`epigraph evaluate`: scores of an artifact on a task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from epigraph.cli import show
from epigraph.cli.options import changed_decoding, check_joining, check_positive, joined, load_tuned, precision_in_force
from epigraph.errors import BadValue

Flag = typer.Option


def evaluate(
    artifact: Annotated[Path, typer.Argument(help="An artifact, or the folder a run wrote.")],
    task: Annotated[str | None, Flag(help="A named task; by default the one it was trained on.")] = None,
    data: Annotated[Path | None, Flag(help="Rows of your own: JSON Lines or CSV.")] = None,
    split: Annotated[str, Flag(help="train, dev or test.")] = "test",
    limit: Annotated[int | None, Flag(help="Only the first so many rows.")] = None,
    num_beams: Annotated[int | None, Flag(help="Beam search with this many beams; 1 is greedy.")] = None,
    max_new_tokens: Annotated[int | None, Flag(help="Longest answer, in tokens.")] = None,
    untouched: Annotated[bool, Flag("--untouched", help="The bare model under the same text contract.")] = False,
    others: Annotated[
        list[Path] | None, Flag("--with", metavar="<path>", help="Another artifact to ask together; may be repeated.")
    ] = None,
    mean: Annotated[str | None, Flag(help="How: geometric (default), arithmetic or majority.")] = None,
    model: Annotated[str | None, Flag(help="Where the base is, if not where it was in training.")] = None,
    precision: Annotated[str, Flag(help="bf16, fp32, or auto: bf16 where the device computes in it.")] = "auto",
    batch_size: Annotated[int, Flag(help="Rows decoded at a time.")] = 64,
    allow_base: Annotated[str | None, Flag(help="Fingerprint of a base with other weights to admit.")] = None,
    device: Annotated[str, Flag(help="cpu, cuda, ...")] = "cpu",
    as_json: Annotated[bool, Flag("--json", help="Print the scores as JSON.")] = False,
) -> None:
    """Decode a split and score it."""
    check_positive(limit=limit, batch_size=batch_size)
    check_joining(others, mean)
    if untouched and others:
        raise BadValue("got both --untouched and --with, expected one of them: the bare model is no ensemble")
    if untouched:
        _refuse_joint(artifact)
    examples, chosen = _examples(artifact, task, data, split, limit)
    precision = precision_in_force(precision, device)
    tuned = load_tuned(artifact, model=model, precision=precision, device=device, allow_base=allow_base)
    decoding = changed_decoding(tuned.artifact.contract.decoding, num_beams=num_beams, max_new_tokens=max_new_tokens)
    ensemble = joined(tuned, others, mean, allow_base, decoding)
    from epigraph.train.evaluate import evaluate as run

    with show.progress() as bar:
        job = bar.add_task("decoding", total=len(examples))
        done = run(
            tuned.frozen,
            tuned.bare_codec if untouched else tuned.codec,
            None if untouched else ensemble or tuned.prefix,
            chosen,
            examples,
            head=tuned.head,
            decoding=decoding,
            batch_size=batch_size,
            advance=lambda n: bar.advance(job, n),
        )
    record = {"task": chosen.name, "split": split, "precision": precision, **done.to_json()}
    if allow_base is not None:
        record["allowed_base"] = tuned.frozen.fingerprint
    if ensemble is not None:
        record["ensemble"] = {"mean": ensemble.mean, "members": _content_hashes([artifact, *(others or ())])}
    _keep(artifact, "before" if untouched else "after" if ensemble is None else "ensemble", record)
    if as_json:
        show.print_json({name: value for name, value in record.items() if name != "examples"})
        return
    _print(record)


def _refuse_joint(artifact: Path) -> None:
    """A base that was trained with the artifact is not untouched."""
    from epigraph.artifact import find
    from epigraph.train.folder import BASE

    if (find(artifact).parent / BASE).is_dir():
        raise BadValue(
            "got --untouched, but this run trained its base too, which is no bare model; "
            "compare with a run on the same model that left it frozen"
        )


def _examples(artifact: Path, task: str | None, data: Path | None, split: str, limit: int | None) -> Any:
    from epigraph.artifact import find, load
    from epigraph.tasks.catalogue import find as find_task
    from epigraph.tasks.catalogue import own_data

    if data is not None:
        _check_alone(task, split)
    content = load(find(artifact))
    if data is not None:
        contract = content.contract
        chosen = own_data(data, None, data, data.stem, () if contract.layout == "tags" else contract.labels)
    else:
        said = content.provenance.get("data")
        trained_on = said.get("task") if isinstance(said, dict) else None
        if task is None and trained_on is None:
            raise BadValue(
                "the artifact was trained on rows of its own, no named task; give --data FILE or --task NAME"
            )
        chosen = find_task(task or str(trained_on))
    return chosen.load(split)[:limit], chosen


def _check_alone(task: str | None, split: str) -> None:
    """``--data`` says all there is to say of the rows."""
    if task is not None:
        raise BadValue("got both --data and --task, expected one of them")
    if split != "test":
        raise BadValue(f"got --split {split} with --data, expected no --split: all rows of the file are evaluated")


def _content_hashes(artifacts: Sequence[Path]) -> list[str]:
    from epigraph.artifact import find, inspect

    return [inspect(find(path))["content_hash"] for path in artifacts]


def _keep(artifact: Path, name: str, record: dict[str, Any]) -> None:
    """Beside a run's other records, where the report looks for them; an artifact on its own keeps nothing."""
    from epigraph.train.record import write_json

    if artifact.is_dir():
        write_json(artifact / "evaluations" / f"{name}-{record['split']}.json", {"name": name, **record})


def _print(record: dict[str, Any]) -> None:
    rows = []
    for name, value in record["scores"].items():
        low, high = record["intervals"].get(name, (None, None))
        interval = "" if low is None else f"{low:.2f} to {high:.2f}"
        rows.append((name, f"{value:.2f}", interval))
    title = f"{record['task']}, {record['split']}, {record['num_examples']} rows"
    show.print_rows(title, ("metric", "score", "95 % interval"), rows)
    for reason in dict.fromkeys(record["missing"].values()):
        names = ", ".join(name for name, why in record["missing"].items() if why == reason)
        typer.echo(f"not computed: {names}: {reason}")
    for name, variant in record["variants"].items():
        typer.echo(f"{name}: {variant}")
