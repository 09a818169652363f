"""Several tasks as one: what a row becomes, how scores are told apart, and which tasks are refused."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from epigraph.errors import BadValue, TaskNotFound
from epigraph.tasks.base import Example, Scores, Task
from epigraph.tasks.bootstrap import Summed, compare
from epigraph.tasks.catalogue import find
from epigraph.tasks.choice_metrics import LABELS_BETTER_WHEN_HIGHER, score_labels
from epigraph.tasks.metrics import score_texts
from epigraph.tasks.mixture import mean_of, mixture

WARM = [Example(source=x, references=("yes",), further={"hint": "a {source}"}) for x in ("red", "orange", "pink")]
SUMS = [Example(source="1 + 1", references=("2", "two")), Example(source="{hint}", references=("x",), group="g")]


def task(name: str, examples: list[Example], **changes: object) -> Task:
    made = Task(
        name=name,
        summary=name,
        instruction=name,
        splits={"train": partial(list, examples), "test": partial(list, examples[:2]), name: partial(list, [])},
        score=score_texts,
        headline="exact_match",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def warm(**changes: object) -> Task:
    score = partial(score_labels, labels=("yes", "no"))
    return task(
        "warm",
        WARM,
        input_template="hint: {hint} colour: {source}\n",
        score=score,
        headline="accuracy",
        better_when_higher=LABELS_BETTER_WHEN_HIGHER,
        max_source_tokens=64,
        **changes,
    )


def test_rows_begin_with_their_task_and_take_turns() -> None:
    both = mixture([warm(), task("sums", SUMS)])
    train = both.load("train")
    assert [x.source for x in train] == [
        "warm: hint: a {source} colour: red",
        "sums: 1 + 1",
        "warm: hint: a {source} colour: orange",
        "sums: {hint}",
        "warm: hint: a {source} colour: pink",
    ]
    assert train[1].references == ("2", "two")
    assert (both.name, both.headline, both.input_template) == ("warm+sums", "mean", "{source}\n")
    assert set(both.splits) == {"train", "test"}
    assert (both.max_source_tokens, both.max_target_tokens) == (512, 128)


def test_scores_are_those_of_the_parts_and_their_mean() -> None:
    parts = [warm(), task("sums", SUMS)]
    both = mixture(parts)
    said = ["yes", "two", "no", "3", "maybe"]
    scores = both.score(said, both.load("train"))
    alone = parts[0].score(["yes", "no", "maybe"], WARM), parts[1].score(["two", "3"], SUMS)
    for name, part in zip(("warm", "sums"), alone, strict=True):
        for metric, value in part.values.items():
            assert scores.values[f"{name}.{metric}"] == value
            assert scores.variants[f"{name}.{metric}"] == part.variants[metric]
    assert set(scores.values) == {
        "mean",
        *(f"warm.{x}" for x in alone[0].values),
        *(f"sums.{x}" for x in alone[1].values),
    }
    assert scores.values["mean"] == pytest.approx((100 / 3 + 50) / 2)
    low, high = scores.intervals["mean"]
    assert 0 <= low < scores.values["mean"] < high <= 100
    assert "warm.accuracy, sums.exact_match" in scores.variants["mean"]
    assert both.better_when_higher[:3] == ("mean", "warm.accuracy", "warm.macro_f1")
    better = both.score(["yes", "two", "yes", "x", "yes"], both.load("train"))
    assert compare(better.summed["mean"], scores.summed["mean"]).value == pytest.approx(100 - scores.values["mean"])


def test_a_part_scores_its_rows_as_they_were_before() -> None:
    seen: list[Example] = []

    def score(predictions: Sequence[str], examples: Sequence[Example], only: Collection[str] | None = None) -> Scores:
        seen.extend(examples)
        return score_texts(predictions, examples, only)

    both = mixture([warm(), task("sums", SUMS, score=score)])
    both.score(["yes"] * 5, both.load("train"))
    assert seen == SUMS
    assert [x.further for x in seen] == [x.further for x in SUMS]


def test_only_what_is_asked_for_is_scored() -> None:
    both = mixture([warm(), task("sums", SUMS)])
    said = ["yes"] * 5
    assert set(both.score(said, both.load("train"), {"mean"}).values) == {"mean"}
    assert set(both.score(said, both.load("train"), {"warm.macro_f1"}).values) == {"warm.macro_f1"}
    asked = both.score(said, both.load("train"), {"mean", "sums.chrf"})
    assert set(asked.values) == {"mean", "sums.chrf"} == set(asked.variants)


def test_a_part_without_rows_is_said_to_be_missing() -> None:
    both = mixture([warm(), task("sums", SUMS)])
    scores = both.score(["yes"], both.load("train")[:1])
    assert "mean" not in scores.values
    assert scores.missing["mean"].startswith("without sums.exact_match there is no mean")
    assert scores.missing["sums.exact_match"].startswith("there is no row of sums among these")
    assert both.score(["yes"], both.load("train")[:1], {"warm.accuracy"}).missing == {}


def without_sums(
    predictions: Sequence[str], examples: Sequence[Example], only: Collection[str] | None = None
) -> Scores:
    """Scores such as the metrics of programs have, which give one number for all rows."""
    return replace(score_texts(predictions, examples, only), summed={}, intervals={})


def test_a_headline_that_is_no_sum_leaves_the_mean_without_interval() -> None:
    both = mixture([warm(), task("sums", SUMS, score=without_sums)])
    scores = both.score(["yes", "two", "yes", "3", "yes"], both.load("train"))
    assert scores.values["mean"] == (100 + 50) / 2
    assert "mean" not in {**scores.intervals, **scores.summed}
    assert "no interval" in scores.variants["mean"]


def test_the_mean_of_metrics_is_that_of_every_draw() -> None:
    """Against each metric finished by itself on the same draws."""
    one = Summed.mean([0.0, 100.0, 100.0])
    other = Summed(statistics=np.array([[1.0, 2.0, 1.0], [3.0, 1.0, 1.0]]), finish=lambda x: x[..., 0] + x[..., 1])
    both = mean_of([one, other])
    assert both.statistics.shape == (5, 7)
    random = np.random.default_rng(0)
    for draw in random.integers(5, size=(50, 5)):
        first, second = draw[draw < 3], draw[draw >= 3] - 3
        parts = [m.finish(m.statistics[x].sum(axis=0)) for m, x in ((one, first), (other, second)) if len(x)]
        assert both.finish(both.statistics[draw].sum(axis=0)) == pytest.approx(np.mean(parts))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ("yes", "no")}, "warm chooses among labels, which are ranked"),
        ({"candidates": ("yes",)}, "warm chooses among candidates, which are ranked"),
        ({"is_chat": True}, "warm is made of conversations"),
        ({"target_template": "is {target}"}, "sums has the target template '{target}', expected that of warm"),
    ],
)
def test_tasks_whose_answers_are_not_said_are_refused_by_name(changes: dict[str, object], message: str) -> None:
    with pytest.raises(BadValue, match=message):
        mixture([warm(**changes), task("sums", SUMS)])


def test_what_is_no_mixture_is_refused() -> None:
    with pytest.raises(
        BadValue, match="sums has \\[MASK\\] in its template; a mixture takes tasks whose answers are said"
    ):
        mixture([warm(), task("sums", SUMS, input_template="{source} [MASK]")])
    with pytest.raises(BadValue, match="sums goes by mean_length_words, of which less is better"):
        mixture([warm(), task("sums", SUMS, headline="mean_length_words")])
    with pytest.raises(BadValue, match="got warm twice; name each once"):
        mixture([warm(), warm()])
    with pytest.raises(BadValue, match="got 'warm' alone"):
        mixture([warm()])
    ranked = task("sums", [replace(SUMS[0], candidates=("2", "3"))])
    with pytest.raises(BadValue, match="sums has rows with candidates"):
        mixture([warm(), ranked]).load("train")


def test_mixtures_are_found_by_their_names() -> None:
    assert find("cb+rte+boolq").name == "cb+rte+boolq"
    assert find("rte+cards").headline == "mean"
    with pytest.raises(TaskNotFound, match="got no task 'rtee', did you mean rte"):
        find("cb+rtee")
    with pytest.raises(BadValue, match="trec chooses among labels"):
        find("cb+trec")
    with pytest.raises(BadValue, match="cb-cloze "):
        find("rte+cb-cloze")


@pytest.mark.skipif(not os.environ.get("EPIGRAPH_DATA"), reason="EPIGRAPH_DATA is unset: no SuperGLUE files here")
def test_superglue_together_is_superglue_apart() -> None:
    names = ["cb", "copa", "multirc", "rte", "wic", "wsc"]
    together = find("+".join(names))
    rows = together.load("dev32")
    assert len(rows) == sum(len(find(name).load("dev32")) for name in names)
    assert {x.source.partition(":")[0] for x in rows[:6]} == set(names)
    scores = together.score([x.references[0] for x in rows], rows)
    assert not scores.missing
    headlines = []
    for name in names:
        alone = find(name).load("dev32")
        apart = find(name).score([x.references[0] for x in alone], alone)
        assert {f"{name}.{x}": value for x, value in apart.values.items()}.items() <= scores.values.items()
        headlines.append(apart.values[find(name).headline])
    # WSC's references are wrong where a row says so; all others are right.
    assert headlines[:-1] == [100] * 5
    assert scores.values["mean"] == pytest.approx(np.mean(headlines))
