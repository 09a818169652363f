"""A recipe: everything that decides a training run, typed and checked. It knows no model and no data.

Every key of every table below is documented in docs/recipes.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from epigraph.methods.p_tuning import PTuningConfig
from epigraph.methods.prefix_tuning import PrefixTuningConfig
from epigraph.methods.prompt_tuning import PromptTuningConfig
from epigraph.train.baselines import BASELINES, Baseline, BaselinePart
from epigraph.train.parts import DataPart, Part, TextPart, TrainingPart

# Where no learning rate is given. The paper's own (Li & Liang 2021, table 6: 5e-5 to 8e-5) is for an MLP and thousands
# of steps. raw: tried on 200 E2E development tables, docs/results.md. The MLPs': a first trial, not swept.
# Prompts: docs/results.md.
DEFAULT_LR = {
    "prefix-tuning": {"raw": 2e-2, "mlp": 1e-3, "mlp-code": 1e-3},
    "prompt-tuning": {"raw": 1e-1, "residual": 1e-2, "mlp": 1e-3},
    "p-tuning": {"raw": 1e-1, "lstm": 1e-2, "mlp": 1e-3},
    # Table 6 too; a first trial, not swept: adapters and LoRA. The probe: as heads beside virtual tokens.
    "full": {"weights": 5e-5},
    "top": {"weights": 5e-5},
    "adapter": {"weights": 1e-4},
    "lora": {"weights": 1e-3},
    "linear-probe": {"weights": 5e-3},
    # PEFT's own, also a first trial.
    "peft-prefix": {"weights": 1e-2},
    "peft-prompt": {"weights": 3e-2},
    "peft-p-tuning": {"weights": 1e-3},
    # Tries words, and has no use for a rate.
    "autoprompt": {"weights": 1.0},
}


class PrefixTuningPart(PrefixTuningConfig):
    """``[method]`` with ``name = "prefix-tuning"``, the default."""

    name: Literal["prefix-tuning"] = "prefix-tuning"


class PromptTuningPart(PromptTuningConfig):
    """``[method]`` with ``name = "prompt-tuning"``."""

    name: Literal["prompt-tuning"] = "prompt-tuning"


class PTuningPart(PTuningConfig):
    """``[method]`` with ``name = "p-tuning"``."""

    name: Literal["p-tuning"] = "p-tuning"


VirtualPart = PrefixTuningPart | PromptTuningPart | PTuningPart

METHODS: Mapping[str, type[VirtualPart]] = {
    "prefix-tuning": PrefixTuningPart,
    "prompt-tuning": PromptTuningPart,
    "p-tuning": PTuningPart,
}
# Every method.name that there is.
NAMED: Mapping[str, type[BaseModel]] = {**METHODS, **{name: x.config for name, x in BASELINES.items()}}


def _with_name(table: Any) -> Any:
    return {"name": "prefix-tuning", **table} if isinstance(table, Mapping) else table


MethodPart = Annotated[VirtualPart | BaselinePart, Field(discriminator="name"), BeforeValidator(_with_name)]


class Recipe(Part):
    """Everything that decides a training run."""

    model: str = "smollm2-135m"
    attention: Literal["sdpa", "eager"] = "sdpa"
    data: DataPart
    method: MethodPart = PrefixTuningPart()
    training: TrainingPart = TrainingPart()
    text: TextPart = TextPart()

    @model_validator(mode="after")
    def _fits_its_method(self) -> Recipe:
        name, given, baseline = self.method.name, self.training, self.baseline
        if baseline is None:
            return self
        if given.base_lr is not None:
            raise ValueError(
                f"base_lr trains the model beside virtual tokens, and method {name} has none; leave it out"
            )
        if given.shard_base:
            raise ValueError(f"shard_base is for virtual tokens on a frozen base, got method {name}; leave it out")
        if baseline.exact and given.precision == "bf16":
            raise ValueError(
                f"method {name} trains the model's own weights, which bf16 is too coarse for; set precision fp32"
            )
        return self

    @property
    def lr(self) -> float:
        """The learning rate in force; 0 where nothing is trained."""
        if self.baseline is not None and not self.baseline.trains:
            return 0.0
        return self.training.lr or DEFAULT_LR[self.method.name][self.parameterization]

    @property
    def parameterization(self) -> str:
        """The method's, or "weights" for a baseline: what its default learning rate goes by."""
        return self.method.parameterization if isinstance(self.method, VirtualPart) else "weights"

    @property
    def baseline(self) -> Baseline | None:
        """What the method is measured against, where it is such."""
        return BASELINES.get(self.method.name)

    @property
    def trains_base(self) -> bool:
        """Whether the model's own weights are trained, for which bf16 is too coarse."""
        return self.training.base_lr is not None or (self.baseline is not None and self.baseline.exact)

    def steps_for(self, num_rows: int) -> int:
        """Optimiser steps in force: as given, or as many as the epochs hold; by default five epochs, at least 200.

        A baseline that trains nothing takes none.
        """
        given = self.training
        if self.baseline is not None and not self.baseline.trains:
            return 0
        if given.steps is not None:
            return given.steps
        rows_a_step = given.batch_size * given.accumulation
        if given.epochs is not None:
            return max(1, round(given.epochs * num_rows / rows_a_step))
        return max(200, round(5 * num_rows / rows_a_step))
