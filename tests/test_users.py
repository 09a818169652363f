"""Many users' rows: whose each row is, and that a user's task is what the user's own file would make."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epigraph.engine.claim import check_id
from epigraph.errors import BadRows, BadValue, DataNotFound, TaskNotFound, UnknownFormat
from epigraph.tasks.catalogue import own_data
from epigraph.tasks.users import Users, read_users, user_id

Row = dict[str, Any]


def row(user: object, text: str = "a source", **more: Any) -> Row:
    return {"user": user, "source": text, "target": f"of {text}"} | more


def written(path: Path, *rows: Row | bytes) -> Path:
    lines = [x if isinstance(x, bytes) else json.dumps(x).encode() for x in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def written_csv(path: Path, rows: list[Row]) -> Path:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(text.getvalue().encode())
    return path


def refusal(*args: Any, **options: Any) -> str:
    with pytest.raises(BadRows) as caught:
        read_users(*args, **options)
    return str(caught.value)


# A folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "users"
    folder.mkdir()
    written(folder / "cy.jsonl", row("any", "of cy"))
    (folder / "ann.jsonl.gz").write_bytes(gzip.compress(json.dumps(row("any", "of ann")).encode()))
    written_csv(folder / "Bob.CSV", [row("any", "of bob")])
    (folder / ".DS_Store").write_bytes(b"hidden")
    return folder


def test_a_folder_has_a_file_a_user(folder: Path) -> None:
    users = read_users(folder)
    assert users.names == ("Bob", "ann", "cy")
    assert [users.task(x).load("train")[0].source for x in users.names] == ["of bob", "of ann", "of cy"]
    assert users.task("ann").name == "ann"
    assert users.task("ann").files == {"train": str(folder / "ann.jsonl.gz")}


def test_files_are_read_when_a_user_is_asked_for(folder: Path) -> None:
    for number in range(10_000):
        os.link(folder / "cy.jsonl", folder / f"user-{number}.jsonl")
    (folder / "gone.jsonl").write_bytes(b"nonsense")
    users = read_users(folder)
    (folder / "gone.jsonl").unlink()
    assert len(users.names) == 10_004
    with pytest.raises(DataNotFound, match=r"gone\.jsonl"):
        users.task("gone")
    assert len(users.task("user-7").load("train")) == 1


def test_what_is_no_file_of_rows_is_named(folder: Path) -> None:
    (folder / "notes.txt").write_bytes(b"")
    (folder / "more.jsonl").mkdir()
    with pytest.raises(UnknownFormat, match=re.escape('got "more.jsonl", "notes.txt", expected files that end in')):
        read_users(folder)


def test_two_files_of_one_name_are_refused(folder: Path) -> None:
    written_csv(folder / "cy.csv", [row("any")])
    assert 'got cy.csv and cy.jsonl, expected one file for "cy"' in refusal(folder)


def test_nothing_there(tmp_path: Path) -> None:
    assert "no rows in" in refusal(tmp_path)
    assert "no rows in" in refusal(written(tmp_path / "empty.jsonl"))
    with pytest.raises(DataNotFound, match="no such file or folder"):
        read_users(tmp_path / "nowhere")
    with pytest.raises(UnknownFormat, match=r"notes\.txt"):
        read_users(written(tmp_path / "notes.txt"))


# Development rows


def test_development_rows_are_for_those_who_have_some(folder: Path, tmp_path: Path) -> None:
    dev = written(tmp_path / "dev.jsonl", row("cy", "one"), row("ann", "two"), row("cy", "three"))
    users = read_users(folder, dev)
    assert [x.source for x in users.task("cy").load("dev")] == ["one", "three"]
    assert "dev" not in users.task("Bob").splits
    assert users.task("cy").files == {"train": str(folder / "cy.jsonl"), "dev": str(dev)}


def test_who_has_development_rows_alone_is_named(folder: Path, tmp_path: Path) -> None:
    dev = written(tmp_path / "dev.jsonl", row("cy"), row("eve"), row("dan"))
    assert 'got development rows of "dan", "eve", expected users with rows in' in refusal(folder, dev)


def test_chat_rows_for_one_and_plain_for_another(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day."}]
    train = written(tmp_path / "a.jsonl", row("ann"), {"user": "bob", "messages": turns}, row("ann"))
    users = read_users(train, written(tmp_path / "dev.jsonl", row("bob")))
    assert not users.task("ann").is_chat
    with pytest.raises(BadRows, match="got plain rows, expected chat rows"):
        users.task("bob")


# One file with a column


def test_one_users_bad_rows_are_that_users_alone(tmp_path: Path) -> None:
    file = written(
        tmp_path / "all.jsonl",
        b"",
        row("ann"),
        row(12, "x"),
        row("bob", " "),
        b"",
        row("bob"),
        row("ann", "y"),
        {"user": "bob", "source": "s"},
    )
    users = read_users(file)
    assert users.names == ("12", "ann", "bob")
    assert [x.source for x in users.task("ann").load("train")] == ["a source", "y"]
    with pytest.raises(BadRows) as caught:
        users.task("bob")
    assert str(caught.value).replace(str(file), "FILE").splitlines() == [
        "2 bad rows in FILE",
        'FILE:4: field source: got " ", expected text that is not empty',
        "FILE:8: field target: got nothing, expected text (or references: a list of texts)",
    ]


def test_line_numbers_of_csv_are_those_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "all.csv"
    file.write_bytes(b'\xef\xbb\xbfuser,source,target\r\n\r\nann,"two\r\nlines",t\r\nbob,s,t\r\nann,s,\r\nbob,,t\r\n')
    users = read_users(file)
    for name, fault in {"ann": "FILE:6: field target", "bob": "FILE:7: field source"}.items():
        with pytest.raises(BadRows) as caught:
            users.task(name)
        [_, said] = str(caught.value).replace(str(file), "FILE").splitlines()
        assert said.startswith(fault)


def test_rows_that_are_nobodys_are_all_said_at_once(tmp_path: Path) -> None:
    nobodys: list[Row | bytes] = [row(x) for x in ("", True, None, 1.5, ["ann"])]
    file = written(tmp_path / "all.jsonl", row("ann"), {"source": "s", "target": "t"}, *nobodys, b"[1]", b"what")
    head, *lines = refusal(file).replace(str(file), "FILE").splitlines()
    name = "a text or a whole number: the user's name"
    assert head == "8 bad rows in FILE"
    assert lines[0] == f"FILE:2: field user: got nothing, expected {name}"
    assert [x.split("got ")[1].split(", expected")[0] for x in lines[1:]] == [
        *('""', "true", "null", "1.5", "a list of 1", "a list of 1", '"what", which is not JSON')
    ]
    assert all(f"FILE:{number}:" in line for number, line in enumerate(lines, start=2))


def test_csv_without_the_column_or_with_two(tmp_path: Path) -> None:
    file = written_csv(tmp_path / "all.csv", [row("ann", writer="ann")])
    assert read_users(file, column="writer").names == ("ann",)
    assert 'field who: got the columns "user, source, target, writer", expected one' in refusal(file, column="who")
    file.write_text("user,source,target,user\nann,s,t,bob\n")
    assert "field user: got 2 columns of that name, expected one" in refusal(file)
    file.write_text('user,source,target\nann,s,t\nbob,s\n"ann"x,s,t\n')
    assert "2 bad rows" in refusal(file)


def test_labels_are_asked_of_one_user_at_a_time(tmp_path: Path) -> None:
    users = read_users(written(tmp_path / "all.jsonl", row("ann", "a"), row("bob", "b")))
    assert users.task("ann", ("of a", "of b")).labels == ("of a", "of b")
    with pytest.raises(BadRows, match="expected one of the labels of a, of c"):
        users.task("bob", ("of a", "of c"))
    with pytest.raises(BadValue, match="expected two or more"):
        users.task("ann", ("of a",))
    with pytest.raises(TaskNotFound, match='got no user "eve", expected one of the 2'):
        users.task("eve")


# A user alone, and among others

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(str.strip)
NAMES = st.sampled_from(["ann", "Ann", "ä/ö", "7", " bob", "a\nb", "x" * 200])
ROWS = st.lists(st.builds(row, NAMES, TEXTS, mr=TEXTS), min_size=1, max_size=12)


def as_told(users: Users) -> dict[str, Any]:
    return {x: users.task(x).load("train") for x in users.names}


def alone(folder: Path, rows: list[Row], suffix: str) -> Iterator[tuple[str, Any]]:
    for number, name in enumerate(sorted({x["user"] for x in rows})):
        own, file = [x for x in rows if x["user"] == name], folder / f"{number}{suffix}"
        task = own_data(written_csv(file, own) if suffix == ".csv" else written(file, *own), None, None, name)
        yield name, task.load("train")


@settings(deadline=None)
@given(ROWS, st.data())
def test_a_user_among_others_has_the_rows_of_the_user_alone(rows: list[Row], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder, suffix = Path(place), data.draw(st.sampled_from([".jsonl", ".csv", ".jsonl.gz"]))
        file = folder / f"all{suffix}"
        if suffix == ".csv":
            written_csv(file, rows)
        else:
            blank = data.draw(st.lists(st.sampled_from([b"", b" \t"]), max_size=2))
            written(file, *blank, *(x for one in rows for x in (one, *blank)))
        if suffix == ".jsonl.gz":
            file.write_bytes(gzip.compress(file.read_bytes()))
        assert as_told(read_users(file)) == dict(alone(folder, rows, suffix.removesuffix(".gz")))


# Ids

ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


@given(st.one_of(st.text(), st.from_regex(ID, fullmatch=True), st.text("._-aB/ ", max_size=300)))
def test_every_name_has_an_id_that_is_a_part_of_a_prefix_id(name: str) -> None:
    found = user_id(name)
    assert ID.fullmatch(found)
    check_id(f"fleet/{found}")
    assert found == name or not ID.fullmatch(name)
    assert user_id(found) == found


@given(st.lists(st.one_of(st.text("aA._ ä/\n"), st.text()), unique=True))
def test_no_two_names_share_an_id(names: list[str]) -> None:
    assert len({user_id(x) for x in names}) == len(names)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("ann.b-c_7", "ann.b-c_7"),
        ("ann@b.org", "ann_b.org-6e862cced2"),
        ("../x", "_._x-d6b96a97d1"),
        ("", "_-e3b0c44298"),
        ("\udcff", "_-8f1d0f9c88"),
        ("x" * 128, "x" * 128),
        ("x" * 129, "x" * 117 + "-0ec9eb33e7"),
        ("ann\n", "ann_-2a3bc05d07"),
    ],
)
def test_ids_stay_what_they_are(name: str, found: str) -> None:
    # Folders of runs that were begun go by them.
    assert user_id(name) == found


def test_two_users_of_one_id_are_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "all.jsonl", row("ä"), row(user_id("ä")))
    assert f"expected other ids than {user_id('ä')}" in refusal(file)
