"""Two hundred streams at once for five minutes against `epigraph serve`, with trouble-makers among them.

First tokens, gaps between tokens, errors and the server's memory, as one JSON file with machine and versions. Slow
readers, clients that leave in the middle and bodies of a megabyte are counted apart: they must not harm the others.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from epigraph.bench.serve_tasks import write_prefixes
from epigraph.frozen.model import FrozenModel
from epigraph.registry import LOCAL, Registry
from epigraph.report.cells import table
from epigraph.train.record import machine, versions, write_json

NUM_PREFIXES, NUM_VIRTUAL_TOKENS, NEW_TOKENS = 64, 10, 32
TROUBLE = {"slow": 4, "abandoned": 4, "large": 2}
WORDS = ("name", "type", "food", "price", "area", "river", "pub", "coffee shop", "cheap", "near", "family friendly")


@dataclass(kw_only=True)
class Seen:
    """What clients saw, in seconds, and how their requests ended."""

    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    ended: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--engine", default="local")
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=300)
    options = parser.parse_args()
    seen = Seen()
    with tempfile.TemporaryDirectory(prefix="epigraph-load-") as folder:
        names = furnish(Path(folder), options.model)
        with served(Path(folder), options.model, options.engine, options.streams) as (url, server):
            asyncio.run(load(url, server, names, options.streams, options.seconds, seen))
    found = {
        "settings": {
            "model": options.model,
            "engine": options.engine,
            "streams": options.streams,
            "seconds": options.seconds,
            "prefixes": NUM_PREFIXES,
            "new_tokens": NEW_TOKENS,
            "trouble": TROUBLE,
        },
        **summary(seen, options.seconds),
        "machine": machine(),
        "versions": versions(),
    }
    write_json(options.json, found)
    print("\n\n".join(tables(found)))


def furnish(folder: Path, model: str) -> list[str]:
    """A registry with random prefixes of tenant ``local``; their names."""
    frozen = FrozenModel.load(model)
    names = list(write_prefixes(frozen, folder, NUM_PREFIXES, NUM_VIRTUAL_TOKENS))
    registry = Registry.open(str(folder / "catalogue.sqlite"), folder / "store")
    try:
        registry.tenants.ensure(LOCAL)
        for name in names:
            registry.push(LOCAL, name, folder / f"{name}.safetensors", by="load")
    finally:
        registry.close()
    return names


@contextmanager
def served(folder: Path, model: str, engine: str, rows: int) -> Iterator[tuple[str, psutil.Process]]:
    """The server in a process of its own; it must end well."""
    words = ["--model", model, "--engine", engine, "--port", "0", "--insecure-local"]
    words += ["--catalogue", str(folder / "catalogue.sqlite"), "--store", str(folder / "store")]
    words += ["--max-rows", str(rows + sum(TROUBLE.values()))] if engine == "local" else []
    log = (folder / "server.log").open("wb")
    command = [sys.executable, "-m", "epigraph", "serve", *words]
    with log, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log) as server:
        assert server.stdout is not None
        try:
            lines = (line.decode().split() for line in server.stdout)
            yield next(x for line in lines for x in line if x.startswith("http://")), psutil.Process(server.pid)
        finally:
            server.send_signal(signal.SIGTERM)
            assert server.wait(120) == 0, "the server did not end well"


async def load(
    url: str, server: psutil.Process, names: Sequence[str], streams: int, seconds: float, seen: Seen
) -> None:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=streams)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
        until = time.monotonic() + seconds
        clients = [_client(http, names, random.Random(n), until, seen) for n in range(streams)]
        clients += [
            _trouble(kind, url, http, names, random.Random(1000 + n), until, seen)
            for kind, number in TROUBLE.items()
            for n in range(number)
        ]
        await asyncio.gather(*clients, _watch(server, until, seen))


async def _watch(server: psutil.Process, until: float, seen: Seen) -> None:
    while time.monotonic() < until:
        await asyncio.sleep(2)
        processes = [server, *server.children(recursive=True)]
        seen.resident.append(sum(x.memory_info().rss for x in processes))


def _body(names: Sequence[str], draw: random.Random) -> dict[str, Any]:
    text = " ".join(draw.choices(WORDS, k=draw.randrange(5, 40)))
    return {"model": draw.choice(names), "prompt": text, "max_tokens": NEW_TOKENS, "stream": True}


async def _client(http: httpx.AsyncClient, names: Sequence[str], draw: random.Random, until: float, seen: Seen) -> None:
    while time.monotonic() < until:
        begun = last = time.perf_counter()
        pieces, said_done = 0, False
        async with http.stream("POST", "/v1/completions", json=_body(names, draw)) as answer:
            if answer.status_code != 200:
                seen.wrong.append(f"{answer.status_code}: {(await answer.aread())[:200]!r}")
                continue
            async for line in answer.aiter_lines():
                if not line.startswith("data: "):
                    continue
                said_done = line == "data: [DONE]"
                if said_done:
                    break
                now = time.perf_counter()
                if "error" in json.loads(line.removeprefix("data: ")):
                    seen.wrong.append(line[:300])
                (seen.gaps if pieces else seen.first).append(now - (last if pieces else begun))
                last, pieces = now, pieces + 1
        seen.ended["done" if said_done else "broken"] += 1


async def _trouble(
    kind: str, url: str, http: httpx.AsyncClient, names: Sequence[str], draw: random.Random, until: float, seen: Seen
) -> None:
    while time.monotonic() < until:
        if kind == "large":
            body = {**_body(names, draw), "prompt": "a tree " * 150_000, "stream": False}
            answer = await http.post("/v1/completions", json=body)
            seen.ended[f"large {answer.status_code}"] += 1
            await asyncio.sleep(1)
            continue
        async with http.stream("POST", "/v1/completions", json=_body(names, draw)) as answer:
            async for _ in answer.aiter_bytes(16):
                if kind == "abandoned":
                    break
                await asyncio.sleep(0.5)
                if time.monotonic() > until:
                    break
        seen.ended[kind] += 1


def summary(seen: Seen, seconds: float) -> dict[str, Any]:
    third = len(seen.resident) // 3
    return {
        "requests": seen.ended["done"],
        "ended": dict(seen.ended),
        "errors": len(seen.wrong),
        "first_errors": seen.wrong[:5],
        "pieces_a_second": (len(seen.first) + len(seen.gaps)) / seconds,
        "first_token_seconds": percentiles(seen.first),
        "token_seconds": percentiles(seen.gaps),
        "resident_bytes": {
            "second_third": int(statistics.median(seen.resident[third : 2 * third])),
            "last_third": int(statistics.median(seen.resident[2 * third :])),
            "most": max(seen.resident),
        },
    }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {name: ordered[min(len(ordered) - 1, int(len(ordered) * share))] for name, share in SHARES.items()}


SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "most": 1.0}


def tables(found: dict[str, Any]) -> list[str]:
    """What docs/serving.md shows of a record."""
    rows = [
        (words, *(f"{found[key][x]:.2f}" for x in SHARES))
        for words, key in (("until the first token", "first_token_seconds"), ("from token to token", "token_seconds"))
    ]
    settings, memory = found["settings"], found["resident_bytes"]
    ended = ", ".join(f"{count:,} {name}" for name, count in sorted(found["ended"].items()) if name != "done")
    said = (
        f"{settings['streams']} streams at once for {settings['seconds']:.0f} s over {settings['prefixes']} prefixes "
        f"of {settings['model']} ({settings['engine']} engine): {found['requests']:,} answers, {found['errors']} "
        f"errors, {found['pieces_a_second']:.0f} tokens a second. Beside them: {ended}. The server's memory: "
        f"{memory['second_third'] / 1e9:.2f} GB in the second third, {memory['last_third'] / 1e9:.2f} GB in the last, "
        f"{memory['most'] / 1e9:.2f} GB at the most."
    )
    return [table(("seconds", "median", "90 %", "99 %", "the longest"), rows), said]


if __name__ == "__main__":
    main()
