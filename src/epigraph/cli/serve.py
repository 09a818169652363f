"""`epigraph serve`: one base model and everybody's prefixes over HTTP."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from epigraph.errors import BadValue

Flag = typer.Option


def serve(
    model: Annotated[str | None, Flag(help="Base model: a known name, a folder, a GGUF file, a hub id.")] = None,
    engine: Annotated[str, Flag(help="local (transformers, in this process) or vllm.")] = "local",
    host: Annotated[str, Flag(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, Flag(min=0, max=65535, help="0: any that is free.")] = 8000,
    catalogue: Annotated[str, Flag(help="Database of the registry: a file, or an SQLAlchemy URL.")] = "",
    store: Annotated[str, Flag(help="Bytes of the registry: a folder, or an fsspec address.")] = "",
    push: Annotated[list[Path] | None, Flag(help="Run or artifact for tenant local to have.", metavar="RUN")] = None,
    max_rows: Annotated[int, Flag(min=1, help="Answers at a time, of the local engine.")] = 64,
    cache_bytes: Annotated[int, Flag(min=1, help="Bytes of prefixes that the engine holds.")] = 1 << 30,
    precision: Annotated[str, Flag(help="fp32 or bf16, of the local engine.")] = "fp32",
    device: Annotated[str, Flag(help="cpu, cuda, ... of the local engine.")] = "cpu",
    engine_option: Annotated[
        list[str] | None, Flag(help="More for vLLM: block_size=32, max_model_len=2048.", metavar="KEY=VALUE")
    ] = None,
    max_body: Annotated[int, Flag(min=1, help="Bytes of a request.")] = 2 << 20,
    max_upload: Annotated[int, Flag(min=1, help="Bytes of an artifact that is pushed.")] = 256 << 20,
    max_source_tokens: Annotated[int, Flag(min=1, help="Tokens of a request's own text.")] = 16_384,
    max_new_tokens: Annotated[int, Flag(min=1, help="Tokens of an answer.")] = 4_096,
    max_choices: Annotated[int, Flag(min=1, help="Answers to one request.")] = 16,
    max_members: Annotated[int, Flag(min=1, help="Prefixes of an ensemble.")] = 8,
    max_beams: Annotated[int, Flag(min=1, help="Beams of an answer.")] = 16,
    max_waiting: Annotated[int, Flag(min=1, help="Requests that wait for the engine.")] = 1_024,
    timeout: Annotated[float, Flag(min=0.1, help="Seconds that a request may take.")] = 300.0,
    grace: Annotated[float, Flag(min=0.1, help="Seconds that running answers get at a shutdown.")] = 30.0,
    metrics_by_tenant: Annotated[bool, Flag("--metrics-by-tenant", help="Count tokens by tenant in /metrics.")] = False,
    insecure_local: Annotated[
        bool, Flag("--insecure-local", help="Take requests without a key, from this machine alone.")
    ] = False,
) -> None:
    """Serve a base model and a registry's prefixes: OpenAI's routes, tenants, keys, quotas."""
    if model is None:
        raise BadValue("--model is missing; name the base that the prefixes were trained for")
    local = {"max_rows": max_rows, "dtype": _dtype(precision), "device": device}
    options = {"cache_bytes": cache_bytes, **(local if engine == "local" else _options(engine_option or ()))}
    if engine == "local" and engine_option:
        raise BadValue("--engine-option is for vLLM; leave it out, or take --engine vllm")
    import asyncio

    # After the flags: these take seconds to import, and a mistake in a flag is answered at once.
    try:
        from epigraph.server.limits import Limits
        from epigraph.server.starting import Settings, serve
    except ModuleNotFoundError as missing:
        raise BadValue(
            f"epigraph serve needs {missing.name}, which is not installed; run: pip install 'epigraph[serve]'"
        ) from missing

    # Until the server listens, and has its own way to end, an engine that is starting must be ended, processes and all.
    signal.signal(signal.SIGTERM, _end)
    limits = Limits(
        body_bytes=max_body,
        upload_bytes=max_upload,
        source_tokens=max_source_tokens,
        new_tokens=max_new_tokens,
        choices=max_choices,
        members=max_members,
        beams=max_beams,
        waiting=max_waiting,
        seconds=timeout,
        grace_seconds=grace,
    )
    settings = Settings(
        engine=engine,  # type: ignore[arg-type]  # looked at there
        model=model,
        host=host,
        port=port,
        catalogue=catalogue,
        store=store,
        limits=limits,
        options=options,
        pushes=tuple(push or ()),
        insecure_local=insecure_local,
        metrics_by_tenant=metrics_by_tenant,
    )
    asyncio.run(serve(settings, _say))


def _end(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def _say(line: str) -> None:
    # At once, and nowhere else: it may hold the one copy of a key.
    print(f"epigraph: {line}", flush=True)


def _dtype(precision: str) -> str:
    dtypes = {"fp32": "float32", "bf16": "bfloat16"}
    if precision not in dtypes:
        raise BadValue(f"--precision is {precision!r}, expected fp32 or bf16")
    return dtypes[precision]


def _options(words: Sequence[str]) -> dict[str, Any]:
    """Values are JSON where they can be read so, else text."""
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise BadValue(f"--engine-option is {word!r}, expected KEY=VALUE")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found
