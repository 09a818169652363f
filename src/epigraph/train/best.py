"""The best development score of a run so far, and the parameters that made it: what is kept, and when to stop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from epigraph.train.parts import TrainingPart


class Best:
    """Remembers the best development score's parameters, and how many scores ago it was."""

    def __init__(self, plan: TrainingPart) -> None:
        self._plan = plan
        self.step = 0
        self.values: Mapping[str, float] = {}
        self.since = 0
        self.parameters: dict[str, Tensor] = {}

    @property
    def is_enough(self) -> bool:
        """Patience has run out."""
        return self._plan.patience is not None and self.since >= self._plan.patience

    @property
    def kept(self) -> dict[str, Any]:
        """What a run's position says of it."""
        return {"kept_step": self.step, "kept_values": dict(self.values), "since": self.since}

    def take(self, step: int, values: Mapping[str, float], parameters: Mapping[str, Tensor]) -> None:
        """Take in the scores of ``parameters``, which are as they are after ``step``."""
        metric = self._plan.dev_metric
        sign = -1 if metric == "loss" else 1
        if self.values and not sign * values[metric] > sign * self.values[metric]:
            self.since += 1
            return
        self.step, self.values, self.since = step, dict(values), 0
        self.parameters = {name: x.detach().clone() for name, x in parameters.items()}
