"""P-Tuning (Liu et al. 2021): virtual tokens anywhere in a template, made by a prompt encoder that lets them depend.

A bidirectional LSTM and an MLP, an MLP alone, or the embeddings themselves; folded to embeddings. It knows no model.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from epigraph.errors import BadValue
from epigraph.methods.base import Maker
from epigraph.methods.initial import EmbeddingInitial, FirstEmbeddings
from epigraph.methods.raw import Raw
from epigraph.virtual import SoftPrompt

Parameterization = Literal["lstm", "mlp", "raw"]


class PTuningConfig(FirstEmbeddings):
    """How placed virtual tokens are parameterised and, where they are ``raw``, where they start.

    ``parameterization``: ``lstm`` is the paper's prompt encoder: trained inputs of P x E, a bidirectional LSTM of two
    layers, linear, ReLU, linear (Liu et al. 2021, section 3.2; the shape of the authors' LAMA code). ``mlp`` leaves the
    LSTM out. ``raw`` trains the embeddings themselves, from first values that are given as for prompt-tuning; the two
    encoders start from their own random weights.
    ``num_virtual_tokens``: none takes as many as the template has places for.
    ``hidden_width``: the width behind the LSTM, both directions together, and of the MLP; none is E, as in the code.
    ``relative_scale``: what the encoder makes, or a raw change, is in units of the root mean square of the model's
    embeddings; the authors take it as it is.
    """

    num_virtual_tokens: Annotated[int, Field(ge=1, le=65_536)] | None = None
    parameterization: Parameterization = "lstm"
    hidden_width: Annotated[int, Field(ge=1, le=65_536)] | None = None
    initial: EmbeddingInitial = "vocabulary"
    relative_scale: bool = True
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @property
    def start(self) -> EmbeddingInitial | None:
        """The initial value in force; None leaves an encoder's own random weights."""
        return self.initial if self.parameterization == "raw" else None


class PTuning(Maker):
    """Trained embeddings ``[P, E]`` for the slots of a template, in order.

    ``first_PE`` are the first values, of which an encoder uses the shape only; ``scale`` is the root mean square of the
    model's embeddings. Seeds: torch's global generator, for the encoders' weights and dropout.
    Raises :class:`BadValue` for another number of virtual tokens than configured, and for an LSTM of odd width.
    """

    def __init__(self, config: PTuningConfig, first_PE: Tensor, scale: float) -> None:
        super().__init__()
        self.config, self.dropout = config, config.dropout
        self.scale = scale if config.relative_scale else 1.0
        num_tokens, width = first_PE.shape
        if config.num_virtual_tokens not in (None, num_tokens):
            raise BadValue(
                f"num_virtual_tokens is {config.num_virtual_tokens}, the template has places for {num_tokens}; "
                "leave num_virtual_tokens out, or change one of the two"
            )
        if config.parameterization == "raw":
            self.raw = Raw(first_PE, self.scale)
        else:
            self.encoder = PromptEncoder(num_tokens, width, config.hidden_width or width, config.parameterization)

    def numbers(self) -> tuple[Tensor]:
        """``[P, E]``."""
        return (self.raw() if self.config.parameterization == "raw" else self.scale * self.encoder(),)

    def tokens(self, *numbers: Tensor) -> SoftPrompt:
        """The placed prompt, float32."""
        return SoftPrompt(embeddings_PE=numbers[0], placed=True)


class PromptEncoder(nn.Module):
    """h_i = MLP([forward LSTM of x_0..x_i : backward LSTM of x_i..x_P]), x trained; all h are one sequence.

    The LSTM reads the virtual tokens of a template as if nothing stood between them. (Liu et al. 2021, section 3.2.)
    """

    def __init__(self, num_tokens: int, width: int, hidden: int, parameterization: Parameterization) -> None:
        super().__init__()
        self.inputs = nn.Parameter(torch.randn(num_tokens, width))
        self.lstm: nn.LSTM | None = None
        width_in = width
        if parameterization == "lstm":
            if hidden % 2:
                raise BadValue(
                    f"the LSTM has width {hidden}, half of it for each direction, so it must be even; "
                    "set method.hidden_width to an even number"
                )
            self.lstm = nn.LSTM(width, hidden // 2, num_layers=2, bidirectional=True)
            width_in = hidden
        self.mlp = nn.Sequential(nn.Linear(width_in, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def forward(self) -> Tensor:
        """``[P, E]``."""
        mixed = self.inputs
        if self.lstm is not None:
            # Without a graph torch takes another kernel, other in the last bits: folded must be what was trained.
            with torch.enable_grad():
                mixed = self.lstm(mixed)[0]
        made_PE: Tensor = self.mlp(mixed)
        return made_PE
