"""The documented way: vLLM's own server as docs/vllm.md starts it, asked over HTTP with the bodies that we make.

Answers are transformers', token for token; a refused request fails alone; nothing is left when the server goes.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vllm is not installed here", allow_module_level=True)

from console import ROOT, environment, fences
from epigraph.contract import Decoding, TextContract
from epigraph.engine.shelf import Shelf
from epigraph.engine.vllm_request import completion_body
from epigraph.frozen.generate import generate
from epigraph.frozen.model import FrozenModel
from epigraph.tuned import Tuned
from folders import printed
from models import drawn, put, save_model

KEY = "a secret of this test"
CONTRACT = TextContract(input_template="Q {source}\nA", decoding=Decoding(max_new_tokens=24))
TEXTS = ("a tree", "The weather today is", "x")
# The page's own commands: vLLM's, and what the CPU build has instead.
[SERVE, MODULE] = [x for x in fences((ROOT / "docs" / "vllm.md").read_text(encoding="utf-8"), "sh") if "config" in x]
HAS_COMMAND = any(importlib.metadata.distributions(name="vllm"))
# What a tiny model needs besides.
OPTIONS = "--host 127.0.0.1 --dtype float32 --max-model-len 512 --max-num-seqs 16 --enforce-eager"
STARTED_S = 240


@dataclass(frozen=True, kw_only=True)
class Server:
    process: subprocess.Popen[bytes]
    port: int
    log: Path
    model: Path
    shelf: Path
    frozen: FrozenModel

    def post(self, body: dict[str, Any], request_id: str = "one") -> tuple[int, bytes]:
        """The status and what came back."""
        asked = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "X-Request-Id": request_id},
        )
        try:
            with urllib.request.urlopen(asked, timeout=120) as got:
                return int(got.status), got.read()
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read()

    def body(self, prefix: str, text: str, **changes: Any) -> dict[str, Any]:
        """What the helper makes in Python; the ids of the answer are asked for, too."""
        tuned = self.tuned(prefix)
        claim, ids = Shelf(self.shelf).claim(prefix), tuned.encode(text).ids
        end = self.frozen.tokenizer.eos_token_id
        made = completion_body(claim, ids, CONTRACT.decoding, KEY.encode(), end_token=end)
        return {**made, "return_token_ids": True, **changes}

    def tuned(self, prefix: str) -> Tuned:
        return Tuned(self.frozen, Shelf(self.shelf).open(prefix).artifact)

    def local(self, prefix: str, text: str) -> list[int]:
        """What transformers says."""
        tuned = self.tuned(prefix)
        return generate(self.frozen, [tuned.encode(text).ids], tuned.prefix, CONTRACT.decoding)[0]

    def refusals(self) -> list[str]:
        return re.findall(r"Request (cmpl-\S+ is refused: .*)", self.log.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("http")
    model = save_model("qwen3", root / "model")
    frozen = FrozenModel.load(str(model))
    put(frozen, root / "prefixes", "ann/cards", drawn(frozen.geometry, 5, 1), CONTRACT)
    put(frozen, root / "prefixes", "bob/letters", drawn(frozen.geometry, 40, 2), CONTRACT)
    own_way_to_decode(model)
    port, log = free_port(), root / "log"
    command = f"exec {documented(model)} --port {port} {OPTIONS}"
    with log.open("wb") as file, pytest.MonkeyPatch.context() as patch:
        patch.setenv("EPIGRAPH_SALT_KEY", KEY)
        process = subprocess.Popen(
            ["/bin/sh", "-c", command],
            cwd=root,
            env=environment(VLLM_CPU_KVCACHE_SPACE="1", VLLM_NO_USAGE_STATS="1"),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        made = Server(process=process, port=port, log=log, model=model, shelf=root / "prefixes", frozen=frozen)
        try:
            wait_for(made)
            yield made
        finally:
            end(process)


def own_way_to_decode(model: Path) -> None:
    """A checkpoint's advice, which vLLM's server takes where a request is silent, and which is not the contract's."""
    path = model / "generation_config.json"
    advice = {"do_sample": True, "repetition_penalty": 1.7, "top_k": 3, "temperature": 2.0, "eos_token_id": [2, 40, 50]}
    path.write_text(json.dumps({**json.loads(path.read_text()), **advice}))


def documented(model: Path) -> str:
    """The page's command for this build, with this environment and the tiny model in the places of its own."""
    line = SERVE.splitlines()[0] if HAS_COMMAND else MODULE.replace("\\\n", " ").strip()
    assert line.startswith(".venv-vllm/bin/")
    assert " smollm2-135m-folder " in line
    return line.replace(".venv-vllm/bin", str(Path(sys.executable).parent)).replace("smollm2-135m-folder", str(model))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(server: Server) -> None:
    until = time.monotonic() + STARTED_S
    while not is_open(server.port):
        said = server.log.read_text(encoding="utf-8", errors="replace")
        assert server.process.poll() is None, said[-4_000:]
        assert time.monotonic() < until, said[-4_000:]
        time.sleep(0.2)


