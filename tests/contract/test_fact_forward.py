"""A model's forward, its head, its loss, its cache, and how its layers are checkpointed."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from facts import FAMILIES, WINDOW, attended, fact, ids, tiny

pytestmark = pytest.mark.parametrize("family", FAMILIES)
MODEL = "frozen/model.py"
NAMES = ("input_ids", "attention_mask", "position_ids", "past_key_values", "inputs_embeds", "labels", "use_cache")


@fact(
    "forward of {family} names its inputs as always, and takes further ones as **kwargs",
    used_in=MODEL,
    purpose="read and replace the positions of a forward",
)
def test_forward_has_its_names(family: str) -> None:
    parameters = inspect.signature(tiny(family).forward).parameters
    assert set(NAMES) <= set(parameters)
    assert parameters["kwargs"].kind is inspect.Parameter.VAR_KEYWORD


@fact(
    "a model is called through hooks of its own, which may change its keyword arguments",
    used_in=MODEL,
    purpose="hand a forward its prefixes",
)
def test_hooks_of_the_model_run(family: str) -> None:
    model, seen = tiny(family), []

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        seen.append(set(kwargs))
        return args, {**kwargs, "position_ids": torch.arange(3, 8)[None]}

    with torch.no_grad():
        want = model(input_ids=ids(1, 5), position_ids=torch.arange(3, 8)[None]).logits
        model.register_forward_pre_hook(enter, with_kwargs=True)
        got = model(input_ids=ids(1, 5)).logits
    assert seen == [{"input_ids"}]
    assert torch.equal(got, want)


@fact(
    "the output has logits [B, T, V], and labels give the mean loss of the tokens that are not -100",
    used_in="train/loss.py and train/module.py",
    purpose="train on targets alone",
)
def test_logits_and_loss(family: str) -> None:
    tokens = ids(2, 6)
    labels = tokens.clone()
    labels[0, :4] = labels[1, :2] = -100
    with torch.no_grad():
        out = tiny(family)(input_ids=tokens, labels=labels, use_cache=False)
    assert out.logits.shape == (2, 6, 64)
    want = nn.functional.cross_entropy(out.logits[:, :-1].reshape(-1, 64), labels[:, 1:].reshape(-1))
    assert out.loss.item() == pytest.approx(want.item(), abs=1e-5)


@fact(
    "get_output_embeddings() is called with [B, T, D], first and by position, and what it returns becomes the logits "
    "token by token",
    used_in="frozen/scored.py",
    purpose="compute logits at scored positions only",
)
def test_the_head_sees_every_token(family: str) -> None:
    model, tokens = tiny(family), ids(2, 6)
    wanted = torch.zeros(2, 6, dtype=torch.bool)
    wanted[0, 2:4] = wanted[1, 5] = True
    seen: list[torch.Size] = []

    def narrow(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(args[0].shape)
        return (args[0][wanted][None], *args[1:])

    with torch.no_grad():
        whole = model(input_ids=tokens).logits
        model.get_output_embeddings().register_forward_pre_hook(narrow)
        part = model(input_ids=tokens).logits
    assert seen == [(2, 6, 32)]
    assert torch.allclose(part[0], whole[wanted], atol=1e-5)


@fact(
    "a model without a head has no output embeddings",
    used_in="frozen/geometry.py",
    purpose="refuse what cannot be trained",
)
def test_no_head_no_output_embeddings(family: str) -> None:
    from transformers import AutoModel

    assert AutoModel.from_config(tiny(family).config).get_output_embeddings() is None


@fact(
    "get_input_embeddings() turns ids into the width that inputs_embeds takes",
    used_in="frozen/geometry.py",
    purpose="measure the width of embeddings",
)
def test_input_embeddings(family: str) -> None:
    model, tokens = tiny(family), ids(1, 5)
    with torch.no_grad():
        embedded = model.get_input_embeddings()(tokens)
        assert torch.allclose(model(inputs_embeds=embedded).logits, model(input_ids=tokens).logits, atol=1e-5)


@fact(
    "base_model is the model without its head: it takes inputs_embeds, and its attention sees the same keys and values",
    used_in="frozen/lower.py",
    purpose="compute the keys and values of virtual tokens",
)
def test_the_base_model_takes_embeddings(family: str) -> None:
    model = tiny(family)
    with torch.no_grad():
        embedded = model.get_input_embeddings()(ids(1, 5))
    inputs = {"inputs_embeds": embedded, "attention_mask": torch.ones(1, 5).long(), "use_cache": False}
    calls = attended(model, **inputs)
    whole = [(call.key, call.value) for call in calls]
    calls.clear()
    with torch.no_grad():
        model.base_model(**inputs)
    assert len(calls) == len(whole) > 1
    for call, (key, value) in zip(calls, whole, strict=True):
        assert torch.equal(call.key, key)
        assert torch.equal(call.value, value)


@fact(
    "a cache of {family} counts every token it was given, also past a window",
    used_in=MODEL,
    purpose="go on counting positions where there is no mask",
)
def test_a_cache_counts_its_tokens(family: str) -> None:
    model = tiny(family)
    with torch.no_grad():
        cache = model(input_ids=ids(1, WINDOW + 3), use_cache=True).past_key_values
        assert int(cache.get_seq_length()) == WINDOW + 3
        cache = model(input_ids=ids(1, 1), past_key_values=cache, use_cache=True).past_key_values
    assert int(cache.get_seq_length()) == WINDOW + 4


def layers(model: nn.Module) -> list[Any]:
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [x for x in model.modules() if isinstance(x, GradientCheckpointingLayer)]


@fact(
    "each layer of {family} is a GradientCheckpointingLayer that checkpoints when its own gradient_checkpointing and "
    "training say so, through its _gradient_checkpointing_func",
    used_in=f"{MODEL} and frozen/recompute.py",
    purpose="recompute layers while dropout stays off",
)
def test_layers_checkpoint_by_their_own_flags(family: str) -> None:
    model, tokens = tiny(family), ids(1, 5)
    entered: list[Any] = []
    for layer in layers(model):
        layer.gradient_checkpointing = layer.training = True
        vars(layer)["_gradient_checkpointing_func"] = lambda run, *args: entered.append(1) or run(*args)
    assert not any(x.training for x in model.modules() if x not in layers(model))
    out = model(input_ids=tokens, use_cache=False)
    assert entered == [1, 1]
    assert torch.equal(out.logits, tiny(family)(input_ids=tokens, use_cache=False).logits)


@fact(
    "a checkpointed layer of {family} runs again with the keyword arguments it had",
    used_in=f"{MODEL} and frozen/attention.py",
    purpose="see the same prefix in the backward pass",
)
def test_recomputation_has_the_same_arguments(family: str) -> None:
    from facts import watch

    model, token = tiny(family), object()
    calls = watch(model)
    for layer in layers(model):
        layer.gradient_checkpointing = layer.training = True
        vars(layer)["_gradient_checkpointing_func"] = partial(checkpoint, use_reentrant=False)
    model(input_ids=ids(1, 5), use_cache=False, epigraph_run=token).logits.sum().backward()
    assert [call.options.get("epigraph_run") for call in calls] == [token] * 4


@fact(
    "checkpointing turned on by the model leaves use_reentrant to be seen in each layer's function",
    used_in="frozen/recompute.py",
    purpose="refuse the reentrant kind, which forgets prefixes",
)
def test_reentrant_checkpointing_can_be_seen(family: str) -> None:
    model = tiny(family)
    turn_on = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    for reentrant in (True, False):
        turn_on({"use_reentrant": reentrant})
        for layer in layers(model):
            assert layer.gradient_checkpointing
            assert layer._gradient_checkpointing_func.keywords["use_reentrant"] is reentrant
