"""A user's rows: what is read, what is refused, and that all of what is refused is said at once."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from epigraph.errors import BadRows, DataNotFound, UnknownFormat
from epigraph.tasks.base import Example, Turn
from epigraph.tasks.lines import MAX_PRINTED_FAULTS
from epigraph.tasks.rows import read_rows

SHAPE = "an object with source and target, or with messages"
NOT_EMPTY = "expected text that is not empty"
HEADER = 'got the columns "a, b", expected one of that name; the first row is the header'
GOOD = {"source": "name : Ada", "target": "This is Ada."}
CHAT = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day."}]}


def written(folder: Path, *rows: Any, name: str = "rows.jsonl") -> Path:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    file = folder / name
    file.write_bytes(b"\n".join(lines) + b"\n")
    return file


def refusal(path: Path) -> list[str]:
    with pytest.raises(BadRows) as caught:
        read_rows(path)
    return str(caught.value).replace(str(path), "FILE").splitlines()


def test_target_and_references(tmp_path: Path) -> None:
    file = written(tmp_path, GOOD, {"source": "s", "references": ["a", "b"], "mr": "a text", "id": 7})
    assert read_rows(file) == [
        Example(source="name : Ada", references=("This is Ada.",)),
        Example(source="s", references=("a", "b"), further={"mr": "a text"}),
    ]


def test_chat_rows(tmp_path: Path) -> None:
    turns = [("system", "Be brief."), ("user", "One?"), ("assistant", "1"), ("user", "Two?"), ("assistant", "2")]
    file = written(tmp_path, {"messages": [{"role": r, "content": c, "name": "x"} for r, c in turns], "tools": []})
    [example] = read_rows(file)
    assert example.source == "Two?"
    assert example.references == ("2",)
    assert example.turns == tuple(Turn(role=role, content=content) for role, content in turns)


def test_gzip_bom_crlf_and_blank_lines(tmp_path: Path) -> None:
    text = b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n\r\n" + json.dumps(GOOD).encode()
    (tmp_path / "a.jsonl").write_bytes(text)
    (tmp_path / "a.JSONL.GZ").write_bytes(gzip.compress(text))
    assert read_rows(tmp_path / "a.jsonl") == read_rows(tmp_path / "a.JSONL.GZ")
    assert len(read_rows(tmp_path / "a.jsonl")) == 2


def test_line_separators_inside_a_text_do_not_end_the_row(tmp_path: Path) -> None:
    text = "one\u2028two\x85three\x0cfour"
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"source": text, "target": "t"}, ensure_ascii=False).replace("\x0c", "\\f"), "utf-8")
    assert read_rows(file)[0].source == text


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"source": 3, "target": "t"}, "field source: got 3, expected text that is not empty"),
        ({"source": None, "target": "t"}, "field source: got null, expected text that is not empty"),
        ({"source": "s", "target": ""}, 'field target: got "", expected text that is not empty'),
        ({"source": " \t", "target": "t"}, 'field source: got " \\t", expected text that is not empty'),
        ({"source": ["s"], "target": {}}, "field source: got a list of 1, expected text that is not empty"),
        ({"target": "t"}, "field source: got nothing, expected text"),
        ({"source": "s"}, "field target: got nothing, expected text (or references: a list of texts)"),
        ({"source": "s", "references": []}, "field references: got an empty list, expected a list of one text or more"),
        ({"source": "s", "references": "r"}, 'field references: got "r", expected a list of one text or more'),
        ({"source": "s", "references": ["r", 2]}, "field references[1]: got 2, expected text that is not empty"),
        ({**GOOD, "references": ["r"]}, "field references: got target as well, expected one of the two"),
        ({"source": "s", "traget": "t"}, "field traget: got an unknown name, expected target"),
        ({"Source": "s", "target": "t"}, "field Source: got an unknown name, expected source"),
        ({**GOOD, "refrences": ["r"]}, "field refrences: got an unknown name, expected references"),
        ({"mesages": []}, "field mesages: got an unknown name, expected messages"),
        (
            {**GOOD, **CHAT},
            "field messages: got a row with source and target as well, expected messages alone, or source and target",
        ),
        ([1, 2], f"row: got a list of 2, expected {SHAPE}"),
        (b"{'a': 1}", f"row: got \"{{'a': 1}}\", which is not JSON, expected {SHAPE}"),
        (b"\x80\xfe", "row: got bytes that are not UTF-8 (byte 1 of the line), expected UTF-8 text"),
        (
            b'{"source": "\\ud800", "target": "t"}',
            'field source: got "\\ud800", which is not valid UTF-8, expected UTF-8 text',
        ),
        ({"messages": []}, "field messages: got an empty list, expected a list of {role, content} objects"),
        ({"messages": {"role": "user"}}, "field messages: got an object, expected a list of {role, content} objects"),
        (
            {"messages": CHAT["messages"][:1]},
            "field messages: got a last turn of user, expected one of assistant: the text to learn",
        ),
        ({"messages": CHAT["messages"][1:]}, "field messages: got no turn of user, expected one before the last turn"),
        ({"messages": ["hi"]}, 'field messages[0]: got "hi", expected an object with role and content'),
        (
            {"messages": [{"role": "bot", "content": "c"}]},
            'field messages[0].role: got "bot", expected one of system, user, assistant',
        ),
        ({"messages": [{"role": "user"}]}, "field messages[0].content: got nothing, expected text"),
        (
            {"messages": [{"role": "user", "contnet": "c"}]},
            "field messages[0].contnet: got an unknown name, expected messages[0].content",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, row: Any, fault: str) -> None:
    head, *lines = refusal(written(tmp_path, row))
    assert head == "1 bad row in FILE"
    assert lines[0] == f"FILE:1: {fault}"


def test_a_good_file_has_room_for_names_that_only_look_near(tmp_path: Path) -> None:
    row = {**GOOD, "sources": ["web"], "target_lang": "en", "source_id": 4, "Target": "x", "slots": {}}
    assert len(read_rows(written(tmp_path, row))) == 1


def test_all_bad_rows_are_said_at_once(tmp_path: Path) -> None:
    file = written(tmp_path, GOOD, {"source": 1, "target": 2}, GOOD, b"nonsense", CHAT)
    assert refusal(file) == [
        "3 bad rows in FILE",
        "FILE:2: field source: got 1, expected text that is not empty",
        "FILE:2: field target: got 2, expected text that is not empty",
        'FILE:4: row: got "nonsense", which is not JSON, expected an object with source and target, or with messages',
        "FILE:5: row: got a chat row (messages), expected a plain row (source and target) as on line 1",
    ]


def test_a_plain_row_among_chat_rows(tmp_path: Path) -> None:
    assert refusal(written(tmp_path, CHAT, GOOD))[1:] == [
        "FILE:2: row: got a plain row (source and target), expected a chat row (messages) as on line 1"
    ]


def test_the_report_is_capped(tmp_path: Path) -> None:
    lines = refusal(written(tmp_path, *[{"source": "x" * 100_000, "target": ""}] * 70, {"source": 1, "target": "t"}))
    assert lines[0] == "71 bad rows in FILE"
    assert len(lines) == 1 + MAX_PRINTED_FAULTS + 1
    assert lines[-1] == "... and 21 more"


def test_long_values_are_cut(tmp_path: Path) -> None:
    [_, line] = refusal(written(tmp_path, b'"' + b"x" * 100_000))
    assert len(line) < 220
    assert "... (100,001 characters)" in line


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.jsonl.gz"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str) -> None:
    for text in (b"", b"\xef\xbb\xbf", b"\r\n\r\n"):
        file = tmp_path / name
        file.write_bytes(gzip.compress(text) if name.endswith("gz") else text)
        assert refusal(file)[0].startswith("no rows in FILE: got an empty file, expected ")


def test_utf16_is_refused_by_its_name(tmp_path: Path) -> None:
    for name in ("a.csv", "a.jsonl"):
        (tmp_path / name).write_bytes("source,target\na,b\n".encode("utf-16"))
        assert refusal(tmp_path / name) == ["FILE: got UTF-16 text, expected UTF-8; save it again as UTF-8"]


def test_a_folder_is_refused_as_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UnknownFormat, match=r"got a folder, expected a file that ends in .*; convert it or name"):
        read_rows(tmp_path)


def test_broken_gzip_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress(json.dumps(GOOD).encode() * 50)
    for data in (b"not gzip", whole[:-9], whole[:20] + b"\x00" * 20 + whole[40:]):
        (tmp_path / "a.jsonl.gz").write_bytes(data)
        assert "got broken gzip data" in refusal(tmp_path / "a.jsonl.gz")[0]


@pytest.mark.parametrize("name", ["rows.txt", "rows.json", "rows.tsv", "jsonl", "rows.csv.gz"])
def test_other_formats_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnknownFormat, match=r"expected one that ends in \.jsonl, \.jsonl\.gz, \.csv"):
        read_rows(tmp_path / name)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match="No such file"):
        read_rows(tmp_path / "rows.jsonl")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataNotFound, match="Is a directory"):
        read_rows(tmp_path / "folder.csv")


def csv_file(folder: Path, text: str | bytes) -> Path:
    file = folder / "rows.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_csv(tmp_path: Path) -> None:
    text = '\ufeffid, target ,source\r\n1,"a, b","line one\nline two"\r\n\r\n2,c,d\r\n'
    assert read_rows(csv_file(tmp_path, text)) == [
        Example(source="line one\nline two", references=("a, b",), further={"id": "1"}),
        Example(source="d", references=("c",), further={"id": "2"}),
    ]


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("source,traget\na,b\n", ["FILE:1: field traget: got an unknown name, expected target"]),
        ("a,b\nc,d\n", [f"FILE:1: field source: {HEADER}", f"FILE:1: field target: {HEADER}"]),
        ("source;target\nc;d\n", ['FILE:1: header: got "source;target", cells between semicolons, expected commas']),
        ("source\ttarget\nc\td\n", ['FILE:1: header: got "source\\ttarget", cells between tabs, expected commas']),
        ("source,target\n", ["FILE:2: row: got the end of the file, expected a row below the header"]),
        ("source,target,target\na,b,c\n", ["FILE:1: field target: got 2 columns of that name, expected one"]),
        (
            "source,target\na\na,b,c\n\n,b\n",
            [
                "FILE:2: row: got 1 cells, expected 2, as in the header",
                "FILE:3: row: got 3 cells, expected 2, as in the header",
                f'FILE:5: field source: got "", {NOT_EMPTY}',
            ],
        ),
        ('source,target\n"a\nb",c\n,d\n', [f'FILE:4: field source: got "", {NOT_EMPTY}']),
        (
            b"source,target\na,\xff\n",
            ['FILE:2: field target: got "\\udcff", which is not valid UTF-8, expected UTF-8 text'],
        ),
        (
            'source,target\na,"b\n',
            ["FILE:2: row: got broken CSV (unexpected end of data), expected quotes in pairs, one record a row"],
        ),
    ],
)
def test_what_is_refused_in_csv(tmp_path: Path, text: str | bytes, faults: list[str]) -> None:
    assert refusal(csv_file(tmp_path, text))[1:] == faults


any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=8), x, max_size=3),
    max_leaves=8,
)
any_row = any_json | st.dictionaries(
    st.sampled_from(["source", "target", "references", "messages", "traget", "role", "content"]), any_json, max_size=4
)
same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)


csv_pieces = st.sampled_from(
    ["source", "target", ",", ";", "\t", '"', "\n", "\r", "\r\n", "\0", "a", "\x9b31m", "\u202e", " "]
)


@same_folder
@given(
    data=st.lists(csv_pieces, max_size=20).map("".join)
    | st.lists(csv_pieces).map(lambda x: "source,target\n" + "".join(x))
)
def test_any_csv_is_read_or_refused(tmp_path: Path, data: str) -> None:
    try:
        examples = read_rows(csv_file(tmp_path, data))
    except BadRows as error:
        said = str(error)
        assert all(line.isprintable() for line in said.split("\n")), said
    else:
        assert all(x.source.strip() and len(x.references) == 1 and x.references[0].strip() for x in examples)


def test_what_would_move_a_cursor_is_escaped(tmp_path: Path) -> None:
    hostile = "\x9b2J\u202e\u2028\x7f\x1b[31m"
    [_, line] = refusal(written(tmp_path, {"messages": [{"role": hostile, "content": "c"}]}))
    assert 'got "\\u009b2J\\u202e\\u2028\\u007f\\u001b[31m", expected one of' in line


def test_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    for name in ("a\0b.jsonl", "x" * 5000 + ".jsonl"):
        with pytest.raises(DataNotFound, match="expected a file of rows that can be read"):
            read_rows(tmp_path / name)


@same_folder
@given(data=st.binary() | st.lists(any_row, max_size=4).map(lambda x: b"\n".join(json.dumps(y).encode() for y in x)))
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv"])
def test_any_bytes_are_read_or_refused(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    try:
        examples = read_rows(tmp_path / name)
    except BadRows as error:
        said = str(error)
        # One line a fault, each of which any screen can show.
        assert all(line.isprintable() for line in said.split("\n")), said
        assert len(said) < 60 * (400 + len(str(tmp_path)))
    else:
        assert all(x.source.strip() and x.references and all(y.strip() for y in x.references) for x in examples)


def test_deep_and_huge_json_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path, b"[" * 200_000, b"1" * 5_000, b'{"source": ' + b"9" * 4_000 + b', "target": "t"}')
    assert len(refusal(file)) == 4


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda x: bool(x.strip()))


@same_folder
@given(rows=st.lists(st.tuples(texts, texts), min_size=1, max_size=4))
def test_what_is_written_is_read(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    want = [Example(source=source, references=(target,)) for source, target in rows]
    assert read_rows(written(tmp_path, *[{"source": s, "target": t} for s, t in rows])) == want
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([("source", "target"), *rows])
    assert read_rows(csv_file(tmp_path, text.getvalue())) == want
