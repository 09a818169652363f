"""What is trained in a model in place of virtual tokens: its own top, adapters behind its blocks, LoRA beside its maps.

Knows modules; does not know training. What is put in is float32, whatever the model is, and starts as if it were not
there. Legend: D model width.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from epigraph.errors import BadValue, UnsupportedModel
from epigraph.frozen.model import FrozenModel

Live = dict[str, nn.Parameter]


class Adapter(nn.Module):
    """``x + up(relu(down(norm(x))))`` for states ``[..., D]``, computed in float32; ``up`` starts at zero.

    (Houlsby et al. 2019; one behind each block and with a norm of its own, as in the code of Li & Liang 2021.)
    """

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, states: Tensor) -> Tensor:
        """The states with what the adapter adds, in their own dtype."""
        added: Tensor = self.up(torch.relu(self.down(self.norm(states.float()))))
        return states + added.to(states.dtype)


def blocks(frozen: FrozenModel) -> list[nn.Module]:
    """The model's layers, without those that stand within others. Raises :class:`UnsupportedModel` for none."""
    inner = {x for layer in frozen.layers for x in layer.modules() if x is not layer}
    found: list[nn.Module] = [layer for layer in frozen.layers if layer not in inner]
    if not found:
        raise UnsupportedModel(f"{frozen.name} has no layers that can be told apart; train all of it: method full")
    return found


def all_weights(frozen: FrozenModel) -> Live:
    """Every parameter of the model, tied ones once."""
    _settle(frozen)
    return dict(frozen.model.named_parameters())


def top_weights(frozen: FrozenModel, num_layers: int) -> Live:
    """The last blocks, the norm behind them, and the language-modelling head with all that is tied to it.

    With an encoder and a decoder these are the decoder's. (Li & Liang 2021's code: FT-top2 with ``num_layers`` 2.)
    Raises :class:`BadValue` where there are fewer blocks.
    """
    _settle(frozen)
    layers = blocks(frozen)
    if num_layers > len(layers):
        raise BadValue(f"method.num_layers is {num_layers}, {frozen.name} has {len(layers)} layers; ask for fewer")
    modules = [*layers[-num_layers:], *_norms_beside(frozen.model, layers[-1])]
    chosen = {x for module in modules for x in module.parameters()} | set(_head(frozen))
    return {name: x for name, x in frozen.model.named_parameters() if x in chosen}


def add_adapters(frozen: FrozenModel, bottleneck: int) -> Live:
    """Put an :class:`Adapter` behind every block, for good; their parameters. They are no part of ``frozen.model``."""
    live: Live = {}
    for number, block in enumerate(blocks(frozen)):
        adapter = Adapter(_width(frozen), bottleneck).to(frozen.device)
        block.register_forward_hook(_behind(adapter))
        live |= {f"adapters.{number}.{name}": x for name, x in adapter.named_parameters()}
    return live


def adapter_numbers(frozen: FrozenModel, bottleneck: int) -> int:
    """How many numbers :func:`add_adapters` trains."""
    width = _width(frozen)
    return len(blocks(frozen)) * (2 * width * bottleneck + 3 * width + bottleneck)


def bottleneck_for(frozen: FrozenModel, share: float) -> int:
    """The bottleneck, at least 1, with which adapters have nearest to ``share`` of the model's parameters."""
    least, per_unit = adapter_numbers(frozen, 0), adapter_numbers(frozen, 1) - adapter_numbers(frozen, 0)
    return max(1, round((share * frozen.num_parameters - least) / per_unit))


def add_lora(frozen: FrozenModel, rank: int, *, alpha: int, targets: Sequence[str]) -> Live:
    """Put PEFT's low-rank maps beside the linear maps called one of ``targets``, for good; their parameters.

    (Hu et al. 2021: ``W + alpha / rank * B A``, B starting at zero.) Raises :class:`BadValue` without PEFT, and for no
    map of such a name.
    """
    _check_peft()
    import peft

    maps(frozen, targets)
    _settle(frozen)
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), lora_dropout=0.0)
    with warnings.catch_warnings():
        # GPT-2's maps are transposed, which PEFT sees by itself and says aloud.
        warnings.simplefilter("ignore")
        peft.inject_adapter_in_model(config, frozen.model)
    frozen.model.eval().requires_grad_(False)
    live = {name: x for name, x in frozen.model.named_parameters() if ".lora_" in name}
    for x in live.values():
        x.data = x.data.float()
    return live


def rank_for(frozen: FrozenModel, num_numbers: int, targets: Sequence[str]) -> int:
    """The rank, at least 1, with which LoRA trains nearest to ``num_numbers``."""
    return max(1, round(num_numbers / sum(sum(x.weight.shape) for x in maps(frozen, targets))))


def lora_targets(frozen: FrozenModel) -> list[str]:
    """The maps that PEFT takes by default for this kind of model, of queries and values in most.

    Raises :class:`BadValue` without PEFT, and where it has no default.
    """
    _check_peft()
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    kind = frozen.model.config.get_text_config().model_type
    found = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(kind)
    if found is None:
        raise BadValue(f"PEFT has no default maps for {kind}; name them: method.targets, for example q_proj and v_proj")
    return list(found)


def _check_peft() -> None:
    if find_spec("peft") is None:
        raise BadValue("method lora needs PEFT, which is not installed; run: pip install 'epigraph[lora]'")


def maps(frozen: FrozenModel, targets: Sequence[str]) -> list[Any]:
    """The linear maps whose own name is one of ``targets``; raises :class:`BadValue` where one of these names none."""
    named = list(_linear(frozen.model))
    for target in targets:
        if not any(name == target for name, _ in named):
            there = ", ".join(sorted({name for name, _ in named}))
            raise BadValue(f"method.targets: got {target!r}, {frozen.name} has the linear maps {there}; name some")
    return [x for name, x in named if name in targets]


def _linear(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    # GPT-2's maps are a class of transformers', with the weight of a linear map.
    for name, x in model.named_modules():
        if isinstance(x, nn.Linear) or type(x).__name__ == "Conv1D":
            yield name.rpartition(".")[2], x


def _behind(adapter: nn.Module) -> Any:
    def change(_: nn.Module, __: Any, out: Any) -> Any:
        return (adapter(out[0]), *out[1:]) if isinstance(out, tuple) else adapter(out)

    return change


def _norms_beside(model: nn.Module, block: nn.Module) -> Iterator[nn.Module]:
    """The norms that stand beside the list of blocks, but for those of embeddings."""
    [name] = [name for name, x in model.named_modules() if x is block]
    around = model.get_submodule(name.rpartition(".")[0].rpartition(".")[0])
    for beside, x in around.named_children():
        if "norm" in type(x).__name__.lower() and "emb" not in beside:
            yield x


def _head(frozen: FrozenModel) -> Iterator[nn.Parameter]:
    """What makes logits of states: the output embeddings, and in a masked model all that stands behind the encoder."""
    head = frozen.model.get_output_embeddings()
    if head is not None:
        yield from head.parameters()
    if frozen.kind == "masked":
        within = set(frozen.model.base_model.parameters())
        yield from (x for x in frozen.model.parameters() if x not in within)


def _width(frozen: FrozenModel) -> int:
    return int(frozen.model.config.get_text_config().hidden_size)


def _settle(frozen: FrozenModel) -> None:
    """Who the model is, and how large, is known before anything in it changes."""
    _ = frozen.fingerprint, frozen.num_parameters, frozen.num_bytes
