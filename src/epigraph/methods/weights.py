"""Weights of the model, or modules put into it, trained as they are: fine-tuning, adapters, LoRA.

What the methods are measured against. It makes no virtual tokens and no artifact. It knows no model.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from epigraph.methods.base import Method

_DOT, _SAFE = ".", "/"


class Weights(Method):
    """Trains ``live`` parameters, which stay where they are and are used there; ``live`` names them.

    All of them are switched on here; whoever holds the model switches off what else is in it.
    """

    def __init__(self, live: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        # torch's names of parameters have no dots in them.
        self.weights = nn.ParameterDict({name.replace(_DOT, _SAFE): x.requires_grad_() for name, x in live.items()})

    def forward(self) -> None:
        """Nothing is carried: what is trained is in the model."""
        return

    @property
    def num_stored(self) -> int:
        """How many numbers a kept file holds: the trained ones."""
        return sum(x.numel() for x in self.parameters())

    @property
    def named(self) -> dict[str, Tensor]:
        """The trained parameters by the names that they have in the model."""
        return {name.replace(_SAFE, _DOT): x for name, x in self.weights.items()}
