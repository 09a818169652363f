"""What tests of the registry share: small artifacts, and processes that push and tell what was acknowledged.

It imports nothing of the other tests, so that a process is there in two seconds.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch

from epigraph import artifact
from epigraph.artifact import Artifact
from epigraph.contract import TextContract
from epigraph.errors import CatalogueUnavailable, StoreUnavailable
from epigraph.registry import Registry
from epigraph.virtual import Geometry, KVPrefix, LayerGeometry, LayerKV

GEOMETRY = Geometry(
    sites={"decoder.self": (LayerGeometry(num_kv_heads=2, head_dim=4),) * 2}, embedding_dim=8, position_kind="rotary"
)
BASE, TOKENIZER = "b" * 64, "c" * 64


def content(seed: int = 0, num_virtual_tokens: int = 3, **other: Any) -> Artifact:
    """Random keys and values, other ones for each seed."""
    numbers = torch.Generator().manual_seed(seed)
    shape = (num_virtual_tokens, 2, 4)
    layers = tuple(
        LayerKV(keys_PKH=torch.randn(shape, generator=numbers), values_PKH=torch.randn(shape, generator=numbers))
        for _ in range(2)
    )
    given: dict[str, Any] = {
        "tokens": KVPrefix(sites={"decoder.self": layers}, text_start=num_virtual_tokens, visibility="always"),
        "geometry": GEOMETRY,
        "contract": TextContract(),
        "base_name": "some-model",
        "base_fingerprint": BASE,
        "tokenizer_fingerprint": TOKENIZER,
        "method": "prefix-tuning",
        "method_config": {},
        "provenance": {"data": {"task": "e2e"}, "seed": seed},
    }
    return Artifact(**{**given, **other})


def saved(folder: Path, seed: int = 0, **other: Any) -> Path:
    """A file of its own in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{seed}.safetensors"
    artifact.save(content(seed, **other), path, dtype=torch.float32)
    return path


def push_for_ever(catalogue: str, store: str, files: str, ready: str, seed: str) -> None:
    """Push and delete until somebody ends it; a line for what was acknowledged.

    Where database or store do not answer, it tries again: that is no answer.
    """
    chance = random.Random(int(seed))
    sources = sorted(Path(files).glob("*.safetensors"))
    with Registry.open(catalogue, store) as registry:
        Path(ready).touch()
        while not Path(f"{ready}.end").exists():
            try:
                tell(step(registry, chance, chance.choice("abc"), chance.choice(sources), by=seed))
            except (CatalogueUnavailable, StoreUnavailable) as error:
                tell({"failed": str(error)})


def step(registry: Registry, chance: random.Random, name: str, source: Path, by: str) -> dict[str, Any]:
    """One change, and what it was. Only versions that this process pushed are deleted, by their numbers."""
    made = registry.push("local", name, source, by=by)
    told: dict[str, Any] = {"pushed": made.number, "name": name, "hash": made.content_hash}
    if chance.random() < 0.2:
        tell(told | {"deleting": True})
        registry.delete("local", name, made.number, by=by)
        return told | {"deleted": True}
    return told


def tell(what: dict[str, Any]) -> None:
    """One line, out at once: what comes after it may be the end."""
    os.write(1, json.dumps(what).encode() + b"\n")


def push_many(catalogue: str, store: str, gate: str, source: str, count: str, by: str) -> None:
    """Push one file again and again under one name, once the gate is open; the numbers, in order."""
    with Registry.open(catalogue, store) as registry:
        (Path(gate) / by).touch()
        wait_for(Path(gate) / "open")
        numbers = [registry.push("local", "one", source, by=by).number for _ in range(int(count))]
    print(json.dumps(numbers))


def wait_for(*paths: Path) -> None:
    """Until all of them are there."""
    ends = time.monotonic() + 60
    while not all(path.exists() for path in paths):
        assert time.monotonic() < ends, paths
        time.sleep(0.01)


if __name__ == "__main__":
    {"push_for_ever": push_for_ever, "push_many": push_many}[sys.argv[1]](*sys.argv[2:])
