"""AdamW and Adafactor over many users' numbers at once, each user's steps and learning rate his own.

The same formulas as one user's optimiser, with U in front. Knows tensors; does not know what they are for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from epigraph.train.adafactor import CLIP, DECAY, EPSILON


class StackedOptimizer(ABC):
    """Moments of ``values``, ``[room, ...]`` each, of which the first so many are in use.

    ``num_steps[u]`` counts what user u has taken; :meth:`move` is one more for all in use.
    """

    # What one parameter's state is called in a solo run's optimiser, beside "step".
    moments: ClassVar[tuple[str, ...]]

    def __init__(self, values: Mapping[str, Tensor], weight_decay: float) -> None:
        self._weight_decay = weight_decay
        self.state = {name: {key: torch.zeros_like(x) for key in self.moments} for name, x in values.items()}
        self.num_steps: list[int] = []

    @torch.no_grad()
    def move(self, name: str, value: Tensor, gradient: Tensor, lrs: Sequence[float]) -> None:
        """Change ``value [U, ...]`` in place by its gradient, user u by ``lrs[u]``, as its step ``num_steps[u]``."""
        state = {key: x[: len(value)] for key, x in self.state[name].items()}
        self._move(value, gradient, state, lrs)

    @abstractmethod
    def _move(self, value: Tensor, gradient: Tensor, state: Mapping[str, Tensor], lrs: Sequence[float]) -> None:
        """The formula."""

    def _each(self, numbers: Sequence[float], like: Tensor) -> Tensor:
        """``[U, 1, ...]``: one number a user, as ``like`` wants it."""
        return torch.tensor(numbers, dtype=like.dtype, device=like.device).view(-1, *[1] * (like.ndim - 1))


class StackedAdamW(StackedOptimizer):
    """torch's AdamW with its default betas and epsilon."""

    moments = ("exp_avg", "exp_avg_sq")
    betas = (0.9, 0.999)
    epsilon = 1e-8

    def _move(self, value: Tensor, gradient: Tensor, state: Mapping[str, Tensor], lrs: Sequence[float]) -> None:
        first, second = self.betas
        value.mul_(self._each([1 - lr * self._weight_decay for lr in lrs], value))
        state["exp_avg"].lerp_(gradient, 1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        root = self._each([(1 - second**n) ** 0.5 for n in self.num_steps], value)
        step = self._each([lr / (1 - first**n) for lr, n in zip(lrs, self.num_steps, strict=True)], value)
        value.sub_(state["exp_avg"] / (state["exp_avg_sq"].sqrt() / root + self.epsilon) * step)


class StackedAdafactor(StackedOptimizer):
    """:class:`~epigraph.train.adafactor.Adafactor`; each user's update is shrunk to a root mean square of 1."""

    moments = ("second_moment",)

    def _move(self, value: Tensor, gradient: Tensor, state: Mapping[str, Tensor], lrs: Sequence[float]) -> None:
        decay = self._each([1.0 - n**-DECAY for n in self.num_steps], value)
        state["second_moment"].mul_(decay).add_((gradient.square() + EPSILON) * (1 - decay))
        update = gradient / state["second_moment"].sqrt()
        size = update.square().flatten(1).mean(1).sqrt().view(-1, *[1] * (value.ndim - 1))
        update /= (size / CLIP).clamp(min=1.0)
        value.sub_((update + self._weight_decay * value) * self._each(lrs, value))


STACKED: Mapping[str, type[StackedOptimizer]] = {"adamw": StackedAdamW, "adafactor": StackedAdafactor}
