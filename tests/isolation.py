"""Thousands of requests of many tenants against a running server: does anybody ever hear somebody else's prefix?

Every tenant's prefix is called the same and answers every text in its own way, which transformers tells beforehand.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch

from conftest import random_prefix, tiny_model, tiny_tokenizer
from epigraph.artifact import save
from epigraph.contract import Decoding, TextContract
from epigraph.frozen.generate import generate
from epigraph.frozen.inputs import Codec
from epigraph.frozen.model import FrozenModel
from epigraph.registry import Registry
from epigraph.virtual import VirtualTokens
from local_serving import made

NAME = "mine"
TEXTS = ("a tree", "the sea", "b", "some longer words, with signs!", "0123456789 abc")
CONTRACT = TextContract(input_template="Q {source}\nA", eos=False, decoding=Decoding(max_new_tokens=10))


@dataclass(kw_only=True)
class Tenants:
    """Who asks: secrets by tenant, and what each one's prefix answers to each text, alone."""

    secrets: dict[str, str]
    answers: dict[str, dict[str, str]]
    base: dict[str, str]
    found: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return list(self.secrets)

    def owners(self, text: str, said: str) -> list[str]:
        """Whose answer that is."""
        return [name for name, answers in self.answers.items() if answers[text] == said]


def furnish(folder: Path, num_tenants: int) -> Tenants:
    """A tiny base, a registry with a prefix a tenant, all of one name, some of them shared with the next tenant."""
    # Its heads are 32 wide: vLLM's kernels for processors have none of 16.
    frozen = FrozenModel(tiny_model("qwen3"), tiny_tokenizer(), name="base")
    frozen.model.save_pretrained(folder / "base")
    frozen.tokenizer.save_pretrained(folder / "base")
    frozen = FrozenModel.load(str(folder / "base"))
    registry = Registry.open(str(folder / "catalogue.sqlite"), folder / "store")
    secrets: dict[str, str] = {}
    answers: dict[str, dict[str, str]] = {}
    taken: set[str] = set()
    try:
        for seed in itertools.count():
            if len(secrets) == num_tenants:
                break
            content = made(frozen, random_prefix(frozen.geometry, 3 + seed % 9, seed=seed), CONTRACT)
            said = _alone(frozen, content.tokens)
            # Each answer tells whose it is.
            if taken & set(said.values()) or min(map(len, said.values())) < 4:
                continue
            taken |= set(said.values())
            tenant = f"tenant-{len(secrets):03d}"
            answers[tenant] = said
            registry.tenants.add(tenant)
            secrets[tenant] = registry.tenants.make_key(tenant, scopes=frozenset(("use",)))[1]
            save(content, folder / "made.safetensors", dtype=torch.float32)
            registry.push(tenant, NAME, folder / "made.safetensors", by="tests")
            (folder / "made.safetensors").unlink()
    finally:
        registry.close()
    return Tenants(secrets=secrets, answers=answers, base=_bare(frozen))


def _alone(frozen: FrozenModel, tokens: VirtualTokens) -> dict[str, str]:
    codec = Codec(frozen.tokenizer, CONTRACT)
    prompts = [codec.source({"source": text}).ids for text in TEXTS]
    ids = generate(frozen, prompts, tokens, CONTRACT.decoding)
    return dict(zip(TEXTS, map(codec.text, ids), strict=True))


def _bare(frozen: FrozenModel) -> dict[str, str]:
    codec = Codec(frozen.tokenizer, TextContract(input_template="{source}", eos=False, decoding=CONTRACT.decoding))
    prompts = [codec.source({"source": text}).ids for text in TEXTS]
    ids = generate(frozen, prompts, None, CONTRACT.decoding)
    return dict(zip(TEXTS, map(codec.text, ids), strict=True))


