"""One thing wrong with one row, and how it is said: short, printable, with the nearest name that is known."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

MAX_PRINTED_CHARS = 60

# 'traget' is this near to 'target'; 'source_id' is not this near to 'source'.
_MISSPELT = 0.82


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One thing wrong with one row; ``where`` is ``row`` or ``field NAME``."""

    where: str
    got: str
    expected: str


def missing(name: str, expected: str) -> Fault:
    """A field that is not there."""
    return Fault(where=f"field {name}", got="nothing", expected=expected)


def misspelt_names(names: Iterable[str], known: tuple[str, ...]) -> dict[str, str]:
    """Unknown names that are near to a known name which is not there, each with that known name."""
    there = list(names)
    absent = [name for name in known if name not in there]
    near = {name: get_close_matches(name.strip().lower(), absent, n=1, cutoff=_MISSPELT) for name in there}
    return {name: found[0] for name, found in near.items() if found and name not in known}


def misspelt_faults(misspelt: Mapping[str, str], prefix: str = "") -> Iterator[Fault]:
    """A fault for each of :func:`misspelt_names`; ``prefix`` says where in the row the names stand."""
    for name, known in misspelt.items():
        word = name if name.isidentifier() and name.isascii() else quoted(name)
        yield Fault(where=f"field {prefix}{word}", got="an unknown name", expected=f"{prefix}{known}")


def text_faults(value: object, name: str) -> Iterator[Fault]:
    """What is wrong with the field ``name``, which has to be text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        yield Fault(where=f"field {name}", got=shown(value), expected="text that is not empty")
        return
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        yield Fault(where=f"field {name}", got=f"{shown(value)}, which is not valid UTF-8", expected="UTF-8 text")


def shown(value: object) -> str:
    """A value in a few words: never long, never with control characters, never deep."""
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)[:MAX_PRINTED_CHARS]


def quoted(text: str) -> str:
    """``text`` in quotes, cut where it is long; what cannot be printed is escaped, also what JSON lets through."""
    cut = text[:MAX_PRINTED_CHARS]
    written = json.dumps(cut, ensure_ascii=False)
    word = "".join(x if x.isprintable() else json.dumps(x)[1:-1] for x in written)
    return word if len(cut) == len(text) else f"{word}... ({len(text):,} characters)"
