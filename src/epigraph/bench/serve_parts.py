"""The parts of the serving bench: what is asked of which engine, and what is recorded of it.

Rounds of a pair follow each other in one engine and take turns in being first, so that what else a machine does meets
both.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from epigraph.bench.clock import spread
from epigraph.bench.serve_job import Job, Pairs, Served, add_pair, tokens_a_second
from epigraph.bench.serve_load import DRAWS, Ask, bare, drawn, renamed
from epigraph.bench.serve_tasks import Adapters, write_adapters
from epigraph.errors import EngineUnavailable
from epigraph.frozen.model import DTYPES

Advance = Callable[[], None]
Part = dict[str, Any]


def own_prefixes(job: Job, advance: Advance) -> Part:
    """A: as many requests as there are prefixes, each with its own, against the same texts without any."""
    names, num_new = list(job.claims)[: job.sizes.in_flight], job.sizes.num_new
    with job.engine() as engine:
        asks = job.asks(names)
        checked = job.check(asks, engine.answer(asks, num_new)[1])
        engine.answer(bare(asks), num_new)
        pairs, same = Pairs(), Pairs()
        for _ in range(job.sizes.pairs):
            asks = job.asks(names)
            add_pair(pairs, engine, asks, bare(asks), num_new)
            asks = bare(job.asks(names))
            add_pair(same, engine, asks, asks, num_new)
            advance()
        memory = _memory(engine)
    return {
        **pairs.found(("own prefixes", "bare"), "ratio_vs_bare"),
        "bare_vs_bare": same.found(("bare", "bare again"), "ratio")["ratio"],
        "check": checked,
        **memory,
    }


def num_prefixes(job: Job, advance: Advance) -> Part:
    """B: the same number of requests over more and more prefixes, asked for equally often or by Zipf's law."""
    with job.engine() as engine:
        return {
            draw: {str(number): _point(job, engine, number, draw, advance) for number in job.sizes.num_prefixes}
            for draw in DRAWS
        }


def small_cache(job: Job, advance: Advance) -> Part:
    """C: workers that hold a part of the prefixes that are asked for: the others are read again and again."""
    held = job.sizes.held_prefixes
    cache_bytes = held * job.numbers * DTYPES[job.options.dtype].itemsize
    with job.engine(cache_bytes=cache_bytes) as engine:
        found = _point(job, engine, max(job.sizes.num_prefixes), "uniform", advance)
    if found["held_bytes"] > cache_bytes:
        raise EngineUnavailable(
            f"a worker holds {found['held_bytes']} bytes of prefixes, expected {cache_bytes} or less"
        )
    return {"held_prefixes": held, "cache_bytes": cache_bytes, **found}


def _point(job: Job, engine: Served, number: int, draw: str, advance: Advance) -> Part:
    names, num_new, read = list(job.claims)[:number], job.sizes.curve_num_new, engine.bytes_read()
    pairs, seen, asks, answers = Pairs(), set[str](), list[Ask](), list[list[int]]()
    for _ in range(job.sizes.curve_pairs):
        asked = drawn(names, job.sizes.curve_requests, draw, job.rng)
        seen |= set(asked)
        asks = job.asks(asked)
        answers = add_pair(pairs, engine, asks, bare(asks), num_new)
        advance()
    read = engine.bytes_read() - read
    return {
        **pairs.found(("prefixes", "bare"), "ratio_vs_bare"),
        "asked_for": len(seen),
        "check": job.check(asks, answers),
        "bytes_read": read,
        **_memory(engine),
    }


def first_token(job: Job, advance: Advance) -> Part:
    """D: one request to an engine with nothing else to do, until its first token."""
    unseen = list(job.claims)[-job.sizes.first_tokens :]
    took: dict[str, list[float]] = {"bare": [], "never seen": [], "seen": [], "seen, file looked at again": []}
    claims = []
    with job.engine() as engine:
        for _ in range(3):
            engine.answer(job.asks([next(iter(job.claims)), None]), 2)
        for name in unseen:
            start = time.perf_counter()
            job.shelf.claim(name)
            claims.append(time.perf_counter() - start)
            for how, values in took.items():
                if how.endswith("again"):
                    # Longer than a worker's last look at the file may be ago.
                    time.sleep(1.2)
                values.append(engine.answer(job.asks([None if how == "bare" else name]), 1)[0])
            advance()
    return {"seconds": {how: spread(values) for how, values in took.items()}, "claim_seconds": spread(claims)}


def lora(job: Job, advance: Advance) -> Part:
    """E: as many adapters of the same size instead, each engine beside its own bare model and beside each other."""
    adapters = write_adapters(job.frozen, job.folder / "adapters", max(job.sizes.adapters), job.numbers)
    found: Part = {"rank": adapters.rank, "numbers": adapters.num_numbers, "max_loras": {}}
    with job.engine() as prefixes:
        for max_loras in job.sizes.adapters:
            try:
                found["max_loras"][str(max_loras)] = _beside_adapters(job, prefixes, adapters, max_loras, advance)
            except EngineUnavailable as wrong:
                found["max_loras"][str(max_loras)] = {"error": str(wrong)}
    return found


def _beside_adapters(job: Job, prefixes: Served, made: Adapters, max_loras: int, advance: Advance) -> Part:
    sizes = job.sizes
    options = {"max_loras": max_loras, "lora_rank": made.rank, "max_cpu_loras": len(made.folders)}
    both = list(job.claims)[: sizes.in_flight], list(made.folders)[: sizes.in_flight]
    beside, against = Pairs(), Pairs()
    with job.engine(made.folders, shelf=None, **options) as adapters:
        for engine, names in zip((prefixes, adapters), both, strict=True):
            engine.answer(job.asks(names), sizes.curve_num_new)
        for _ in range(sizes.curve_pairs):
            asks = job.asks(both[0])
            others = renamed(asks, both[1])
            beside.add(
                partial(tokens_a_second, prefixes, asks, sizes.curve_num_new),
                partial(tokens_a_second, adapters, others, sizes.curve_num_new),
            )
            add_pair(against, adapters, others, bare(asks), sizes.curve_num_new)
            advance()
        memory = adapters.memory()
    return {
        **beside.found(("prefixes", "adapters"), "prefixes_vs_adapters"),
        "adapters": against.found(("adapters", "bare"), "ratio_vs_bare"),
        **memory,
        "prefixes_memory": prefixes.memory(),
    }


def _memory(engine: Served) -> Part:
    return {"held_bytes": engine.held_bytes(), **engine.memory()}
