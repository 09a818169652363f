"""Prompt Tuning (Lester et al. 2021): trained input embeddings in front of the text of a frozen model.

Raw, or behind the residual network of Razdaibiedina et al. (2023), or behind an MLP: the "embedding-only" variant of
Li & Liang (2021, section 7.2). All are folded to plain embeddings at save. It knows no model.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from epigraph.methods.base import Method
from epigraph.virtual import SoftPrompt

Parameterization = Literal["raw", "residual", "mlp"]
Initial = Literal["text", "document", "vocabulary", "labels", "uniform", "artifact"]


class PromptTuningConfig(BaseModel):
    """How a prompt is parameterised and where it starts.

    ``parameterization``: ``raw`` trains the embeddings themselves; ``residual`` adds to each what a shared bottleneck
    of ``mlp_width`` makes of it (Razdaibiedina et al. 2023: down, ReLU, up, layer norm); ``mlp`` trains P' of
    P x ``mlp_width`` behind an MLP with tanh, from random weights, as Li & Liang do for prefixes.
    ``initial``: ``text`` (the embeddings of ``initial_text``, by default the task's instruction, repeated or cut),
    ``document`` (of the first tokens of the file ``initial_path``), ``vocabulary`` (of ``num_virtual_tokens`` different
    tokens drawn from the ``vocabulary_size`` most frequent), ``labels`` (of ``labels``, the mean over a label's tokens;
    the rest drawn from the vocabulary), ``uniform`` (uniform in [-r, r], r being ``uniform_range``, for T5 embeddings;
    ``uniform_range`` none: r is the root mean square of the model's embeddings), or ``artifact`` (another
    prompt, as in SPoT, Vu et al. 2022).
    ``relative_lr``: learn in units of the root mean square of the model's embeddings; the paper's 0.3 belongs to T5.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_virtual_tokens: Annotated[int, Field(ge=1, le=65_536)] = 20
    parameterization: Parameterization = "raw"
    mlp_width: Annotated[int, Field(ge=1, le=65_536)] = 128
    initial: Initial = "text"
    initial_text: str | None = None
    initial_path: str | None = None
    labels: tuple[str, ...] = ()
    vocabulary_size: Annotated[int, Field(ge=1)] = 5_000
    uniform_range: Annotated[float, Field(gt=0, le=100)] | None = None
    relative_lr: bool = True
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _consistent(self) -> PromptTuningConfig:
        if self.initial in ("document", "artifact") and self.initial_path is None:
            raise ValueError(f"initial = {self.initial!r} needs initial_path")
        if self.initial == "labels" and not self.labels:
            raise ValueError("initial = 'labels' needs labels")
        if len(self.labels) > self.num_virtual_tokens:
            raise ValueError(
                f"{len(self.labels)} labels, expected at most {self.num_virtual_tokens} (num_virtual_tokens)"
            )
        return self

    @property
    def start(self) -> Initial | None:
        """The initial value in force; None leaves the MLP's own random weights."""
        return None if self.parameterization == "mlp" else self.initial


class PromptTuning(Method):
    """Trained input embeddings ``[P, E]``.

    ``first_PE`` are the first values, which ``mlp`` does not use; ``scale`` is the root mean square of the model's
    embeddings. Seeds: torch's global generator, for the networks' weights and dropout.
    """

    def __init__(self, config: PromptTuningConfig, first_PE: Tensor, scale: float) -> None:
        super().__init__()
        self.config = config
        self.scale = scale if config.relative_lr else 1.0
        width = first_PE.shape[1]
        if config.parameterization == "mlp":
            hidden = config.mlp_width
            self.inputs = nn.Parameter(torch.randn(config.num_virtual_tokens, hidden))
            self.network: nn.Module = nn.Sequential(nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, width))
            return
        self.register_buffer("first_PE", first_PE.detach().float().clone())
        self.first_PE: Tensor
        self.change_PE = nn.Parameter(torch.zeros(first_PE.shape))
        if config.parameterization == "residual":
            self.network = nn.Sequential(
                nn.Linear(width, config.mlp_width), nn.ReLU(), nn.Linear(config.mlp_width, width), nn.LayerNorm(width)
            )

    def forward(self) -> SoftPrompt:
        """The prompt, float32."""
        match self.config.parameterization:
            case "mlp":
                made_PE = self.scale * self.network(self.inputs)
            case "residual":
                plain_PE = self.first_PE + self.scale * self.change_PE
                made_PE = plain_PE + self.scale * self.network(plain_PE / self.scale)
            case "raw":
                made_PE = self.first_PE + self.scale * self.change_PE
        return SoftPrompt(embeddings_PE=nn.functional.dropout(made_PE, self.config.dropout, self.training))
