"""A user's own task in one TOML file: what it makes, and what is said about every mistake in it."""

from __future__ import annotations

import gzip
import json
import re
import tomllib
from pathlib import Path

import pytest

from epigraph.errors import BadRows, BadValue, DataNotFound, RecipeError, UnknownFormat, UnknownKey
from epigraph.tasks.base import Example
from epigraph.tasks.catalogue import TASKS, find
from epigraph.tasks.choice_metrics import score_labels
from epigraph.tasks.metrics import score_texts
from epigraph.tasks.own import METRICS, HubPart, Spec, own_task
from epigraph.tasks.qa_metrics import score_squad
from epigraph.tasks.rouge import score_rouge

PAGE = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
SMALL = """
target = "team"
labels = ["billing", "technical"]
further = { subject = "Subject line" }
input_template = "{subject}: {source}\\n"
[files]
train = "rows.jsonl"
"""
ROW = {"source": "I was charged twice.", "Subject line": "Money", "team": "billing"}


def written(folder: Path, toml: str, *rows: object, name: str = "rows.jsonl") -> Path:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    folder.joinpath(name).write_bytes(gzip.compress(lines.encode()) if name.endswith(".gz") else lines.encode())
    file = folder / "mine.toml"
    file.write_text(toml, encoding="utf-8")
    return file


def test_columns_become_an_example(tmp_path: Path) -> None:
    task = find(str(written(tmp_path, SMALL, ROW, {**ROW, "team": 1, "note": 3})))
    assert task.name == "mine"
    assert task.load("train") == [
        Example(source=ROW["source"], references=("billing",), further={"subject": "Money"}),
        Example(source=ROW["source"], references=("technical",), further={"subject": "Money"}),
    ]
    assert (task.labels, task.headline) == (("billing", "technical"), "accuracy")
    assert task.better_when_higher == ("accuracy", "macro_f1")
    assert task.input_template == "{subject}: {source}\n"
    assert task.files == {"train": str(tmp_path / "rows.jsonl")}
    task.load("train").clear()
    assert len(task.load("train")) == 2


def test_a_list_is_several_references_and_a_packed_file_is_read(tmp_path: Path) -> None:
    toml = 'source = "q"\nreferences = "a"\n[files]\ntrain = "rows.jsonl.gz"\n'
    task = own_task(written(tmp_path, toml, {"q": "1 + 1", "a": ["2", "two"]}, name="rows.jsonl.gz"))
    assert task.load("train") == [Example(source="1 + 1", references=("2", "two"))]
    assert task.headline == "bleu"


def test_csv_is_read_by_its_header(tmp_path: Path) -> None:
    file = written(tmp_path, SMALL.replace("rows.jsonl", "rows.csv"))
    table = tmp_path / "rows.csv"
    table.write_text('team,Subject line,source\nbilling,Money,"Charged, twice."\n')
    [example] = own_task(file).load("train")
    assert (example.source, example.references) == ("Charged, twice.", ("billing",))
    table.write_text("team,subject,source\nbilling,Money,Charged.\n")
    with pytest.raises(BadRows, match=r'rows.csv:1: field Subject line: got 0 .* the columns "team, subject, source"'):
        own_task(file)
    table.write_text("team,Subject line,source\nbilling,Money\nsales,Money,x\n")
    with pytest.raises(BadRows) as caught:
        own_task(file)
    assert str(caught.value).splitlines() == [
        f"2 bad rows in {table}",
        f"{table}:2: row: got 2 cells, expected 3, as in the header",
        f'{table}:3: field team: got "sales", expected one of the labels billing, technical',
    ]


def test_all_bad_rows_are_said_at_once(tmp_path: Path) -> None:
    wrong = {"source": "", "Subject lime": "x", "team": "billing"}
    rows = [{**ROW, "team": "sales"}, {**ROW, "team": 2}, wrong, [1], {**ROW, "team": -1}]
    file = written(tmp_path, SMALL, *rows)
    with pytest.raises(BadRows) as caught:
        own_task(file)
    where = tmp_path / "rows.jsonl"
    assert str(caught.value).splitlines() == [
        f"5 bad rows in {where}",
        f'{where}:1: field team: got "sales", expected one of the labels billing, technical',
        f"{where}:2: field team: got 2, expected one of the labels billing, technical",
        f'{where}:3: field "Subject lime": got an unknown name, expected Subject line',
        f'{where}:3: field source: got "", expected text that is not empty',
        f"{where}:4: row: got a list of 1, expected an object with source, team, Subject line",
        f"{where}:5: field team: got -1, expected one of the labels billing, technical",
    ]


@pytest.mark.parametrize("value", [[], "2", ["2", ""]])
def test_references_are_a_list_of_texts(tmp_path: Path, value: object) -> None:
    toml = 'references = "a"\n[files]\ntrain = "rows.jsonl"\n'
    with pytest.raises(BadRows, match=r"field a(\[1\])?: got "):
        own_task(written(tmp_path, toml, {"source": "1 + 1", "a": value}))


