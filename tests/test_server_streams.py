"""Clients that go, that read slowly, that send much, and answers that take too long: none of it is others' affair."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest

from epigraph.engine.base import Counts, Engine, Piece, Request
from epigraph.errors import EngineUnavailable, RequestFailed, RequestTooLarge
from epigraph.server.answering import Answering
from epigraph.server.limits import Limits
from serving_app import App, events_of, furnished, read_event, serving_app, wait_until

SECONDS = 2.0


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    folder = tmp_path_factory.mktemp("streams")
    secrets = furnished(folder)
    with serving_app(folder, limits=Limits(seconds=60)) as running:
        running.secrets = secrets
        yield running


@pytest.fixture
def hasty(app: App) -> Iterator[App]:
    """A second server on the same registry that gives a request little time."""
    with serving_app(app.folder, limits=Limits(seconds=SECONDS)) as running:
        running.secrets = app.secrets
        yield running


def connected(app: App, body: str, *, receive_bytes: int | None = None) -> socket.socket:
    """A request on its way over a connection that a test reads as it likes."""
    host, port = app.url.removeprefix("http://").split(":")
    connection = socket.socket()
    if receive_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.settimeout(30)
    connection.connect((host, int(port)))
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {app.secrets['ann']}\r\n"
    connection.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
    return connection


LONG = '{"model": "long", "prompt": "x", "stream": true}'


def test_a_stream_that_its_client_leaves_ends_in_the_engine(app: App) -> None:
    for _ in range(3):
        connection = connected(app, LONG)
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
        assert app.engine.counts().running >= 1
        connection.close()
        wait_until(app.idle, 5)


def test_the_openai_client_closes_a_stream(app: App) -> None:
    stream = app.client("ann").completions.create(model="long", prompt="x", stream=True)
    next(iter(stream))
    stream.close()
    wait_until(app.idle, 5)


def test_an_answer_that_is_waited_for_ends_when_its_client_leaves(app: App) -> None:
    connection = connected(app, LONG.replace("true", "false"))
    wait_until(lambda: app.engine.counts().running == 1)
    connection.close()
    wait_until(app.idle, 5)


def test_what_waits_for_room_ends_when_its_client_leaves(app: App) -> None:
    """Thirty-two fill the engine; the others wait, go, and nothing of them stays."""
    body = LONG.replace('"stream"', '"n": 16, "stream"')
    connections = [connected(app, body) for _ in range(4)]
    wait_until(lambda: app.engine.counts() == Counts(running=32, waiting=32))
    for connection in reversed(connections):
        connection.close()
    wait_until(app.idle, 5)
    assert not app.serving.flights._answerings
    assert app.complete("ann", "cards").status_code == 200


def test_the_line_of_an_abandoned_stream_says_what_was_used(app: App) -> None:
    connection = connected(app, LONG)
    came = connection.recv(4_096)
    connection.close()
    [request_id] = [x.split(b": ")[1].decode() for x in came.split(b"\r\n") if x.lower().startswith(b"x-request-id")]
    line = app.line(request_id)
    assert (line["status"], line["prefix"], line["prompt_tokens"]) == (200, "ann/long@1", 6)
    assert 0 < line["completion_tokens"] < 3_000


@pytest.mark.slow
def test_slow_readers_hold_nobody_up(app: App) -> None:
    """They read nothing at all; meanwhile everybody else is answered, and the engine is done with them soon."""
    slow = [
        connected(app, LONG.replace('"stream"', '"max_tokens": 400, "stream"'), receive_bytes=1_024) for _ in range(8)
    ]
    try:
        wait_until(lambda: app.engine.counts().running >= 8)
        for _ in range(5):
            assert app.complete("ann", "cards").status_code == 200
        # What was said waits for the readers, and no row of the engine does.
        wait_until(app.idle, 50)
        came = b""
        while b"[DONE]" not in came and b'"error"' not in came:
            piece = slow[0].recv(65_536)
            assert piece
            came += piece
        assert came.count(b"data: ") > 300
    finally:
        for connection in slow:
            connection.close()
    wait_until(lambda: not app.serving.flights._answerings)


@pytest.mark.slow
def test_bodies_of_a_megabyte_hold_nobody_up(app: App) -> None:
    """Of a source that the contract cuts; a stream beside them goes on."""
    statuses: list[int] = []

    def send() -> None:
        with httpx.Client(timeout=60) as http:
            body = {"model": "cards", "prompt": "x" * 1_000_000}
            statuses.append(http.post(f"{app.url}/v1/completions", json=body, headers=app.key("ann")).status_code)

    with app.http.stream(
        "POST",
        f"{app.url}/v1/completions",
        json={"model": "long", "prompt": "x", "stream": True, "max_tokens": 400},
        headers=app.key("ann"),
    ) as stream:
        threads = [threading.Thread(target=send) for _ in range(4)]
        for thread in threads:
            thread.start()
        gaps, last = [], time.monotonic()
        for _ in stream.iter_raw():
            gaps.append(time.monotonic() - last)
            last = time.monotonic()
    for thread in threads:
        thread.join()
    assert statuses == [413] * 4
    assert len(gaps) > 100
    assert max(gaps[5:]) < 2


# Time


def test_a_stream_over_its_time_ends_with_a_reason_and_an_error(hasty: App) -> None:
    began = time.monotonic()
    got = hasty.complete("ann", "long", stream=True)
    assert SECONDS - 1 < time.monotonic() - began < SECONDS + 4
    assert got.status_code == 200
    *chunks, cut, error = events_of(got)
    assert cut["choices"][0]["finish_reason"] == "length"
    assert all(x["choices"][0]["finish_reason"] is None for x in chunks)
    assert error["error"]["code"] == "RequestTooLarge"
    assert f"not done after {SECONDS:g} s" in error["error"]["message"]
    wait_until(hasty.idle, 2)


def test_an_answer_over_its_time_is_an_error(hasty: App) -> None:
    with pytest.raises(openai.APIStatusError, match="which is all that this server gives a request") as wrong:
        hasty.client("ann").completions.create(model="long", prompt="x")
    assert wrong.value.status_code == 413
    wait_until(hasty.idle, 2)


# An engine that fails, in the place of the real one


class Failing(Engine):
    """Says two pieces and then what it is told to."""

    def __init__(self, app: App, ends: Exception | None, *, num_pieces: int = 2) -> None:
        self._base, self._ends, self._num_pieces = app.engine.base, ends, num_pieces
        self.cancelled: list[str] = []
        self.running = 0

    @property
    def base(self) -> Any:
        return self._base

    def counts(self) -> Counts:
        return Counts(running=self.running, waiting=0)

    def check(self) -> None:
        raise EngineUnavailable("/secret/folder is on fire")

    async def submit(self, request: Request) -> AsyncIterator[Piece]:
        return self._pieces()

    async def _pieces(self) -> AsyncIterator[Piece]:
        self.running += 1
        try:
            for _ in range(self._num_pieces):
                yield Piece(text="ab", token_ids=(5, 6), num_prompt_tokens=3)
            if self._ends is None:
                await asyncio.sleep(3_600)
            else:
                raise self._ends
        finally:
            self.running -= 1

    async def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)

    async def close(self) -> None:
        pass


@pytest.fixture
def failing(app: App, monkeypatch: pytest.MonkeyPatch) -> Any:
    def put(ends: Exception | None, num_pieces: int = 2) -> Failing:
        engine = Failing(app, ends, num_pieces=num_pieces)
        monkeypatch.setitem(app.serving.__dict__, "engine", engine)
        return engine

    return put


SECRET = "no prefix ann/cards at /secret/folder"


@pytest.mark.parametrize(
    ("ends", "status", "code"),
    [
        (RequestFailed(SECRET), 500, "RequestFailed"),
        (EngineUnavailable(SECRET), 503, "EngineUnavailable"),
        (RuntimeError(SECRET), 500, "InternalError"),
    ],
)
def test_what_fails_in_the_engine_is_told_without_its_insides(
    app: App, failing: Any, ends: Exception, status: int, code: str
) -> None:
    engine = failing(ends)
    got = app.complete("ann", "cards")
    assert (got.status_code, got.json()["error"]["code"]) == (status, code)
    *chunks, error = events_of(app.complete("ann", "cards", stream=True))
    assert [x["choices"][0]["text"] for x in chunks] == ["ab", "ab"]
    assert error["error"]["code"] == code
    failing(ends, num_pieces=0)
    assert app.complete("ann", "cards", stream=True).status_code == status
    for text in (got.text, str(error)):
        assert "secret" not in text
    lines = [x for x in app.lines() if x["event"] == "error" and x["request_id"] == got.headers["X-Request-ID"]]
    assert lines[0]["errors"][0]["error"] == type(ends).__name__
    # What an error of ours says is the operator's to know; what another says may be a client's text.
    assert lines[0].get("reason") == (None if code == "InternalError" else SECRET)
    assert (len(engine.cancelled), engine.running) == (2, 0)


def test_openai_raises_what_a_stream_ends_with(app: App, failing: Any) -> None:
    failing(RequestFailed(SECRET))
    with pytest.raises(openai.APIError, match="the engine gave up on the request; ask again"):
        list(app.client("ann").completions.create(model="cards", prompt="x", stream=True))


def test_the_engines_words_about_itself_are_not_for_everybody(app: App, failing: Any) -> None:
    failing(None)
    app.serving.engine.counts()
    wait_until(lambda: app.ask(None, "GET", "/readyz").status_code == 503)
    assert "secret" not in app.ask(None, "GET", "/readyz").text


# The merging of choices, on its own


def answering(app: App, engine: Failing, num: int, seconds: float) -> Answering:
    return Answering(engine, [Request(text="x", request_id=str(i)) for i in range(num)], seconds)


async def drained(made: Answering) -> None:
    while await made.next() is not None:
        pass


def test_one_choice_that_fails_ends_the_others(app: App) -> None:
    async def run() -> None:
        engine = Failing(app, RequestFailed("x"))
        made = answering(app, engine, 3, 5)
        await made.begin()
        with pytest.raises(RequestFailed):
            await drained(made)
        await made.close()
        assert (sorted(engine.cancelled), engine.running) == (["0", "1", "2"], 0)

    asyncio.run(run())


def test_what_never_ends_ends_in_time(app: App) -> None:
    async def run() -> None:
        engine = Failing(app, None)
        made = answering(app, engine, 2, 0.2)
        await made.begin()
        with pytest.raises(RequestTooLarge, match=r"not done after 0\.2 s"):
            await drained(made)
        assert engine.running == 2
        await made.close()
        assert (engine.running, len(engine.cancelled)) == (0, 2)

    asyncio.run(run())


def test_events_are_one_line_each() -> None:
    from epigraph.server.stream import event

    made = event({"text": "a\nb\r\n\u2028字"}).decode()
    assert made.count("\n") == 2
    assert read_event(made.strip()) == {"text": "a\nb\r\n\u2028字"}
