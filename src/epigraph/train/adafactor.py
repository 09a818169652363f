"""Adafactor as Prompt Tuning uses it (Shazeer & Stern 2018; Lester et al. 2021, section 3): nothing factored or scaled.

torch's own lets the learning rate follow the size of the parameters, which cannot be switched off; transformers' keeps
only row and column means of a matrix, where the paper keeps the second moment of every number of the prompt.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

DECAY = 0.8
CLIP = 1.0
EPSILON = 1e-30


class Adafactor(Optimizer):
    """``v <- b v + (1 - b) (g^2 + 1e-30)``, ``b = 1 - t^-0.8``; ``u = g / sqrt(v)``, shrunk to a root mean square of 1.

    Then ``p <- p - lr (u + weight_decay p)``. No first moment.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float = 0.3, weight_decay: float = 1e-5) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step for every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group["lr"], group["weight_decay"])

    def _move(self, parameter: Tensor, gradient: Tensor, lr: float, weight_decay: float) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["second_moment"] = torch.zeros_like(parameter)
        state["step"] += 1
        decay = 1.0 - float(state["step"]) ** -DECAY
        moment: Tensor = state["second_moment"]
        moment.mul_(decay).add_(gradient.square() + EPSILON, alpha=1 - decay)
        update = gradient / moment.sqrt()
        update /= max(1.0, float(update.square().mean().sqrt()) / CLIP)
        parameter.sub_(update + weight_decay * parameter, alpha=lr)
