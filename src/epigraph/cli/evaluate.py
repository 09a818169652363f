"""`epigraph evaluate`: scores of an artifact on a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from epigraph.cli import show
from epigraph.cli.options import changed_decoding, check_joining, check_positive, joined, open_any, precision_in_force
from epigraph.errors import BadValue

if TYPE_CHECKING:
    from epigraph.train.answering import Answering

Flag = typer.Option


def evaluate(
    artifact: Annotated[Path, typer.Argument(help="An artifact, a baseline's file, or the folder a run wrote.")],
    task: Annotated[str | None, Flag(help="A named task; by default the one it was trained on.")] = None,
    data: Annotated[Path | None, Flag(help="Rows of your own: JSON Lines or CSV.")] = None,
    split: Annotated[str, Flag(help="train, dev or test.")] = "test",
    limit: Annotated[int | None, Flag(help="Only the first so many rows.")] = None,
    num_beams: Annotated[int | None, Flag(help="Beam search with this many beams; 1 is greedy.")] = None,
    max_new_tokens: Annotated[int | None, Flag(help="Longest answer, in tokens.")] = None,
    untouched: Annotated[bool, Flag("--untouched", help="The bare model under the same text contract.")] = False,
    nearest_words: Annotated[
        bool, Flag("--nearest-words", help="A soft prompt with each virtual token replaced by its nearest word.")
    ] = False,
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
    if nearest_words and (untouched or others):
        raise BadValue(f"got both --nearest-words and {'--untouched' if untouched else '--with'}, expected one of them")
    if nearest_words:
        _refuse_wordless(artifact)
    if untouched:
        _refuse_changed(artifact)
    examples, chosen = _examples(artifact, task, data, split, limit)
    precision = precision_in_force(precision, device)
    opened = open_any(artifact, model=model, precision=precision, device=device, allow_base=allow_base)
    decoding = changed_decoding(opened.contract.decoding, num_beams=num_beams, max_new_tokens=max_new_tokens)
    ensemble = joined(opened.tuned, others, mean, allow_base, decoding)
    opened, words = _said_in_words(opened) if nearest_words else (opened, {})

    with show.progress() as bar:
        job = bar.add_task("decoding", total=len(examples))
        done = opened.evaluate(
            chosen,
            examples,
            ensemble=ensemble,
            untouched=untouched,
            decoding=decoding,
            batch_size=batch_size,
            advance=lambda n: bar.advance(job, n),
        )
    record = {"task": chosen.name, "split": split, "precision": precision, **words, **done.to_json()}
    if allow_base is not None:
        record["allowed_base"] = opened.frozen.fingerprint
    if ensemble is not None:
        record["ensemble"] = {"mean": ensemble.mean, "members": _content_hashes([artifact, *(others or ())])}
    name = "before" if untouched else "nearest-words" if words else "after" if ensemble is None else "ensemble"
    _keep(artifact, name, record)
    if as_json:
        show.print_json({name: value for name, value in record.items() if name != "examples"})
        return
    _print(record)


def _refuse_wordless(artifact: Path) -> None:
    """Before any model is loaded: only soft prompts lie among words."""
    from epigraph.train.answering import contents
    from epigraph.train.kept import Kept
    from epigraph.virtual import SoftPrompt

    content = contents(artifact)
    if isinstance(content, Kept) or not isinstance(content.tokens, SoftPrompt):
        held = f"a baseline ({content.method})" if isinstance(content, Kept) else "keys and values (kind 'kv')"
        raise BadValue(
            f"--nearest-words: the run left {held}, expected a soft prompt (kind 'soft'), whose virtual tokens lie "
            "among the vocabulary's words; leave --nearest-words out"
        )


def _said_in_words(opened: Answering) -> tuple[Answering, dict[str, Any]]:
    """The same behind the nearest words, and what the record says of them."""
    from epigraph.frozen.nearest_words import nearest_words

    assert opened.tuned is not None, "what is no artifact was refused"
    found = nearest_words(opened.frozen, opened.tuned.artifact.tokens)
    said = {"words": list(found.words), "ids": list(found.ids), "distance": found.distance}
    return replace(opened, tokens=opened.frozen.carried(found.prompt)), {"nearest_words": said}


def _refuse_changed(artifact: Path) -> None:
    """A base that was trained with the artifact is not untouched, and a baseline is a run of its own."""
    from epigraph.artifact import find
    from epigraph.train.answering import contents
    from epigraph.train.folder import BASE
    from epigraph.train.kept import Kept

    content = contents(artifact)
    if isinstance(content, Kept):
        if content.method != "untouched":
            raise BadValue(
                f"got --untouched and a run of method {content.method}, which has no virtual tokens to leave out; "
                "train method untouched, which takes no step"
            )
    elif (find(artifact).parent / BASE).is_dir():
        raise BadValue(
            "got --untouched, but this run trained its base too, which is no bare model; "
            "compare with a run on the same model that left it frozen"
        )


def _examples(artifact: Path, task: str | None, data: Path | None, split: str, limit: int | None) -> Any:
    from epigraph.tasks.catalogue import find as find_task
    from epigraph.tasks.catalogue import find_named, own_data
    from epigraph.train.answering import contents

    if data is not None:
        _check_alone(task, split)
    content = contents(artifact)
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
        chosen = find_task(task) if task is not None else find_named(str(trained_on))
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
