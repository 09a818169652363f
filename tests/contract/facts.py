"""What a fact about transformers is, and the tiny models on which facts are looked at.

A fact that breaks says so in one sentence: which transformers, what no longer holds, where epigraph leans on it and for
what. This file and the facts beside it know no epigraph, so that they can speak when it cannot even be imported.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

WINDOW = 4
SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WIDE = {"intermediate_size": 32, "num_key_value_heads": 2, "head_dim": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": WIDE,
    "qwen3": WIDE,
    "mistral": {**WIDE, "sliding_window": WINDOW},
    "gemma3_text": {**WIDE, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt2": {"n_positions": 48},
}
WINDOWS = {"mistral": [WINDOW, WINDOW], "gemma3_text": [WINDOW, None]}
ATTENTIONS = ("sdpa", "eager")


class BrokenFact(AssertionError):
    """A fact about transformers that epigraph leans on does not hold."""


def fact(what: str, *, used_in: str, purpose: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A test whose failure is a sentence. ``{name}`` in the words stands for the test's argument of that name."""

    def named(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(**arguments: Any) -> None:
            try:
                test(**arguments)
            except Exception as error:
                seen = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                raise BrokenFact(
                    f"transformers {version()}: it does not hold any more that {what.format(**arguments)}; epigraph "
                    f"uses it in {used_in.format(**arguments)} to {purpose} ({seen})"
                ) from error

        vars(run)["used_in"] = used_in
        return run

    return named


def version() -> str:
    """Which transformers this is."""
    import transformers

    return str(transformers.__version__)


def tiny(family: str, attention: str = "sdpa", **changes: Any) -> Any:
    """A random causal model of two layers."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SMALL, **FAMILIES.get(family, WIDE), **changes})
    model = AutoModelForCausalLM.from_config(config).eval()
    model.set_attn_implementation(attention)
    return model


def ids(num_rows: int, num_tokens: int, seed: int = 0) -> Tensor:
    """``[B, T]`` ordinary tokens."""
    return torch.randint(3, 64, (num_rows, num_tokens), generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Call:
    """One attention call: what the model handed to its attention, and what came back."""

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    options: dict[str, Any]
    output: Any


def watch(model: Any, attention: str = "sdpa") -> list[Call]:
    """The model's attention calls from now on, seen by a function registered around ``attention``."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    calls: list[Call] = []

    def attend(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> Any:
        output = inner(module, attention)(module, query, key, value, attention_mask, **options)
        seen = {"query": query, "key": key, "value": value, "mask": attention_mask}
        calls.append(Call(module=module, options=options, output=output, **seen))
        return output

    name = f"facts_{attention}"
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[attention])
    model.set_attn_implementation(name)
    return calls


def inner(module: nn.Module, attention: str) -> Callable[..., Any]:
    """The attention that the family of ``module`` uses under that name."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if attention == "eager":
        return vars(sys.modules[type(module).__module__])["eager_attention_forward"]  # type: ignore[no-any-return]
    return ALL_ATTENTION_FUNCTIONS[attention]  # type: ignore[no-any-return]


def attended(model: Any, attention: str = "sdpa", **inputs: Any) -> list[Call]:
    """The attention calls of one forward."""
    calls = watch(model, attention)
    with torch.no_grad():
        model(**inputs)
    return calls


def plain(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scaling: float | None) -> Tensor:
    """Softmax attention written out, ``[B, T, N, H]``; ``seen`` is True where a query sees a column."""
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value).transpose(1, 2)
