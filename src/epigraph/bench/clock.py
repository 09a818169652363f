"""Seconds and bytes of a piece of work, and what several of them come to. It knows no model."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")

_STATUS = Path("/proc/self/status")
_FORGET = Path("/proc/self/clear_refs")


def timed(work: Callable[[], T], device: torch.device) -> tuple[float, T]:
    """How many seconds ``work`` takes, with what it leaves to a GPU, and what it returns."""
    _wait(device)
    start = time.perf_counter()
    done = work()
    _wait(device)
    return time.perf_counter() - start, done


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """How long ``work`` takes."""
    return timed(work, device)[0]


def extra_bytes(work: Callable[[], object], device: torch.device) -> int | None:
    """How much memory ``work`` takes at its peak beyond what there was before; None where nobody can tell.

    On a CPU it is the resident set as Linux counts it, on a GPU what torch allocated.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return int(torch.cuda.max_memory_allocated(device) - before)
    try:
        # What earlier steps gave back to malloc is given back to Linux, or it would hide what this one takes.
        ctypes.CDLL(None).malloc_trim(0)
        _FORGET.write_text("5", encoding="ascii")
        before = _kilobytes("VmRSS")
        work()
        return max(0, _kilobytes("VmHWM") - before) * 1024
    except (OSError, AttributeError):
        return None


def _kilobytes(name: str) -> int:
    line = next(x for x in _STATUS.read_text(encoding="ascii").splitlines() if x.startswith(f"{name}:"))
    return int(line.split()[1])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """The median of repeats, the least and the most, and all of them."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "values": list(values)}


def ratios(above: Sequence[float], below: Sequence[float]) -> dict[str, Any]:
    """Repeat by repeat, how many times the one is the other: what a noisy machine does to both cancels."""
    return spread([x / y for x, y in zip(above, below, strict=True)])
