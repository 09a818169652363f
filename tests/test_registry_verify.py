"""What verify finds between catalogue and store, what it repairs, and what it leaves alone."""

from __future__ import annotations

import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import registry_worker
from epigraph.errors import PrefixNotFound, StoreUnavailable
from epigraph.registry import Findings, Registry
from epigraph.registry.store import Store
from forked import Forks
from registry_worker import saved

AT_ONCE = timedelta(0)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with Registry.open(tmp_path / "c.sqlite", tmp_path / "store") as opened:
        opened.tenants.add("local")
        opened.tenants.add("ann")
        yield opened


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return saved(tmp_path / "files")


def wrong(findings: Findings) -> dict[str, Any]:
    """What was found, without what is always said."""
    return {k: v for k, v in asdict(findings).items() if v and k not in ("num_versions", "num_bytes", "is_repaired")}


def test_a_registry_that_is_well(registry: Registry, source: Path) -> None:
    for name in ("a", "b", "b"):
        registry.push("ann", name, source)
    registry.push("local", "a", source)
    seen: list[int] = []
    found = registry.verify(advance=seen.append)
    assert wrong(found) == {}
    assert (found.is_clean, found.num_versions, found.num_bytes) == (True, 4, 4 * source.stat().st_size)
    assert sum(seen) == 4


def test_bytes_that_changed_or_went_are_told_and_left_alone(registry: Registry, source: Path) -> None:
    paths = [Path(registry.store_address) / registry.push("ann", name, source).path for name in "abcd"]
    other = saved(source.parent, 1, num_virtual_tokens=4)
    paths[0].unlink()
    paths[1].write_bytes(other.read_bytes())
    # As long as it was.
    data = bytearray(paths[2].read_bytes())
    data[-1] ^= 1
    paths[2].write_bytes(data)
    for repair in (False, True, False):
        found = registry.verify(repair=repair)
        assert wrong(found) == {"missing": ("ann/a@1",), "changed": ("ann/b@1", "ann/c@1")}
        assert not found.is_clean
    assert wrong(registry.verify(contents=False)) == {"missing": ("ann/a@1",), "changed": ("ann/b@1",)}
    assert registry.resolve("ann", "a").number == 1


def test_files_that_are_nobodys_are_left_alone(registry: Registry, source: Path) -> None:
    registry.push("ann", "a", source)
    root = Path(registry.store_address)
    strangers = [
        "ann/a/notes.txt",
        "ann/a/2.safetensors",
        "ann/b/1.safetensors",
        "ann/x.safetensors",
        "runs/1/2.safetensors",
    ]
    strangers += [
        "ann/.hidden/1.safetensors",
        "ann/a/.2.safetensors.0123456789abcdef.tmp",
        "ann/a/01.safetensors",
        "readme",
    ]
    for name in strangers:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    found = registry.verify(repair=True)
    assert set(found.strangers) == {*strangers}
    assert found.is_clean
    assert all((root / name).is_file() for name in strangers)


def test_bytes_that_were_ours_are_taken_away(registry: Registry, source: Path) -> None:
    for _ in range(2):
        registry.push("ann", "a", source)
    registry.delete("ann", "a", 1)
    root = Path(registry.store_address) / "ann" / "a"
    (root / "1.safetensors").write_bytes(b"of a push that came too late")
    (root / ".2.safetensors.0123456789abcdef.tmp").write_bytes(b"of a process that was killed")
    found = registry.verify()
    assert wrong(found) == {
        "orphans": ("ann/a/1.safetensors",),
        "unfinished": ("ann/a/.2.safetensors.0123456789abcdef.tmp",),
    }
    assert not found.is_clean
    assert registry.verify(repair=True).is_clean
    assert wrong(registry.verify()) == {}
    assert [x.name for x in root.iterdir()] == ["2.safetensors"]


