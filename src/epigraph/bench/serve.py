"""`epigraph bench serve`: prefixes on stock vLLM beside the bare model, each part written as soon as it is there."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from epigraph.bench import serve_parts
from epigraph.bench.serve_engine import BLOCK_SIZE, KV_CACHE_BYTES, MAX_NUM_SEQS, Options, installed_version
from epigraph.bench.serve_job import FULL, QUICK, Job, Sizes
from epigraph.bench.serve_parts import Advance, Part
from epigraph.bench.serve_tasks import write_prefixes
from epigraph.bench.train import kept
from epigraph.frozen.loading import has_fast_bf16
from epigraph.frozen.model import FrozenModel
from epigraph.frozen.resolve import resolve
from epigraph.train.record import machine, versions, write_json

PARTS: Mapping[str, Callable[[Job, Advance], Part]] = {
    "own_prefixes": serve_parts.own_prefixes,
    "num_prefixes": serve_parts.num_prefixes,
    "small_cache": serve_parts.small_cache,
    "first_token": serve_parts.first_token,
    "lora": serve_parts.lora,
}


def run(
    path: Path,
    parts: Sequence[str],
    *,
    model: str,
    quick: bool = False,
    compiled: bool = False,
    begin: Callable[[str], Advance] = lambda _: lambda: None,
) -> dict[str, Any]:
    """Run ``parts`` and write ``path`` after each; parts that the file has from this machine and not asked for stay.

    Raises :class:`EngineUnavailable` without vLLM, :class:`CannotServe` for answers that are not transformers', and
    :class:`BadValue` for another machine's or other settings' record.
    """
    vllm_version = installed_version()
    sizes = QUICK if quick else FULL
    has_bf16 = has_fast_bf16(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = "bfloat16" if has_bf16 else "float32"
    settings = {"engine": "vllm", "model": model, "dtype": dtype, "compiled": compiled}
    head = _head(settings, sizes, has_bf16, vllm_version)
    record = {**head, "parts": kept(path, head)}
    with tempfile.TemporaryDirectory(prefix="epigraph-bench-") as folder:
        job = _job(Path(folder), model, dtype, compiled, sizes)
        for part in parts:
            record["parts"][part] = PARTS[part](job, begin(part))
            write_json(path, record)
    return record


def _head(settings: Mapping[str, Any], sizes: Sizes, has_bf16: bool, vllm_version: str) -> dict[str, Any]:
    engine = {"max_num_seqs": MAX_NUM_SEQS, "block_size": BLOCK_SIZE, "kv_cache_bytes": KV_CACHE_BYTES}
    # The engine's threads, not those of this process.
    threads = len(os.sched_getaffinity(0))
    head = {
        "settings": {**settings, **engine, **asdict(sizes)},
        "machine": {**machine(), "torch_threads": threads, "fast_bf16": has_bf16},
        "versions": {**versions(), "vllm": vllm_version},
    }
    # As it is read back: lists, where sizes have tuples.
    same: dict[str, Any] = json.loads(json.dumps(head))
    return same


def _job(folder: Path, model: str, dtype: str, compiled: bool, sizes: Sizes) -> Job:
    frozen = FrozenModel.load(model, dtype=dtype)
    shelf, num_prefixes = folder / "shelf", max(sizes.num_prefixes) + sizes.first_tokens
    shelf.mkdir()
    return Job(
        frozen=frozen,
        sizes=sizes,
        options=Options(model=resolve(model).folder, dtype=dtype, compiled=compiled, shelf=shelf),
        claims=write_prefixes(frozen, shelf, num_prefixes, sizes.num_virtual_tokens),
        folder=folder,
    )
