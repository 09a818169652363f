"""``epigraph data`` and the fetching behind it, against a real server on this machine."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from epigraph.cli.data import app
from epigraph.errors import ChecksumMismatch, DataNotFound, FetchFailed, TaskNotFound
from epigraph.tasks.catalogue import GROUPS, PROBES, TASKS
from epigraph.tasks.fetch import E2E_ADDRESS, E2E_COMMIT, E2E_SOURCES, Source, convert_e2e, fetch, fetch_e2e
from epigraph.tasks.rows import read_rows

# Read before any test changes it.
DATA = os.environ.get("EPIGRAPH_DATA", "")
OFFICIAL = (
    "mr,ref\r\n"
    '"name[The Mill], eatType[pub], priceRange[less than £20]","The Mill is a cheap pub, really."\r\n'
    '"name[The Mill], eatType[pub], priceRange[less than £20]"," ""The Mill"" is a pub.\nIt is cheap. "\r\n'
    '"name[Café Nil], familyFriendly[yes], near[The Mill]",Café Nil is for families.\r\n'
).encode()
BLOB = hashlib.sha1(b"blob " + str(len(OFFICIAL)).encode() + b"\0" + OFFICIAL).hexdigest()
TRAIN = Source(split="train", file="trainset.csv", num_tables=2, num_references=3, git_blob=BLOB)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


class CutShort(Quiet):
    """Promises 1,000 bytes and sends four."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"mr,r")


def serving(handler: Any) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPIGRAPH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("EPIGRAPH_DATA", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "mirror"
    folder.mkdir()
    (folder / TRAIN.file).write_bytes(OFFICIAL)
    yield from serving(partial(Quiet, directory=str(folder)))


def ask(*arguments: str) -> str:
    answer = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert answer.exit_code == 0
    return answer.stdout


def test_conversion_groups_by_table_and_strips_outer_blanks() -> None:
    rows = convert_e2e(b"\xef\xbb\xbf" + OFFICIAL, "trainset.csv")
    assert rows == [
        {
            "source": "name : The Mill | Type : pub | price : less than £20",
            "mr": "name[The Mill], eatType[pub], priceRange[less than £20]",
            "slots": {"name": "The Mill", "eatType": "pub", "priceRange": "less than £20"},
            "references": ["The Mill is a cheap pub, really.", '"The Mill" is a pub.\nIt is cheap.'],
        },
        {
            "source": "name : Café Nil | family friendly : yes | near : The Mill",
            "mr": "name[Café Nil], familyFriendly[yes], near[The Mill]",
            "slots": {"name": "Café Nil", "familyFriendly": "yes", "near": "The Mill"},
            "references": ["Café Nil is for families."],
        },
    ]


@pytest.mark.skipif(not DATA, reason="EPIGRAPH_DATA is unset: no E2E files to convert")
@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_conversion_of_every_published_table(split: str) -> None:
    """The shared files keep the official ``mr``: written as CSV and converted, they come out as they are."""
    with gzip.open(Path(DATA) / "e2e" / f"{split}.jsonl.gz", "rt", encoding="utf-8") as file:
        want = [json.loads(line) for line in file]
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("MR", "ref"), *((row["mr"], ref) for row in want for ref in row["references"])])
    assert convert_e2e(text.getvalue().encode(), "x.csv") == want


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<html>no</html>", r"x.csv: got the columns '<html>no</html>', expected 'mr, ref'"),
        (b"", r"x.csv: got the columns '', expected 'mr, ref'"),
        (b"mr,ref\nname,text\n", r"x.csv: got the table 'name', expected name\[value\]"),
        (b"mr,ref\nname[a] and so on,text\n", r"x.csv: got the table 'name\[a\] and so on'"),
        (b"mr,ref\nname[\xff],text\n", "expected a CSV file in UTF-8"),
        (b'mr,ref\n"name[a],text\n', "expected a CSV file in UTF-8"),
    ],
)
def test_conversion_refuses_other_files(data: bytes, message: str) -> None:
    with pytest.raises(ChecksumMismatch, match=message):
        convert_e2e(data, "x.csv")


def test_fetching_checks_converts_and_keeps(mirror: str, tmp_path: Path) -> None:
    folder, seen = tmp_path / "home" / "data" / "e2e", []
    [file] = fetch_e2e(folder, address=mirror + "/", sources=[TRAIN], progress=lambda *x: seen.append(x))
    assert file == folder / "train.jsonl.gz"
    assert seen[-1] == (TRAIN.file, len(OFFICIAL), len(OFFICIAL))
    assert [len(x.references) for x in read_rows(file)] == [2, 1]
    assert [x.name for x in folder.iterdir()] == [file.name]
    before = file.stat().st_mtime_ns
    assert fetch_e2e(folder, address="http://127.0.0.1:9", sources=[TRAIN]) == [file]
    assert file.stat().st_mtime_ns == before
    assert fetch_e2e(tmp_path / "again", address=mirror, sources=[TRAIN])[0].read_bytes() == file.read_bytes()


def test_other_content_is_refused_and_not_kept(mirror: str, tmp_path: Path) -> None:
    other = Source(split="train", file=TRAIN.file, num_tables=2, num_references=3, git_blob="0" * 40)
    with pytest.raises(ChecksumMismatch, match=f"trainset.csv: got git blob {BLOB}, expected {'0' * 40}; nothing was"):
        fetch_e2e(tmp_path / "new", address=mirror, sources=[other])
    fewer = Source(split="dev", file=TRAIN.file, num_tables=2, num_references=4)
    with pytest.raises(ChecksumMismatch, match="got 2 tables with 3 references, expected 2 with 4; nothing was kept"):
        fetch_e2e(tmp_path / "new", address=mirror, sources=[fewer])
    assert not (tmp_path / "new").exists()


