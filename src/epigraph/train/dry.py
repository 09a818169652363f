"""What a run would cost, measured on a few real steps whose result is thrown away. Nothing is written."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from typing import Any

import torch

from epigraph.frozen.batch import collate, length, num_scored
from epigraph.frozen.inputs import fill_token
from epigraph.train.build import make_method
from epigraph.train.loss import lesson_losses
from epigraph.train.prepare import Prepared

TIMED_STEPS = 3


def cost(ready: Prepared) -> dict[str, Any]:
    """Rows, tokens, truncated rows, steps, peak memory in bytes and time in seconds of the run ``ready`` describes.

    The longest rows are tried first, so that memory is the run's own peak; time is the median of typical batches.
    """
    plan, rows = ready.recipe.training, ready.rows
    method = make_method(ready)
    by_length = sorted(rows, key=lambda row: -length(row))
    middle = by_length[len(rows) // 2 :] or by_length
    _timed_step(ready, method, by_length[: plan.batch_size])
    seconds = [_timed_step(ready, method, middle[: plan.batch_size]) for _ in range(TIMED_STEPS)]
    rows_per_step = plan.batch_size * plan.accumulation
    return {
        "rows": len(rows),
        "truncated_rows": sum(row.truncated for row in rows),
        "tokens": sum(length(row) for row in rows),
        "scored_tokens": sum(num_scored(row) for row in rows),
        "longest_row": length(by_length[0]),
        "steps": ready.steps,
        "rows_per_step": rows_per_step,
        "epochs": ready.steps * rows_per_step / len(rows),
        "trained_numbers": method.num_trained,
        "stored_numbers": method.num_stored,
        "peak_memory_bytes": _peak_memory(ready.frozen.device),
        "seconds": statistics.median(seconds) * ready.steps * plan.accumulation,
        "timed_steps": TIMED_STEPS,
    }


def _timed_step(ready: Prepared, method: Any, rows: Any) -> float:
    start = time.perf_counter()
    batch = collate(rows, fill_token(ready.frozen.tokenizer)).to(ready.frozen.device)
    losses = lesson_losses(ready.frozen, batch, method)
    if losses.requires_grad:
        losses.mean().backward()
    method.zero_grad()
    if ready.frozen.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
