"""What the parts of the serving bench share: how much is measured, model, tasks on disk, engines, pairs of rounds."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

from epigraph.bench.clock import ratios, spread
from epigraph.bench.serve_check import check
from epigraph.bench.serve_engine import Names, Options, VLLMServed
from epigraph.bench.serve_load import Ask, texts
from epigraph.engine.claim import Claim
from epigraph.engine.shelf import Shelf
from epigraph.frozen.model import FrozenModel


class Served(Protocol):
    """An engine that runs, as the parts ask it: many requests at once, one round after the other."""

    def answer(self, asks: Sequence[Ask], num_new: int) -> tuple[float, list[list[int]]]:
        """The seconds until the last is answered, and the answers, each of ``num_new`` tokens."""
        ...

    def held_bytes(self) -> int:
        """What it holds of prefixes."""
        ...

    def memory(self) -> dict[str, int]:
        """Resident bytes of its processes: now, and at the most."""
        ...

    def bytes_read(self) -> int:
        """What its processes have read from files and pipes."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How much is measured. ``num_new`` tokens an answer; those of the curve are shorter, for there are more."""

    num_virtual_tokens: int = 10
    in_flight: int = 64
    num_new: int = 48
    pairs: int = 7
    num_prefixes: tuple[int, ...] = (1, 16, 64, 256, 1000)
    curve_requests: int = 128
    curve_num_new: int = 12
    curve_pairs: int = 3
    held_prefixes: int = 64
    first_tokens: int = 15
    adapters: tuple[int, ...] = (64, 8)
    sampled: int = 16


FULL = Sizes()
QUICK = Sizes(
    in_flight=8,
    num_new=8,
    pairs=1,
    num_prefixes=(1, 8),
    curve_requests=8,
    curve_num_new=8,
    curve_pairs=1,
    held_prefixes=2,
    first_tokens=1,
    adapters=(8,),
    sampled=4,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What the parts share: the model, prefixes on disk, how an engine is started on them, a ``folder``."""

    frozen: FrozenModel
    sizes: Sizes
    options: Options
    claims: Mapping[str, Claim]
    folder: Path
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    # Whether the engine goes on past the end token and leaves it to others to stop there.
    may_end: ClassVar[bool] = True

    @property
    def shelf(self) -> Shelf:
        """Where the prefixes lie."""
        assert self.options.shelf is not None
        return Shelf(self.options.shelf)

    @property
    def numbers(self) -> int:
        """How many numbers a prefix has."""
        return self.sizes.num_virtual_tokens * self.frozen.geometry.numbers_per_token()

    @contextmanager
    def engine(self, adapters: Mapping[str, Path] | None = None, **options: Any) -> Iterator[Served]:
        """A new engine, gone at the end of the block; ``options`` are those that differ."""
        log = self.folder / f"{sum(1 for _ in self.folder.glob('*.log'))}.log"
        names = Names(claims=self.claims, adapters=adapters or {})
        with VLLMServed(replace(self.options, **options), names, log) as engine:
            yield engine

    def asks(self, names: Sequence[str | None]) -> list[Ask]:
        """A new text for each of ``names``."""
        made = texts(len(names), len(self.frozen.tokenizer), self.rng)
        return [Ask(ids=ids, name=name) for ids, name in zip(made, names, strict=True)]

    def check(self, asks: Sequence[Ask], answers: Sequence[Sequence[int]]) -> dict[str, Any]:
        """A sample of the answers against transformers."""
        return check(self.frozen, self.shelf, asks, answers, self.sizes.sampled, may_end=self.may_end)


class Pairs:
    """Pairs of rounds, one after the other, and what they come to: tokens a second of both sides, and their ratios."""

    def __init__(self) -> None:
        self._rounds: list[tuple[float, float]] = []

    def add(self, first: Callable[[], float], second: Callable[[], float]) -> None:
        """Run both; which of them begins alternates."""
        if len(self._rounds) % 2:
            later = second()
            self._rounds.append((first(), later))
        else:
            self._rounds.append((first(), second()))

    def found(self, names: tuple[str, str], ratio: str) -> dict[str, Any]:
        """The record: ``ratio`` is how many times the first side's tokens a second are the second's."""
        first, second = ([pair[side] for pair in self._rounds] for side in (0, 1))
        return {ratio: ratios(first, second), "tokens_a_second": {names[0]: spread(first), names[1]: spread(second)}}


def add_pair(pairs: Pairs, engine: Served, one: Sequence[Ask], other: Sequence[Ask], num_new: int) -> list[list[int]]:
    """Both rounds; the first side's answers."""
    answers: list[list[int]] = []

    def first() -> float:
        took, found = engine.answer(one, num_new)
        answers.extend(found)
        return len(one) * num_new / took

    pairs.add(first, partial(tokens_a_second, engine, other, num_new))
    return answers


def tokens_a_second(engine: Served, asks: Sequence[Ask], num_new: int) -> float:
    """A round, from its first request to the end of its last."""
    return len(asks) * num_new / engine.answer(asks, num_new)[0]
