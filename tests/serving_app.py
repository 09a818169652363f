"""A whole server for tests: a real registry, the local engine on a tiny model, uvicorn on a free port. No test."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import torch

from conftest import random_prefix, tiny_model, tiny_tokenizer
from epigraph import artifact
from epigraph.artifact import Artifact
from epigraph.contract import Decoding, TextContract
from epigraph.engine.base import Engine
from epigraph.frozen.identity import identify
from epigraph.frozen.inputs import chat_template_hash
from epigraph.frozen.model import FrozenModel
from epigraph.registry import LOCAL, Registry, Scope
from epigraph.server.app import make_app
from epigraph.server.limits import Limits
from epigraph.server.lines import log_to
from epigraph.server.running import Server, bound, url_of
from epigraph.server.serving import Serving
from epigraph.server.starting import Settings, opened, start_engine
from epigraph.tuned import Tuned

BASE = "base"
CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SCOPES: frozenset[Scope] = frozenset(("use", "push", "manage"))
SHORT = TextContract(input_template="Q {source}\nA", decoding=Decoding(max_new_tokens=12))
FIELDS = TextContract(input_template="{a} is {b}:", decoding=Decoding(max_new_tokens=6))
# Goes on for seconds, whatever it says.
LONG = TextContract(input_template="{source}", decoding=Decoding(max_new_tokens=3_000, min_new_tokens=3_000))
WAIT_S = 60
TINY = {"max_rows": 32}


@dataclass(kw_only=True)
class App:
    """A running server, and what stands behind it."""

    url: str
    serving: Serving
    server: Server
    loop: asyncio.AbstractEventLoop
    folder: Path
    log: io.StringIO
    secrets: dict[str, str] = field(default_factory=dict)
    http: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=WAIT_S))
    clients: dict[str, openai.OpenAI] = field(default_factory=dict)

    @property
    def registry(self) -> Registry:
        return self.serving.registry

    @property
    def engine(self) -> Engine:
        return self.serving.engine

    def key(self, who: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.secrets[who]}"}

    def ask(self, who: str | None, method: str, path: str, **given: Any) -> httpx.Response:
        headers = {**({} if who is None else self.key(who)), **given.pop("headers", {})}
        return self.http.request(method, f"{self.url}{path}", headers=headers, **given)

    def post(self, who: str | None, path: str, **body: Any) -> httpx.Response:
        return self.ask(who, "POST", path, json=body)

    def complete(self, who: str | None, model: str, prompt: Any = "a tree", **more: Any) -> httpx.Response:
        return self.post(who, "/v1/completions", model=model, prompt=prompt, **more)

    def client(self, who: str) -> openai.OpenAI:
        """The official one; it tries nothing twice."""
        if who not in self.clients:
            key = self.secrets[who]
            self.clients[who] = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)
        return self.clients[who]

    def close(self) -> None:
        for client in (self.http, *self.clients.values()):
            client.close()

    def lines(self) -> list[dict[str, Any]]:
        """The log so far."""
        return [json.loads(line) for line in self.log.getvalue().splitlines()]

    def line(self, request_id: str) -> dict[str, Any]:
        """The line of one request, which comes when its answer is out."""
        wait_until(lambda: any(x.get("request_id") == request_id and x["event"] == "request" for x in self.lines()))
        return next(x for x in self.lines() if x.get("request_id") == request_id and x["event"] == "request")

    def idle(self) -> bool:
        counts = self.engine.counts()
        return counts.running == counts.waiting == 0

    def local(self, prefix: str, text: Any, wanted: str = "latest") -> str:
        """What the prefix says in this process, by no server and no engine."""
        version = self.registry.resolve(prefix.partition("/")[0], f"{prefix}@{wanted}")
        tuned = Tuned.load(self.folder / "store" / version.path, model=str(self.folder / BASE))
        return tuned.generate([text])[0]


def wait_until(holds: Any, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it never came to hold"
        time.sleep(0.02)


def save_base(folder: Path) -> Path:
    """A tiny Llama that takes conversations, too."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    tiny_model("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def artifact_of(
    base: Path, path: Path, contract: TextContract, *, seed: int, num_virtual_tokens: int = 5, **changes: Any
) -> Path:
    """A random prefix of that base, in a file."""
    frozen = FrozenModel.load(str(base))
    content: dict[str, Any] = {
        "tokens": random_prefix(frozen.geometry, num_virtual_tokens, seed),
        "geometry": frozen.geometry,
        "contract": contract,
        "base_name": frozen.name,
        "base_fingerprint": frozen.fingerprint,
        "tokenizer_fingerprint": frozen.tokenizer_fingerprint,
        "method": "prefix-tuning",
        "method_config": {},
        "provenance": {"steps": 7},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    artifact.save(Artifact(**{**content, **changes}), path, dtype=torch.float32)
    return path


def chat_contract() -> TextContract:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    return TextContract(chat_template_hash=chat_template_hash(tokenizer), decoding=Decoding(max_new_tokens=8))


def furnish(folder: Path, registry: Registry) -> dict[str, str]:
    """Two tenants that know nothing of each other, an operator, and prefixes of both; the secrets of all keys."""
    base, made = folder / BASE, folder / "made"
    secrets: dict[str, str] = {}
    registry.tenants.ensure(LOCAL)
    for name in ("ann", "bob"):
        registry.tenants.add(name)
        secrets[name] = registry.tenants.make_key(name, scopes=SCOPES)[1]
        secrets[f"{name}-use"] = registry.tenants.make_key(name, scopes=frozenset(("use",)))[1]
    secrets["admin"] = registry.tenants.make_key(LOCAL, scopes=SCOPES | {"admin"})[1]
    for tenant, name, contract, seed in (
        ("ann", "cards", SHORT, 1),
        ("ann", "cards", SHORT, 2),
        ("ann", "twin", SHORT, 3),
        ("ann", "rows", FIELDS, 4),
        ("ann", "long", LONG, 5),
        ("ann", "chat", chat_contract(), 6),
        ("bob", "letters", SHORT, 7),
        ("bob", "cards", SHORT, 8),
        ("bob", "long", LONG, 9),
    ):
        path = artifact_of(base, made / f"{seed}.safetensors", contract, seed=seed)
        registry.push(tenant, name, path, by="tests")
    return secrets


@contextlib.contextmanager
def serving_app(folder: Path, *, limits: Limits | None = None, **settings: Any) -> Iterator[App]:
    """A server over ``folder/base`` and the registry below ``folder``, in a thread of its own."""
    log, ready = io.StringIO(), threading.Event()
    found: dict[str, Any] = {}
    given = Settings(
        engine="local", model=str(folder / BASE), limits=limits or Limits(), options=TINY, port=0, **settings
    )

    async def run() -> None:
        registry = Registry.open(str(folder / "catalogue.sqlite"), folder / "store")
        base = identify(given.model)
        engine = await start_engine(given, registry, base)
        serving = await opened(given, registry, engine, base)
        server, listener = Server(make_app(serving), serving), bound(given.host, given.port)
        found.update(serving=serving, server=server, loop=asyncio.get_running_loop(), url=url_of(listener))
        try:
            task = asyncio.create_task(server.run_on(listener))
            while not server.started and not task.done():
                await asyncio.sleep(0.01)
            ready.set()
            await task
        finally:
            await engine.close()
            serving.close_threads()
            registry.close()
            listener.close()

    def thread() -> None:
        try:
            asyncio.run(run())
        except BaseException as wrong:
            found["error"] = wrong
        finally:
            ready.set()

    with _logged_to(log):
        runner = threading.Thread(target=thread)
        runner.start()
        assert ready.wait(WAIT_S)
        if "error" in found:
            raise found["error"]
        app = App(folder=folder, log=log, **found)
        try:
            yield app
        finally:
            app.close()
            app.loop.call_soon_threadsafe(app.server.drain)
            runner.join(WAIT_S)
            assert not runner.is_alive()


@contextlib.contextmanager
def _logged_to(log: io.StringIO) -> Iterator[None]:
    names = ("epigraph.server", "uvicorn")
    before = [
        (logging.getLogger(x), list(logging.getLogger(x).handlers), logging.getLogger(x).propagate) for x in names
    ]
    log_to(log)
    try:
        yield
    finally:
        for logger, handlers, propagates in before:
            logger.handlers, logger.propagate = handlers, propagates


def furnished(folder: Path) -> dict[str, str]:
    """A base and a registry below ``folder``, as :func:`serving_app` takes them."""
    save_base(folder / BASE)
    registry = Registry.open(str(folder / "catalogue.sqlite"), folder / "store")
    try:
        return furnish(folder, registry)
    finally:
        registry.close()


def events_of(response: httpx.Response) -> list[Any]:
    """The events of a stream that has ended; the last is the word DONE where it ended well."""
    return [read_event(line) for line in response.text.split("\n\n") if line]


def read_event(line: str) -> Any:
    assert line.startswith("data: "), line
    data = line.removeprefix("data: ")
    return data if data == "[DONE]" else json.loads(data)


def hidden(secret: str) -> str:
    """The part of a key that nobody may see; before it stands the id."""
    return secret[len("epk_0123456789abcdef_") :]


def text_of(events: list[Mapping[str, Any]]) -> str:
    return "".join(x["choices"][0]["text"] for x in events if x != "[DONE]" and x.get("choices"))
