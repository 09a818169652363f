"""From settings to a running server: registry, engine, the first key, what is pushed at the start, and the end of all.

It knows which parts there are and in which order they come and go.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from epigraph import artifact
from epigraph.engine.base import Engine
from epigraph.errors import BadName, BadValue, PrefixNotFound
from epigraph.frozen.identity import Identity, identify
from epigraph.names import check_part
from epigraph.registry import LOCAL, SCOPES, Caller, Quotas, Registry, Version
from epigraph.registry.addresses import catalogue_address, store_address
from epigraph.registry.scores import scores_beside
from epigraph.server.app import make_app
from epigraph.server.gate import is_loopback
from epigraph.server.limits import Limits
from epigraph.server.lines import log, log_to
from epigraph.server.running import Server, bound, url_of
from epigraph.server.serving import Serving

Kind = Literal["local", "vllm"]
_NOTE = "made by the first start"
_BY = "serve --push"


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a server is started with. ``options`` go to the engine as they are; ``pushes`` are artifacts, or folders of
    runs, that tenant ``local`` is to have. Raises :class:`BadValue` for an open server that others could reach."""

    engine: Kind
    model: str
    host: str = "127.0.0.1"
    port: int = 8000
    catalogue: str = ""
    store: str = ""
    limits: Limits = field(default_factory=Limits)
    options: Mapping[str, Any] = field(default_factory=dict)
    pushes: tuple[Path, ...] = ()
    insecure_local: bool = False
    metrics_by_tenant: bool = False

    def __post_init__(self) -> None:
        if self.engine not in ("local", "vllm"):
            raise BadValue(f"--engine is {self.engine!r}, expected local or vllm")
        if self.insecure_local and not is_loopback(self.host):
            raise BadValue(
                f"--insecure-local takes no keys and --host is {self.host}, which others can reach; "
                "leave one of them out"
            )


async def serve(settings: Settings, say: Callable[[str], None]) -> None:
    """Serve until a signal comes. ``say`` prints a line for the person who starts it; the log goes to stderr.

    Raises :class:`BadValue` for an address that cannot be had, and what opening the registry and starting the engine
    raise.
    """
    log_to(sys.stderr)
    async with AsyncExitStack() as stack:
        # First: an address that is taken is told before a model is loaded.
        listener = stack.enter_context(bound(settings.host, settings.port))
        where = catalogue_address(settings.catalogue), store_address(settings.store)
        registry = await asyncio.to_thread(Registry.open, *where)
        stack.push_async_callback(asyncio.to_thread, registry.close)
        base = await asyncio.to_thread(identify, settings.model)
        engine = await start_engine(settings, registry, base)
        stack.push_async_callback(engine.close)
        serving = await opened(settings, registry, engine, base)
        stack.push_async_callback(asyncio.to_thread, serving.close_threads)
        await _prepare(settings, registry, url_of(listener), engine.base.name, say)
        log("serving", model=engine.base.name, engine=settings.engine)
        await Server(make_app(serving), serving).run_on(listener)
        log("ended")


async def start_engine(settings: Settings, registry: Registry, base: Identity) -> Engine:
    """The engine over the registry's store.

    It is let serve whatever the registry admits: which base a version was trained for is asked before each request.
    """
    options = {"allow_base": base.fingerprint, **settings.options}
    if settings.engine == "vllm":
        from epigraph.engine.vllm import VLLMEngine

        return await VLLMEngine.start(settings.model, registry.store_address, **options)
    from epigraph.engine.local import LocalEngine

    return await LocalEngine.start(settings.model, registry.store_address, **options)


async def opened(settings: Settings, registry: Registry, engine: Engine, base: Identity) -> Serving:
    """The parts of a server around a registry and an engine that run."""
    if settings.insecure_local:
        await asyncio.to_thread(registry.tenants.ensure, LOCAL)
    return Serving(
        engine=engine,
        registry=registry,
        limits=settings.limits,
        tokenizer=base.tokenizer,
        stranger=_stranger() if settings.insecure_local else None,
        by_tenant=settings.metrics_by_tenant,
    )


def push_once(registry: Registry, path: Path) -> Version:
    """What lies at ``path`` as a prefix of tenant ``local``, under the name of its folder or file.

    Nothing is pushed where its latest version is the same. Raises :class:`BadName`, and what
    :meth:`Registry.push` raises.
    """
    file = artifact.find(path)
    name = path.resolve().name.removesuffix(".safetensors")
    try:
        check_part("the name", name)
    except BadName as wrong:
        raise BadName(f"{path} cannot be pushed under its own name: {wrong}") from None
    registry.tenants.ensure(LOCAL)
    content_hash = artifact.read(file)[1].content_hash
    try:
        latest = registry.get(LOCAL, name)
    except PrefixNotFound:
        latest = None
    if latest is not None and latest.content_hash == content_hash:
        return latest
    return registry.push(LOCAL, name, file, by=_BY, scores=scores_beside(path))


async def _prepare(settings: Settings, registry: Registry, url: str, base: str, say: Callable[[str], None]) -> None:
    """What is pushed, and what is said before the first request."""
    pushed = [await asyncio.to_thread(push_once, registry, path) for path in settings.pushes]
    for version in pushed:
        say(f"{version.prefix} is version {version.number}, {version.num_virtual_tokens} virtual tokens")
    say(f"serving {base} at {url}")
    secret = None
    if not settings.insecure_local:
        await asyncio.to_thread(registry.tenants.ensure, LOCAL)
        made = await asyncio.to_thread(registry.tenants.first_admin_key, LOCAL, note=_NOTE)
        secret = made and made[1]
        if secret is None:
            return
        say(f"admin key, shown this once: {secret}")
    own = pushed[:1] or (await asyncio.to_thread(registry.list, LOCAL, limit=1)).prefixes
    say(f"try it: {curl_line(url, own[0].prefix if own else base, secret)}")


def curl_line(url: str, model: str, secret: str | None) -> str:
    """A command that streams an answer."""
    body = json.dumps({"model": model, "prompt": "Hello", "stream": True})
    key = [] if secret is None else ["-H", f"Authorization: Bearer {secret}"]
    words = ["curl", "-N", f"{url}/v1/completions", *key, "-H", "Content-Type: application/json", "-d", body]
    return shlex.join(words)


def _stranger() -> Caller:
    return Caller(tenant=LOCAL, key_id="insecure-local", scopes=SCOPES, quotas=Quotas())
