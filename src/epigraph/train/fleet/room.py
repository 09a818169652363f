"""How many users are trained at a time: as many as fill a pass of the model, and as the device has memory for."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch

from epigraph.errors import BadValue
from epigraph.methods.base import Method
from epigraph.train.fleet.stack import bytes_per_user
from epigraph.train.prepare import Prepared

# Rows in one pass of the model where nobody says how many.
DEFAULT_ROWS = {"cpu": 32, "cuda": 128}
# Of the memory that is free users take at most this share: the model's own activations need the rest.
SHARE = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """``active`` users at a time, ``num_rows`` rows in a pass, ``user_bytes`` on the device for each user."""

    active: int
    num_rows: int
    user_bytes: int


def room_for(ready: Prepared, method: Method, *, active: int | None = None, num_rows: int | None = None) -> Room:
    """The room for users who train ``method``. Raises :class:`BadValue` for more than there is memory for."""
    training, device = ready.recipe.training, ready.frozen.device
    user_bytes = bytes_per_user(method, training.optimizer)
    free = free_bytes(device)
    fits = int(free * SHARE / max(1, user_bytes))
    rows = num_rows or DEFAULT_ROWS.get(device.type, DEFAULT_ROWS["cpu"])
    wanted = active or max(1, rows // training.batch_size)
    if fits < (active or 1):
        raise BadValue(
            f"{wanted:,} users at a time take {wanted * user_bytes / 1e9:.1f} GB for parameters, gradients and "
            f"optimiser ({user_bytes / 1e6:.1f} MB each), expected at most half of the {free / 1e9:.1f} GB that are "
            f"free; {f'give --active {fits}' if fits else 'use parameterization raw'}"
        )
    return Room(active=min(wanted, fits), num_rows=rows, user_bytes=user_bytes)


def free_bytes(device: torch.device) -> int:
    """What is free on the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
