"""Questions about a passage: files into rows as T5 writes them, SQuAD's metrics, and sets of other domains."""

from __future__ import annotations

import gzip
import json
import re
import string
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import tiny_tokenizer
from epigraph.contract import TextContract
from epigraph.errors import BadRows, CountMismatch, DataNotFound, TooFewExamples
from epigraph.frozen.inputs import Codec
from epigraph.tasks.base import Example, Task
from epigraph.tasks.bootstrap import BOOTSTRAP_SEED, NUM_RESAMPLES, compare
from epigraph.tasks.qa_metrics import exact_match_squad, f1, normalised, score_squad, spaced
from epigraph.tasks.question_answering import INPUT_TEMPLATE, MRQA, PUBMEDQA_LABELS, SHIFTS, TASKS

# Contexts whose SHA-256 is divisible by ten (by sha256sum and bc), and one whose is not.
HELD_OUT, KEPT = "What is 13 ?", "What is 1 ?"


def task(name: str) -> Task:
    return TASKS[name]()


def rows_of(*references: str) -> list[Example]:
    return [Example(source="s", references=(x,)) for x in references]


def put(folder: Path, file: str, rows: Sequence[object]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(gzip.compress("".join(json.dumps(x) + "\n" for x in rows).encode()))
    return folder / file


def asked(context: str, question: str, *answers: str) -> dict[str, object]:
    return {"title": None, "context": context, "question": question, "answers": [{"text": x} for x in answers]}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EPIGRAPH_DATA", str(tmp_path))
    monkeypatch.setenv("EPIGRAPH_HOME", str(tmp_path / "home"))
    return tmp_path


# Metrics


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The  Old-Mill,\tA.D. 70", "oldmill ad 70"),
        ("a an the", ""),
        ("Theatre of Athens an' A-", "theatre of athens"),
        # Articles are words of their own only after punctuation is gone: "a-b" is "ab".
        ("a-b", "ab"),
        # Marks outside ASCII stay, and a blank outside ASCII is a blank.
        ("5\u00a0km \u2013 \u201cfar\u201d", "5 km \u2013 \u201cfar\u201d"),
        ("", ""),
    ],
)
def test_texts_are_compared_as_squads_script_does(text: str, plain: str) -> None:
    assert normalised(text) == plain


def test_metrics_by_hand() -> None:
    assert exact_match_squad("the Old Mill!", ["a mill", "old mill"]) == 1
    assert exact_match_squad("mill", ["a mill race", "old mill"]) == 0
    # Of 3 and 4 words 2 are shared: 2 * 2 / 7. The other reference shares one of 1: 2 * 1 / 4.
    assert f1("the red red mill", ["red mill by water", "red"]) == pytest.approx(4 / 7)
    assert f1("red red", ["red"]) == pytest.approx(2 / 3)
    assert f1("blue", ["red", "green"]) == 0
    # The script divides shared words by words: nothing left on both sides is a match, and yet no shared word.
    assert (exact_match_squad("the", ["!"]), f1("the", ["!"])) == (1, 0)
    with pytest.raises(ValueError, match="empty"):
        f1("x", [])


WORDS = st.lists(st.sampled_from(["a", "The", "red", "Red", "mill", "x-ray", "U.S.", "!", "an"]), max_size=6)


def twin_f1(prediction: str, reference: str) -> float:
    """By precision and recall, removing shared words one by one."""
    have, wanted = normalised(prediction).split(), normalised(reference).split()
    left = list(wanted)
    for word in have:
        if word in left:
            left.remove(word)
    shared = len(wanted) - len(left)
    if not shared:
        return 0.0
    precision, recall = shared / len(have), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)


@settings(max_examples=200, deadline=None)
@given(WORDS, st.lists(WORDS, min_size=1, max_size=3))
def test_f1_equals_its_slow_twin(have: list[str], wanted: list[list[str]]) -> None:
    references = [" ".join(x) for x in wanted]
    assert f1(" ".join(have), references) == pytest.approx(max(twin_f1(" ".join(have), x) for x in references))


