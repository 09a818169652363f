"""Answers without a model: the most frequent one, its place, and the first sentence; scored as all answers are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from epigraph.contract import TextContract
from epigraph.errors import BadHeader
from epigraph.frozen.model import FrozenModel
from epigraph.tasks.base import Example
from epigraph.train.baselines.constant import say_lead, say_majority, with_majority
from folders import call, printed, refused, save_family, write_rows

ROWS = [
    *({"source": f"{n} is what? More.", "target": "b"} for n in range(3)),
    *({"source": f"{n} is which? Rest.", "target": "a"} for n in range(3)),
    {"source": "Once. Twice.", "target": "c"},
]


def majority(examples: list[Example]) -> Any:
    task: Any = None
    frozen: Any = None
    return with_majority(task, task, frozen, TextContract(), examples)[1]


def test_the_most_frequent_reference_of_all() -> None:
    """Every reference counts; of equals the first in the alphabet, wherever it stood."""
    two = Example(source="x", references=("b", "c"))
    assert majority([two, Example(source="y", references=("c",))]) == {"majority_answer": "c"}
    assert majority([two]) == majority([Example(source="x", references=("c", "b"))]) == {"majority_answer": "b"}


def test_rows_with_candidates_of_their_own_have_a_most_frequent_place() -> None:
    examples = [
        Example(source="x", references=("it rained",), candidates=("it rained", "it shone")),
        Example(source="y", references=("he fell",), candidates=("he rose", "he fell")),
        Example(source="z", references=("she sang",), candidates=("she sat", "she sang")),
    ]
    fields = majority(examples)
    assert fields == {"majority_place": "1"}
    assert [say_majority(fields, x) for x in examples] == ["it shone", "he fell", "she sang"]
    # A row with fewer of them.
    assert say_majority({"majority_place": "7"}, examples[0]) == "it shone"


@pytest.mark.parametrize("fields", [{}, {"majority_place": "x"}, {"majority_place": "-1"}, {"majority_place": "0"}])
def test_a_file_without_an_answer_is_refused(fields: dict[str, str]) -> None:
    with pytest.raises(BadHeader, match="has no answer for a row of this task"):
        say_majority(fields, Example(source="x", references=("y",)))


def test_the_first_sentence() -> None:
    assert say_lead({}, Example(source="Mr. Fox ran. He hid.", references=("x",))) == "Mr. Fox ran."


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family("llama", tmp_path_factory.mktemp("models") / "llama")


def trained(model: Path, folder: Path, method: str, *more: object) -> tuple[Path, Path]:
    data = write_rows(folder / "rows.jsonl", ROWS)
    words = ["train", "--model", model, "--data", data, "--dev", data, "--method", method, "--precision", "fp32"]
    assert call(*words, "--out", folder / "out", *more) == 0
    return folder / "out", data


@pytest.mark.parametrize("method", ["majority", "lead"])
def test_the_command_scores_them_without_a_forward(
    method: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was asked")

    monkeypatch.setattr(FrozenModel, "bind", never)
    out, data = trained(model, tmp_path, method)
    said = json.loads(printed(capsys, "evaluate", out, "--data", data, "--precision", "fp32", "--json"))
    kept = json.loads((out / "evaluations" / "after-test.json").read_text())
    want = {"majority": ["a"] * 7, "lead": [row["source"].partition("?")[0] + "?" for row in ROWS[:6]] + ["Once."]}
    assert [x["prediction"] for x in kept["examples"]] == want[method]
    assert said["num_examples"] == 7
    assert said["scores"]["exact_match"] == pytest.approx(100 * 3 / 7 if method == "majority" else 0)
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["steps"], summary["trained_numbers"], summary["dev"]) == (0, 0, {})


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_label_is_an_answer_too(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where a head would be asked; and a label that no reference has is never said."""
    model = save_family(family, tmp_path / family)
    labels = f"text.labels={json.dumps(['a', 'b', 'c', 'd'])}"
    out, data = trained(model, tmp_path, "majority", labels)
    said = json.loads(printed(capsys, "evaluate", out, "--data", data, "--precision", "fp32", "--json"))
    assert said["scores"]["accuracy"] == pytest.approx(100 * 3 / 7)


def test_lead_is_for_answers_that_are_written(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(tmp_path / "rows.jsonl", ROWS)
    words = ["train", "--model", model, "--data", data, "--method", "lead", "--out", tmp_path / "out"]
    said = refused(capsys, *words, f"text.labels={json.dumps(['a', 'b', 'c'])}")
    assert "method lead answers with a sentence of the source, and answers of rows are one of a few" in said
