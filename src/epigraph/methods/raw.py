"""Embeddings that are trained as they are, as a change to their first values. It knows no method that uses them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Raw(nn.Module):
    """``first_PE + scale * change_PE``, float32: an optimiser sees the change, in units of ``scale``."""

    def __init__(self, first_PE: Tensor, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("first_PE", first_PE.detach().float().clone())
        self.first_PE: Tensor
        self.change_PE = nn.Parameter(torch.zeros(first_PE.shape))

    def forward(self) -> Tensor:
        """``[P, E]``."""
        return self.first_PE + self.scale * self.change_PE