def test_scores_and_their_intervals() -> None:
    answers, examples = ["red mill", "mill", "blue"], rows_of("the red mill", "old mill", "green")
    scores = score_squad(answers, examples)
    assert scores.values == {"em": pytest.approx(100 / 3), "f1": pytest.approx(100 * (1 + 2 / 3) / 3)}
    rows = np.array([100.0, 100 * 2 / 3, 0.0])
    random = np.random.default_rng(BOOTSTRAP_SEED)
    means = [rows[random.integers(3, size=3)].mean() for _ in range(NUM_RESAMPLES)]
    assert scores.intervals["f1"] == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))
    assert score_squad(answers, examples, ["f1"]).values == {"f1": scores.values["f1"]}
    assert score_squad(answers, examples, ["bleu"]).values == {}
    assert compare(scores.summed["f1"], scores.summed["em"]).value == pytest.approx(100 * (2 / 3) / 3)
    assert set(scores.variants) == {"em", "f1"}
    with pytest.raises(CountMismatch, match="got 3 predictions for 2 rows"):
        score_squad(answers, examples[:2])
    with pytest.raises(TooFewExamples):
        score_squad([], [])


def test_spacing_is_t5s() -> None:
    assert spaced("In A.D.\n 70,(see \u00a71) it's  \u2014 50% \u201cx_y\u201d.") == (
        "In A . D . 70 , ( see \u00a71 ) it ' s \u2014 50 % \u201cx _ y\u201d ."
    )
    assert spaced("5\u00a0km ") == "5\u00a0km"
    assert spaced(string.punctuation) == " ".join(string.punctuation)


@given(st.text(max_size=30))
def test_spacing_again_changes_nothing(text: str) -> None:
    assert spaced(spaced(text)) == spaced(text)


def test_answers_count_in_either_spelling_where_scoring_spaces_them() -> None:
    examples = [Example(source="s", references=("well - known U . S . firm", "well-known U.S. firm"))]
    for answer in examples[0].references:
        assert score_squad([answer], examples, is_spaced=True).values == {"em": 100, "f1": 100}
    # One word of five in T5's spelling, where "well-known" is two and "U.S." too; one of three in the script's.
    [spaced_f1, plain_f1] = [
        score_squad(["firm"], rows_of("well-known U.S. firm"), is_spaced=x).values["f1"] for x in (True, False)
    ]
    assert (spaced_f1, plain_f1) == (pytest.approx(100 * 2 / 6), pytest.approx(100 * 2 / 4))
    variants = [score_squad(["x"], rows_of("x"), is_spaced=x).variants["f1"] for x in (True, False)]
    assert "blanks around punctuation" in variants[0]
    assert "as they are" in variants[1]


# SQuAD


def test_squad_rows_are_written_as_t5_writes_them(data: Path) -> None:
    train = [asked(KEPT, "Who's there?", "U.S. firm"), asked(HELD_OUT, "Why?", "A.D. 70")]
    put(data / "squad", "train_subset.jsonl.gz", train)
    put(data / "squad", "dev.jsonl.gz", [asked("It rains.", "What?", "It's rain", "It ' s rain", "rain", "It's rain")])
    squad = task("squad")
    assert squad.load("train") == [
        Example(source="What is 1 ?", references=("U . S . firm",), further={"question": "Who ' s there ?"})
    ]
    [dev] = squad.load("dev")
    assert (dev.source, dev.references) == ("What is 13 ?", ("A . D . 70", "A.D. 70"))
    [test] = squad.load("test")
    assert (test.source, test.references) == ("It rains .", ("It ' s rain", "It's rain", "rain"))
    assert squad.score(["It's rain"], [test]).values["em"] == 100
    contract = TextContract(input_template=squad.input_template)
    assert contract.source_text({"source": test.source, **test.further}) == "question: What ? context: It rains .\n"


def test_dev_shares_no_context_with_train(data: Path) -> None:
    contexts = [f"What is {number} ?" for number in range(40)]
    put(data / "squad", "train_subset.jsonl.gz", [asked(x, f"{n}?", "y") for x in contexts for n in range(3)])
    dev, train = task("squad").load("dev"), task("squad").load("train")
    # By sha256sum and bc.
    assert {x.source for x in dev} == {"What is 0 ?", "What is 13 ?", "What is 22 ?"}
    assert (len(dev), len(train)) == (9, 111)


