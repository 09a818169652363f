"""Many at once: threads and processes that push, read and delete one name, on SQLite and PostgreSQL."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import postgres
import registry_worker
from epigraph.errors import PrefixNotFound, QuotaExceeded
from epigraph.registry import Quotas, Registry
from epigraph.registry.store import Store
from forked import Forks
from registry_worker import saved

THREADS = 16


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Postgres]:
    if why := postgres.missing():
        pytest.skip(why)
    with postgres.running() as started:
        yield started


@pytest.fixture(params=["sqlite", "postgresql"])
def catalogue(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "catalogue.sqlite")
    started: postgres.Postgres = request.getfixturevalue("server")
    return started.database(uuid.uuid4().hex)


@pytest.fixture
def registry(catalogue: str, tmp_path: Path) -> Iterator[Registry]:
    with Registry.open(catalogue, tmp_path / "store") as opened:
        opened.tenants.add("local")
        yield opened


def together(number: int, run: Callable[[int], object]) -> list[BaseException]:
    """``run(0)``, ``run(1)``, ... in a thread each, all begun at once; what they raised."""
    gate, raised = threading.Barrier(number), []

    def begin(which: int) -> None:
        gate.wait()
        try:
            run(which)
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=begin, args=[which]) for which in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def is_well(registry: Registry) -> bool:
    found = registry.verify()
    assert found.strangers == found.unfinished == ()
    return found.is_clean


@pytest.mark.slow
def test_threads_and_processes_push_one_name(registry: Registry, catalogue: str, tmp_path: Path, forks: Forks) -> None:
    """Every push gets a number of its own, none is lost, and each number has the bytes of its push."""
    sources = [saved(tmp_path / "files", seed) for seed in range(THREADS)]
    gate = tmp_path / "gate"
    gate.mkdir()
    command = [registry_worker.__file__, "push_many", catalogue, registry.store_address, str(gate)]
    processes = [forks.start([*command, str(sources[n]), "6", f"p{n}"]) for n in range(2)]
    registry_worker.wait_for(gate / "p0", gate / "p1")
    (gate / "open").touch()
    made: dict[int, str] = {}

    def push(which: int) -> None:
        for _ in range(3):
            version = registry.push("local", "one", sources[which], by=f"t{which}")
            made[version.number] = version.content_hash

    assert together(THREADS, push) == []
    numbers = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    every = sorted([*made, *numbers[0], *numbers[1]])
    assert every == list(range(1, 3 * THREADS + 13))
    versions = registry.versions("local", "one", limit=1000)
    assert [x.number for x in versions] == every
    assert {x.number: x.content_hash for x in versions if x.number in made} == made
    assert [x.aliases for x in versions] == [()] * (len(every) - 1) + [("latest",)]
    assert sorted(x.number or 0 for x in registry.audit("local", name="one", limit=1000)) == every
    # Whose pushes came in order, they are in order.
    assert all(own == sorted(own) for own in numbers)
    assert is_well(registry)


def test_pushes_deletions_and_rollbacks_of_one_name(registry: Registry, tmp_path: Path) -> None:
    sources = [saved(tmp_path / "files", seed) for seed in range(4)]
    pushed: dict[int, str] = {}
    lost = threading.Event()

    def run(which: int) -> None:
        for turn in range(6):
            try:
                if which % 4 == 0:
                    registry.delete("local", "one", None if turn % 2 else "latest")
                elif which % 4 == 1:
                    found = registry.resolve("local", "one")
                    # What resolves has its bytes, or was deleted since.
                    if not (Path(registry.store_address) / found.path).is_file():
                        with pytest.raises(PrefixNotFound):
                            registry.get("local", "one", found.number)
                else:
                    made = registry.push("local", "one", sources[which % 4], aliases=["latest", f"a{which}"])
                    if made.number in pushed:
                        lost.set()
                    pushed[made.number] = made.content_hash
            except PrefixNotFound:
                pass

    assert together(12, run) == []
    assert not lost.is_set()
    left = registry.versions("local", "one", limit=1000) if registry.list("local").names else ()
    assert all(pushed[x.number] == x.content_hash for x in left)
    kept = {x.name for x in Path(registry.store_address).rglob("*.safetensors")}
    assert kept == {f"{x.number}.safetensors" for x in left}
    assert registry.tenants.get("local").num_bytes == sum(x.num_bytes for x in left)
    assert is_well(registry)
    assert registry.verify().miscounted == ()


def test_nobody_gets_past_a_quota_together(registry: Registry, tmp_path: Path) -> None:
    source = saved(tmp_path / "files")
    registry.tenants.set_quotas("local", Quotas(prefixes=5))
    raised = together(THREADS, lambda which: registry.push("local", f"name-{which}", source))
    assert [type(x) for x in raised] == [QuotaExceeded] * (THREADS - 5)
    assert len(registry.list("local").names) == registry.tenants.get("local").num_prefixes == 5
    assert is_well(registry)


def test_an_alias_never_goes_back_by_a_push(registry: Registry, tmp_path: Path) -> None:
    """Of pushes that overtake each other the one with the highest number is the latest."""
    source = saved(tmp_path / "files")
    put, gate, second = Store.put, threading.Event(), threading.Event()

    def slow(self: Store, source: Path, path: str, *given: object) -> None:
        if path.endswith("/1.safetensors"):
            second.set()
            assert gate.wait(30)
        put(self, source, path, *given)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "put", slow)
        late: list[tuple[str, ...]] = []
        thread = threading.Thread(target=lambda: late.append(registry.push("local", "one", source).aliases))
        thread.start()
        assert second.wait(30)
        assert registry.push("local", "one", source).aliases == ("latest",)
        gate.set()
        thread.join()
    assert late == [()]
    assert registry.get("local", "one").number == 2


def test_sharing_both_ways_at_once_waits_in_no_circle(registry: Registry, tmp_path: Path) -> None:
    source = saved(tmp_path / "files")
    registry.tenants.add("other")
    for tenant in ("local", "other"):
        registry.push(tenant, "one", source)
    pairs = [("local", "other"), ("other", "local")]

    def run(which: int) -> None:
        owner, reader = pairs[which % 2]
        for _ in range(5):
            registry.share(owner, "one", reader)

    assert together(8, run) == []
    assert registry.shares("local", "one") == ("other",)


STARTED = """
import sys
from epigraph.registry import Registry
with Registry.open(*sys.argv[1:]) as registry:
    registry.tenants.ensure("local")
"""


def test_servers_that_start_at_once_make_one_schema(catalogue: str, tmp_path: Path, forks: Forks) -> None:
    words = ["-c", STARTED, catalogue, str(tmp_path / "store")]
    processes = [forks.start(words) for _ in range(3)]
    assert [process.communicate(timeout=120) for process in processes] == [("", "")] * 3
    with Registry.open(catalogue, tmp_path / "store") as registry:
        assert [x.name for x in registry.tenants.list()] == ["local"]
