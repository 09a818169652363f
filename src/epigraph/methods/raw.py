"""Numbers that are trained as they are, as a change to their first values. It knows no method that uses them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Raw(nn.Module):
    """``first + scale * change``, ``[P, N]`` float32: an optimiser sees the change, in units of ``scale``.

    ``scale`` is one number, or one for each of the N. The change starts at zero.
    """

    def __init__(self, first_PN: Tensor, scale: float | Tensor) -> None:
        super().__init__()
        self.register_buffer("first_PN", first_PN.detach().float().clone())
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.float32).clone())
        self.first_PN: Tensor
        self.scale: Tensor
        self.change_PN = nn.Parameter(torch.zeros(first_PN.shape))

    def forward(self) -> Tensor:
        """``[P, N]``."""
        return self.first_PN + self.scale * self.change_PN
