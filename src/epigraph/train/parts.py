"""The tables of a recipe that are the same for every method: data, text and training. They know no method.

What each key means is documented in docs/recipes.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from epigraph.contract import Layout, Pooling

MAX_COUNT = (1 << 63) - 1
Positive = Annotated[int, Field(ge=1, le=MAX_COUNT)]
NonNegative = Annotated[int, Field(ge=0, le=MAX_COUNT)]


class Part(BaseModel):
    """A table of a recipe: unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataPart(Part):
    """``[data]``: a named task, or files of one's own."""

    task: str | None = None
    train: Path | None = None
    dev: Path | None = None
    test: Path | None = None
    train_split: str = "train"
    dev_split: str | None = None
    limit: Positive | None = None
    draw: NonNegative | None = None
    dev_limit: Positive = 64
    dev_share: Annotated[float, Field(gt=0, le=1)] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> DataPart:
        if (self.task is None) == (self.train is None):
            got = "both" if self.task else "neither"
            raise ValueError(f"give either task or train (a file of your own), got {got}")
        return self


class TextPart(Part):
    """``[text]``: the text contract, where what task and model ask for is not wanted."""

    input_template: str | None = None
    target_template: str | None = None
    target_sentinel: bool = False
    layout: Layout | None = None
    labels: tuple[str, ...] | None = None
    label_words: tuple[str, ...] | None = None
    pooling: Pooling = "first"
    ends_source: bool | None = None
    bos: bool | None = None
    eos: bool | None = None
    stop: tuple[str, ...] = ()
    max_source_tokens: Positive | None = None
    max_target_tokens: Positive | None = None


class TrainingPart(Part):
    """``[training]``: the loop."""

    steps: Positive | None = None
    epochs: Annotated[float, Field(gt=0, le=1e9)] | None = None
    batch_size: Positive = 8
    accumulation: Positive = 1
    lr: Annotated[float, Field(gt=0, le=100)] | None = None
    head_lr: Annotated[float, Field(gt=0, le=100)] = 5e-3
    base_lr: Annotated[float, Field(gt=0, le=100)] | None = None
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: NonNegative = 0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    reduction: Literal["token-mean", "example-sum"] = "token-mean"
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    buckets: bool = True
    checkpoint_activations: bool = False
    shard_base: bool = False
    seed: NonNegative = 0
    dev_every: NonNegative | None = None
    dev_metric: str = "loss"
    patience: Positive | None = None
    checkpoint_every: NonNegative | None = None
    tensorboard: bool = False

    @model_validator(mode="after")
    def _one_length(self) -> TrainingPart:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give steps or epochs, not both")
        return self

    @model_validator(mode="after")
    def _exact_enough(self) -> TrainingPart:
        if self.base_lr is not None and self.precision == "bf16":
            raise ValueError("base_lr trains the model's own weights, which bf16 is too coarse for; set precision fp32")
        if self.base_lr is not None and self.shard_base:
            raise ValueError("shard_base is for a frozen base, got base_lr, which trains it; leave one of them out")
        return self
