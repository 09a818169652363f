"""Emails into subjects and articles into sentences: splits, references, topics of addresses, and first sentences."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from epigraph.contract import TextContract
from epigraph.errors import BadRows, BadValue, DataNotFound
from epigraph.tasks.base import Example, Task
from epigraph.tasks.rouge import METRICS
from epigraph.tasks.summarization import TASKS, lead, topic

SPLITS = ("train", "dev", "test")
PAGE = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text("utf-8")
NEWS = "http://www.bbc.co.uk/news"


def put(folder: Path, file: str, rows: Sequence[object]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(gzip.compress("".join(json.dumps(x) + "\n" for x in rows).encode()))
    return folder / file


def article(name: str, address: str | None = None) -> dict[str, object]:
    """An invented article; ``name`` says which one came out again."""
    row = {"id": "1", "document": f"{name}.\nIt rained.", "summary": f"sum of {name}"}
    return row if address is None else {**row, "url": address}


def names(examples: Sequence[Example]) -> list[str]:
    assert all(x.references == (f"sum of {x.source.partition('.')[0]}",) for x in examples)
    return [x.source.partition(".")[0] for x in examples]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two or three articles a topic and split, and a few emails."""
    monkeypatch.setenv("EPIGRAPH_DATA", str(tmp_path))
    monkeypatch.setenv("EPIGRAPH_HOME", str(tmp_path / "home"))
    for split in SPLITS:
        put(tmp_path / "xsum_pool", f"{split}.jsonl.gz", [article(f"pool {split}")])
        put(tmp_path / "aeslc", f"{split}.jsonl.gz", [{**article(f"mail {split}"), "extra_references": ["x", "y"]}])
        rows = [
            article(f"{split} uk", f"{NEWS}/uk-england-kent-1"),
            article(f"{split} world", f"{NEWS}/world-europe-2"),
            article(f"{split} business", f"{NEWS}/business-3"),
            article(f"{split} health", f"{NEWS}/health-4"),
            article(f"{split} untold", f"{NEWS}/5"),
            article(f"{split} football", "http://www.bbc.co.uk/sport/football/6"),
            article(f"{split} round", "http://www.bbc.co.uk/newsround/7"),
        ]
        put(tmp_path / "xsum", f"{split}.jsonl.gz", rows)
    return tmp_path


# Tasks


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_what_it_says(name: str, small: Path) -> None:
    task = TASKS[name]()
    assert task.name == name
    assert tuple(task.splits)[:3] == SPLITS
    assert task.headline == "rouge_l"
    assert task.headline in task.better_when_higher
    assert set(task.better_when_higher) == set(METRICS) - {"mean_length_words"}
    assert (task.max_source_tokens, task.max_target_tokens) == ((256, 32) if name == "aeslc" else (512, 60))
    assert {Path(x).parent.name for x in task.files.values()} == {task.name.partition("-")[0]} or name == "xsum-pool"
    assert TextContract(input_template=task.input_template).source_text({"source": "s"}) == "s\n"
    for split in task.splits:
        examples = task.load(split)
        assert set(task.score([x.references[0] for x in examples], examples).values) == set(METRICS)


def test_the_tasks_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        TASKS["mine"] = TASKS["xsum"]  # type: ignore[index]


def test_people_wrote_further_subjects_for_the_test_emails_alone(small: Path) -> None:
    task = TASKS["aeslc"]()
    assert {split: [x.references for x in task.load(split)] for split in task.splits} == {
        "train": [("sum of mail train",)],
        "dev": [("sum of mail dev",)],
        "test": [("sum of mail test", "x", "y")],
        "test-original": [("sum of mail test",)],
    }
    assert [x.source for x in task.load("test")] == [x.source for x in task.load("test-original")]
    assert [task.score(["x"], task.load(x), {"rouge_1"}).values["rouge_1"] for x in ("test", "test-original")] == [
        100,
        0,
    ]
    assert "the original subject and three people's" in task.summary


@pytest.mark.parametrize(
    ("extra", "got"),
    [("x", '"x"'), (["x", ""], "a list of 2"), (["x", 1], "a list of 2"), (None, "null")],
)
def test_further_subjects_that_are_none_are_refused(extra: object, got: str, small: Path) -> None:
    good = {**article("mail"), "extra_references": []}
    file = put(small / "aeslc", "test.jsonl.gz", [good, {**article("mail"), "extra_references": extra}])
    with pytest.raises(BadRows) as caught:
        TASKS["aeslc"]().load("test")
    assert str(caught.value) == (
        f"1 bad row in {file}\n{file}:2: field extra_references: got {got}, expected a list of texts"
    )
    assert len(TASKS["aeslc"]().load("test-original")) == 2


def test_no_email_is_in_dev_and_in_test(small: Path) -> None:
    put(small / "aeslc", "dev.jsonl.gz", [article("mail new"), article("mail test")])
    assert names(TASKS["aeslc"]().load("dev")) == ["mail new"]