@contextlib.contextmanager
def served(folder: Path, *words: str) -> Iterator[str]:
    """`epigraph serve` in a process of its own; its address."""
    command = [sys.executable, "-m", "epigraph", "serve", "--model", str(folder / "base"), "--port", "0"]
    command += ["--catalogue", str(folder / "catalogue.sqlite"), "--store", str(folder / "store"), *words]
    log = (folder / "server.log").open("wb")
    with log, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env={**os.environ}) as server:
        assert server.stdout is not None
        try:
            yield _address(server)
        finally:
            server.send_signal(signal.SIGTERM)
            assert server.wait(90) == 0, (folder / "server.log").read_text()[-2000:]


def _address(server: subprocess.Popen[bytes]) -> str:
    until = time.monotonic() + 240
    assert server.stdout is not None
    for line in server.stdout:
        words = line.decode().split()
        found = [x for x in words if x.startswith("http://")]
        if found:
            return found[0].rstrip(".,")
        assert time.monotonic() < until
    raise AssertionError("the server ended before it served")


async def ask_all(url: str, tenants: Tenants, num_requests: int, at_once: int = 100, *, ensembles: bool) -> None:
    """Mixed requests, drawn with a seed; what they came to is counted in ``tenants.found`` and ``.wrong``."""
    draw = random.Random(0)
    plans = [_plan(tenants, draw, ensembles) for _ in range(num_requests)]
    gate = asyncio.Semaphore(at_once)
    limits = httpx.Limits(max_connections=at_once, max_keepalive_connections=at_once)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:

        async def one(plan: tuple[str, str, str, str]) -> None:
            async with gate:
                await _ask(http, tenants, *plan)

        await asyncio.gather(*map(one, plans))


def _plan(tenants: Tenants, draw: random.Random, ensembles: bool) -> tuple[str, str, str, str]:
    """Who asks, in which way, whom, and what."""
    names = tenants.names
    tenant, text = draw.choice(names), draw.choice(TEXTS)
    ways = ["own", "streamed", "base", "foreign", "guessed", *(["together"] if ensembles else [])]
    way = draw.choices(ways, [60, 15, 5, 10, 5, *([5] if ensembles else [])])[0]
    other = draw.choice([x for x in names if x != tenant])
    model = {
        "own": draw.choice([NAME, f"{tenant}/{NAME}", f"{NAME}@1", f"{NAME}@latest"]),
        "streamed": NAME,
        "base": "base",
        "together": f"{NAME}+{tenant}/{NAME}",
        "foreign": draw.choice([f"{other}/{NAME}", f"{other}/{NAME}@1", f"{NAME}+{other}/{NAME}"]),
        "guessed": draw.choice([f"../{other}/{NAME}", f"{other}/{NAME}/1", f"{NAME}@2", f"{tenant}/../{other}/{NAME}"]),
    }[way]
    return tenant, way, model, text


async def _ask(http: httpx.AsyncClient, tenants: Tenants, tenant: str, way: str, model: str, text: str) -> None:
    body: dict[str, Any] = {"model": model, "prompt": text, "stream": way == "streamed"}
    if way == "base":
        body["max_tokens"] = CONTRACT.decoding.max_new_tokens
    headers = {"Authorization": f"Bearer {tenants.secrets[tenant]}"}
    response = await http.post("/v1/completions", json=body, headers=headers)
    tenants.found[f"{way} {response.status_code}"] += 1
    if way in ("foreign", "guessed"):
        if response.status_code not in (400, 404) or "choices" in response.text:
            tenants.wrong.append(f"{tenant} got {response.status_code} for {model}: {response.text[:200]}")
        return
    if response.status_code != 200:
        tenants.wrong.append(f"{tenant} got {response.status_code} for {model}: {response.text[:200]}")
        return
    said = _streamed(response.text) if way == "streamed" else response.json()["choices"][0]["text"]
    want = tenants.base[text] if way == "base" else tenants.answers[tenant][text]
    if said != want:
        tenants.wrong.append(f"{tenant} heard {said!r}, not {want!r}, which is what {tenants.owners(text, said)} hear")


def _streamed(body: str) -> str:
    events = [x.removeprefix("data: ") for x in body.split("\n\n") if x and x != "data: [DONE]"]
    return "".join(json.loads(x)["choices"][0]["text"] for x in events)
