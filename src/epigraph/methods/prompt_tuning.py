"""Prompt Tuning (Lester et al. 2021): trained input embeddings in front of the text of a frozen model.

Raw, or behind the residual network of Razdaibiedina et al. (2023), or behind an MLP: the "embedding-only" variant of
Li & Liang (2021, section 7.2). All are folded to plain embeddings at save. It knows no model.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from epigraph.methods.base import Maker
from epigraph.methods.initial import EmbeddingInitial, FirstEmbeddings
from epigraph.methods.raw import Raw
from epigraph.virtual import SoftPrompt

Parameterization = Literal["raw", "residual", "mlp"]


class PromptTuningConfig(FirstEmbeddings):
    """How a prompt is parameterised and, as the base class says, where it starts.

    ``parameterization``: ``raw`` trains the embeddings themselves; ``residual`` adds to each what a shared bottleneck
    of ``mlp_width`` makes of it (Razdaibiedina et al. 2023: down, ReLU, up, layer norm); ``mlp`` trains P' of
    P x ``mlp_width`` behind an MLP with tanh, from random weights, as Li & Liang do for prefixes.
    ``relative_lr``: learn in units of the root mean square of the model's embeddings; the paper's 0.3 belongs to T5.
    """

    num_virtual_tokens: Annotated[int, Field(ge=1, le=65_536)] = 20
    parameterization: Parameterization = "raw"
    mlp_width: Annotated[int, Field(ge=1, le=65_536)] = 128
    relative_lr: bool = True
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _room_for_labels(self) -> PromptTuningConfig:
        if len(self.labels) > self.num_virtual_tokens:
            raise ValueError(
                f"{len(self.labels)} labels, expected at most {self.num_virtual_tokens} (num_virtual_tokens)"
            )
        return self

    @property
    def start(self) -> EmbeddingInitial | None:
        """The initial value in force; None leaves the MLP's own random weights."""
        return None if self.parameterization == "mlp" else self.initial


class PromptTuning(Maker):
    """Trained input embeddings ``[P, E]``.

    ``first_PE`` are the first values, which ``mlp`` does not use; ``scale`` is the root mean square of the model's
    embeddings. ``placed``: the virtual tokens have slots in the text's template, as they need where a model reads both
    ways (section 2: in front of T5's encoder's text). Seeds: torch's global generator, for the networks' weights and
    dropout.
    """

    def __init__(self, config: PromptTuningConfig, first_PE: Tensor, scale: float, *, placed: bool = False) -> None:
        super().__init__()
        self.placed = placed
        self.config, self.dropout = config, config.dropout
        self.scale = scale if config.relative_lr else 1.0
        width = first_PE.shape[1]
        if config.parameterization == "mlp":
            hidden = config.mlp_width
            self.inputs = nn.Parameter(torch.randn(config.num_virtual_tokens, hidden))
            self.network: nn.Module = nn.Sequential(nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, width))
            return
        self.plain = Raw(first_PE, self.scale)
        if config.parameterization == "residual":
            self.network = nn.Sequential(
                nn.Linear(width, config.mlp_width), nn.ReLU(), nn.Linear(config.mlp_width, width), nn.LayerNorm(width)
            )

    def numbers(self) -> tuple[Tensor]:
        """``[P, E]``."""
        match self.config.parameterization:
            case "mlp":
                return (self.scale * self.network(self.inputs),)
            case "residual":
                plain_PE = self.plain()
                return (plain_PE + self.scale * self.network(plain_PE / self.scale),)
            case "raw":
                return (self.plain(),)

    def tokens(self, *numbers: Tensor) -> SoftPrompt:
        """The prompt, float32."""
        return SoftPrompt(embeddings_PE=numbers[0], placed=self.placed)
