"""A local engine on a tiny model with a folder of artifacts of every kind, for tests. It knows no test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from conftest import random_prefix
from epigraph import artifact
from epigraph.artifact import Artifact
from epigraph.contract import Decoding, TextContract
from epigraph.engine.base import Answer, Named, Request, answer
from epigraph.engine.local import LocalEngine
from epigraph.engine.shelf import Shelf
from epigraph.frozen.ensemble import Ensemble
from epigraph.frozen.model import FrozenModel
from epigraph.tuned import Tuned
from epigraph.virtual import SoftPrompt, VirtualTokens
from families import tiny_family

NEW = 8
CONTRACT = TextContract(eos=False, decoding=Decoding(max_new_tokens=NEW))


@dataclass(frozen=True, kw_only=True)
class Served:
    """A running engine, and a model of its own that says what each request is to be answered alone."""

    engine: LocalEngine
    folder: Path
    frozen: FrozenModel

    def tuned(self, name: str, version: str = "") -> Tuned:
        return Tuned(self.frozen, Shelf(self.folder).open(name, version).artifact)

    def alone(self, request: Request) -> str:
        """The answer to a request, by ``Tuned.generate`` and no engine. Greedy ones only."""
        assert request.prefix is not None
        first = self.tuned(request.prefix, request.version)
        others = tuple(self.tuned(x.prefix, x.version).prefix for x in request.others)
        ensemble = Ensemble(members=(first.prefix, *others), mean=request.mean) if others else None
        return first.generate([request.text], ensemble=ensemble, decoding=request.decoding)[0]


@asynccontextmanager
async def serving(folder: Path, family: str, **options: Any) -> AsyncIterator[Served]:
    engine = LocalEngine(tiny_family(family), Shelf(folder), **options)
    try:
        yield Served(engine=engine, folder=folder, frozen=tiny_family(family))
    finally:
        await engine.close()


def made(frozen: FrozenModel, tokens: VirtualTokens, contract: TextContract = CONTRACT, **extra: Any) -> Artifact:
    return Artifact(
        tokens=tokens,
        geometry=frozen.geometry,
        contract=contract,
        base_name=frozen.name,
        base_fingerprint=frozen.fingerprint,
        tokenizer_fingerprint=frozen.tokenizer_fingerprint,
        method="prefix-tuning",
        method_config={},
        provenance={},
        extra=extra,
    )


def put(folder: Path, name: str, content: Artifact) -> Path:
    path = folder / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    artifact.save(content, path, dtype=torch.float32)
    return path


def put_prefixes(folder: Path, frozen: FrozenModel, number: int, contract: TextContract = CONTRACT) -> list[str]:
    """So many prefixes of several lengths."""
    names = [f"user-{n}" for n in range(number)]
    for n, name in enumerate(names):
        put(folder, name, made(frozen, random_prefix(frozen.geometry, 2 + 3 * n % 7, seed=n), contract))
    return names


def put_every_kind(folder: Path, frozen: FrozenModel) -> list[str]:
    """One artifact of every kind that the model can carry; their names."""
    geometry = frozen.geometry
    torch.manual_seed(0)
    prompt = SoftPrompt(embeddings_PE=torch.randn(3, geometry.embedding_dim))
    prefix = random_prefix(geometry, 4, seed=9)
    contract = CONTRACT
    if frozen.kind == "encoder-decoder":
        contract = CONTRACT.model_copy(update={"layout": "answer"})
    places = contract.model_copy(update={"input_template": "{2}a {source}{1}:"})
    labels = contract.model_copy(update={"labels": ("yes", "no", "maybe")})
    beams = contract.model_copy(update={"decoding": Decoding(max_new_tokens=NEW, num_beams=3)})
    kinds: dict[str, Artifact] = {
        "always": made(frozen, prefix, contract),
        "long": made(frozen, random_prefix(geometry, 9, seed=4), contract),
        "placed": made(frozen, replace(prompt, placed=True), places),
        "labels": made(frozen, prefix, labels),
        "beams": made(frozen, prefix, beams),
    }
    if frozen.kind == "causal":
        kinds["window"] = made(frozen, replace(prefix, visibility="window"))
        kinds["soft"] = made(frozen, prompt)
        kinds["infix"] = made(frozen, replace(prefix, visibility="answer"))
    for name, content in kinds.items():
        put(folder, name, content)
    return list(kinds)


async def all_answers(engine: LocalEngine, requests: Sequence[Request]) -> list[Answer]:
    """The answers to requests that are made at once."""
    return await asyncio.gather(*(answer(engine, request) for request in requests))


def ensemble(first: str, *others: str, **more: Any) -> Request:
    return Request(text="two", prefix=first, others=tuple(Named(prefix=x) for x in others), **more)
