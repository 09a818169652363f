"""Prefix-Tuning (Li & Liang 2021): trained keys and values in every layer of a frozen model.

Three parameterisations of the same thing, all folded to plain keys and values at save. It knows no model.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from epigraph.methods.base import Maker, flatten, unflatten
from epigraph.methods.raw import Raw
from epigraph.virtual import Geometry, KVPrefix, Site, Visibility

Parameterization = Literal["raw", "mlp", "mlp-code"]
Initial = Literal["text", "document", "random", "zero", "artifact", "default"]


class PrefixTuningConfig(BaseModel):
    """How a prefix is parameterised and where it starts.

    ``parameterization``: ``raw`` trains the keys and values themselves. ``mlp`` is the paper's text (section 4.3):
    P' of P x k, an MLP from k to all keys and values; it gives no hidden layer, we take one of width k with tanh.
    ``mlp-code`` is the authors' code: P' as wide as the model's embeddings, one hidden layer of width k with tanh.
    ``initial``: ``text`` (the exact keys and values of ``initial_text``), ``document`` (those of the first tokens
    of the file ``initial_path``), ``random`` (normal with ``initial_std``, 1 in the authors' code without the MLP),
    ``zero``, ``artifact`` (the file ``initial_path``), or ``default``: text for ``raw``, PyTorch's own random
    weights for the MLPs, as in the paper's full-data runs. An MLP with another initial value is fitted to it (MSE,
    Adam) before the task, as the authors do in low data.
    ``relative_lr``: a raw prefix learns in units of its first values' size, keys and values of each layer apart, since
    in a real model these sizes differ fiftyfold; weight decay then pulls towards the first values.
    ``num_sink_tokens`` leading virtual tokens keep their first value (Cartridges, 2025).
    ``place``: an ``infix`` stands between source and answer: only the source's last token, which says the answer's
    first, and what follows see it (section 7.3). Its activations are free. ``infix-code`` is the authors' code: they
    are added to what the model makes of trained embeddings there, at slots of the template; the embeddings start as
    the initial text, what is added (without an MLP) as nothing. ``sites``: of an encoder-decoder, which of
    ``encoder.self``, ``decoder.self`` and ``decoder.cross`` have virtual tokens, none being all; each has parameters
    of its own, as in the authors' code.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_virtual_tokens: Annotated[int, Field(ge=1, le=65_536)] = 10
    parameterization: Parameterization = "raw"
    mlp_width: Annotated[int, Field(ge=1, le=65_536)] = 512
    initial: Initial = "default"
    initial_text: str | None = None
    initial_path: str | None = None
    initial_std: Annotated[float, Field(gt=0, le=100)] = 1.0
    fit_steps: Annotated[int, Field(ge=0, le=100_000)] = 500
    fit_lr: Annotated[float, Field(gt=0, le=1)] = 1e-3
    relative_lr: bool = True
    num_sink_tokens: Annotated[int, Field(ge=0)] = 0
    visibility: Literal["always", "window"] = "always"
    place: Literal["prefix", "infix", "infix-code"] = "prefix"
    sites: Annotated[tuple[Site, ...], Field(min_length=1)] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _consistent(self) -> PrefixTuningConfig:
        if self.num_sink_tokens > self.num_virtual_tokens:
            raise ValueError(
                f"num_sink_tokens is {self.num_sink_tokens}, expected at most {self.num_virtual_tokens} "
                "(num_virtual_tokens)"
            )
        if self.initial in ("document", "artifact") and self.initial_path is None:
            raise ValueError(f"initial = {self.initial!r} needs initial_path")
        if self.is_infix and self.visibility == "window":
            raise ValueError("an infix has a visibility of its own; leave method.visibility out")
        if self.num_sink_tokens and self.start is None:
            raise ValueError("num_sink_tokens needs an initial value to keep; set initial")
        return self

    @model_validator(mode="after")
    def _read_from_text(self) -> PrefixTuningConfig:
        if self.place == "infix-code" and (self.num_sink_tokens or self.initial not in ("default", "text")):
            raise ValueError("place = 'infix-code' starts from a text; leave initial and num_sink_tokens out")
        return self

    @property
    def is_infix(self) -> bool:
        """Whether source and answer have the virtual tokens between them."""
        return self.place != "prefix"

    @property
    def start(self) -> Initial | None:
        """The initial value in force; None leaves an MLP's own random weights."""
        if self.initial != "default":
            return self.initial
        return "text" if self.parameterization == "raw" else None


