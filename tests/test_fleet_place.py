"""A shared output, as a folder and in memory: whole files, some of them made once, and folders that come and go."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import fleet_worker
from epigraph.errors import CannotWrite
from epigraph.train.fleet.place import Place


def in_memory() -> Place:
    return Place(f"memory://{uuid.uuid4().hex}/fleet")


@pytest.fixture(params=["folder", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(tmp_path / "out") if request.param == "folder" else in_memory()


def test_files_by_name(place: Place) -> None:
    assert place.read("a/b.json") is None
    assert place.names("a") == []
    place.write("a/b.json", b"1")
    place.write("a/b.json", b"22")
    place.write("a/c/d", b"")
    assert place.read("a/b.json") == b"22"
    assert place.read("a/c/d") == b""
    assert place.read("a/b.json/c") is None
    assert place.names("a") == ["b.json", "c"]
    place.delete("a/b.json")
    place.delete("a/b.json")
    assert place.names("a") == ["c"]


def test_a_file_is_created_once(place: Place) -> None:
    assert place.create("a/b", b"first")
    assert not place.create("a/b", b"second")
    assert place.read("a/b") == b"first"
    assert place.names("a") == ["b"]
    assert place.is_exclusive


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty_threads")
def test_of_many_threads_one_creates_a_file(place: Place) -> None:
    gate = threading.Barrier(4)
    won: list[str] = []

    def run(number: int) -> None:
        for file in range(150):
            gate.wait()
            if place.create(f"a/{file}", str(number).encode()):
                won.append(f"{file} {number}")

    threads = [threading.Thread(target=run, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == sorted(f"{file} {(place.read(f'a/{file}') or b'').decode()}" for file in range(150))


def test_addresses_of_folders(tmp_path: Path) -> None:
    for address in (tmp_path, str(tmp_path), f"{tmp_path}/", f"file://{tmp_path}"):
        place = Place(address)
        assert place.is_local
        assert place.path("a/b") == tmp_path / "a" / "b"
    assert not in_memory().is_local
    with pytest.raises(CannotWrite, match="give a folder or an fsspec address"):
        Place("nonsense://x")


def test_stores_that_look_first_and_write_then_are_known_for_it() -> None:
    assert not Place("dir::memory://x").is_exclusive


def test_hidden_files_are_not_listed(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.write("a/.lock", b"")
    place.write("a/b", b"")
    assert place.names("a") == ["b"]


# Kills and errors


def test_no_half_file_is_ever_seen(tmp_path: Path) -> None:
    command = [sys.executable, fleet_worker.__file__, "killed", str(tmp_path), "60"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    place, seen = Place(tmp_path), 0
    while process.poll() is None:
        for name in place.names("claims")[-20:]:
            assert place.read(f"claims/{name}") == fleet_worker.whole(name)
            seen += 1
    assert process.communicate()[0].strip().isdigit()
    assert process.returncode == 0
    names = place.names("claims")
    assert len(names) > 10
    assert all(place.read(f"claims/{x}") == fleet_worker.whole(x) for x in names)
    assert seen > 100
    # Kills did fall into the middle of it.
    assert [x for x in os.listdir(tmp_path / "claims") if x.startswith(".")]


def test_a_disk_that_does_not_take_it_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    place = Place(tmp_path / "file")
    for attempt in (lambda: place.write("a", b""), lambda: place.create("a", b"")):
        with pytest.raises(CannotWrite) as wrong:
            attempt()
        assert str(wrong.value) == (
            f"{tmp_path}/file/a was not written: File exists; see that it can be reached and has room, "
            "or choose another place"
        )
    place = Place(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(CannotWrite, match="folder was not read: Is a directory"):
        place.read("folder")


class Moody(MemoryFileSystem):
    """A store whose client has errors of its own, and remembers what it listed until it is told not to."""

    protocol = "moody"
    store: ClassVar[dict[str, Any]] = {}
    fails: ClassVar[list[Exception]] = []

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        if self.fails:
            raise self.fails.pop()
        super().pipe_file(path, value, mode=mode)

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        if path not in self.dircache:
            self.dircache[path] = super().ls(path, detail=True)
        return self.dircache[path] if detail else [x["name"] for x in self.dircache[path]]

    def find(self, path: str, **options: Any) -> Any:
        return sorted(x for x in self.ls(path, detail=False) if self.isfile(x))

    def invalidate_cache(self, path: str | None = None) -> None:
        self.dircache.clear()


@pytest.fixture
def moody() -> Place:
    fsspec.register_implementation("moody", Moody, clobber=True)
    Moody.store.clear()
    Moody.fails.clear()
    return Place("moody:///fleet")


def test_errors_of_a_stores_client_are_said_in_one_line(moody: Place) -> None:
    Moody.fails.append(RuntimeError("no credentials"))
    with pytest.raises(CannotWrite, match="fleet/a was not written: no credentials; see that"):
        moody.write("a", b"")
    Moody.fails.append(OSError(5, "Input/output error"))
    with pytest.raises(CannotWrite, match="a was not written: Input/output error"):
        moody.create("a", b"")
    assert moody.read("a") is None


def test_listings_are_as_of_now(moody: Place, tmp_path: Path) -> None:
    moody.write("a/1", b"")
    assert moody.names("a") == ["1"]
    moody.write("a/2", b"")
    assert moody.names("a") == ["1", "2"]
    moody.write("a/3", b"")
    moody.fetch("a", tmp_path / "a")
    assert list(files(tmp_path)) == ["a/1", "a/2", "a/3"]


def test_a_condition_that_does_not_hold_may_have_any_name(moody: Place) -> None:
    assert moody.create("a", b"first")
    Moody.fails.append(OSError(22, "At least one of the pre-conditions you specified did not hold"))
    assert not moody.create("a", b"second")
    assert moody.read("a") == b"first"


# Folders


def files(folder: Path) -> dict[str, bytes]:
    return {x.relative_to(folder).as_posix(): x.read_bytes() for x in sorted(folder.rglob("*")) if x.is_file()}


def filled(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_a_folder_goes_there_and_comes_back(tmp_path: Path) -> None:
    place = in_memory()
    place.write("runs/ann-2/other", b"of a user whose name begins alike")
    local = filled(tmp_path / "here", steps="1", checkpoints__one="c1", checkpoints__two="c2")
    filled(local, **{".lock": "", "checkpoints__.half.tmp": "half"})
    place.publish(local, "runs/ann")
    filled(local, steps="12", checkpoints__three="c3")
    (local / "checkpoints" / "one").unlink()
    place.publish(local, "runs/ann")
    there = filled(tmp_path / "deep" / "there", stale="of an earlier life", steps="old")
    place.fetch("runs/ann", there)
    assert files(there) == {
        "steps": b"12",
        "checkpoints/two": b"c2",
        "checkpoints/three": b"c3",
    }
    assert place.names("runs") == ["ann", "ann-2"]
    place.fetch("runs/nobody", there)
    assert files(there) == {}


def test_what_was_written_last_arrives_last_and_nothing_is_deleted_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, local = in_memory(), filled(tmp_path / "here", gone="g")
    place.publish(local, "run")
    (local / "gone").unlink()
    for number, name in enumerate(["z", "a", "m"]):
        filled(local, **{name: name})
        os.utime(local / name, ns=(time.time_ns(), 10**18 + number))
    seen: list[str] = []
    pipe_file = MemoryFileSystem.pipe_file

    def noted(self: Any, path: str, *given: Any, **options: Any) -> None:
        pipe_file(self, path, *given, **options)
        seen.append(json.dumps(place.names("run")))

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", noted)
    place.publish(local, "run")
    assert [json.loads(x) for x in seen] == [["gone", "z"], ["a", "gone", "z"], ["a", "gone", "m", "z"]]
    assert place.names("run") == ["a", "m", "z"]


def test_names_that_lead_out_of_a_folder_are_not_fetched(tmp_path: Path) -> None:
    place = in_memory()
    place.write("run/../../x", b"out")
    place.write("run/a", b"in")
    place.fetch("run", tmp_path / "deep" / "there")
    assert files(tmp_path) == {"deep/there/a": b"in"}


def test_a_local_folder_stays_where_it_is(tmp_path: Path) -> None:
    place = Place(tmp_path)
    local = filled(place.path("run"), a="1")
    place.fetch("run", local)
    place.publish(local, "run")
    place.publish(tmp_path / "elsewhere", "run")
    assert files(tmp_path) == {"run/a": b"1"}
