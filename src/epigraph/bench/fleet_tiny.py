"""A tiny random model and many users' rows on disk, for what grows with the number of users and not with the model.

Beside ``peers`` the only place of the bench that knows transformers.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from epigraph.frozen.loading import quiet

CONFIG: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
_WORDS = ("warm", "cold", "leaf", "night", "river", "stone", "late", "clear")


def write_model(folder: Path) -> Path:
    """A Llama of two layers and random weights, whose tokens are single characters."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    characters = ["\n", *map(chr, range(32, 127))]
    vocabulary = {token: number for number, token in enumerate([*_SPECIAL, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), _SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    state = torch.get_rng_state()
    try:
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(vocab_size=len(vocabulary), pad_token_id=0, bos_token_id=1, eos_token_id=2, **CONFIG)
        )
    finally:
        torch.set_rng_state(state)
    with quiet():
        model.save_pretrained(folder)
    return folder


def write_users(path: Path, num_users: int, num_pairs: int) -> Path:
    """So many users' pairs in one file, JSON lines with a column that names the user."""
    draws = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for user in range(num_users):
            for _ in range(num_pairs):
                words = draws.sample(_WORDS, 3)
                row = {"user": f"u{user:06d}", "source": " ".join(words[:2]), "target": words[2]}
                file.write(json.dumps(row) + "\n")
    return path
