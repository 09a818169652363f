"""The report page: what is in the records is on the page, nothing else is, and no text in them gets out of its box."""

from __future__ import annotations

import itertools
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from epigraph.cli.report import report
from epigraph.errors import BadRows, OutputExists, RecordsNotFound
from epigraph.report import read_run, training_curve_svg, words, write_report
from epigraph.report.comparisons import clipped, comparisons, source_fields, spread
from epigraph.report.curve import by_step, described, development_points, score_metric, smoothed, thinned
from epigraph.report.page import Squares, lead, provenance, squares, title
from epigraph.report.records import Development, Evaluation, ExampleRecord, Step, Summary
from epigraph.report.scores import before_and_after, headline_metric, score_groups, unlike

SUMMARY: dict[str, Any] = {
    "model": "SmolLM2-135M",
    "model_parameters": 134_515_008,
    "model_bytes": 269_060_552,
    "artifact_bytes": 231_912,
    "num_virtual_tokens": 10,
    "trained_numbers": 115_200,
    "stored_numbers": 115_200,
    "task": "cards",
    "method": "prefix-tuning",
    "seconds": 200.4,
    "machine": {"processor": "2 cores", "memory": {"gigabytes": 8}},
    "versions": {"torch": "2.9.0", "transformers": "5.16.1"},
    "seed": 7,
}
RECIPE: dict[str, Any] = {
    "model": "smollm2-135m",
    "task": "cards",
    "method": {"name": "prefix-tuning", "num_virtual_tokens": 10, "initial": "instruction", "reparameterise": False},
    "train": {"steps": 200, "batch": 8, "lr": 0.005, "schedule": "linear", "warmup": None},
}
NAMES = ("Blue Spice", "The Mill", "Cotto", "Green Man", "Aromi", "Zizzi", "Loch Fyne", "Strada", "Wildwood")
FOODS = ("Italian", "French", "Chinese", "Japanese", "English")
PLACES = ("riverside", "city centre")
VARIANT = {"bleu": "corpus BLEU-4, lower-cased, 13a tokens", "rouge_l": "ROUGE-L F1, no stemming"}


