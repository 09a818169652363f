"""Tiny random models with heads as wide as vLLM's CPU attention takes, as folders, and random prefixes for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from conftest import grown, random_prefix, tiny_tokenizer
from epigraph import artifact
from epigraph.artifact import Artifact
from epigraph.contract import TextContract
from epigraph.frozen.generate import generate
from epigraph.frozen.model import FrozenModel
from epigraph.virtual import Geometry, VirtualTokens, Visibility

VOCABULARY = 120
# So many times as large as a fresh model's are its weights: the two best tokens are apart, greedy answers decided.
GROWN = 5.0
_IDS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_WIDTHS = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
_HEADS = {"num_key_value_heads": 2, "head_dim": 32}
_LENGTH = {"max_position_embeddings": 1024}
WINDOW = 32


def _gemma3() -> Gemma3ForCausalLM:
    """Two kinds of layers, and small embeddings: they are the head, too, and as large as the other weights they would
    have each token followed by itself, whatever stands in front."""
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    heads = {"num_key_value_heads": 1, "head_dim": 32, "query_pre_attn_scalar": 32}
    config = Gemma3TextConfig(**_IDS, **_WIDTHS, **_LENGTH, **heads, sliding_window=WINDOW, layer_types=kinds)
    model = Gemma3ForCausalLM(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.div_(GROWN)
        # What it says is to be as decided all the same.
        model.model.norm.weight.fill_(24.0)
    return model


MAKERS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_IDS, **_WIDTHS, **_HEADS, **_LENGTH)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_IDS, **_WIDTHS, **_HEADS, **_LENGTH)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**_IDS, n_embd=128, n_layer=3, n_head=4, n_positions=1024)),
    "gemma3": _gemma3,
}


def save_model(family: str, folder: Path, *, seed: int = 0) -> Path:
    """The tiny model of that family, with its tokenizer of one token a letter."""
    torch.manual_seed(seed)
    grown(MAKERS[family]().eval(), GROWN).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def packed(frozen: FrozenModel, tokens: VirtualTokens, contract: TextContract | None = None) -> Artifact:
    """Virtual tokens as an artifact of this model."""
    return Artifact(
        tokens=tokens,
        geometry=frozen.geometry,
        contract=contract or TextContract(input_template="{source}"),
        base_name=frozen.name,
        base_fingerprint=frozen.fingerprint,
        tokenizer_fingerprint=frozen.tokenizer_fingerprint,
        method="prefix-tuning",
        method_config={},
        provenance={},
    )


def put(
    frozen: FrozenModel, folder: Path, name: str, tokens: VirtualTokens, contract: TextContract | None = None
) -> str:
    """An artifact on a shelf, in full precision; its prefix id."""
    path = folder / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    artifact.save(packed(frozen, tokens, contract), path, dtype=torch.float32)
    return name


def drawn(geometry: Geometry, num_virtual_tokens: int, seed: int, visibility: Visibility = "always") -> VirtualTokens:
    """A random prefix that moves the model's answers."""
    return random_prefix(geometry, num_virtual_tokens, seed, visibility)


def answered(
    frozen: FrozenModel, texts: Sequence[Sequence[int]], tokens: Sequence[VirtualTokens | None], num_new: int
) -> list[list[int]]:
    """What transformers says greedily, each text alone: the oracle."""
    from epigraph.contract import Decoding

    decoding = Decoding(max_new_tokens=num_new, min_new_tokens=num_new)
    return [generate(frozen, [ids], prefix, decoding)[0] for ids, prefix in zip(texts, tokens, strict=True)]
