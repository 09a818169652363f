"""How much of the machine's matmul ceiling a step reaches, and where the rest goes, operation by operation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from epigraph.bench.ceiling import least, matmul_ceiling
from epigraph.bench.clock import seconds, spread
from epigraph.bench.job import NUM_VIRTUAL_TOKENS, Job
from epigraph.frozen.batch import Batch
from epigraph.frozen.inputs import Encoded

SIZES = (8, 32)
SHOWN = 24
# Which kind of work an operation is, by a part of its name; the first that fits.
KINDS = {
    "bookkeeping": ("autograd", "profiler", "hook"),
    "matrix products": ("mm", "gemm"),
    "loss": ("logsumexp", "log_softmax", "nll", "exp", "gather", "scatter"),
    "attention": ("attention", "softmax", "flash", "fmha"),
    "moving": (
        *("copy", "cat", "index", "fill", "zero", "clone", "contiguous", "stack", "empty", "memcpy", "memset"),
        *("masked", "where", "view", "reshape", "expand", "transpose", "slice", "split"),
    ),
    "element by element": (
        *("mul", "add", "sub", "div", "neg", "pow", "sqrt", "mean", "sum", "silu", "gelu", "tanh", "sin", "cos"),
        *("elementwise", "reduce", "norm"),
    ),
}


def share(job: Job, advance: Callable[[], None]) -> dict[str, Any]:
    """A step's operations a second, beside the most that a matrix product reaches here, at two batch sizes."""
    found: dict[str, Any] = {"num_virtual_tokens": NUM_VIRTUAL_TOKENS}
    side, model = job.ours(), job.ready.frozen.model
    for size in SIZES:
        ceilings, shares, took = [], [], []
        for batch in job.batches(size)[: job.repeats]:
            ceiling = matmul_ceiling(job.device, model.dtype)
            took.append(seconds(partial(side.step, batch), job.device))
            needs = least(job.ready.frozen, _rows(batch), NUM_VIRTUAL_TOKENS)
            ceilings.append(ceiling)
            shares.append(needs.operations / took[-1] / ceiling)
            advance()
        found[f"batch {size}"] = {
            "seconds_a_step": spread(took),
            "ceiling_operations_a_second": spread(ceilings),
            "share_of_ceiling": spread(shares),
            "operations": {"layers": needs.layers, "head": needs.head, "attention": needs.attention},
            "weight_bytes_read": needs.weight_bytes,
        }
    return found


def profile(job: Job, advance: Callable[[], None]) -> dict[str, Any]:
    """Of one step of ours, and of PEFT's on the same batch, the share of time of each operation by itself."""
    from epigraph.bench import peers
    from epigraph.bench.job import LR

    batch = job.batches()[0]
    found = {}
    for side in (job.ours(), peers.prefix_side(job.plain(), job.first(), LR)):
        side.step(batch)
        found[side.name] = _looked_at(side, batch, job.device)
        advance()
    return found


def _looked_at(side: Any, batch: Batch, device: torch.device) -> dict[str, Any]:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as looking

    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with looking(activities=activities) as seen:
        side.step(batch)
    name = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    times = {x.key: float(getattr(x, name)) for x in seen.key_averages()}
    total = sum(times.values())
    largest = sorted(times.items(), key=lambda item: -item[1])
    kinds: dict[str, float] = {}
    for key, value in times.items():
        kind = _kind(key)
        kinds[kind] = kinds.get(kind, 0.0) + value / total
    return {
        "seconds": total / 1e6,
        "by_kind": kinds,
        "by_operation": {key: value / total for key, value in largest[:SHOWN]},
    }


def _kind(name: str) -> str:
    lowered = name.lower().removeprefix("aten::")
    return next((kind for kind, parts in KINDS.items() if any(part in lowered for part in parts)), "other")


def _rows(batch: Batch) -> list[Encoded]:
    lengths = batch.mask_BT.sum(1).tolist()
    return [
        Encoded(ids=tuple(ids[:length]), scored=tuple(scored[:length]))
        for ids, scored, length in zip(batch.ids_BT.tolist(), batch.scored_BT.tolist(), lengths, strict=True)
    ]