def test_what_cannot_be_fetched_is_one_line(mirror: str) -> None:
    missing = Source(split="dev", file="none.csv", num_tables=1, num_references=1)
    addresses = [(mirror, "HTTP Error 404"), ("http://127.0.0.1:9", "refused"), ("nonsense", "unknown url type")]
    for address, why in addresses:
        with pytest.raises(FetchFailed, match=why) as caught:
            fetch_e2e(Path("unused"), address=address, sources=[missing])
        assert f"could not fetch {address}/none.csv: " in str(caught.value)
        assert "set EPIGRAPH_DATA" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_connection_that_ends_early_is_refused(tmp_path: Path) -> None:
    for address in serving(CutShort):
        with pytest.raises(FetchFailed, match="the connection ended after 4 of 1,000 bytes"):
            fetch_e2e(tmp_path / "new", address=address, sources=[TRAIN])


def test_the_official_sources_are_pinned() -> None:
    assert E2E_ADDRESS.endswith(E2E_COMMIT)
    assert [(x.split, x.num_tables, x.num_references) for x in E2E_SOURCES] == [
        ("train", 4_862, 42_061),
        ("dev", 547, 4_672),
        ("test", 630, 4_693),
    ]


def test_the_command_fetches_only_what_is_official(mirror: str, tmp_path: Path) -> None:
    with pytest.raises(ChecksumMismatch, match="got git blob"):
        ask("fetch", "e2e", "--from", mirror)
    assert not list((tmp_path / "home").rglob("*.gz"))


def test_the_command_leaves_alone_what_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "home" / "data" / "e2e"
    folder.mkdir(parents=True)
    row = gzip.compress(json.dumps({"source": "s", "references": ["a", "b"]}).encode())
    files = {split: folder / f"{split}.jsonl.gz" for split in ("train", "dev", "test")}
    for file in files.values():
        file.write_bytes(row)
    assert ask("fetch", "e2e").splitlines() == [str(x) for x in files.values()]
    want = {"name": "e2e", "files": {split: str(file) for split, file in files.items()}}
    assert json.loads(ask("fetch", "e2e", "--json")) == want
    assert json.loads(ask("path", "e2e", "--json")) == want
    e2e = next(x for x in json.loads(ask("list", "--json"))["tasks"] if x["name"] == "e2e")
    assert (e2e["group"], e2e["splits"]) == ("table to text", dict.fromkeys(files))
    assert (e2e["not_here"], e2e["missing"]) == ([], None)
    e2e = next(x for x in json.loads(ask("list", "--rows", "--json"))["tasks"] if x["name"] == "e2e")
    assert e2e["splits"] == {split: {"examples": 1, "references": 2} for split in files}


def test_list_says_how_to_get_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = {x["name"]: x for x in json.loads(ask("list", "--json"))["tasks"]}
    assert tasks["e2e"]["splits"] == {}
    assert tasks["e2e"]["not_here"] == ["train", "dev", "test"]
    assert tasks["e2e"]["missing"].endswith("run `epigraph data fetch e2e`")
    monkeypatch.setenv("COLUMNS", "120")
    shown = ask("list")
    for words in (
        "table to text",
        "not here: train, dev, test",
        "train, dev, test",
        "`epigraph data fetch NAME` gets e2e",
    ):
        assert words in shown
    assert "300 (411), dev" in ask("list", "--rows").replace("\n", " ")


def test_list_has_every_task_and_one_line_for_all_relations_of_t_rex() -> None:
    tasks = {x["name"]: x for x in json.loads(ask("list", "--json"))["tasks"]}
    assert {name for task in tasks.values() for name in task["names"]} == set(TASKS)
    assert {task["group"] for task in tasks.values()} == set(GROUPS)
    assert tasks["cards"]["names"] == ["cards"]
    assert tasks["lama-RELATION"]["names"] == [x for x in PROBES if "google" not in x]
    assert "lama-P20" not in ask("list")


@pytest.mark.skipif(not DATA, reason="EPIGRAPH_DATA is unset: no facts to count")
def test_the_line_of_the_relations_counts_their_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPIGRAPH_DATA", DATA)
    # The other groups are megabytes that this test does not look at.
    monkeypatch.setattr("epigraph.tasks.catalogue.GROUPS", {"probing": PROBES})
    [*_, probes] = json.loads(ask("list", "--rows", "--json"))["tasks"]
    sizes = {"train": 25_130, "dev": 6_460, "test": 29_104}
    assert probes["splits"] == {split: {"examples": x, "references": x} for split, x in sizes.items()}


def test_path_and_fetch_of_what_is_missing_say_how_to_get_it() -> None:
    with pytest.raises(DataNotFound, match="run `epigraph data fetch e2e`"):
        ask("path", "e2e")
    for name, file in (("trec", "trec/train.jsonl.gz"), ("lama-P19", "lama/relations.jsonl.gz")):
        for command in ("path", "fetch"):
            with pytest.raises(DataNotFound, match=f"got no file {file}: EPIGRAPH_DATA is unset; set it to a folder"):
                ask(command, name)


def test_bundled_data_needs_no_fetching() -> None:
    assert ask("fetch", "cards") == ask("path", "cards")
    assert [Path(x).name for x in ask("path", "cards").splitlines()] == ["train.jsonl", "dev.jsonl", "test.jsonl"]


def test_an_unknown_name_is_told_the_nearest() -> None:
    for command in ("path", "fetch"):
        with pytest.raises(TaskNotFound, match="did you mean e2e"):
            ask(command, "e2")
    with pytest.raises(TaskNotFound, match="got 'cards', expected a data set with a public address: e2e, boolq, "):
        fetch("cards")
