"""`epigraph serve` as a process: the first key, what it prints and logs, signals with a stream running, refusals."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from console import environment
from epigraph.registry import LOCAL, Registry
from epigraph.server.limits import Limits
from epigraph.server.starting import curl_line
from folders import refused
from forked import Forked, Forks
from serving_app import (
    BASE,
    LONG,
    SHORT,
    artifact_of,
    events_of,
    furnished,
    read_event,
    save_base,
    serving_app,
    text_of,
    wait_until,
)

SHUTTING_DOWN = "the server is shutting down; ask again in a moment"
KEY = re.compile(r"epk_[0-9a-f]{16}_[A-Za-z0-9_-]{43}")


@dataclass(kw_only=True)
class Started:
    """A process that serves, and the folder of its registry."""

    process: Forked
    url: str
    key: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def get(self, path: str) -> int:
        return httpx.get(f"{self.url}{path}", headers=self.headers, timeout=30).status_code

    def complete(self, model: str, **more: Any) -> httpx.Response:
        body = {"model": model, "prompt": "a tree", **more}
        return httpx.post(f"{self.url}/v1/completions", json=body, headers=self.headers, timeout=60)

    def out(self) -> str:
        path = Path(self.process._outputs.name, "out")
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def ended(self) -> tuple[int | None, str, list[dict[str, Any]]]:
        """The exit code, what was printed, the log."""
        out, err = self.process.communicate(60)
        return self.process.returncode, out, [json.loads(x) for x in err.splitlines() if x.startswith("{")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("life")
    save_base(made / BASE)
    artifact_of(made / BASE, made / "demo" / "artifact.safetensors", SHORT, seed=1)
    artifact_of(made / BASE, made / "long.safetensors", LONG, seed=2)
    return made


@pytest.fixture
def serve(folder: Path, forks: Forks, tmp_path: Path) -> Iterator[Any]:
    """Start `epigraph serve` on a registry of the test's own, and end it whatever happens."""
    started: list[Started] = []

    def start(*words: str, key: str = "") -> Started:
        registry = ["--catalogue", str(tmp_path / "catalogue.sqlite"), "--store", str(tmp_path / "store")]
        command = ["-m", "epigraph", "serve", "--model", str(folder / BASE), "--port", "0", *registry, *words]
        process = forks.start(command, folder=folder, environment=environment())
        made = Started(process=process, url="", key=key)
        started.append(made)
        wait_until(lambda: " at http" in made.out() or process_ended(process), 60)
        made.url = re.findall(r" at (http://\S+)", made.out())[0]
        wait_until(lambda: is_up(made), 30)
        made.key = key or "".join(KEY.findall(made.out())[:1])
        return made

    yield start
    for one in started:
        if one.process.returncode is None:
            one.process.send_signal(signal.SIGKILL)
            one.process.communicate(30)


def process_ended(process: Forked) -> bool:
    import select

    assert not select.select([process._answers], [], [], 0)[0], Path(process._outputs.name, "err").read_text()
    return False


def is_up(started: Started) -> bool:
    try:
        return httpx.get(f"{started.url}/healthz", timeout=10).status_code == 200
    except httpx.TransportError:
        return False


def test_from_the_first_start_to_the_second_end(serve: Any, tmp_path: Path) -> None:
    """A key is printed once, a stream outlives SIGTERM, the next start knows all, and a second signal ends at once."""
    first = serve("--push", "demo", "--push", "long.safetensors", "--grace", "60")
    printed(first)
    assert first.get("/v1/tenants") == 200
    stream_over_sigterm(first)
    code, _, log = first.ended()
    assert code == 0
    assert first.key not in json.dumps(log)
    assert [x["event"] for x in log if x["event"] != "request"] == ["serving", "ended"]
    assert (200, 300) in [(x.get("status"), x.get("completion_tokens")) for x in log]

    second = serve("--push", "demo", "--push", "long.safetensors", "--grace", "60", key=first.key)
    assert not KEY.findall(second.out())
    assert "local/demo is version 1" in second.out()
    assert second.complete("demo").status_code == 200
    assert second.complete("demo@2").status_code == 404
    with Registry.open(str(tmp_path / "catalogue.sqlite"), tmp_path / "store") as registry:
        assert len([x for x in registry.tenants.keys(LOCAL) if "admin" in x.scopes]) == 1
    two_signals(second)


