"""A frozen base cut up over the processes of a run: each keeps a share of every layer, and fetches it whole to use it.

Torch's FSDP2 on the layers. Knows modules and what a forward carries; does not know training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from epigraph.errors import UnsupportedModel
from epigraph.frozen.attention import ARGUMENT
from epigraph.frozen.model import FrozenModel


class _Sealed:
    """Hides what a forward carries: FSDP copies every dataclass among a layer's arguments that holds a gradient.

    What a layer then notes in its copy is lost, and a soft prompt would be lowered to the keys of its first layer.
    """

    __slots__ = ("carried",)

    def __init__(self, carried: Any) -> None:
        self.carried = carried


def shard_base(frozen: FrozenModel, device: torch.device, num: int) -> None:
    """Leave this process its share of every layer of ``frozen``, and of embeddings and head where nothing shares them.

    Each is sharded alone, without a root around them: lowering and heads enter a model below its own forward, and FSDP
    takes a root's parts only through the root. What is left (norms, tied embeddings) every process has whole.
    Raises :class:`UnsupportedModel` where there are no layers to be found.
    """
    layers = frozen.layers
    if not layers:
        raise UnsupportedModel(f"{frozen.name} has no layers that can be sharded; leave training.shard_base out")
    mesh = init_device_mesh(device.type, (num,))
    # From the inside out, as FSDP wants layers within layers.
    for module in [*reversed(layers), *_ends(frozen)]:
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    for layer in layers:
        layer.register_forward_pre_hook(_seal, prepend=True, with_kwargs=True)
        layer.register_forward_pre_hook(_open, with_kwargs=True)
    last = layers[-1]
    assert isinstance(last, FSDPModule)
    # A lowered prompt's gradient reaches the last layer's keys and never its output, by which FSDP would know to fetch.
    last.set_reshard_after_backward(False)
    frozen.model.to(device)


def _ends(frozen: FrozenModel) -> list[nn.Module]:
    """Input and output embeddings whose weight no other module has."""
    weights = [x for _, x in frozen.model.named_parameters(remove_duplicate=False)]
    ends = (frozen.model.get_input_embeddings(), frozen.model.get_output_embeddings())
    return [x for x in ends if x is not None and sum(y is x.weight for y in weights) == 1]


def _seal(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {**kwargs, ARGUMENT: _Sealed(kwargs[ARGUMENT])} if ARGUMENT in kwargs else kwargs


def _open(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {**kwargs, ARGUMENT: kwargs[ARGUMENT].carried} if ARGUMENT in kwargs else kwargs
