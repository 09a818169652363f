"""One way each to take a training step: ours, and that of transformers' and PEFT's users. They share batches.

A side knows its model and its optimiser; what is compared, and how often, is not its business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from epigraph.frozen.batch import Batch
from epigraph.frozen.model import FrozenModel
from epigraph.methods.base import Method
from epigraph.train.loss import head_of, token_losses

# What no token's label is.
UNSCORED = -100


class Side(Protocol):
    """What takes steps."""

    name: str

    def step(self, batch: Batch) -> float:
        """One optimiser step; the mean loss of its scored tokens, in nats."""


class Ours:
    """A frozen model and a method, as the trainer steps them.

    ``divisor`` turns a batch into what its summed losses are divided by; without it, its own scored tokens, as
    transformers does.
    """

    def __init__(
        self,
        frozen: FrozenModel,
        method: Method,
        lr: float,
        *,
        name: str = "epigraph",
        divisor: Callable[[Batch], float] | None = None,
    ) -> None:
        self.name = name
        self.frozen, self.method = frozen, method
        self._divisor = divisor
        self._optimizer = _optimizer(method.parameters(), lr)

    def step(self, batch: Batch) -> float:
        """One optimiser step."""
        self.method.train()
        batch = batch.to(self.frozen.device)
        losses_S = token_losses(self.frozen, batch, self.method(), head_of(self.method))
        divisor = losses_S.numel() if self._divisor is None else self._divisor(batch)
        (losses_S.sum() / divisor).backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return losses_S.detach().mean().item()


class Theirs:
    """A transformers model that takes labels, as any training loop steps it."""

    def __init__(self, name: str, model: nn.Module, lr: float) -> None:
        self.name = name
        self.model = model
        self._optimizer = _optimizer(model.parameters(), lr)

    def step(self, batch: Batch) -> float:
        """One optimiser step."""
        self.model.train()
        given = inputs(batch.to(next(self.model.parameters()).device))
        loss: Tensor = self.model(**given).loss
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.item()


class Trainer:
    """transformers' ``Trainer``: its own sampler, collation and ``training_step``, stepped from outside.

    What its loop does between the steps (logging, saving, callbacks) is left out, in its favour.
    """

    def __init__(
        self, name: str, model: nn.Module, rows: Sequence[dict[str, list[int]]], options: dict[str, Any], collate: Any
    ) -> None:
        from transformers import Trainer as Theirs
        from transformers import TrainingArguments

        self.name = name
        self.model = model
        arguments = TrainingArguments(
            **options, report_to=[], disable_tqdm=True, save_strategy="no", logging_steps=10**9
        )
        self._trainer = Theirs(model=model, args=arguments, train_dataset=rows, data_collator=collate)
        # What its own loop would have set.
        self._trainer.current_gradient_accumulation_steps = 1
        self._optimizer = _optimizer(model.parameters(), arguments.learning_rate)

    def batches(self) -> Iterable[dict[str, Tensor]]:
        """One epoch, as its data loader gives it."""
        loader: Iterable[dict[str, Tensor]] = self._trainer.get_train_dataloader()
        return loader

    def step(self, batch: dict[str, Tensor]) -> float:
        """One optimiser step."""
        loss = self._trainer.training_step(self.model, batch)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(loss)


def inputs(batch: Batch) -> dict[str, Tensor]:
    """A batch as transformers' models take it: padded, with labels."""
    labels_BT = torch.where(batch.scored_BT, batch.ids_BT, UNSCORED)
    return {"input_ids": batch.ids_BT, "attention_mask": batch.mask_BT, "labels": labels_BT}


def _optimizer(parameters: Iterable[Tensor], lr: float) -> AdamW:
    return AdamW([x for x in parameters if x.requires_grad], lr=lr, weight_decay=0.0)