def test_sums_that_are_wrong_are_put_right(registry: Registry, source: Path) -> None:
    registry.push("ann", "a", source)
    before = registry.tenants.get("ann")
    with registry._database.writing() as connection:
        connection.exec_driver_sql("UPDATE tenants SET num_bytes = num_bytes + 1 WHERE name = 'ann'")
        connection.exec_driver_sql("UPDATE prefixes SET num_ready = 0")
    assert wrong(registry.verify()) == {"miscounted": ("ann",)}
    assert registry.list("ann").names == ()
    assert registry.verify(repair=True).is_clean
    assert wrong(registry.verify()) == {}
    assert registry.tenants.get("ann") == before
    assert registry.list("ann").names == ("ann/a",)


def test_a_push_on_its_way_is_no_finding(registry: Registry, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put, seen = Store.put, []

    def looked_at(self: Store, *given: Any) -> None:
        seen.append(registry.verify(repair=True))
        put(self, *given)
        seen.append(registry.verify(repair=True))

    monkeypatch.setattr(Store, "put", looked_at)
    registry.push("ann", "a", source)
    assert [wrong(x) for x in seen] == [{}, {}]
    assert wrong(registry.verify()) == {}


def test_a_deletion_on_its_way_is_no_finding(registry: Registry, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.push("ann", "a", source)
    registry.push("ann", "b", source)
    delete, below = Store.delete, Store.below
    gate, looked = threading.Event(), threading.Event()

    def slow(self: Store, paths: Any) -> None:
        assert gate.wait(30)
        delete(self, paths)

    def then_deleted(self: Store, folder: str) -> dict[str, int]:
        gate.set()
        thread.join()
        looked.set()
        return below(self, folder)

    monkeypatch.setattr(Store, "delete", slow)
    thread = threading.Thread(target=lambda: registry.delete("ann", "a"))
    thread.start()
    while registry.list("ann").names != ("ann/b",):
        time.sleep(0.01)
    monkeypatch.setattr(Store, "below", then_deleted)
    assert wrong(registry.verify()) == {}
    assert looked.is_set()


def test_a_push_that_was_taken_for_dead_fails_and_leaves_nothing(
    registry: Registry, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Store.put

    def slow(self: Store, *given: Any) -> None:
        assert registry.verify(repair=True, patience=AT_ONCE).abandoned == ("ann/a@1",)
        put(self, *given)

    monkeypatch.setattr(Store, "put", slow)
    with pytest.raises(PrefixNotFound, match="ann/a@1 was deleted while it was pushed"):
        registry.push("ann", "a", source)
    monkeypatch.undo()
    assert wrong(registry.verify()) == {}
    assert list(Path(registry.store_address).rglob("*.safetensors")) == []
    assert registry.tenants.get("ann").num_bytes == 0
    assert registry.push("ann", "a", source).number == 2


def test_a_store_that_does_not_take_it_leaves_no_version(
    registry: Registry, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Store, *given: Any) -> None:
        raise StoreUnavailable("no space left")

    monkeypatch.setattr(Store, "put", full)
    with pytest.raises(StoreUnavailable, match="no space left"):
        registry.push("ann", "a", source)
    monkeypatch.undo()
    assert wrong(registry.verify(patience=AT_ONCE)) == {}
    assert registry.tenants.get("ann").num_prefixes == 0
    assert registry.list("ann").names == ()


# Where a process that pushes is killed: its patch, and what is found afterwards.
KILLS = {
    "before the bytes": ("store.Store", "put", "before", {"abandoned": ("local/one@2",)}),
    "within the bytes": ("store", "_pieces", "within", {"abandoned": ("local/one@2",)}),
    "behind the bytes": ("store.Store", "put", "after", {"abandoned": ("local/one@2",)}),
    "before it is shown": ("rows", "make_ready", "before", {"abandoned": ("local/one@2",)}),
    "before it is committed": ("rows", "make_ready", "after", {"abandoned": ("local/one@2",)}),
    "behind the commit": ("lookup", "get", "before", {}),
}
PROGRAM = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(registry_worker.__file__).parent)!r})
from importlib import import_module
from epigraph.registry import Registry, pushing
catalogue, store, source, where, name, when = sys.argv[1:]
module, _, inside = where.partition(".")
place = import_module(f"epigraph.registry.{{module}}")
place = getattr(place, inside) if inside else place
real = getattr(place, name)

