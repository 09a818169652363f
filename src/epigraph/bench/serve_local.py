"""`epigraph bench serve --engine local`: the local engine beside the bare model, and beside PEFT's switching.

The parts that vLLM is measured by serve here, too; what differs is how an engine is started and asked.
"""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from epigraph.bench import serve_parts
from epigraph.bench.clock import ratios, spread
from epigraph.bench.peers import Switching, check_installed
from epigraph.bench.serve_engine import Options, peak_bytes
from epigraph.bench.serve_job import QUICK, Job, Sizes
from epigraph.bench.serve_load import Ask
from epigraph.bench.serve_parts import Advance, Part
from epigraph.bench.serve_tasks import write_prefixes
from epigraph.bench.train import kept
from epigraph.contract import Decoding
from epigraph.engine.base import Request, answer
from epigraph.engine.local import LocalEngine
from epigraph.engine.shelf import Shelf
from epigraph.errors import EngineUnavailable
from epigraph.frozen.loading import has_fast_bf16
from epigraph.frozen.model import FrozenModel
from epigraph.frozen.resolve import resolve
from epigraph.train.record import machine, versions, write_json
from epigraph.virtual import KVPrefix

# A laptop's users, and what two cores say in a quarter of an hour.
NUM_PREFIXES = (1, 4, 16, 64, 256)
SIZES = Sizes(num_prefixes=NUM_PREFIXES, num_new=24, pairs=5, curve_requests=64, curve_num_new=12)
QUICK_SIZES = replace(QUICK, num_prefixes=(1, 4))
# Rounds in which PEFT answers one request after the other take minutes each.
SWITCHING_PAIRS = 3


class LocalServed:
    """A local engine that runs in an event loop of its own, which turns while requests are answered."""

    def __init__(self, frozen: FrozenModel, shelf: Path, *, cache_bytes: int, max_rows: int) -> None:
        self._loop = asyncio.new_event_loop()
        self._frozen = frozen
        self._engine = self._loop.run_until_complete(_started(frozen, shelf, cache_bytes, max_rows))

    def answer(self, asks: Sequence[Ask], num_new: int) -> tuple[float, list[list[int]]]:
        """See :class:`epigraph.bench.serve_job.Served`."""
        decoding = Decoding(max_new_tokens=num_new, min_new_tokens=num_new)
        read = self._frozen.tokenizer.decode
        requests = [Request(text=str(read(list(x.ids))), prefix=x.name, decoding=decoding) for x in asks]
        start = time.perf_counter()
        found = self._loop.run_until_complete(self._all(requests))
        took = time.perf_counter() - start
        short = sum(len(one) != num_new for one in found)
        if short:
            raise EngineUnavailable(f"{short} of {len(asks)} requests were not answered to their end")
        return took, found

    def held_bytes(self) -> int:
        """See :class:`epigraph.bench.serve_job.Served`."""
        return self._engine.held_bytes

    def memory(self) -> dict[str, int]:
        """See :class:`epigraph.bench.serve_job.Served`."""
        import psutil

        here = psutil.Process()
        return {"resident_bytes": here.memory_info().rss, "peak_bytes": peak_bytes(here.pid)}

    def bytes_read(self) -> int:
        """See :class:`epigraph.bench.serve_job.Served`."""
        import psutil

        read: int = psutil.Process().io_counters().read_chars
        return read

    def close(self) -> None:
        """End the engine and its loop."""
        self._loop.run_until_complete(self._engine.close())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    async def _all(self, requests: Sequence[Request]) -> list[list[int]]:
        found = await asyncio.gather(*(answer(self._engine, x) for x in requests))
        return [list(x.token_ids) for x in found]


