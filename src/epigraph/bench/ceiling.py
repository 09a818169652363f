"""What a training step must cost at the least: floating-point operations, bytes of weights, and the machine's ceiling.

Legend: P virtual tokens, N heads, H head width, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from epigraph.bench.clock import seconds
from epigraph.frozen.batch import num_scored
from epigraph.frozen.inputs import Encoded
from epigraph.frozen.model import FrozenModel

# Sides of the square matrices that the ceiling is looked for with, and how often each is tried.
SIDES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
TRIES = 7


@dataclass(frozen=True, kw_only=True, slots=True)
class Least:
    """Floating-point operations of one step, by what they are spent on, and the bytes of weights that it must read."""

    layers: float
    head: float
    attention: float
    weight_bytes: int

    @property
    def operations(self) -> float:
        """All of them."""
        return self.layers + self.head + self.attention


def matmul_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """The most floating-point operations a second that a large matrix product was seen to do here."""
    best = 0.0
    for side in SIDES["cuda" if device.type == "cuda" else "cpu"]:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        took = min(seconds(partial(torch.matmul, a, b), device) for _ in range(TRIES))
        best = max(best, 2 * side**3 / took)
    return best


def least(frozen: FrozenModel, rows: Sequence[Encoded], num_virtual_tokens: int) -> Least:
    """What a step over ``rows`` must do in a causal decoder behind a trained prefix.

    Each weight of a layer is met by each real token twice, forward and backward to the activations; nothing flows
    back into frozen weights, nor below the first layer's attention. The head sees scored tokens only.
    """
    model, config = frozen.model, frozen.model.config.get_text_config()
    head = model.get_output_embeddings()
    maps = [x for x in model.modules() if isinstance(x, nn.Linear) or type(x).__name__ == "Conv1D"]
    in_layers = sum(x.weight.numel() for x in maps if x is not head)
    lengths = [len(row.ids) for row in rows]
    num_tokens, num_answers = sum(lengths), sum(map(num_scored, rows))
    first, *_ = layers = frozen.geometry.sites["decoder.self"]
    read_first = config.hidden_size * first.head_dim * (config.num_attention_heads + 2 * first.num_kv_heads)
    pairs = sum(_pairs(length, num_virtual_tokens, layer.window) for layer in layers for length in lengths)
    itemsize = next(model.parameters()).element_size()
    return Least(
        layers=2.0 * num_tokens * (2 * in_layers - read_first),
        head=4.0 * num_answers * head.weight.numel(),
        # Two products forward, four backward.
        attention=12.0 * config.num_attention_heads * first.head_dim * pairs,
        weight_bytes=2 * itemsize * (in_layers + head.weight.numel()),
    )


def _pairs(length: int, num_virtual_tokens: int, window: int | None) -> int:
    """How many keys the tokens of a text see, all together."""
    near = length if window is None else min(window, length)
    return length * num_virtual_tokens + near * (near + 1) // 2 + (length - near) * near
