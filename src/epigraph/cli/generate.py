"""`epigraph generate`: text from an artifact."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from epigraph.cli import show
from epigraph.cli.options import changed_decoding, check_joining, check_positive, joined, load_tuned, precision_in_force
from epigraph.errors import BadValue

Flag = typer.Option


def generate(
    artifact: Annotated[Path, typer.Argument(help="An artifact, or the folder a run wrote.")],
    text: Annotated[str, typer.Argument(help="The source; - reads one a line from stdin.")] = "-",
    num_beams: Annotated[int | None, Flag(help="Beam search with this many beams; 1 is greedy.")] = None,
    max_new_tokens: Annotated[int | None, Flag(help="Longest answer, in tokens.")] = None,
    temperature: Annotated[float, Flag(help="Above 0 samples; 0 takes the likeliest.")] = 0.0,
    top_p: Annotated[float, Flag(help="When sampling, the share of probability kept.")] = 1.0,
    seed: Annotated[int, Flag(help="Decides what is sampled.")] = 0,
    others: Annotated[
        list[Path] | None, Flag("--with", metavar="<path>", help="Another artifact to ask together; may be repeated.")
    ] = None,
    mean: Annotated[str | None, Flag(help="How: geometric (default), arithmetic or majority.")] = None,
    model: Annotated[str | None, Flag(help="Where the base is, if not where it was in training.")] = None,
    precision: Annotated[str, Flag(help="bf16, fp32, or auto: bf16 where the device computes in it.")] = "fp32",
    batch_size: Annotated[int, Flag(help="Rows decoded at a time.")] = 32,
    allow_base: Annotated[str | None, Flag(help="Fingerprint of a base with other weights to admit.")] = None,
    device: Annotated[str, Flag(help="cpu, cuda, ...")] = "cpu",
    as_json: Annotated[bool, Flag("--json", help="One JSON object a line: source and text.")] = False,
) -> None:
    """Answer one text, or every line of stdin, in the words the artifact was trained for."""
    import torch

    from epigraph.artifact import find

    check_positive(batch_size=batch_size)
    _check_sampling(temperature, top_p)
    check_joining(others, mean)
    if others and temperature > 0:
        raise BadValue(f"got --temperature {temperature} with --with, expected 0: an ensemble decodes greedily")
    find(artifact)
    texts = [line.rstrip("\n") for line in sys.stdin if line.strip()] if text == "-" else [text]
    if not any(text.strip() for text in texts):
        where = "stdin was empty" if text == "-" else "the text is empty"
        raise BadValue(f"nothing to answer: {where}; give a text, or one a line on stdin")
    precision = precision_in_force(precision, device)
    tuned = load_tuned(artifact, model=model, precision=precision, device=device, allow_base=allow_base)
    decoding = changed_decoding(tuned.artifact.contract.decoding, num_beams=num_beams, max_new_tokens=max_new_tokens)
    options: dict[str, Any] = {}
    if temperature > 0:
        torch.manual_seed(seed)
        options = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    ensemble = joined(tuned, others, mean, allow_base, decoding)
    answers = tuned.generate(texts, ensemble=ensemble, decoding=decoding, batch_size=batch_size, **options)
    for source, answer in zip(texts, answers, strict=True):
        if as_json:
            show.print_json_line({"source": source, "text": answer})
        else:
            typer.echo(answer)


def _check_sampling(temperature: float, top_p: float) -> None:
    if not 0 <= temperature < float("inf"):
        raise BadValue(f"--temperature is {temperature}, expected 0 (the likeliest) or more")
    if not 0 < top_p <= 1:
        raise BadValue(f"--top-p is {top_p}, expected more than 0 and at most 1")
