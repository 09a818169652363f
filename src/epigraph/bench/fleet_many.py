"""The part of the fleet's bench with thousands of users: the real worker, how fast it is, and how large.

Knows files and processes; the model is so small that what is left is the fleet's own work.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from epigraph.bench.fleet_job import Job
from epigraph.bench.fleet_tiny import write_model, write_users
from epigraph.tasks.users import read_users
from epigraph.train.fleet.order import Order, Progress
from epigraph.train.fleet.place import Place
from epigraph.train.fleet.table import summary_of, users_of
from epigraph.train.fleet.worker import work
from epigraph.train.recipe_file import check_recipe

Advance = Callable[[], None]
NUM_VIRTUAL_TOKENS = 4
# Into how many parts the users are divided to see whether the last goes as the first.
MARKS = 10


def ten_thousand(job: Job, advance: Advance) -> dict[str, Any]:
    """C: users of a tiny model, from rows to artifacts in a folder, by the worker of `epigraph fleet`."""
    sizes = job.sizes
    with tempfile.TemporaryDirectory(prefix="epigraph-bench-") as folder:
        data = write_users(Path(folder, "rows.jsonl"), sizes.many, sizes.many_pairs)
        recipe = check_recipe(
            {
                "model": str(write_model(Path(folder, "model"))),
                "data": {"train": str(data)},
                "method": {"name": "prefix-tuning", "num_virtual_tokens": NUM_VIRTUAL_TOKENS},
                "training": {"batch_size": 2, "steps": sizes.many_steps},
            }
        )
        out = Path(folder, "fleet")
        order = Order(recipe=recipe, users=read_users(data), out=str(out), device=str(job.device))
        marks = _Marks(job.device, sizes.many // MARKS, advance)
        progress = work(order, report=marks.see)
        ended = summary_of(users_of(Place(str(out))))
        files = [x for x in out.rglob("*") if x.is_file()]
        return {
            "marks": marks.found,
            "last_to_first": marks.found[-1]["users_an_hour"] / marks.found[0]["users_an_hour"],
            "users_an_hour": progress.users_an_hour,
            "seconds": progress.seconds,
            "done": ended["done"],
            "failed": ended["failed"],
            "steps": ended["steps"],
            "tokens": ended["tokens"],
            "artifact_bytes": ended["stored_bytes"],
            "disk_bytes": sum(x.stat().st_size for x in files),
            "files": len(files),
        }


@dataclass(slots=True)
class _Marks:
    """Looks at the process whenever ``every`` users more are done."""

    device: torch.device
    every: int
    advance: Advance
    found: list[dict[str, Any]] = field(default_factory=list)
    _seen: tuple[int, float] = (0, 0.0)

    def see(self, now: Progress) -> None:
        """Where the fleet is after a step."""
        done, at = self._seen
        if now.done < done // self.every * self.every + self.every:
            return
        self.found.append(
            {
                "done": now.done,
                "users_an_hour": 3600 * (now.done - done) / (now.seconds - at),
                "resident_bytes": psutil.Process().memory_info().rss,
                "device_bytes": _device_bytes(self.device),
            }
        )
        self._seen = now.done, now.seconds
        self.advance()


def _device_bytes(device: torch.device) -> int | None:
    """The most that torch held on a GPU since the last look; None on a CPU."""
    if device.type != "cuda":
        return None
    most = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return int(most)