class PrefixTuning(Maker):
    """Trained keys and values in every layer: ``P_theta`` of eq. 3, free or behind the MLP of section 4.3.

    ``initial`` gives the first values, and is required unless an MLP starts from its own random weights; ``read_PE``
    are the first embeddings of an ``infix-code``.
    Seeds: torch's global generator, for the MLP's weights and dropout.
    """

    def __init__(
        self,
        config: PrefixTuningConfig,
        geometry: Geometry,
        initial: KVPrefix | None = None,
        read_PE: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.config, self.dropout = config, config.dropout
        self.geometry = geometry.only(geometry.sites if config.sites is None else config.sites)
        self.text_start = geometry.text_start(config.num_virtual_tokens) if initial is None else initial.text_start
        first_PN = None if initial is None else flatten(initial, self.geometry.sites)
        num_numbers = self.geometry.numbers_per_token()
        sinks = torch.empty(0, num_numbers) if first_PN is None else first_PN[: config.num_sink_tokens].clone()
        self.register_buffer("sinks_SN", sinks)
        self.sinks_SN: Tensor
        # Sites are independent of each other: three prefixes, each with its own parameters.
        parts = [self.geometry.only((site,)) for site in self.geometry.sites]
        widths = [part.numbers_per_token() for part in parts]
        firsts = [None] * len(parts) if first_PN is None else first_PN[config.num_sink_tokens :].split(widths, dim=1)
        self.free = nn.ModuleList(_free(config, part, first) for part, first in zip(parts, firsts, strict=True))
        self.read = None if read_PE is None else Raw(read_PE, read_PE.pow(2).mean().sqrt())
        if self.read is not None:
            self.text_start = 0

    def numbers(self) -> tuple[Tensor, ...]:
        """``[P, N]``: a token's keys and values in a row, without the sinks; and ``[P, E]`` that an infix reads."""
        flat_PN = torch.cat([free() for free in self.free], dim=1)
        return (flat_PN,) if self.read is None else (flat_PN, self.read())

    def tokens(self, *numbers: Tensor) -> KVPrefix:
        """The prefix, float32; in a causal decoder ``text_start`` = P."""
        flat_PN, *read = numbers
        if len(self.sinks_SN):
            flat_PN = torch.cat([self.sinks_SN.expand(*flat_PN.shape[:-2], -1, -1), flat_PN], dim=-2)
        visibility: Visibility = "answer" if self.config.is_infix else self.config.visibility
        made = unflatten(flat_PN, self.geometry, text_start=self.text_start, visibility=visibility)
        return replace(made, embeddings_PE=read[0]) if read else made


def _free(config: PrefixTuningConfig, geometry: Geometry, first_PN: Tensor | None) -> nn.Module:
    """What is trained for one site."""
    num_numbers = geometry.numbers_per_token()
    if config.parameterization == "raw":
        if first_PN is None:
            raise ValueError("a raw prefix needs its first values; see epigraph.methods.initial")
        scale_N = _sizes(first_PN, geometry) if config.relative_lr else torch.ones(num_numbers)
        return Raw(torch.zeros_like(first_PN) if config.place == "infix-code" else first_PN, scale_N)
    width_in = config.mlp_width if config.parameterization == "mlp" else geometry.embedding_dim
    made = _MLP(config.num_virtual_tokens - config.num_sink_tokens, width_in, config.mlp_width, num_numbers)
    if first_PN is not None:
        _fit(made, first_PN, config.fit_steps, config.fit_lr)
    return made


class _MLP(nn.Module):
    """P' and the MLP over it: embedding, linear, tanh, linear."""

    def __init__(self, num_tokens: int, width_in: int, width: int, num_numbers: int) -> None:
        super().__init__()
        self.inputs = nn.Parameter(torch.randn(num_tokens, width_in))
        self.mlp = nn.Sequential(nn.Linear(width_in, width), nn.Tanh(), nn.Linear(width, num_numbers))

    def forward(self) -> Tensor:
        flat_PN: Tensor = self.mlp(self.inputs)
        return flat_PN


def _sizes(first_PN: Tensor, geometry: Geometry) -> Tensor:
    """``[N]``: for the keys, and for the values, of each layer, how large their first values are (1 where all are 0).

    The median over virtual tokens of each one's root mean square: the first token of a text is an outlier.
    """
    widths = [x.num_kv_heads * x.head_dim for layers in geometry.sites.values() for x in layers for _ in range(2)]
    sizes = [part.pow(2).mean(1).sqrt().median() for part in first_PN.split(widths, dim=1)]
    sizes = [torch.ones_like(size) if size == 0 else size for size in sizes]
    return torch.cat([size.expand(width) for size, width in zip(sizes, widths, strict=True)])


def _fit(free: nn.Module, target_PN: Tensor, steps: int, lr: float) -> None:
    """Fit the MLP alone, not P', to first values by MSE, as the authors do before training in low data."""
    assert isinstance(free, _MLP)
    optimizer = torch.optim.Adam(free.mlp.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.mse_loss(free(), target_PN).backward()
        optimizer.step()
    free.zero_grad(set_to_none=True)