def test_the_pool_is_called_ours(small: Path) -> None:
    task = TASKS["xsum-pool"]()
    assert [names(task.load(x)) for x in SPLITS] == [["pool train"], ["pool dev"], ["pool test"]]
    assert "OUR partition" in task.summary
    assert "not comparable with published XSum numbers" in task.summary


def test_xsum_has_its_own_splits_and_every_address(small: Path) -> None:
    for split in SPLITS:
        assert names(TASKS["xsum"]().load(split)) == [
            f"{split} {x}" for x in ("uk", "world", "business", "health", "untold", "football", "round")
        ]
    put(small / "xsum", "dev.jsonl.gz", [article("dev")])
    assert names(TASKS["xsum"]().load("dev")) == ["dev"]


def test_sport_is_tested_after_news(small: Path) -> None:
    task = TASKS["xsum-news-to-sports"]()
    news = ("uk", "world", "business", "health", "untold")
    assert {split: names(task.load(split)) for split in task.splits} == {
        "train": [f"train {x}" for x in news],
        "dev": [f"dev {x}" for x in news],
        "test": ["train football", "dev football", "test football"],
    }


def test_other_news_is_tested_after_some_news(small: Path) -> None:
    task = TASKS["xsum-within-news"]()
    assert {split: names(task.load(split)) for split in task.splits} == {
        "train": ["train uk", "train world", "train business"],
        "dev": ["dev uk", "dev world", "dev business"],
        "test": ["train health", "dev health", "test health"],
    }


def test_a_missing_xsum_says_how_to_make_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPIGRAPH_DATA", str(tmp_path))
    monkeypatch.setenv("EPIGRAPH_HOME", str(tmp_path / "home"))
    for name in ("xsum", "xsum-within-news", "xsum-news-to-sports"):
        assert TASKS[name]().files == {}
        with pytest.raises(DataNotFound) as caught:
            TASKS[name]().load("test")
        assert re.search(
            r"^got no file xsum/\w+.jsonl.gz: .* write each as a line with document, summary and url", str(caught.value)
        )
        assert "\n" not in str(caught.value)
    with pytest.raises(DataNotFound, match=r"got no file xsum_pool/dev\.jsonl\.gz"):
        TASKS["xsum-pool"]().load("dev")


def test_articles_without_a_bbc_address_have_no_topic(small: Path) -> None:
    file = put(small / "xsum", "dev.jsonl.gz", [article("one", f"{NEWS}/uk-1"), article("two")])
    with pytest.raises(BadRows, match=re.escape(f"{file}:2: field url: got nothing, expected text")):
        TASKS["xsum-within-news"]().load("dev")
    put(small / "xsum", "dev.jsonl.gz", [article("one", f"{NEWS}/uk-1"), article("two", "http://example.org/news/uk")])
    for name in ("xsum-within-news", "xsum-news-to-sports"):
        with pytest.raises(BadRows) as caught:
            TASKS[name]().load("dev")
        assert str(caught.value) == (
            f'{file}: got the address "http://example.org/news/uk", expected one such as '
            "http://www.bbc.co.uk/news/uk-1234"
        )


@pytest.mark.parametrize(
    ("address", "section", "of"),
    [
        ("http://www.bbc.co.uk/news/world-europe-1234", "news", "world"),
        ("https://www.bbc.com/news/world/asia-1234", "news", "world"),
        ("http://www.bbc.co.uk/news/uk-england-kent-1234?print=true", "news", "uk"),
        ("http://www.bbc.co.uk/news/uk-politics-1234#top", "news", "uk"),
        ("http://www.bbc.co.uk/news/entertainment-arts-1234", "news", "entertainment"),
        ("http://www.bbc.co.uk/news/election-us-2016-1234", "news", "election"),
        ("http://www.bbc.co.uk/news/1234", "news", ""),
        ("http://www.bbc.co.uk/news/1234?print=true", "news", ""),
        ("http://www.bbc.co.uk/News/Business-1234/", "news", "business"),
        ("http://www.bbc.co.uk/sport/football/1234", "sport", "football"),
        ("http://www.bbc.co.uk/sport/1234", "sport", ""),
        ("http://www.bbc.co.uk/newsround/1234", "newsround", ""),
        ("http://web.archive.org/web/2017id_/http://www.bbc.co.uk/sport/0/golf/1234", "sport", ""),
        ("http://web.archive.org/web/2017/bbc.co.uk/news/health-1234", "news", "health"),
    ],
)
def test_the_topic_is_in_the_address(address: str, section: str, of: str) -> None:
    assert topic(address) == (section, of)


@pytest.mark.parametrize("address", ["", "http://www.bbc.co.uk/", "http://notbbc.com/news/uk-1", "news/uk-1"])
def test_other_addresses_have_no_topic(address: str) -> None:
    with pytest.raises(
        BadValue, match=r"got the address \"\S*\", expected one such as http://www.bbc.co.uk/news/uk-1234"
    ):
        topic(address)


# First sentences