async def _started(frozen: FrozenModel, shelf: Path, cache_bytes: int, max_rows: int) -> LocalEngine:
    return LocalEngine(frozen, Shelf(shelf), cache_bytes=cache_bytes, max_rows=max_rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalJob(Job):
    """What the parts share, where engines are local ones on the frozen model itself."""

    may_end: ClassVar[bool] = False

    @contextmanager
    def engine(self, adapters: Mapping[str, Path] | None = None, **options: Any) -> Iterator[LocalServed]:
        """A new engine, gone at the end of the block."""
        assert not adapters, "adapters are vLLM's"
        assert self.options.shelf is not None
        served = LocalServed(self.frozen, self.options.shelf, max_rows=64, **{"cache_bytes": 1 << 30, **options})
        try:
            yield served
        finally:
            served.close()

    def asks(self, names: Sequence[str | None]) -> list[Ask]:
        """A new text for each of ``names``: ids that a text of them has again, for an engine is asked by texts."""
        tokenizer = self.frozen.tokenizer
        made = super(LocalJob, self).asks(names)
        read = [tokenizer.decode(list(ask.ids)) for ask in made]
        return [Ask(ids=tuple(tokenizer(text).input_ids), name=ask.name) for text, ask in zip(read, made, strict=True)]


def switching(job: Job, advance: Advance) -> Part:
    """Each request with its own prefix, all in one batch, against PEFT, adapter by adapter, request by request."""
    check_installed()
    names, num_new = list(job.claims)[: job.sizes.in_flight], job.sizes.num_new
    opened = {name: job.shelf.open(name).artifact.tokens for name in names}
    carried = {name: tokens for name, tokens in opened.items() if isinstance(tokens, KVPrefix)}
    peft = Switching(str(job.options.model), job.frozen, carried)
    ours: list[float] = []
    theirs: list[float] = []
    with job.engine() as engine:
        engine.answer(job.asks(names), 4)
        peft.answer(job.asks(names[:2]), 4)
        for _ in range(min(SWITCHING_PAIRS, job.sizes.pairs)):
            asks = job.asks(names)
            took, answers = engine.answer(asks, num_new)
            ours.append(len(asks) * num_new / took)
            took, said = peft.answer(asks, num_new)
            theirs.append(len(asks) * num_new / took)
            advance()
    same = sum(list(a) == list(b) for a, b in zip(answers, said, strict=True))
    return {
        "ratio_vs_switching": ratios(ours, theirs),
        "tokens_a_second": {"prefixes": spread(ours), "PEFT": spread(theirs)},
        "requests": len(names),
        "same_answers": same,
    }


PARTS: Mapping[str, Callable[[Job, Advance], Part]] = {
    "own_prefixes": serve_parts.own_prefixes,
    "switching": switching,
    "num_prefixes": serve_parts.num_prefixes,
    "small_cache": serve_parts.small_cache,
    "first_token": serve_parts.first_token,
}


def run(
    path: Path,
    parts: Sequence[str],
    *,
    model: str,
    quick: bool = False,
    begin: Callable[[str], Advance] = lambda _: lambda: None,
) -> dict[str, Any]:
    """Run ``parts`` and write ``path`` after each; parts that the file has from this machine and not asked for stay.

    Raises :class:`CannotServe` for answers that are not transformers', and :class:`BadValue` for another machine's or
    other settings' record.
    """
    sizes = QUICK_SIZES if quick else SIZES
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    has_bf16 = has_fast_bf16(device)
    dtype = "bfloat16" if has_bf16 else "float32"
    head = {
        "settings": {"engine": "local", "model": model, "dtype": dtype, "max_rows": 64, **asdict(sizes)},
        "machine": {**machine(), "fast_bf16": has_bf16},
        "versions": versions(),
    }
    head = json.loads(json.dumps(head))
    record = {**head, "parts": kept(path, head)}
    with tempfile.TemporaryDirectory(prefix="epigraph-bench-") as folder:
        job = _job(Path(folder), model, dtype, device, sizes)
        for part in parts:
            record["parts"][part] = PARTS[part](job, begin(part))
            write_json(path, record)
    return record


def _job(folder: Path, model: str, dtype: str, device: torch.device, sizes: Sizes) -> Job:
    frozen = FrozenModel.load(model, dtype=dtype, device=device)
    shelf = folder / "shelf"
    shelf.mkdir()
    num_prefixes = max(sizes.num_prefixes) + sizes.first_tokens
    return LocalJob(
        frozen=frozen,
        sizes=sizes,
        options=Options(model=resolve(model).folder, dtype=dtype, shelf=shelf),
        claims=write_prefixes(frozen, shelf, num_prefixes, sizes.num_virtual_tokens),
        folder=folder,
        rng=random.Random(0),
    )
