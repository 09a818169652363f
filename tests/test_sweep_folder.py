"""The folder that processes share: torn lines, claims, predictions."""

from __future__ import annotations

import json
import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from filelock import FileLock

from epigraph.errors import BadRows, RecordsNotFound
from epigraph.sweep.folder import RECORDS, SweepFolder


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    (tmp_path / "given.toml").write_text("a = 1\n")
    made = SweepFolder(tmp_path / "out")
    made.make(tmp_path / "given.toml")
    return made


def test_records_come_back_in_order(folder: SweepFolder) -> None:
    assert folder.records() == []
    for key in "abc":
        folder.append({"key": key, "text": "ä\n"})
    assert [x["key"] for x in folder.records()] == ["a", "b", "c"]
    assert (folder.path / RECORDS).read_bytes().count(b"\n") == 3


@pytest.mark.parametrize("torn", [b'{"key": "b", "te', b'{"key": "b"}', b"x" * 200_000])
def test_a_torn_last_line_is_passed_over_and_written_over(folder: SweepFolder, torn: bytes) -> None:
    folder.append({"key": "a"})
    path = folder.path / RECORDS
    path.write_bytes(path.read_bytes() + torn)
    assert [x["key"] for x in folder.records()] == ["a"]
    folder.append({"key": "c"})
    assert path.read_bytes() == b'{"key": "a"}\n{"key": "c"}\n'


def test_a_torn_first_line_too(folder: SweepFolder) -> None:
    (folder.path / RECORDS).write_bytes(b'{"key"')
    folder.append({"key": "a"})
    assert (folder.path / RECORDS).read_bytes() == b'{"key": "a"}\n'


@pytest.mark.parametrize("line", [b"nonsense", b"[]", b'{"kind": "final"}'])
def test_a_line_that_is_no_record_is_named(folder: SweepFolder, line: bytes) -> None:
    (folder.path / RECORDS).write_bytes(b'{"key": "a"}\n' + line + b"\n")
    with pytest.raises(BadRows, match=r"records.jsonl: line 2 is no"):
        folder.records()


def test_a_number_that_json_has_not_is_never_written(folder: SweepFolder) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.append({"key": "a", "loss": float("nan")})
    assert folder.records() == []


def _hold(path: Path, pipe: Connection) -> None:
    with SweepFolder(path).claim("job") as is_mine:
        pipe.send(is_mine)
        pipe.recv()


def test_a_claim_is_one_processs_and_free_again_once_it_is_killed(folder: SweepFolder) -> None:
    here, there = multiprocessing.Pipe()
    other = multiprocessing.get_context("fork").Process(target=_hold, args=(folder.path, there), daemon=True)
    other.start()
    assert here.recv() is True
    with folder.claim("job") as is_mine, folder.claim("another") as is_mine_too:
        assert (is_mine, is_mine_too) == (False, True)
    other.kill()
    other.join()
    with folder.claim("job") as is_mine:
        assert is_mine


def _append(path: Path, name: str) -> None:
    for number in range(40):
        SweepFolder(path).append({"key": f"{name}{number}", "long": "x" * 5_000})


def test_lines_of_processes_that_append_at_once_do_not_mix(folder: SweepFolder) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append, args=(folder.path, name)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(x["key"] for x in folder.records()) == sorted(f"{a}{b}" for a in "ab" for b in range(40))


def test_a_line_waits_for_the_writer_before_it(folder: SweepFolder) -> None:
    writer = multiprocessing.get_context("fork").Process(target=folder.append, args=({"key": "a"},), daemon=True)
    with FileLock(folder.path / ".records.lock"):
        writer.start()
        writer.join(0.3)
        assert writer.is_alive()
        assert folder.records() == []
    writer.join(30)
    assert folder.records() == [{"key": "a"}]


def test_predictions_come_back(folder: SweepFolder) -> None:
    said = [([0, 2], ["a\nb", "ü"]), ([1], [""])]
    folder.write_predictions("key", said)
    assert folder.read_predictions("key") == said
    with pytest.raises(RecordsNotFound, match=r"other.jsonl.gz is not there or not whole"):
        folder.read_predictions("other")


def test_the_spec_is_kept_and_a_folder_without_one_is_no_sweep(folder: SweepFolder, tmp_path: Path) -> None:
    folder.check()
    assert (folder.path / "spec.toml").read_text() == "a = 1\n"
    with pytest.raises(RecordsNotFound, match=r"holds no spec.toml, expected the folder of a sweep"):
        SweepFolder(tmp_path).check()


def test_what_a_run_left_is_taken_away(folder: SweepFolder) -> None:
    (folder.job("one") / "checkpoints").mkdir(parents=True)
    folder.drop("one")
    folder.drop("one")
    assert not folder.job("one").exists()


def test_costs_that_are_torn_are_measured_again(folder: SweepFolder) -> None:
    folder.write_cost({"a": {"step": 1}})
    assert folder.read_cost() == json.loads(folder.cost.read_text()) == {"a": {"step": 1}}
    folder.cost.write_text("{")
    assert folder.read_cost() == {}