def test_a_long_context_is_cut_and_the_question_kept() -> None:
    squad = task("squad")
    codec = Codec(tiny_tokenizer(), TextContract(input_template=squad.input_template, max_source_tokens=60))
    made = codec.source({"question": "Who rang the bell ?", "source": "x" * 200})
    assert made.truncated
    assert len(made.ids) == 60
    text = codec.tokenizer.decode(made.ids)
    assert re.fullmatch(r"question: Who rang the bell \? context: x{20}\n", text)


def test_bad_rows_are_all_told(data: Path) -> None:
    rows: list[object] = [
        asked("c", "q", "a"),
        {"context": "c", "question": " ", "answers": []},
        {"context": 3, "answers": [{"text": "a"}, {"text": ""}, {}, "a"]},
        [],
    ]
    file = put(data / "squad", "dev.jsonl.gz", rows)
    with pytest.raises(BadRows) as caught:
        task("squad").load("test")
    assert str(caught.value).splitlines() == [
        f"3 bad rows in {file}",
        f'{file}:2: field question: got " ", expected text that is not empty',
        f"{file}:2: field answers: got a list of 0, expected a list of one or more",
        f"{file}:3: field context: got 3, expected text that is not empty",
        f"{file}:3: field question: got nothing, expected text",
        f'{file}:3: field answers[1].text: got "", expected text that is not empty',
        f"{file}:3: field answers[2].text: got nothing, expected text",
        f'{file}:3: field answers[3]: got "a", expected an object with text',
        f"{file}:4: row: got a list of 0, expected an object with context, question, answers",
    ]
    put(data / "squad", "dev.jsonl.gz", [{"context": "c", "question": "q"}])
    with pytest.raises(BadRows, match="field answers: got nothing, expected a list of one or more"):
        task("squad").load("test")
    (data / "squad" / "dev.jsonl.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(BadRows, match=r"no rows in .*: got an empty file, expected one row a line: an object with con"):
        task("squad").load("test")


def test_the_real_squad(epigraph_data: Path) -> None:
    squad = task("squad")
    train, dev, test = (squad.load(split) for split in ("train", "dev", "test"))
    assert (len(train) + len(dev), len(test)) == (4_330, 10_570)
    assert 0.07 < len(dev) / 4_330 < 0.13
    sides = [{x.source for x in some} for some in (train, dev, test)]
    assert not sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2]
    assert all(len(x.references) == 1 and spaced(x.references[0]) == x.references[0] for x in train)
    # What is taught is right by the official answers, and the first official answer by what is taught.
    assert squad.score([x.references[0] for x in test], test).values == {"em": 100, "f1": 100}
    last = squad.score([x.references[-1] for x in test], test).values
    assert last["em"] == 100
    # Two of them are a full stop and nothing else: a match of no words, which the official script gives no F1.
    assert last["f1"] == pytest.approx(100 * (1 - 2 / len(test)))
    first = [x.references[1] for x in test if len(x.references) > 1]
    assert len(first) > 4_000
    # Passages hold their answers, so that a model can copy them.
    assert sum(x.references[0] in x.source for x in train) > 0.98 * len(train)


# Other domains


def test_the_tasks_by_name() -> None:
    assert [*TASKS] == ["squad", *(f"squadshifts-{x}" for x in SHIFTS), *(f"mrqa-{x}" for x in MRQA), "pubmedqa"]
    for name in TASKS:
        made = task(name)
        assert made.name == name
        assert made.input_template == INPUT_TEMPLATE
        assert made.headline in made.better_when_higher
        assert "train" not in made.splits or name == "squad"


def test_the_real_shifts(epigraph_data: Path) -> None:
    sizes = {x: len(task(f"squadshifts-{x}").load("test")) for x in SHIFTS}
    assert sizes == {"amazon": 9_885, "new_wiki": 7_938, "reddit": 9_803}


def test_mrqa_is_read_in_its_own_format(data: Path) -> None:
    qas = [
        {"qid": "1", "question": "Who?", "answers": ["J. Doe", "Doe"], "detected_answers": []},
        {"qid": "2", "question": "When?", "answers": ["1901"]},
    ]
    rows = [{"header": {"dataset": "BioASQ", "mrqa_split": "dev"}}, {"context": "[TLE] J. Doe", "qas": qas}]
    put(data / "mrqa", "BioASQ.jsonl.gz", rows)
    bioasq = task("mrqa-bioasq")
    first, second = bioasq.load("test")
    assert (first.source, first.further) == ("[ TLE ] J . Doe", {"question": "Who ?"})
    assert (first.references, second.references) == (("J . Doe", "J. Doe", "Doe"), ("1901",))
    assert [*bioasq.files] == [*bioasq.splits] == ["test"]


