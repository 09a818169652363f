"""Files appear whole or not at all: whoever reads while they are written, and whoever is killed while writing them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from epigraph.files import clear_unfinished, write_whole

LARGE = 1 << 22


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path, stop = tmp_path / "file", threading.Event()
    contents = [bytes([letter]) * LARGE for letter in b"ab"]
    write_whole(path, [contents[0]])

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            write_whole(path, [contents[number % 2][: LARGE // 2], contents[number % 2][LARGE // 2 :]])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = {path.read_bytes() for _ in range(200)}
    finally:
        stop.set()
        writer.join()
    assert seen == set(contents)
    assert os.listdir(tmp_path) == ["file"]


def test_an_error_on_the_way_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, [b"before"])

    def pieces() -> Iterator[bytes]:
        yield b"half"
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_whole(path, pieces())
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["file"]


def test_permissions_are_those_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "file", [b"x"])
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_a_killed_writer_leaves_only_what_is_cleared(tmp_path: Path) -> None:
    code = f"""
import pathlib, time
from epigraph.files import write_whole
def pieces():
    yield b"half"
    print("on the way", flush=True)
    time.sleep(60)
write_whole(pathlib.Path({str(tmp_path / "file")!r}), pieces())
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "on the way\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    [left] = tmp_path.iterdir()
    assert left.name.startswith(".file.")
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / ".hidden").write_bytes(b"mine too")
    clear_unfinished(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".hidden", "file"]