def test_page_is_well_formed_and_loads_nothing(run_folder: Path) -> None:
    page = write_report(run_folder).read_text(encoding="utf-8")
    outline = Outline(page)
    assert outline.problems == []
    assert re.findall(r"https?://|src=|@import|<link|<iframe|<object|\bon\w+=", page) == []
    assert set(re.findall(r"url\(([^)]{0,2})", page)) <= {"#p"}
    assert outline.meta["Content-Security-Policy"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert "script" not in outline.tags
    assert len(page.encode()) < 500_000


def test_page_has_an_outline_and_names_its_pictures(run_folder: Path) -> None:
    outline = Outline(write_report(run_folder).read_text(encoding="utf-8"))
    assert outline.headings[:2] == [("h1", "What SmolLM2-135M learnt: cards"), ("h2", "Scores")]
    levels = [int(tag[1]) for tag, _ in outline.headings]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert outline.tags.count("h1") == 1
    assert [x for x in outline.svgs if "aria-label" not in x and x.get("aria-hidden") != "true"] == []
    assert [x for x in outline.headers if x.get("scope") not in ("col", "row", "rowgroup")] == []
    assert len(outline.ids) == len(set(outline.ids))


def test_numbers_on_the_page_are_the_records(run_folder: Path) -> None:
    page = write_report(run_folder).read_text(encoding="utf-8")
    values = {float(x) for x in re.findall(r'<data value="([^"]+)"', page)}
    recorded = {score for name in ("before", "after") for score in evaluation(name)["scores"].values()}
    assert values == recorded
    for shown in ("2.8", "57.5", "55.1 to 59.7", "115,200", "134,515,008", "231,912 bytes", "200 steps"):
        assert shown in page, shown
    for shown in ("0.086\u202f%", "232\u202fKB", "269\u202fMB", "3\u202fmin 20\u202fs", "1,160 of them fit"):
        assert shown in page, shown
    for shown in (*VARIANT.values(), "memory.gigabytes", "5.16.1", "train.lr", "0.005", "max_new_tokens"):
        assert shown in page, shown


def test_untrusted_text_stays_text(tmp_path: Path) -> None:
    attack = "<script>alert(1)</script>"
    hostile = '"><img src=x onerror=alert(1)>{{ 7 * 7 }}</td></style></svg>'

    def change(record: dict[str, Any]) -> None:
        record["examples"][0] |= {"source": f"name : {attack} | food : {hostile}", "prediction": attack + hostile}
        record["examples"][0]["references"] = [attack, hostile]
        record["examples"][9] |= {"source": attack, "prediction": hostile * 40 + "\ud800\x00"}
        record["scores"]["<b>x</b>"] = 1.0
        record["variants"][attack] = hostile
        record |= {"split": attack}

    folder = make_run(tmp_path / "run", change=change, summary=SUMMARY | {"task": attack, "model": hostile})
    (folder / "recipe.json").write_text(json.dumps({attack: {hostile: attack}}))
    with (folder / "steps.jsonl").open("a") as steps:
        steps.write(json.dumps({"step": 200, "dev": {'$x$</text><script>"': 3.0}}) + "\n")
    page = write_report(folder).read_text(encoding="utf-8")
    outline = Outline(page)
    assert outline.problems == []
    assert {"script", "img", "b"}.isdisjoint(outline.tags)
    assert [x for x in outline.attributes if x.startswith("on")] == []
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "{{ 7 * 7 }}" in page
    assert any(attack in text for text in outline.text)


@pytest.mark.parametrize(
    ("gone", "line"),
    [
        ("summary.json", "There is no summary.json"),
        ("steps.jsonl", "There is no step in steps.jsonl"),
        ("recipe.json", "There is no recipe.json"),
        ("evaluations", "There is no record in evaluations/"),
    ],
)
def test_missing_pieces_are_named(run_folder: Path, gone: str, line: str) -> None:
    assert line not in write_report(run_folder).read_text(encoding="utf-8")
    path = run_folder / gone
    for inner in path.glob("*") if path.is_dir() else [path]:
        inner.unlink()
    page = write_report(run_folder).read_text(encoding="utf-8")
    assert line in page
    assert Outline(page).problems == []


def test_every_single_piece_is_enough(tmp_path: Path) -> None:
    full = make_run(tmp_path / "full")
    for name in ("steps.jsonl", "summary.json"):
        alone = tmp_path / name.partition(".")[0]
        alone.mkdir()
        (alone / name).write_text((full / name).read_text())
        assert Outline(write_report(alone).read_text(encoding="utf-8")).problems == []
    assert title(read_run(tmp_path / "steps")) == "What was learnt: steps"
    assert lead(read_run(tmp_path / "steps"), ()) == ["Training took 200 steps."]


def test_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        RecordsNotFound, match=r"holds neither steps.jsonl nor summary.json, expected the output folder"
    ):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("steps.jsonl", '{"step": 1}\n{"step": 2, "loss": 1.0}\n', r"line 1: loss: Field required; expected one step"),
        ("steps.jsonl", '{"step": 1, "loss": 1\n{"step": 2, "loss": 1.0}\n', r"line 1: not JSON"),
        ("steps.jsonl", "[]\n" * 12, r"line 10: .*; and 2 more; expected"),
        ("summary.json", "{", r"summary.json: not JSON .* write the record again"),
        ("summary.json", json.dumps(SUMMARY | {"model_bytes": 0}), r"model_bytes: .* greater than 0, got 0"),
        ("recipe.json", "[1]", r"recipe.json: got list, expected a JSON object"),
        ("evaluations/after.json", '{"name": "after"}', r"after.json: scores: Field required"),
        ("evaluations/after.json", '{"name": "after", "scores": {"bleu": NaN}, "num_examples": 1}', r"finite"),
        ("evaluations/after.json", '{"name": "after", "scores": {"\u00e9": 1}, "num_examples": 1}', r"scores"),
    ],
)
def test_bad_record_is_refused_by_name(run_folder: Path, name: str, text: str, message: str) -> None:
    (run_folder / name).write_text(text, encoding="utf-8")
    with pytest.raises(BadRows, match=message) as caught:
        write_report(run_folder)
    assert "\n" not in str(caught.value)
    assert not (run_folder / "report.html").exists()


