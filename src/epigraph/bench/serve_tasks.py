"""Random prefixes and adapters on disk, for a bench to serve. Nothing is trained: what serving costs is the same.

An adapter is LoRA as PEFT writes it, as large as a prefix. Legend: P virtual tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from epigraph import artifact
from epigraph.artifact import Artifact
from epigraph.contract import TextContract
from epigraph.engine.claim import Claim
from epigraph.engine.shelf import Opened, claim_to
from epigraph.errors import BadValue
from epigraph.frozen.model import FrozenModel
from epigraph.methods.initial import random_normal

STD = 0.5
# Those that vLLM takes.
RANKS = (1, 8, 16, 32, 64)
ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj")


def write_prefixes(frozen: FrozenModel, folder: Path, num_prefixes: int, num_virtual_tokens: int) -> dict[str, Claim]:
    """Prefixes of random numbers as artifacts in ``folder``; by prefix id, what a request to each claims."""
    return {
        f"p{number:04d}": _write_prefix(frozen, folder, number, num_virtual_tokens) for number in range(num_prefixes)
    }


def _write_prefix(frozen: FrozenModel, folder: Path, number: int, num_virtual_tokens: int) -> Claim:
    generator = torch.Generator().manual_seed(number)
    content = Artifact(
        tokens=random_normal(frozen.geometry, num_virtual_tokens, std=STD, generator=generator),
        geometry=frozen.geometry,
        contract=TextContract(input_template="{source}"),
        base_name=frozen.name,
        base_fingerprint=frozen.fingerprint,
        tokenizer_fingerprint=frozen.tokenizer_fingerprint,
        method="prefix-tuning",
        method_config={},
        provenance={},
    )
    name = f"p{number:04d}"
    content_hash = artifact.save(content, folder / f"{name}.safetensors")
    return claim_to(Opened(artifact=content, content_hash=content_hash), name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapters:
    """LoRA adapters on disk: folders by name, the rank of all, and how many numbers each has."""

    folders: Mapping[str, Path]
    rank: int
    num_numbers: int


def write_adapters(frozen: FrozenModel, folder: Path, num_adapters: int, num_numbers: int) -> Adapters:
    """LoRA adapters of random numbers at the attention's projections, as near to ``num_numbers`` as a rank gets.

    Raises :class:`BadValue` for a model whose layers have other names.
    """
    adapted = {
        name: module
        for name, module in frozen.model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in ADAPTED
    }
    if not adapted:
        raise BadValue(f"{frozen.name} has no layers named {', '.join(ADAPTED)}; leave the part lora out")
    a_rank = sum(x.in_features + x.out_features for x in adapted.values())
    rank = min(RANKS, key=lambda rank: abs(rank * a_rank - num_numbers))
    folders = {f"a{number:04d}": folder / f"a{number:04d}" for number in range(num_adapters)}
    for number, place in enumerate(folders.values()):
        _write_adapter(adapted, place, rank, torch.Generator().manual_seed(number))
    return Adapters(folders=folders, rank=rank, num_numbers=rank * a_rank)


def _write_adapter(adapted: Mapping[str, nn.Linear], folder: Path, rank: int, generator: torch.Generator) -> None:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * STD / 10

    tensors = {}
    for name, module in adapted.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = normal(rank, module.in_features)
        tensors[f"base_model.model.{name}.lora_B.weight"] = normal(module.out_features, rank)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(ADAPTED),
    }
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