def die(*given, **named):
    if when == "within":
        yield b"half"
    elif when == "after":
        real(*given, **named)
    os.kill(os.getpid(), signal.SIGKILL)

def wrapped(*given, **named):
    if when == "within":
        return die(*given, **named)
    next(die(*given, **named))

setattr(place, name, wrapped)
Registry.open(catalogue, store).push("local", "one", source)
"""


@pytest.mark.parametrize("kill", KILLS.values(), ids=KILLS)
def test_a_killed_push_leaves_nothing_that_is_seen_and_verify_clears_it(
    registry: Registry, source: Path, tmp_path: Path, forks: Forks, kill: tuple[str, str, str, dict[str, Any]]
) -> None:
    where, name, when, left = kill
    registry.push("local", "one", source)
    words = [str(tmp_path / "c.sqlite"), registry.store_address, str(source), where, name, when]
    process = forks.start(["-c", PROGRAM, *words])
    _, err = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, err
    number = 1 if left else 2
    assert registry.get("local", "one").number == number
    assert [x.number for x in registry.versions("local", "one")] == list(range(1, number + 1))
    assert registry.list("local").prefixes[0].num_versions == number
    if left:
        with pytest.raises(PrefixNotFound):
            registry.resolve("local", "one@2")
    assert wrong(registry.verify(contents=False)).keys() <= {"unfinished"}
    found = registry.verify(patience=AT_ONCE, repair=True)
    unfinished = {"unfinished"} if when == "within" else set()
    assert {k: v for k, v in wrong(found).items() if k != "unfinished"} == left
    assert wrong(found).keys() - left.keys() <= unfinished
    assert wrong(registry.verify(patience=AT_ONCE)) == {}
    files = sorted(x.name for x in (tmp_path / "store" / "local" / "one").iterdir())
    assert files == [f"{n + 1}.safetensors" for n in range(number)]
    # The number of the dead push is not given again.
    assert registry.push("local", "one", source).number == 3


def test_tidy_ends_what_was_begun_without_looking_at_files(
    registry: Registry, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.push("ann", "a", source)
    delete = Store.delete

    def away(self: Store, paths: object) -> None:
        raise StoreUnavailable("away")

    monkeypatch.setattr(Store, "delete", away)
    with pytest.raises(StoreUnavailable):
        registry.delete("ann", "a")
    monkeypatch.setattr(Store, "delete", delete)
    monkeypatch.setattr(Store, "below", lambda *_: pytest.fail("files were looked at"))
    assert registry.tidy() == 1
    assert registry.tidy() == 0
    assert list(Path(registry.store_address).rglob("*.safetensors")) == []


def test_many_deleted_versions_are_finished_in_parts(
    registry: Registry, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("epigraph.registry.deleting._BATCH", 2)
    monkeypatch.setattr("epigraph.registry.verify._BATCH", 2)
    for name in ("a", "a", "b", "c", "c"):
        registry.push("ann", name, source)
    assert registry.verify().num_versions == 5
    assert registry.tenants.remove("ann") == 5
    assert registry.verify().num_versions == 0
    assert not (Path(registry.store_address) / "ann").exists()


def test_a_file_without_permission_is_a_store_that_does_not_answer(registry: Registry, source: Path) -> None:
    if os.geteuid() == 0:
        registry.check()
        (Path(registry.store_address) / "ann").write_bytes(secrets.token_bytes(4))
        with pytest.raises(
            StoreUnavailable, match=r"ann/a/1.safetensors was not written: (File exists|Not a directory)"
        ):
            registry.push("ann", "a", source)
        return
    root = Path(registry.store_address)
    root.mkdir(exist_ok=True)
    registry.check()
    root.chmod(0o500)
    try:
        with pytest.raises(StoreUnavailable, match="was not written: Permission denied"):
            registry.push("ann", "a", source)
    finally:
        root.chmod(0o700)