def test_half_a_last_line_is_a_run_still_going(run_folder: Path) -> None:
    with (run_folder / "steps.jsonl").open("a") as steps:
        steps.write('{"step": 201, "lo')
    assert len(read_run(run_folder).steps) == 200


def test_bytes_that_are_not_text_are_refused(run_folder: Path) -> None:
    (run_folder / "recipe.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(BadRows, match=r"recipe.json: not UTF-8 .* at byte 7"):
        read_run(run_folder)


def test_same_records_same_bytes_and_older_report_replaced(run_folder: Path, tmp_path: Path) -> None:
    first = write_report(run_folder).read_bytes()
    out = tmp_path / "new" / "page.html"
    assert write_report(run_folder, out) == out
    assert out.read_bytes() == first
    (run_folder / "report.html").write_text("older")
    assert write_report(run_folder).read_bytes() == first
    assert [x.name for x in out.parent.iterdir()] == ["page.html"]


def test_out_that_is_a_folder_is_refused(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputExists, match=r"is a folder, expected the name of a file to write; try .*report.html"):
        write_report(run_folder, tmp_path)


def test_long_run_of_many_examples_stays_small(tmp_path: Path) -> None:
    def change(record: dict[str, Any]) -> None:
        record["examples"] = [x | {"prediction": "<&" * 20_000} for x in record["examples"] * 20]

    folder = make_run(tmp_path / "run", num_steps=20_000, change=change)
    assert write_report(folder).stat().st_size < 500_000


def test_run_whose_loss_was_never_a_number_has_a_page(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "steps.jsonl").write_text('{"step": 1, "loss": NaN}\n{"step": 2, "loss": Infinity}\n')
    assert "training loss from not a number at step 1" in write_report(folder).read_text(encoding="utf-8")


def test_command_prints_the_path(run_folder: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(report)
    lines = CliRunner().invoke(app, [str(run_folder)]).output.splitlines()
    assert lines[-1] == str(run_folder / "report.html")
    shown = "\n".join(lines[:-1])
    assert "before (bleu 2.8)" in shown
    assert "after (bleu 57.5)" in shown
    out = tmp_path / "x.html"
    told = json.loads(CliRunner().invoke(app, [str(run_folder), "--out", str(out), "--json"]).output)
    assert told == {"report": str(out), "bytes": out.stat().st_size}


def test_import_is_light() -> None:
    code = "import sys, epigraph.report; print(sorted({'torch', 'matplotlib', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_curve_is_the_same_text_each_time_and_takes_the_colours_of_the_page() -> None:
    rows = [*steps(50), Development(step=25, dev={"loss": 1.5, "bleu": 30.0})]
    svg = training_curve_svg(rows)
    assert svg == training_curve_svg(rows)
    assert "currentColor" in svg
    assert "var(--accent" in svg
    assert re.findall(r"#[0-9a-f]{6}", svg.replace("#a3341f", "").replace("#fff", "")) == []
    assert "BLEU on the development split" in svg
    assert "on the development split" not in training_curve_svg(steps(50))
    assert training_curve_svg([]) == ""
    assert "alert" not in re.sub(r"&lt;.*?&gt;", "", training_curve_svg([Development(step=1, dev={"<alert>": 1.0})]))


def test_curve_keeps_the_mean_and_the_order() -> None:
    short = steps(5)
    assert thinned(short) == [(x.step, x.loss) for x in short]
    points = thinned(steps(1000), limit=100)
    assert len(points) == 100
    assert points[0] == (5.5, pytest.approx(sum(x.loss for x in steps(1000)[:10]) / 10))
    assert smoothed([1.0, 2.0, 3.0, 4.0], 3) == [1.5, 2.0, 3.0, 3.5]
    with_gap = smoothed([1.0, math.nan, 3.0], 3)
    assert with_gap[0] == 1.0
    assert math.isnan(with_gap[1])


def test_curve_in_words() -> None:
    development = [Development(step=5, dev={"bleu": 12.5}), Development(step=9, dev={"loss": 1.0, "bleu": 40.0})]
    assert development_points(development, "bleu") == [(5, 12.5), (9, 40.0)]
    assert score_metric(development) == "bleu"
    apart = [*development, Development(step=5, dev={"loss": 2.0})]
    assert by_step(apart) == {5: {"bleu": 12.5, "loss": 2.0}, 9: {"loss": 1.0, "bleu": 40.0}}
    assert score_metric([Development(step=1, dev={"loss": 1.0})]) is None
    said = described([Step(step=1, loss=4.0), Step(step=9, loss=1.25), *development])
    assert said == (
        "training loss from 4.00 at step 1 to 1.25 at step 9; development BLEU from 12.5 at step 5 to 40.0 at step 9; "
        "development loss 1.000 at step 9"
    )


def test_squares_have_the_ratio_of_the_files() -> None:
    drawn = squares(Summary.model_validate(SUMMARY))
    assert drawn.model_side == 220
    assert (drawn.artifact_side / drawn.model_side) ** 2 == pytest.approx(231_912 / 269_060_552, rel=5e-3)
    swapped = squares(Summary.model_validate(SUMMARY | {"model_bytes": 1000, "artifact_bytes": 4000}))
    assert swapped == Squares(model_side=110, artifact_side=220)
    assert swapped.width == 110 + 28 + 220


def test_lead_says_what_moved() -> None:
    def said(**changes: Any) -> str:
        run = read_run_of(SUMMARY | changes)
        return " ".join(lead(run, ()))

    assert "it now reads 10 virtual tokens in front of the text, trained by prefix-tuning: 115,200 numbers" in said()
    assert "reads 1 virtual token in front" in said(num_virtual_tokens=1)
    assert "kept of the 6,000,000 that training moved" in said(trained_numbers=6_000_000)
    whole = said(num_virtual_tokens=0, method="full fine-tuning", trained_numbers=134_515_008)
    assert whole.startswith("full fine-tuning trained 134,515,008 numbers of SmolLM2-135M on the task cards.")
    assert "stayed" not in whole
    assert ("step kept", "not recorded") in provenance(Summary.model_validate(SUMMARY))["Run"]
    assert ("step kept", "150") in provenance(Summary.model_validate(SUMMARY | {"kept_step": 150}))["Run"]
    assert provenance(Summary.model_validate(SUMMARY | {"machine": {}})).keys() == {"Run", "Versions"}


def test_score_groups_share_a_scale_from_zero() -> None:
    before, after = (Evaluation.model_validate(evaluation(x)) for x in ("before", "after"))
    bleu, rouge = score_groups([before, after], "bleu")
    assert (bleu.metric, bleu.places, rouge.metric, rouge.places) == ("bleu", 1, "rouge_l", 3)
    assert (bleu.top, rouge.top) == (100, 1)
    assert [x.bar for x in bleu.rows] == [0.0284, 0.5748]
    assert bleu.rows[1].whisker == (0.551, 0.597)
    assert rouge.rows[0].whisker is None
    below = Evaluation(name="after", scores={"mcc": -0.5}, num_examples=1)
    assert score_groups([below], None)[0].rows[0].bar == 0
    tops = {"bleu": 100.0, "accuracy": 1.0, "f1": 100.0, "ter": 130.0, "reward": 250.0}
    values = {"bleu": 0.5, "accuracy": 0.5, "f1": 50.0, "ter": 130.0, "reward": 250.0}
    one = Evaluation(name="after", scores=values, num_examples=1)
    assert {x.metric: x.top for x in score_groups([one], None)} == tops


def test_headline_is_what_development_watched() -> None:
    one = Evaluation(name="after", scores={"rouge_l": 0.5, "bleu": 1.0}, num_examples=1)
    assert headline_metric([one], []) == "bleu"
    assert headline_metric([one], [Development(step=1, dev={"loss": 1.0, "rouge_l": 0.4})]) == "rouge_l"
    assert headline_metric([], []) is None


def test_unlike_evaluations_are_called_out(tmp_path: Path) -> None:
    def change(record: dict[str, Any]) -> None:
        record |= {"num_examples": 64} if record["name"] == "after" else {"decoding": {"num_beams": 5}}

    folder = make_run(tmp_path / "run", change=change)
    assert unlike(read_run(folder).evaluations) == ("the number of test examples", "the decoding on test")
    page = write_report(folder).read_text(encoding="utf-8")
    assert "do not compare as they stand: the number of test examples and the decoding on test differ" in page
    assert unlike(read_run(make_run(tmp_path / "like")).evaluations) == ()


def test_examples_are_paired_by_source_on_one_split() -> None:
    def written(name: str, split: str, sources: list[str]) -> Evaluation:
        rows = tuple(ExampleRecord(source=x, prediction=f"{name} {x}") for x in sources)
        return Evaluation(name=name, split=split, scores={}, num_examples=len(rows), examples=rows)

    others = written("after", "dev", ["q"])
    before, after = written("before", "test", ["b", "a"]), written("after", "test", ["a", "c"])
    assert before_and_after([others, after, before]) == (before, after)
    first, second = comparisons(before, after)
    assert first.before is not None
    assert first.after is not None
    assert (first.before.kept, first.after.kept) == ("before a", "after a")
    assert second.before is None
    assert [x.after for x in comparisons(before, None)] == [None, None]
    assert comparisons(None, None) == ()


def test_examples_shown_are_spread_over_the_set() -> None:
    rows = [ExampleRecord(source=str(x), prediction="") for x in range(101)]
    assert [x.source for x in spread(rows, 5)] == ["0", "25", "50", "75", "100"]
    assert [x.source for x in spread(rows[:2], 5)] == ["0", "1"]
    assert [x.source for x in spread(rows, 1)] == ["0"]


@pytest.mark.parametrize(
    ("source", "fields"),
    [
        ("name : Blue Spice | food : French", (("name", "Blue Spice"), ("food", "French"))),
        (" name : The Mill : Inn ", (("name", "The Mill : Inn"),)),
        ("A sentence | with a bar", None),
        ("name : | food : French", None),
        ("Note: this is prose", None),
        ("", None),
    ],
)
def test_source_fields(source: str, fields: tuple[tuple[str, str], ...] | None) -> None:
    assert source_fields(source) == fields


def test_clipped_ends_between_words_and_says_its_length() -> None:
    assert clipped(" short \n").glance == "short"
    assert not clipped("x" * 240).is_clipped
    long = clipped("word " * 1000)
    assert long.is_clipped
    assert long.glance.endswith("word")
    assert (len(long.kept), long.length) == (2000, 4999)
    assert not clipped("z" * 300).is_clipped
    assert clipped("y" * 301).glance == "y" * 240


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (words.count(1_234_567), "1,234,567"),
        (words.size(0), "0 bytes"),
        (words.size(999), "999 bytes"),
        (words.size(231_912), "232 KB"),
        (words.size(999_700), "1.00 MB"),
        (words.size(1_250_000_000), "1.25 GB"),
        (words.size(12_340), "12.3 KB"),
        (words.size(7 * 10**15), "7000 TB"),
        (words.duration(3.21), "3.2 s"),
        (words.duration(59.6), "1 min 0 s"),
        (words.duration(7500), "2 h 5 min"),
        (words.percent(0.00085641), "0.086 %"),
        (words.percent(0.5), "50 %"),
        (words.percent(1.0), "100 %"),
        (words.percent(0.0), "0 %"),
        (words.metric_name("rouge_l"), "ROUGE-L"),
        (words.metric_name("exact_match"), "exact match"),
        (words.decimal(-1.25, 1), "\u22121.2"),
        (words.decimal(math.inf, 1), "not a number"),
        (str(words.decimals_for([0.2, math.nan])), "3"),
        (str(words.decimals_for([2.0, 9.5])), "2"),
    ],
)
def test_words(said: str, expected: str) -> None:
    assert said.replace("\u202f", " ") == expected


