"""The page of a fleet: who is done and who was set aside, in numbers that are the records', and nothing else."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from conftest import save_tiny
from epigraph.errors import BadRows, OutputExists, RecordsNotFound
from epigraph.report import words
from epigraph.report.fleet_page import kinds, lead, page_values, user_rows, write_fleet_report
from epigraph.report.fleet_records import is_fleet, read_fleet
from epigraph.report.histogram import MAX_BARS, counted, histogram_svg
from folders import printed, refused, write_rows
from test_report import SUMMARY, Outline

RECIPE = {"method": {"name": "prefix-tuning", "num_virtual_tokens": 10}, "training": {"epochs": 5.0, "lr": None}}


def done(number: int, **more: Any) -> dict[str, Any]:
    made = {"user": f"user {number}", "steps": 40 + number, "kept_step": 30 + number, "dev": {"loss": 1 + number / 8}}
    rest = {
        "stopped_early": number % 2 == 1,
        "tokens": 1_000 * number,
        "seconds": 2.5 * number,
        "stored_bytes": 231_000,
    }
    return {**made, **rest, "content_hash": "00", "worker": "w", "claim": 1, **more}


def aside(number: int, **more: Any) -> dict[str, Any]:
    return {"user": f"user {number}", "error": "BadRows", "reason": f"row {number}: got nothing", **more}


def make_fleet(folder: Path, every: dict[str, dict[str, Any]], failed: dict[str, dict[str, Any]] | None = None) -> Path:
    for name in ("done", "failed", "running", "users"):
        (folder / name).mkdir(parents=True)
    (folder / "fleet.json").write_text(json.dumps(RECIPE))
    for how, records in (("done", every), ("failed", failed or {})):
        for name, record in records.items():
            (folder / how / f"{name}.json").write_text(json.dumps(record))
    for name in list(every)[:1]:
        (folder / "users" / name).mkdir()
        (folder / "users" / name / "summary.json").write_text(json.dumps(SUMMARY))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    every = {f"u{number}": done(number) for number in range(1, 6)}
    return make_fleet(tmp_path / "fleet", every, {"u7": aside(7), "u8": aside(8, error="TrainingFailed")})


def page_of(folder: Path) -> str:
    return write_fleet_report(folder).read_text(encoding="utf-8")


def test_the_page_is_well_formed_and_loads_nothing(folder: Path) -> None:
    page = page_of(folder)
    outline = Outline(page)
    assert outline.problems == []
    assert re.findall(r"https?://|src=|@import|<link|<iframe|<object|\bon\w+=|url\(", page) == []
    assert outline.meta["Content-Security-Policy"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert "script" not in outline.tags
    assert len(outline.ids) == len(set(outline.ids))
    levels = [int(tag[1]) for tag, _ in outline.headings]
    assert outline.headings[0] == ("h1", "5 users on SmolLM2-135M")
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert [x for x in outline.svgs if "aria-label" not in x] == []
    assert [x for x in outline.headers if x.get("scope") not in ("col", "row")] == []


def test_numbers_on_the_page_are_the_records(folder: Path) -> None:
    page = page_of(folder)
    for user in range(1, 6):
        row = re.search(rf'<tr><th scope="row">user {user}</th>(.*?)</tr>', page)
        assert row
        cells = re.findall(r'<td class="number">(.*?)</td>', row.group(1))
        early = ", early" if user % 2 else ""
        shown = [words.decimal(1 + user / 8, 2), f"{40 + user}{early}", str(30 + user), f"{1000 * user:,}"]
        assert cells == [*shown, words.duration(2.5 * user), words.size(231_000)]
    text = " ".join(Outline(page).text)
    assert "10 virtual tokens of their own, trained by prefix-tuning: 115,200 numbers each" in text
    assert "2 users were set aside" in text
    assert f"{sum(range(41, 46))}" in text
    assert words.size(5 * 231_000) in text
    assert "median; 1.12 to 1.62" in text
    assert "method.num_virtual_tokens" in text


def test_who_was_set_aside_has_his_reason(folder: Path) -> None:
    page = page_of(folder)
    assert "1 BadRows; 1 TrainingFailed." in page
    assert 'user 8</th><td><span class="kind">TrainingFailed</span>: row 8: got nothing' in page
    assert "set aside: TrainingFailed" in page
    for file in (folder / "failed").iterdir():
        file.unlink()
    assert "set aside" not in page_of(folder).replace("0 set aside", "").lower().partition("</style>")[2]


def test_who_was_set_aside_by_one_and_done_by_another_is_done(folder: Path) -> None:
    (folder / "failed" / "u3.json").write_text(json.dumps(aside(3)))
    fleet = read_fleet(folder)
    assert "u3" in fleet.done
    assert set(fleet.set_aside) == {"u7", "u8"}


def test_a_fleet_that_still_runs_says_so(folder: Path) -> None:
    for name in ("u1.000001", "u9.000001", "u9.000002", "with.dot.000001"):
        (folder / "running" / name).mkdir()
    (folder / "done" / ".u9.json.ab.tmp").write_text("half")
    fleet = read_fleet(folder)
    assert fleet.num_unfinished == 2
    assert "When this was written, 2 users had begun and not ended." in lead(fleet)


def test_a_fleet_in_which_nobody_has_ended(tmp_path: Path) -> None:
    page = page_of(make_fleet(tmp_path / "fleet", {}))
    assert Outline(page).problems == []
    assert "No user is done yet." in page
    assert "No user has ended yet." in page
    assert "<h1>0 users in fleet</h1>" in page


def test_the_first_thousand_users_are_shown(tmp_path: Path) -> None:
    every = {f"u{number:05d}": done(number) for number in range(1_200)}
    failed = {f"x{number:05d}": aside(number) for number in range(201)}
    folder = make_fleet(tmp_path / "fleet", every, failed)
    page = page_of(folder)
    assert len(re.findall(r'<tr><th scope="row">user \d+</th><td class="number">', page)) == 1_000
    assert "The first 1,000 by id of 1,401; the other 401" in page
    assert page.count('<span class="kind">') == 200
    assert "1 more have their reasons in failed/." in page
    assert kinds(read_fleet(folder)) == [("BadRows", 201)]
    assert [x.user for x in user_rows(read_fleet(folder))[:2]] == ["user 0", "user 1"]
    assert len(page.encode()) < 500_000


def test_text_of_users_stays_text(tmp_path: Path) -> None:
    attack = '"><script>alert(1)</script>{{ 7 * 7 }}</td></style></svg>'
    folder = make_fleet(
        tmp_path / "fleet",
        {"u1": done(1, user=attack, dev={'$x$<script>"': 3.0})},
        {"u2": aside(2, user=attack, error=attack, reason=attack + "\ud800")},
    )
    (folder / "fleet.json").write_text(json.dumps({attack: attack}))
    (folder / "users" / "u1" / "summary.json").write_text(json.dumps({**SUMMARY, "model": attack}))
    page = page_of(folder)
    outline = Outline(page)
    assert outline.problems == []
    assert "script" not in outline.tags
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "{{ 7 * 7 }}" in page


def test_a_score_that_is_no_number_has_a_page(tmp_path: Path) -> None:
    scores = (math.nan, 2.0, math.inf, 1.0)
    folder = make_fleet(tmp_path / "fleet", {f"u{i}": done(i, dev={"loss": x}) for i, x in enumerate(scores)})
    values = page_values(read_fleet(folder))
    assert ("Development loss", "1.50", "median; 1.00 to 2.00") in values["glance"]
    page = page_of(folder)
    assert page.count("not a number") == 2


def test_metrics_of_all_users_have_a_column(tmp_path: Path) -> None:
    """Who has no development rows has no score."""
    every = {"u1": done(1, dev={}), "u2": done(2, dev={"chrf": 31.25, "loss": 1.0})}
    page = page_of(make_fleet(tmp_path / "fleet", every))
    assert '<th scope="col" class="number">Development chrF</th>' in page
    assert page.count('<td class="number">none</td>') == 2
    assert '<td class="number">31.2</td>' in page


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("done/u1.json", "{", r"done/u1\.json: not JSON"),
        ("done/u1.json", json.dumps({**done(1), "steps": -1}), r"done/u1\.json: steps: Input should be greater than"),
        ("failed/u7.json", '{"user": "x"}', r"failed/u7\.json: error: Field required; move it away, or train"),
        ("fleet.json", "[]", r"fleet\.json: got list, expected a JSON object"),
    ],
)
def test_a_bad_record_is_refused_by_name(folder: Path, name: str, text: str, message: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(BadRows, match=message):
        write_fleet_report(folder)


def test_another_folder_is_no_fleet(tmp_path: Path, folder: Path) -> None:
    assert is_fleet(folder)
    assert not is_fleet(tmp_path)
    with pytest.raises(RecordsNotFound, match=r"has no fleet\.json, expected the folder that was given to"):
        read_fleet(tmp_path)
    with pytest.raises(OutputExists, match="is a folder, expected the name of a file to write"):
        write_fleet_report(folder, tmp_path)


def test_the_same_records_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    assert page_of(folder) == write_fleet_report(folder, tmp_path / "x.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("values", "counts"),
    [
        ([1.0], [1]),
        ([2.0, 2.0, 2.0], [3]),
        ([0.0, 1.0], [1, 1]),
        ([0.0, 0.9, 1.1, 2.0, 10.0], [3, 1, 0, 0, 1]),
    ],
)
def test_what_bars_hold(values: list[float], counts: list[int]) -> None:
    assert counted(values) == counts


def test_a_histogram_holds_everybody_once() -> None:
    values = [(x * 37 % 1000) / 10 for x in range(1000)]
    counts = counted(sorted(values))
    assert len(counts) == MAX_BARS
    assert sum(counts) == 1000
    svg = histogram_svg([*values, math.nan], "time", lambda x: f"{x:.0f} s")
    assert 'aria-label="time: 0 s to 100 s, median 50 s, 1,000 users"' in svg
    heights = [float(x) for x in re.findall(r'<rect[^>]* height="([\d.]+)"', svg)]
    assert heights == pytest.approx([96 * x / max(counts) for x in counts], abs=0.05)
    assert histogram_svg([math.nan], "time", str) == ""
    assert 'x1="150.0"' in histogram_svg([3.0, 3.0], "time", str), "one value stands in the middle"


@pytest.mark.usefixtures("one_thread")
def test_the_command_writes_the_page_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A real fleet: two users who learn and one whose rows are bad."""
    base, rows = save_tiny(tmp_path / "base"), tmp_path / "rows"
    rows.mkdir()
    for name in ("ann", "bob"):
        write_rows(rows / f"{name}.jsonl", [{"source": name, "target": "yes"}] * 3)
    write_rows(rows / "eve.jsonl", [{"source": "no target"}])
    out = tmp_path / "out"
    words_of = ("fleet", rows, "--dev", tmp_path / "dev", "--model", base, "--out", out, "--steps", 2)
    (tmp_path / "dev").mkdir()
    write_rows(tmp_path / "dev" / "ann.jsonl", [{"source": "ann", "target": "yes"}])
    told = json.loads(printed(capsys, *words_of, "--batch-size", 2, "--precision", "fp32", "--json"))
    assert told["report"] == str(out / "report.html")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert Outline(page).problems == []
    assert "2 users on base" in page
    assert 'eve</th><td><span class="kind">BadRows</span>' in page
    assert f"Development loss, {words.decimal(told['dev']['loss'], 2)}" in _glances(page)
    (out / "report.html").unlink()
    assert printed(capsys, "report", out) == f"{out / 'report.html'}\n"
    assert (out / "report.html").read_text(encoding="utf-8") == page
    (out / "fleet.json").unlink()
    assert "holds neither steps.jsonl nor summary.json" in refused(capsys, "report", out)


@pytest.mark.usefixtures("one_thread")
def test_a_fleet_in_a_store_has_no_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, rows = (
        save_tiny(tmp_path / "base"),
        write_rows(tmp_path / "r.jsonl", [{"source": "a", "target": "b", "user": "x"}]),
    )
    flags = ("--model", base, "--out", f"memory://{tmp_path.name}", "--steps", 1, "--precision", "fp32", "--json")
    told = json.loads(printed(capsys, "fleet", rows, *flags))
    assert (told["done"], told["report"]) == (1, None)


def _glances(page: str) -> list[str]:
    pairs = re.findall(r'<dt>(.*?)</dt><dd class="amount">(.*?)</dd>', page)
    return [f"{what}, {amount}" for what, amount in pairs]
