"""What several commands ask for alike: an artifact behind its base, a precision, a decoding."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from epigraph.errors import BadValue

if TYPE_CHECKING:
    from epigraph.contract import Decoding
    from epigraph.tuned import Tuned


def load_tuned(artifact: Path, *, model: str | None, precision: str, device: str, allow_base: str | None) -> Tuned:
    """The artifact behind its base model."""
    from epigraph.train.prepare import DTYPES
    from epigraph.tuned import Tuned

    if precision not in DTYPES:
        raise BadValue(f"--precision is {precision!r}, expected {' or '.join(DTYPES)}")
    return Tuned.load(artifact, model=model, dtype=DTYPES[precision], device=device, allow_base=allow_base)


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
