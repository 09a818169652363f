"""What several commands ask for alike: a recipe, an artifact behind its base, a precision, a decoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from epigraph.errors import BadValue

if TYPE_CHECKING:
    from epigraph.contract import Decoding
    from epigraph.frozen.ensemble import Ensemble, Joining
    from epigraph.train.answering import Answering
    from epigraph.train.recipe import Recipe
    from epigraph.tuned import Tuned


def recipe_of(words: Sequence[str], flags: Mapping[str, Any]) -> Recipe:
    """The recipe of a TOML file and ``key=value`` words, then ``flags`` by dotted key."""
    from epigraph.train.recipe_file import parse_changes, read_recipe

    files = [word for word in words if "=" not in word]
    if len(files) > 1:
        raise BadValue(f"got {len(files)} recipes ({', '.join(files)}), expected one TOML file and key=value changes")
    changes = {**parse_changes([word for word in words if "=" in word]), **flags}
    return read_recipe(Path(files[0]) if files else None, changes)


def open_any(path: Path, *, model: str | None, precision: str, device: str, allow_base: str | None) -> Answering:
    """What a run left, an artifact or a baseline, ready to answer."""
    from epigraph.train.answering import open_run
    from epigraph.train.prepare import DTYPES

    return open_run(path, model=model, dtype=DTYPES[precision], device=device, allow_base=allow_base)


def load_tuned(artifact: Path, *, model: str | None, precision: str, device: str, allow_base: str | None) -> Tuned:
    """The artifact behind its base model."""
    from epigraph.train.prepare import DTYPES
    from epigraph.tuned import Tuned

    return Tuned.load(artifact, model=model, dtype=DTYPES[precision], device=device, allow_base=allow_base)


def precision_in_force(precision: str, device: str) -> str:
    """bf16 or fp32, also where auto was asked for; raises :class:`BadValue` for anything else."""
    from epigraph.train.prepare import DTYPES, precision_for

    if precision not in ("auto", *DTYPES):
        raise BadValue(f"--precision is {precision!r}, expected auto, {' or '.join(DTYPES)}")
    return precision_for(precision, device)


def check_joining(others: Sequence[Path] | None, mean: str | None) -> None:
    """Raises what is wrong with ``--with`` and ``--mean`` before any model is loaded."""
    from epigraph.artifact import find
    from epigraph.frozen.ensemble import check_mean

    if mean is not None:
        check_mean(mean, name="--mean")
    if mean is not None and not others:
        raise BadValue(f"got --mean {mean} without --with, expected --with RUN: the other artifacts of the ensemble")
    for path in others or ():
        find(path)


def joined(
    tuned: Tuned | None, others: Sequence[Path] | None, mean: str | None, allow_base: str | None, decoding: Decoding
) -> Ensemble | None:
    """The ensemble that the flags ask for, None where they ask for none; it is known to go with ``decoding``."""
    if not others:
        return None
    if tuned is None:
        raise BadValue("got --with and a baseline, expected artifacts: a baseline has no virtual tokens to be joined")
    ensemble = tuned.ensemble(*others, mean=cast("Joining", mean or "geometric"), allow_base=allow_base)
    ensemble.check(decoding)
    return ensemble


def check_positive(**flags: int | None) -> None:
    """Raises :class:`BadValue` for a flag that was given and is below 1."""
    for name, value in flags.items():
        if value is not None and value < 1:
            raise BadValue(f"--{name.replace('_', '-')} is {value}, expected 1 or more")


def changed_decoding(decoding: Decoding, **changes: int | None) -> Decoding:
    """The contract's decoding with the flags that were given."""
    from epigraph.contract import Decoding

    given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    try:
        return Decoding.model_validate({**decoding.model_dump(), **given})
    except ValueError:
        flags = ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in given.items())
        raise BadValue(f"got {flags}, expected positive numbers, at most 64 beams") from None
