"""The same training as others do it: PEFT's methods on a transformers model of its own, and what stands beside them.

The only place that knows PEFT, which `pip install 'epigraph[bench]'` brings. Legend: P virtual tokens, E model width.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from epigraph.bench.serve_load import Ask
from epigraph.bench.sides import Ours, Theirs, Trainer, inputs
from epigraph.errors import BadValue
from epigraph.frozen.batch import collate
from epigraph.frozen.grafts import add_lora, lora_targets
from epigraph.frozen.inputs import Encoded, fill_token
from epigraph.frozen.loading import load
from epigraph.frozen.model import FrozenModel
from epigraph.frozen.resolve import resolve
from epigraph.methods.bare import Bare
from epigraph.methods.base import flatten, unflatten
from epigraph.methods.weights import Weights
from epigraph.train.baselines.peft_peers import wrapped
from epigraph.virtual import KVPrefix

LORA_RANK = 8


def check_installed() -> None:
    """Raise :class:`BadValue` where PEFT is not there to be compared with."""
    if find_spec("peft") is None:
        raise BadValue("PEFT is not installed, and it is what is compared with; run pip install 'epigraph[bench]'")


def plain_model(name: str, frozen: FrozenModel) -> nn.Module:
    """Another copy of the model, as transformers gives it, with ``frozen``'s dtype and device."""
    model, _ = load(resolve(name), frozen.model.dtype)
    moved: nn.Module = model.to(frozen.device)  # type: ignore[arg-type]
    return moved.requires_grad_(False)


def prefix_side(model: nn.Module, first: KVPrefix, lr: float, name: str = "PEFT") -> Theirs:
    """PEFT's prefix tuning from the same first values."""
    made = wrapped(model, "PrefixTuning", num_virtual_tokens=first.num_virtual_tokens)
    _put(made, first)
    return Theirs(name, made, lr)


def trainer_side(
    model: nn.Module,
    first: KVPrefix,
    rows: Sequence[Encoded],
    lr: float,
    *,
    name: str,
    batch_size: int,
    seed: int,
    by_length: bool,
    fill: int,
) -> Trainer:
    """The same under transformers' ``Trainer``, with its random order or its grouping by length."""
    made = wrapped(model, "PrefixTuning", num_virtual_tokens=first.num_virtual_tokens)
    _put(made, first)
    data = [{"input_ids": list(row.ids), "scored": [int(x) for x in row.scored]} for row in rows]
    options = {
        # Trainer makes a folder only when it saves, which it does not.
        "output_dir": "unused",
        "per_device_train_batch_size": batch_size,
        "learning_rate": lr,
        "seed": seed,
        "data_seed": seed,
        "remove_unused_columns": False,
        "train_sampling_strategy": "group_by_length" if by_length else "random",
        "use_cpu": next(model.parameters()).device.type == "cpu",
        "dataloader_pin_memory": False,
    }

    def together(given: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
        encoded = [Encoded(ids=tuple(x["input_ids"]), scored=tuple(map(bool, x["scored"]))) for x in given]
        return inputs(collate(encoded, fill))

    return Trainer(name, made, data, options, together)


def prefix_of(model: nn.Module, like: KVPrefix, frozen: FrozenModel) -> KVPrefix:
    """What PEFT has trained, as virtual tokens, so that both are judged by one measure."""
    flat_PN = _embedding(model).detach().float()
    return unflatten(flat_PN, frozen.geometry, text_start=like.text_start, visibility=like.visibility)


class Switching:
    """PEFT serving several users: a prefix an adapter, switched for each request, one request after the other."""

    def __init__(self, name: str, frozen: FrozenModel, prefixes: Mapping[str, KVPrefix]) -> None:
        """``prefixes`` are as long as each other, with ``frozen``'s geometry."""
        import peft

        names = list(prefixes)
        config = peft.PrefixTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=prefixes[names[0]].num_virtual_tokens
        )
        model: Any = peft.get_peft_model(plain_model(name, frozen), config, adapter_name=names[0])
        for other in names[1:]:
            model.add_adapter(other, config)
        with torch.no_grad():
            for user, prefix in prefixes.items():
                model.prompt_encoder[user].embedding.weight.copy_(flatten(prefix))
        self._model: Any = model.eval()
        self._fill = fill_token(frozen.tokenizer)

    def answer(self, asks: Sequence[Ask], num_new: int) -> tuple[float, list[list[int]]]:
        """The seconds until the last is answered, and the answers, each of ``num_new`` tokens, drawn greedily."""
        start = time.perf_counter()
        found = []
        with torch.inference_mode():
            for ask in asks:
                self._model.set_adapter(ask.name)
                ids = torch.tensor([list(ask.ids)], device=self._model.device)
                out = self._model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=num_new,
                    min_new_tokens=num_new,
                    do_sample=False,
                    pad_token_id=self._fill,
                )
                found.append(out[0, ids.shape[1] :].tolist())
        return time.perf_counter() - start, found


def lora_sides(name: str, frozen: FrozenModel, lr: float) -> list[Ours | Theirs]:
    """LoRA by PEFT's own layers, stepped by us (packed rows, scored logits) and as its users do."""
    wrapping = FrozenModel(plain_model(name, frozen), frozen.tokenizer, name="with LoRA")  # type: ignore[arg-type]
    method = Weights(add_lora(wrapping, LORA_RANK, alpha=2 * LORA_RANK, targets=lora_targets(wrapping)))
    theirs = wrapped(plain_model(name, frozen), "Lora", r=LORA_RANK, lora_alpha=2 * LORA_RANK)
    return [Ours(wrapping, method, lr, name="LoRA, PEFT's layers in our step"), Theirs("LoRA, PEFT", theirs, lr)]


def adapter_side(name: str, frozen: FrozenModel, lr: float, width: int) -> Ours:
    """Bottleneck adapters behind each layer (Houlsby et al. 2019, one a layer as in Bapna and Firat 2019), in our step.

    PEFT has none. They are context for cost alone: their result is not judged.
    """
    model = plain_model(name, frozen)
    wrapping = FrozenModel(model, frozen.tokenizer, name="with adapters")  # type: ignore[arg-type]
    dim = model.config.get_text_config().hidden_size  # type: ignore[union-attr, operator]
    adapters = []
    for layer in wrapping.layers:
        adapter = nn.Sequential(nn.Linear(dim, width), nn.ReLU(), nn.Linear(width, dim)).to(frozen.device)
        nn.init.zeros_(adapter[2].weight)  # type: ignore[arg-type]
        layer.register_forward_hook(_adapted(adapter))
        adapters.append(adapter)
    method = Bare()
    method.base = nn.ModuleList(adapters)
    return Ours(wrapping, method, lr, name=f"adapters, width {width}")


def _adapted(adapter: nn.Module) -> Any:
    def change(_: nn.Module, __: Any, out: Any) -> Any:
        states, *more = out if isinstance(out, tuple) else (out,)
        changed = states + adapter(states.to(next(adapter.parameters()).dtype)).to(states.dtype)
        return (changed, *more) if isinstance(out, tuple) else changed

    return change


def _embedding(model: nn.Module) -> Tensor:
    [found] = [x for x in model.parameters() if x.requires_grad]
    return found


def _put(model: nn.Module, first: KVPrefix) -> None:
    # PEFT's table has the layout of ours: a row a virtual token, layer after layer, keys before values.
    with torch.no_grad():
        _embedding(model).copy_(flatten(first))