def end(process: subprocess.Popen[bytes]) -> None:
    """Whatever a test left of it: it leads a group of its own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait(timeout=30)


def ids_of(answer: bytes) -> list[int]:
    """The new tokens of a completion, the end token left out."""
    (choice,) = json.loads(answer)["choices"]
    return [x for x in choice["token_ids"] if x != 2]


def events(answer: bytes) -> list[dict[str, Any]]:
    """What a stream was made of; it must have come to its end."""
    lines = [x.removeprefix("data: ") for x in answer.decode().split("\n\n") if x]
    assert lines[-1] == "[DONE]"
    return [json.loads(x) for x in lines[:-1]]


def test_the_commands_of_the_page(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`epigraph vllm request PREFIXES ID TEXT`, as it is printed, goes to the server as it is."""
    assert "\nepigraph vllm request prefixes/ ann/cards " in SERVE
    monkeypatch.setenv("EPIGRAPH_SALT_KEY", KEY)
    for prefix in ("ann/cards", "bob/letters"):
        words = ["vllm", "request", server.shelf, prefix, TEXTS[1], "--model", server.model]
        status, answer = server.post(json.loads(printed(capsys, *words)))
        assert status == 200, answer
        (choice,) = json.loads(answer)["choices"]
        want = server.frozen.tokenizer.decode(server.local(prefix, TEXTS[1]), skip_special_tokens=True)
        assert choice["text"] == want


def together(server: Server, bodies: Sequence[dict[str, Any]]) -> list[tuple[int, bytes]]:
    """All at once."""
    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(server.post, bodies, [f"n{i}" for i in range(len(bodies))]))


def test_two_prefixes_and_the_bare_model_at_once(server: Server) -> None:
    asked = [(prefix, text) for text in TEXTS for prefix in ("ann/cards", "bob/letters")]
    want = [server.local(*x) for x in asked]
    assert len(set(map(tuple, want))) == len(want), "the prefixes tell apart"
    bare = server.body("ann/cards", "x")
    bare = {**bare, "prompt": server.tuned("ann/cards").encode("x").ids, "cache_salt": None, "kv_transfer_params": None}
    *got, alone = together(server, [*(server.body(*x) for x in asked), bare])
    assert [status for status, _ in got] == [200] * len(asked)
    assert [ids_of(answer) for _, answer in got] == want
    assert ids_of(alone[1]) == generate(server.frozen, [bare["prompt"]], None, CONTRACT.decoding)[0]


def test_a_wrong_salt_fails_alone(server: Server) -> None:
    asked = [(prefix, text) for text in TEXTS for prefix in ("ann/cards", "bob/letters")]
    wrong = server.body("ann/cards", "x", cache_salt="epigraph-1." + "0" * 64)
    before = len(server.refusals())
    got = together(server, [wrong, *(server.body(*x) for x in asked)])
    status, answer = got.pop(0)
    assert status == 500
    assert json.loads(answer)["error"]["code"] == 500
    (refusal,) = server.refusals()[before:]
    # By the id that its header gave it.
    assert refusal.startswith("cmpl-n0")
    assert "the cache salt is another, expected that of prefix ann/cards" in refusal
    assert KEY not in server.log.read_text(encoding="utf-8")
    assert [ids_of(answer) for _, answer in got] == [server.local(*x) for x in asked]


def test_a_prefix_that_is_not_there_is_named(server: Server) -> None:
    body = server.body("ann/cards", "x")
    put(server.frozen, server.shelf, "gone", server.tuned("ann/cards").artifact.tokens, CONTRACT)
    gone = server.body("gone", "x")
    (server.shelf / "gone.safetensors").unlink()
    status, _ = server.post(gone)
    assert status == 500
    assert "no prefix gone" in server.refusals()[-1]
    assert server.post(body)[0] == 200


def test_streaming(server: Server) -> None:
    for prefix in ("ann/cards", "bob/letters"):
        status, answer = server.post(server.body(prefix, TEXTS[0], stream=True))
        assert status == 200
        pieces = [choice for event in events(answer) for choice in event["choices"]]
        assert sum(bool(piece["text"]) for piece in pieces) > 3
        want = server.local(prefix, TEXTS[0])
        assert [x for piece in pieces for x in piece["token_ids"] if x != 2] == want
        text = "".join(piece["text"] for piece in pieces)
        assert text == server.frozen.tokenizer.decode(want, skip_special_tokens=True)


def test_a_refused_stream_says_nothing_but_an_error(server: Server) -> None:
    _, answer = server.post(server.body("bob/letters", "x", stream=True, cache_salt="wrong"))
    found = events(answer)
    assert found[-1]["error"]["code"] == 500
    assert not any(choice["text"] for event in found[:-1] for choice in event["choices"])
    assert "expected that of prefix bob/letters" in server.refusals()[-1]


def test_it_goes_without_a_trace(server: Server) -> None:
    """The last test: the server is told to end while nothing is asked of it."""
    assert server.post(server.body("ann/cards", "x"))[0] == 200
    assert len(session(server.process.pid)) > 2, "the engine and its worker are processes of their own"
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(timeout=60)
    until = time.monotonic() + 20
    while (left := session(server.process.pid)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not left
    assert not is_open(server.port)
    assert "Traceback" not in server.log.read_text(encoding="utf-8")


def session(leader: int) -> list[str]:
    """The command lines of all that run in the session of the server, whoever is their parent by now."""
    import psutil

    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
    return found
