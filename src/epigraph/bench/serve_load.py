"""What an engine is asked in the serving bench: texts of random tokens, and whose each is. It knows no engine."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

# Tokens of a text, so that with ten virtual ones it is shorter than a block of an engine's cache: no round finds
# anything of an earlier one there.
TEXT_LENGTHS = (16, 22)
# The first ids of a vocabulary are those with a meaning of their own.
_FIRST_ID = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """A text of token ids, and the name of the prefix or adapter that it is for; None is the bare model."""

    ids: tuple[int, ...]
    name: str | None = None


def texts(num_texts: int, num_vocabulary: int, rng: random.Random) -> list[tuple[int, ...]]:
    """Texts of random tokens."""
    ids = range(_FIRST_ID, num_vocabulary)
    return [tuple(rng.choices(ids, k=rng.randint(*TEXT_LENGTHS))) for _ in range(num_texts)]


def uniform(num_names: int) -> list[float]:
    """Everybody is asked for equally often."""
    return [1.0] * num_names


def zipf(num_names: int) -> list[float]:
    """The second is asked for half as often as the first, the third a third as often, and so on (exponent 1)."""
    return [1 / (number + 1) for number in range(num_names)]


DRAWS: Mapping[str, Callable[[int], list[float]]] = {"uniform": uniform, "Zipf": zipf}


def drawn(names: Sequence[str], num_asks: int, draw: str, rng: random.Random) -> list[str]:
    """Whom each of so many requests is for."""
    return rng.choices(names, DRAWS[draw](len(names)), k=num_asks)


def renamed(asks: Sequence[Ask], names: Sequence[str | None]) -> list[Ask]:
    """The same texts for others."""
    return [replace(ask, name=name) for ask, name in zip(asks, names, strict=True)]


def bare(asks: Sequence[Ask]) -> list[Ask]:
    """The same texts to the bare model."""
    return renamed(asks, [None] * len(asks))