def test_flat_keeps_order_and_names_nothing() -> None:
    nested = {"b": {"x": 1, "y": {}}, "a": [1, None, True], "n": None}
    assert words.flat(nested) == [("b.x", "1"), ("b.y", "none"), ("a", "1, none, yes"), ("n", "none")]


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def read_run_of(summary: dict[str, Any]) -> Any:
    from epigraph.report.records import Run

    return Run(
        name="x",
        summary=Summary.model_validate(summary),
        steps=(),
        development=(),
        recipe=None,
        evaluations=(),
    )


def make_run(
    folder: Path,
    *,
    num_steps: int = 200,
    summary: dict[str, Any] = SUMMARY,
    change: Callable[[dict[str, Any]], None] = lambda record: None,
) -> Path:
    """A training folder as the trainer leaves it; ``change`` may spoil each evaluation before it is written."""
    (folder / "evaluations").mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "recipe.json").write_text(json.dumps(RECIPE))
    lines = []
    for step in steps(num_steps):
        lr = 0.005 * (1 - step.step / num_steps)
        lines.append(
            {"step": step.step, "loss": step.loss, "lr": lr, "grad_norm": 1.5, "tokens": 480, "seconds": 1.002}
        )
        if step.step % (num_steps // 8) == 0:
            progress = step.step / num_steps
            lines.append({"step": step.step, "dev": {"loss": 1.15 + 0.9 * math.exp(-5 * progress)}})
            lines.append({"step": step.step, "dev": {"bleu": 58 * (1 - math.exp(-4 * progress))}})
    (folder / "steps.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    for name in ("before", "after"):
        record = evaluation(name)
        change(record)
        (folder / "evaluations" / f"{name}.json").write_text(json.dumps(record))
    return folder


def steps(number: int) -> list[Step]:
    """A loss that falls and wobbles as a small run's does."""
    return [
        Step(step=x, loss=1.05 + 2.6 * math.exp(-9 * x / number) + 0.13 * math.sin(x * 12.9898) * math.cos(x * 4.1))
        for x in range(1, number + 1)
    ]


def evaluation(name: str) -> dict[str, Any]:
    """The record of 575 tables scored; of each the first 45 are written down."""
    trained = name == "after"
    return {
        "name": name,
        "split": "test",
        "scores": {"bleu": 57.4837, "rouge_l": 0.6512} if trained else {"bleu": 2.8431, "rouge_l": 0.1377},
        "intervals": {"bleu": [55.1, 59.7] if trained else [2.4, 3.3]},
        "variants": dict(VARIANT),
        "num_examples": 575,
        "decoding": {"max_new_tokens": 100, "num_beams": 1},
        "examples": [example(place, trained=trained) for place in range(45)],
    }


def example(place: int, *, trained: bool) -> dict[str, Any]:
    name, food, area = NAMES[place % 9], FOODS[place % 5], PLACES[place % 2]
    source = f"name : {name} | eatType : restaurant | food : {food} | area : {area} | row : {place}"
    rambling = (
        f"The restaurant is located in the heart of the city, just a short walk from the main square.\n\n"
        f"name : {name} | eatType : restaurant | food : {food}\n\n"
        * (1 + place % 4)
        + "The menu is a mix of traditional and modern dishes, with a focus on fresh, local ingredients."
    )
    return {
        "source": source,
        "references": [
            f"{name} is a {food} restaurant in the {area}.",
            f"In the {area} there is a restaurant called {name} which serves {food} food.",
        ],
        "prediction": f"{name} is a restaurant in the {area} that serves {food} food." if trained else rambling,
    }


class Outline(HTMLParser):
    """What a browser would see: tags, headings, ids, and every tag that is closed wrongly or never."""

    VOID = frozenset({"meta", "br", "img", "hr", "input", "link"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.problems: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.headings: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.meta: dict[str, str] = {}
        self.svgs: list[dict[str, str | None]] = []
        self.headers: list[dict[str, str | None]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        self.problems += [f"<{x}> is never closed" for x in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self._open.append(tag)
        self._note(tag, dict(attrs))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if "svg" not in self._open:
            self.problems.append(f"<{tag}/> outside a picture")
        self._note(tag, dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.problems.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if {"h1", "h2", "h3"} & set(self._open):
            tag, said = self.headings[-1]
            self.headings[-1] = (tag, said + data)

    def _note(self, tag: str, attributes: dict[str, str | None]) -> None:
        self.tags.append(tag)
        self.attributes += attributes
        self.ids += [x] if (x := attributes.get("id")) else []
        if tag in ("h1", "h2", "h3"):
            self.headings.append((tag, ""))
        if tag == "meta" and attributes.get("http-equiv"):
            self.meta[str(attributes["http-equiv"])] = str(attributes["content"])
        if tag == "svg":
            self.svgs.append(attributes)
        if tag == "th":
            self.headers.append(attributes)
