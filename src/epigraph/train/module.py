"""A frozen model and a method as one ordinary module, for PyTorch loops and transformers' ``Trainer`` of one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from torch import Tensor, nn

from epigraph.frozen.model import FrozenModel
from epigraph.methods.base import Method


class TrainableModel(nn.Module):
    """``forward`` is the frozen model's own, behind the method's virtual tokens; only the method is registered.

    So ``parameters()`` and ``state_dict()`` hold the method alone, and ``train()`` leaves the frozen model in eval
    mode; ``to()`` moves both.
    """

    def __init__(self, frozen: FrozenModel, method: Method) -> None:
        super().__init__()
        self.method = method
        # In a tuple, so that its weights are not parameters of this module.
        self._frozen = (frozen,)

    @property
    def frozen(self) -> FrozenModel:
        """The frozen model."""
        return self._frozen[0]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """The model's output for ``input_ids [B, T]``; ``labels`` (-100: not scored) give its own mean token loss."""
        with self.frozen.bind(self.method()):
            return self.frozen.model(
                input_ids=input_ids, attention_mask=attention_mask, labels=labels, use_cache=False, **options
            )

    def activation_checkpointing_enable(self, *_: Any, **__: Any) -> None:
        """What ``Trainer`` calls; always the non-reentrant kind, which keeps the prefix."""
        self.frozen.checkpoint_activations()

    # Its name in transformers before activation_checkpointing_enable.
    gradient_checkpointing_enable = activation_checkpointing_enable

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        self.frozen.model._apply(fn)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self
