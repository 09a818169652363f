"""Everything that decides what a run does next: taken out of its parts, and put back into them.

Names of tensors begin with the part: ``method.``, ``best.``, ``optimizer.<number of the parameter>.``,
``generator.``. The schedule and the order of the data follow from the step and the recipe, so they need no tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from epigraph.methods.base import Method
from epigraph.train.best import Best

Count = Annotated[int, Field(ge=0)]


class Position(BaseModel):
    """Where a run is: after ``step`` optimiser steps, ``tokens`` and ``seconds`` of training.

    ``kept_step`` and ``kept_values`` are the best development score's, taken ``since`` scores ago.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    step: Count = 0
    tokens: Count = 0
    seconds: Annotated[float, Field(ge=0)] = 0.0
    kept_step: Count = 0
    kept_values: dict[str, float] = {}
    since: Count = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """A position, and the tensors that belong to it, on the CPU."""

    position: Position
    tensors: Mapping[str, Tensor]


def gather(method: Method, optimizer: Any, best: Best, device: torch.device) -> dict[str, Tensor]:
    """The tensors of a state, as copies on the CPU."""
    live: dict[str, Tensor] = {f"method.{name}": x for name, x in method.state_dict().items()}
    live |= {f"best.{name}": x for name, x in best.parameters.items()}
    for number, values in optimizer.state_dict()["state"].items():
        live |= {f"optimizer.{number}.{name}": x for name, x in values.items()}
    live["generator.cpu"] = torch.get_rng_state()
    if device.type == "cuda":
        live["generator.cuda"] = torch.cuda.get_rng_state(device)
    return {name: x.detach().to("cpu", copy=True).contiguous() for name, x in live.items()}


def put_back(state: State, method: Method, optimizer: Any, best: Best, device: torch.device) -> None:
    """The inverse of :func:`gather`, into parts made from the same recipe."""
    tensors, position = state.tensors, state.position
    method.load_state_dict(_part(tensors, "method"))
    best.step, best.values, best.since = position.kept_step, position.kept_values, position.since
    best.parameters = {name: x.to(device) for name, x in _part(tensors, "best").items()}
    moments: dict[int, dict[str, Tensor]] = {}
    for name, x in _part(tensors, "optimizer").items():
        number, _, key = name.partition(".")
        moments.setdefault(int(number), {})[key] = x
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(tensors["generator.cpu"])
    if "generator.cuda" in tensors and device.type == "cuda":
        torch.cuda.set_rng_state(tensors["generator.cuda"], device)


def _part(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{part}."): x for name, x in tensors.items() if name.startswith(f"{part}.")}