def printed(server: Started) -> None:
    """The key, and a line for a shell that streams an answer with it."""
    assert len(KEY.findall(server.out())) == 2
    assert re.findall(r"^epigraph: admin key, shown this once: (\S+)$", server.out(), re.MULTILINE) == [server.key]
    assert "local/demo is version 1, 5 virtual tokens" in server.out()
    [command] = re.findall(r"^epigraph: try it: (curl .*)$", server.out(), re.MULTILINE)
    if shutil.which("curl"):
        out = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=True, timeout=60).stdout
        events = [read_event(x) for x in out.split("\n\n") if x]
        assert events[-1] == "[DONE]"
        assert text_of(events)


def stream_over_sigterm(server: Started) -> None:
    body = {"model": "long", "prompt": "x", "stream": True, "max_tokens": 300}
    with (
        httpx.Client(timeout=60) as http,
        http.stream("POST", f"{server.url}/v1/completions", json=body, headers=server.headers) as stream,
    ):
        pieces = stream.iter_text()
        came = next(pieces)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: server.get("/readyz") == 503, 10)
        assert server.get("/healthz") == 200
        turned_away = server.complete("long", max_tokens=1)
        assert (turned_away.status_code, turned_away.headers["Connection"]) == (503, "close")
        assert int(turned_away.headers["Retry-After"]) > 0
        assert turned_away.json()["error"]["message"] == SHUTTING_DOWN
        came += "".join(pieces)
    *chunks, last = [read_event(x) for x in came.split("\n\n") if x]
    assert last == "[DONE]"
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def two_signals(server: Started) -> None:
    def ask() -> None:
        with pytest.raises(httpx.TransportError):
            server.complete("long", stream=True)

    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(lambda: b"epigraph_running 1.0" in httpx.get(f"{server.url}/metrics", headers=server.headers).content)
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: server.get("/readyz") == 503, 10)
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert server.ended()[0] == -signal.SIGTERM
    assert time.monotonic() - began < 5
    thread.join(30)


def test_what_takes_longer_than_the_grace_is_told_and_ended(tmp_path: Path) -> None:
    secrets = furnished(tmp_path)
    got: list[httpx.Response] = []
    with serving_app(tmp_path, limits=Limits(grace_seconds=0.5)) as app:
        app.secrets = secrets
        threads = [
            threading.Thread(target=lambda s=stream: got.append(app.complete("ann", "long", stream=s)))  # type: ignore[misc]
            for stream in (True, False)
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: app.engine.counts().running == 2)
        app.loop.call_soon_threadsafe(app.server.drain)
        for thread in threads:
            thread.join(30)
        for answer in got:
            error = answer.json() if answer.status_code == 503 else events_of(answer)[-1]
            assert (error["error"]["code"], error["error"]["message"]) == ("EngineUnavailable", SHUTTING_DOWN)
        assert sorted(x.status_code for x in got) == [200, 503]


def test_the_line_that_is_printed_has_no_key_where_none_is_needed() -> None:
    line = curl_line("http://[::1]:80", "local/it's", None)
    assert shlex.split(line)[:3] == ["curl", "-N", "http://[::1]:80/v1/completions"]
    assert "Authorization" not in line
    assert json.loads(shlex.split(line)[-1])["model"] == "local/it's"


@pytest.mark.slow
def test_without_keys_a_new_user_has_an_answer_in_one_line(serve: Any) -> None:
    server = serve("--insecure-local", "--push", "demo")
    assert not KEY.findall(server.out())
    got = httpx.post(f"{server.url}/v1/completions", json={"model": "demo", "prompt": "x"}, timeout=60)
    assert got.headers["X-Epigraph-Prefix"] == "local/demo@1"


# Mistakes, in one line each


def test_mistakes_in_flags(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--model is missing" in refused(capsys, "serve")
    base = ("serve", "--model", folder / BASE, "--catalogue", tmp_path / "c.sqlite", "--store", tmp_path / "s")
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        said = refused(capsys, *base, "--insecure-local", "--host", host)
        assert f"--insecure-local takes no keys and --host is {host}" in said
    assert "expected local or vllm" in refused(capsys, *base, "--engine", "other")
    assert "--engine-option is for vLLM" in refused(capsys, *base, "--engine-option", "a=1")
    assert "expected KEY=VALUE" in refused(capsys, *base, "--engine", "vllm", "--engine-option", "a")
    assert "expected fp32 or bf16" in refused(capsys, *base, "--precision", "fp8")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"cannot listen at 127.0.0.1, port {port}: Address already in use" in refused(
            capsys, *base, "--port", port
        )
    assert "cannot be pushed under its own name" in refused(
        capsys, *base, "--port", 0, "--push", bad_name(folder, tmp_path)
    )


def bad_name(folder: Path, tmp_path: Path) -> Path:
    made = tmp_path / "a name with blanks"
    shutil.copytree(folder / "demo", made)
    return made