def test_mrqa_that_is_not_here_or_is_something_else(data: Path) -> None:
    with pytest.raises(DataNotFound) as caught:
        task("mrqa-drop").load("test")
    said = str(caught.value)
    assert said.startswith(f"got no file mrqa/DROP.jsonl.gz: EPIGRAPH_DATA is {data}, which lacks mrqa/DROP.jsonl.gz")
    assert "mrqa/MRQA-Shared-Task-2019" in said
    assert "squadshifts-amazon, -new_wiki, -reddit and pubmedqa stand in" in said
    assert "\n" not in said
    file = put(data / "mrqa", "DROP.jsonl.gz", [{"header": {}}])
    with pytest.raises(BadRows, match="got a header alone, expected one context a line"):
        task("mrqa-drop").load("test")
    bad = [{"header": {}}, {"context": "", "qas": ["x", {"answers": [""]}, {"question": "q", "answers": "a"}]}, {}]
    put(data / "mrqa", "DROP.jsonl.gz", bad)
    with pytest.raises(BadRows) as rows:
        task("mrqa-drop").load("test")
    assert str(rows.value).splitlines() == [
        f"2 bad rows in {file}",
        f'{file}:2: field context: got "", expected text that is not empty',
        f'{file}:2: field qas[0]: got "x", expected an object with question, answers',
        f"{file}:2: field qas[1].question: got nothing, expected text",
        f'{file}:2: field qas[1].answers[0]: got "", expected text that is not empty',
        f'{file}:2: field qas[2].answers: got "a", expected a list of one or more',
        f"{file}:3: field context: got nothing, expected text",
        f"{file}:3: field qas: got nothing, expected a list of one or more",
    ]


def test_mrqa_says_how_many_questions_there_should_be() -> None:
    assert {name: count for name, (_, count) in MRQA.items()} == {
        "textbookqa": 1_503, "bioasq": 1_504, "race": 674, "relationextraction": 2_948, "duorc": 1_501, "drop": 1_503,
    }  # fmt: skip
    assert "the 2,948 questions" in task("mrqa-relationextraction").summary


def test_pubmedqa_is_yes_no_or_maybe(data: Path) -> None:
    row = {"split": "dev", "question": "Is it?", "contexts": ["It is.", "So there."], "label": "maybe"}
    put(data / "pubmedqa", "pqa_l.jsonl.gz", [row, {**row, "split": "test", "label": "no"}])
    pubmedqa = task("pubmedqa")
    [dev] = pubmedqa.load("dev")
    assert dev == Example(source="It is . So there .", references=("maybe",), further={"question": "Is it ?"})
    [test] = pubmedqa.load("test")
    assert test.references == ("no",)
    assert pubmedqa.score(["no"], [test]).values["accuracy"] == 100
    assert pubmedqa.labels == PUBMEDQA_LABELS
    file = put(data / "pubmedqa", "pqa_l.jsonl.gz", [{**row, "label": "Yes", "contexts": [1]}, {"question": "q"}])
    with pytest.raises(BadRows) as caught:
        pubmedqa.load("dev")
    assert str(caught.value).splitlines() == [
        f"2 bad rows in {file}",
        f"{file}:1: field contexts[0]: got 1, expected text that is not empty",
        f'{file}:1: field label: got "Yes", expected one of yes, no, maybe',
        f"{file}:2: field contexts: got nothing, expected a list of one or more",
        f"{file}:2: field split: got nothing, expected one of dev, test",
        f"{file}:2: field label: got nothing, expected one of yes, no, maybe",
    ]


def test_the_real_pubmedqa(epigraph_data: Path) -> None:
    dev, test = (task("pubmedqa").load(split) for split in ("dev", "test"))
    want = {"yes": 276, "no": 169, "maybe": 55}
    assert Counter(x.references[0] for x in dev) == Counter(x.references[0] for x in test) == want
    assert not {x.further["question"] for x in dev} & {x.further["question"] for x in test}
