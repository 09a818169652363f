"""What the parts of a training comparison share: model, rows, first values, and the sides made of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from epigraph.bench import peers
from epigraph.bench.sides import Ours
from epigraph.frozen.batch import Batch, collate
from epigraph.frozen.inputs import Codec, Encoded, fill_token
from epigraph.tasks.catalogue import draw_pairs
from epigraph.train.build import make_method
from epigraph.train.contract import contract_for
from epigraph.train.evaluate import lesson
from epigraph.train.prepare import Prepared
from epigraph.train.recipe_file import check_recipe
from epigraph.virtual import KVPrefix

LR = 5e-3
NUM_VIRTUAL_TOKENS = 10
PROMPT_LENGTH = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What a comparison is about: a prepared run, and how much of it is done."""

    ready: Prepared
    batch_size: int = 8
    repeats: int = 7
    num_seeds: int = 3
    seed: int = 0

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.ready.frozen.device

    def batches(self, size: int | None = None, rows: Sequence[Encoded] | None = None) -> list[Batch]:
        """The rows in a random order, as padded batches that every side gets."""
        rows = list(self.ready.rows if rows is None else rows)
        random.Random(self.seed).shuffle(rows)
        size = size or self.batch_size
        fill = fill_token(self.ready.frozen.tokenizer)
        return [collate(rows[i : i + size], fill) for i in range(0, len(rows) - size + 1, size)]

    def first(self, num_virtual_tokens: int = NUM_VIRTUAL_TOKENS) -> KVPrefix:
        """The first values of every side's prefix."""
        made = make_method(self.with_method(name="prefix-tuning", num_virtual_tokens=num_virtual_tokens)).fold()
        assert isinstance(made, KVPrefix)
        return made

    def with_method(self, **method: Any) -> Prepared:
        """The same model and data for another method; the text gets places where the method needs them."""
        ready = self.ready
        recipe = check_recipe({**ready.recipe.model_dump(), "method": method})
        codec = Codec(ready.frozen.tokenizer, contract_for(recipe, ready.task, ready.frozen))
        examples = ready.task.load("train")
        drawn = draw_pairs(examples, recipe.data.limit, recipe.training.seed)
        return replace(ready, recipe=recipe, codec=codec, rows=tuple(lesson(codec, x) for x in drawn))

    def ours(self, num_virtual_tokens: int = NUM_VIRTUAL_TOKENS, name: str = "epigraph", **more: Any) -> Ours:
        """Our prefix tuning, in PEFT's units: plain numbers and a plain learning rate."""
        ready = self.with_method(name="prefix-tuning", num_virtual_tokens=num_virtual_tokens, relative_lr=False)
        return Ours(ready.frozen, make_method(ready), LR, name=name, **more)

    def plain(self) -> torch.nn.Module:
        """Another copy of the model."""
        return peers.plain_model(self.ready.recipe.model, self.ready.frozen)