@pytest.mark.parametrize(
    "first",
    [
        "It rained.",
        "Mr. Fox and Dr. Hare met St. John's eleven.",
        "J. R. Hare of the U.S. Army won.",
        "It cost £2.5m, i.e. less than No. 10 Fox St. asked.",
        "Is it late?",
        "Is it in the U.S.?",
        "Which Dr!",
        "It is late!",
        "He waited ... and left.",
        'The fox said: "Stop. It is late." and left.',
        '"We ran. We hid. Nobody saw us," said Fox.',
        "“Run. Hide,” said the hare.",
        '"It is late."',
        "It was Fox & Sons (see No. 4).",
        "1. Foxes come first.",
        "So did I.",
        "It's the hares' field, not the foxes'.",
        "Yahoo.com closed.",
        "It ended 3-2…",
    ],
)
def test_the_first_sentence_ends_where_it_ends(first: str) -> None:
    for rest in (" The hare slept. It snowed.", "\nthe hare slept", "  'Late,' said Fox.", " 12 hares slept.", ""):
        assert lead(first + rest) == first


def test_lines_end_sentences_too() -> None:
    text = "HARES AND FOXES\n\n---\n 12:30 \nThe  hare\tslept. It snowed"
    assert [lead(text, x) for x in (1, 2, 3, 9)] == [
        "HARES AND FOXES",
        "HARES AND FOXES The hare slept.",
        "HARES AND FOXES The hare slept. It snowed",
        "HARES AND FOXES The hare slept. It snowed",
    ]
    assert lead("") == lead(" \n ") == ""
    assert lead("12 - 14\n15") == "12 - 14"
    assert lead("He said no. The hare slept.") == "He said no."
    # A quotation mark that is not closed in its line says nothing.
    assert lead('"We ran. We hid.\nNobody saw us."') == '"We ran.'
    assert lead("“We ran. We hid.\nNobody saw us.”") == "“We ran."
    with pytest.raises(BadValue, match="got 0 sentences of lead, expected 1 or more"):
        lead("It rained.", 0)


@given(
    st.lists(
        st.sampled_from(["Fox", "ran.", '"Why?"', "Mr.", "1.", "(no)", "\n", "I.", "…", "“", "end!”"]), max_size=25
    )
)
@settings(max_examples=200, deadline=None)
def test_leads_grow_and_lose_no_word(words: list[str]) -> None:
    text = " ".join(words)
    kept = [line for line in text.splitlines() if any(x.isalpha() for x in line)] or text.splitlines()
    leads = [lead(text, x) for x in range(1, 27)]
    assert leads[-1].split() == " ".join(kept).split()
    assert all(longer.startswith(shorter) for shorter, longer in pairwise(leads))


# The real files


def lead_row(task: Task, leads: Sequence[str], examples: Sequence[Example]) -> str:
    """The cells of the page's table: what the first sentences score."""
    values = task.score(leads, examples, ("rouge_1", "rouge_2", "rouge_l")).values
    return " | ".join(f"{values[name]:.2f}" for name in ("rouge_1", "rouge_2", "rouge_l"))


def test_the_real_emails(epigraph_data: Path) -> None:
    task = TASKS["aeslc"]()
    rows = {split: task.load(split) for split in task.splits}
    # The official dev has 1,960.
    assert [len(x) for x in rows.values()] == [14_436, 1_751, 1_906, 1_906]
    bodies = {split: {x.source for x in some} for split, some in rows.items()}
    assert not bodies["dev"] & (bodies["train"] | bodies["test"])
    assert not bodies["train"] & bodies["test"]
    assert {len(x.references) for x in rows["test"]} == {4}
    assert all(len(x.references) == 1 for split in ("train", "dev", "test-original") for x in rows[split])
    leads = [lead(x.source) for x in rows["test"]]
    for split, num_references in (("test", "four references"), ("test-original", "one reference")):
        assert f"| `aeslc` {split}, 1,906, {num_references} | {lead_row(task, leads, rows[split])} |" in PAGE


def test_the_real_pool(epigraph_data: Path) -> None:
    task = TASKS["xsum-pool"]()
    rows = {split: task.load(split) for split in SPLITS}
    assert {split: len(x) for split, x in rows.items()} == {"train": 2_601, "dev": 332, "test": 615}
    for field in ("source", "references"):
        texts = [{getattr(x, field) for x in rows[split]} for split in SPLITS]
        assert not texts[0] & texts[1]
        assert not texts[0] & texts[2]
        assert not texts[1] & texts[2]
    leads = [lead(x.source) for x in rows["test"]]
    assert f"| `xsum-pool` test, 615 | {lead_row(task, leads, rows['test'])} |" in PAGE
    scores = task.score(leads, rows["test"])
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    by_library = [scorer.score(x.references[0], text) for text, x in zip(leads, rows["test"], strict=True)]
    for name, kind in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
        expected = 100 * sum(x[kind].fmeasure for x in by_library) / len(by_library)
        assert scores.values[name] == pytest.approx(expected)
    # Published for the whole official test set (Narayan et al. 2018, table 4): 16.30, 1.60 and 11.95.
    assert [scores.values[x] for x in ("rouge_1", "rouge_2", "rouge_l")] == pytest.approx([16.3, 1.6, 11.95], abs=3)