def test_each_metric_is_that_of_its_scorer(tmp_path: Path) -> None:
    named = [x for x in METRICS if x != "illegal_share"]
    toml = f'target = "team"\nlabels = ["billing", "technical"]\nmetrics = {json.dumps(named)}\nheadline = "rouge_2"\n'
    task = own_task(written(tmp_path, toml + '[files]\ntrain = "rows.jsonl"\n', ROW, {**ROW, "team": "technical"}))
    said, examples = ["billing", "billing"], task.load("train")
    scores = task.score(said, examples)
    assert list(scores.values) == named
    for scorer in (score_texts, score_rouge, score_squad):
        for name, value in scorer(said, examples).values.items():
            assert scores.values[name] == value
    by_label = score_labels(said, examples, labels=task.labels)
    assert scores.values["macro_f1"] == by_label.values["macro_f1"] == pytest.approx(100 / 3)
    assert scores.intervals["accuracy"] == by_label.intervals["accuracy"]
    assert set(scores.variants) == set(named)
    assert {*named} - {*scores.summed} <= {"chrf"}
    assert set(task.score(said, examples, {"rouge_2", "accuracy"}).values) == {"rouge_2", "accuracy"}
    assert task.headline == "rouge_2"
    assert "mean_length_words" not in task.better_when_higher


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ('instuction = "x"', UnknownKey, 'unknown key "instuction"; did you mean instruction?'),
        ('zzz = "x"', UnknownKey, 'unknown key "zzz"; expected one of name, summary, '),
        ("max_source_tokens = 0", BadValue, "max_source_tokens: got 0, expected greater than or equal to 1"),
        ('max_source_tokens = "9"', BadValue, 'max_source_tokens: got "9", expected a valid integer'),
        ("instruction = 3", BadValue, "instruction: got 3, expected a valid string"),
        ('references = "b"', BadValue, "got target and references, expected the column of a text or that of a list"),
        ('metrics = ["blue"]', BadValue, 'metrics: got "blue", did you mean bleu?'),
        ('metrics = ["zzz"]', BadValue, 'metrics: got "zzz", expected one of bleu, chrf, '),
        ('headline = "bleu"', BadValue, 'headline: got "bleu", expected one of this task\'s metrics: accuracy, '),
        ('label_words = ["a"]', BadValue, "label_words: got 1, expected 2: one a label"),
        ('target_template = "{source}"', BadValue, 'target_template: got "{source}", expected {target}'),
        ('target_template = "x"', BadValue, 'target_template: got "x", expected {target} in it'),
        ('source = "team"', BadValue, 'got the column "team" as input and as answer, expected two columns'),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, change: str, kind: type[RecipeError], message: str) -> None:
    file = written(tmp_path, change + SMALL, ROW)
    with pytest.raises(kind) as caught:
        own_task(file)
    assert str(caught.value).startswith(f"{file}: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("{subject}:", "{topic}:", 'input_template: got "{topic}", expected {source}, {subject}; name columns'),
        ("{subject}:", "{subject:", "input_template: got "),
        ("{source}", "x", 'input_template: got "{subject}: x\\n", expected {source} in it'),
        ('"billing", "technical"', '"billing"', 'labels: got "billing", expected two or more'),
        ('"billing", "technical"', '"billing", "billing "', 'labels: got "billing, billing ", expected two or more'),
        ('["billing", "technical"]', "[]\nmetrics = ['accuracy']", 'metrics: got "accuracy", which counts labels'),
        ("[files]\ntrain", "[hub]\nid", "hub.splits: got nothing, expected a value; set it"),
        ('[files]\ntrain = "rows.jsonl"', "", "got neither of [files] and [hub], expected one of them"),
        ("[files]", '[hub]\nid = "a"\nsplits = {train = "b"}\n[files]', "got both of [files] and [hub], expected one"),
        ("[files]", "[files", "got "),
    ],
)
def test_a_mistake_in_what_is_there_is_one_line(tmp_path: Path, before: str, after: str, message: str) -> None:
    assert before in SMALL
    file = written(tmp_path, SMALL.replace(before, after), ROW)
    with pytest.raises(BadValue) as caught:
        own_task(file)
    assert str(caught.value).startswith(f"{file}: {message}")
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there_or_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(BadValue, match=r"none.toml: got No such file or directory, expected a task as a TOML file"):
        find(str(tmp_path / "none.toml"))
    file = written(tmp_path, SMALL.replace("rows.jsonl", "none.jsonl"))
    with pytest.raises(DataNotFound, match=r"none.jsonl: got No such file or directory"):
        own_task(file)
    with pytest.raises(UnknownFormat, match=r"rows.txt: got a file named rows.txt, expected one that ends in .jsonl"):
        own_task(written(tmp_path, SMALL.replace("rows.jsonl", "rows.txt")))
    with pytest.raises(BadRows, match=r"no rows in .*rows.jsonl: got an empty file"):
        own_task(written(tmp_path, SMALL))


def test_a_path_may_have_a_plus_and_is_no_mixture(tmp_path: Path) -> None:
    file = written(tmp_path, SMALL, ROW).rename(tmp_path / "a+b.toml")
    assert find(str(file)).name == "a+b"


# The page


def blocks() -> dict[str, str]:
    return dict(re.findall(r"<!-- own: ([\w.-]+) -->\n```\w+\n(.*?)```", PAGE, re.DOTALL))


def test_the_example_of_the_page_runs(tmp_path: Path) -> None:
    for name, text in blocks().items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    task = find(str(tmp_path / "tickets.toml"))
    train = task.load("train")
    assert len(train) == len(task.load("dev")) == 2
    scores = task.score([x.references[0] for x in train], train)
    assert scores.values[task.headline] == 100
    for name in (x for x in blocks() if x.endswith(".toml")):
        Spec.model_validate(tomllib.loads(blocks()[name]))


def test_every_key_and_metric_is_documented_and_no_other() -> None:
    section = PAGE.split("## A task of your own")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([a-z_.]+)` \|", section, re.MULTILINE)
    assert sorted(rows) == sorted(
        [*(x for x in Spec.model_fields if x != "hub"), *(f"hub.{x}" for x in HubPart.model_fields)]
    )
    [named] = re.findall(r"^\| `metrics` \|.*$", section, re.MULTILINE)
    assert set(METRICS) <= set(re.findall(r"`(\w+)`", named))


def test_names_are_unique() -> None:
    from epigraph.tasks.catalogue import GROUPS

    assert sum(map(len, GROUPS.values())) == len(TASKS)
