"""A choice made together: averaged or voted, it is what is counted by hand over the members, asked one by one."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from epigraph.frozen.ask import ask
from epigraph.frozen.choose import rank
from epigraph.frozen.ensemble import JOININGS, Ensemble, Joining
from epigraph.tuned import Tuned
from epigraph.virtual import SoftPrompt
from folders import call, printed, refused, save_family, write_rows

LABELS = ("low", "mid", "top")
ROWS = [{"source": f"{a}+{b}", "target": LABELS[(a + b) // 3]} for a in range(4) for b in range(4)]
SOURCES = [row["source"] for row in ROWS]
ONE = SoftPrompt(embeddings_PE=torch.zeros(1, 2))


def by_hand(scores: list[list[float]], mean: Joining) -> int:
    """``scores[member][choice]``, log-probabilities."""
    choices = range(len(scores[0]))
    average = [sum(one[x] for one in scores) / len(scores) for x in choices]
    if mean == "geometric":
        return max(choices, key=lambda x: average[x])
    if mean == "arithmetic":
        return max(choices, key=lambda x: sum(2.718281828459045 ** one[x] for one in scores))
    votes = Counter(max(choices, key=lambda x, one=one: one[x]) for one in scores)
    most = max(votes.values())
    return max((x for x in choices if votes[x] == most), key=lambda x: average[x])


@pytest.mark.parametrize("mean", JOININGS)
@pytest.mark.parametrize(("num_members", "num_choices"), [(1, 3), (2, 3), (3, 2), (4, 3), (5, 4)])
def test_joined_choices_are_counted_by_hand(mean: Joining, num_members: int, num_choices: int) -> None:
    generator = torch.Generator().manual_seed(num_members)
    scores_MBN = (3 * torch.randn(num_members, 200, num_choices, generator=generator)).log_softmax(-1)
    got = Ensemble(members=(ONE,) * num_members, mean=mean).choose(scores_MBN)
    assert got.tolist() == [by_hand(scores_MBN[:, row].tolist(), mean) for row in range(200)]


def test_the_three_ways_are_three_functions() -> None:
    scores_MBN = (3 * torch.randn(3, 200, 3, generator=torch.Generator().manual_seed(0))).log_softmax(-1)
    chosen = [Ensemble(members=(ONE,) * 3, mean=mean).choose(scores_MBN).tolist() for mean in JOININGS]
    assert all(one != other for one, other in itertools.combinations(chosen, 2))


def logs(*shares: tuple[float, ...]) -> Tensor:
    return torch.tensor(shares).log()[:, None]


def test_the_majority_wins_against_any_probability() -> None:
    """Two of three by a hair, the third as sure as can be."""
    scores_MBN = logs((0.51, 0.49), (0.51, 0.49), (1e-9, 1 - 1e-9))
    assert [int(Ensemble(members=(ONE,) * 3, mean=mean).choose(scores_MBN)) for mean in JOININGS] == [1, 1, 0]


def test_a_tie_goes_to_the_higher_mean_log_probability() -> None:
    """One vote each; the second is surer, and the third, which nobody votes for, has the highest mean of all."""
    scores_MBN = logs((0.50, 0.01, 0.49), (0.04, 0.50, 0.46))
    vote = Ensemble(members=(ONE,) * 2, mean="majority")
    assert int(vote.choose(scores_MBN)) == 0
    assert int(vote.choose(scores_MBN[:, :, [1, 0, 2]])) == 1
    assert int(Ensemble(members=(ONE,) * 2).choose(scores_MBN)) == 2
    assert int(vote.choose(logs((0.50, 0.03, 0.47), (0.04, 0.96, 1e-6)))) == 1


# Through the command


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", ROWS)


@pytest.fixture(scope="module", params=["llama", "t5", "bert"])
def runs(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three of one task, hardly trained, that start far apart; a soft prompt among them where it goes in front."""
    folder = tmp_path_factory.mktemp(request.param)
    model = save_family(request.param, folder / "model")
    # A masked model says one token here: the fast path, where one pass scores every label.
    is_masked = request.param == "bert"
    text = ["text.input_template={source} is [MASK].", 'text.label_words=["e","o","z"]'] if is_masked else []
    apart = ["--initial", "random", f"method.initial_std={3 if is_masked else 1}"]
    for seed, more in enumerate((apart, apart, ["--method", "prompt-tuning"] if request.param == "llama" else apart)):
        words = ["train", "--model", model, "--data", data, "--seed", seed, "--steps", 1, "--precision", "fp32"]
        assert call(*words, "--out", folder / str(seed), f"text.labels={json.dumps(LABELS)}", *text, *more) == 0
    return [folder / str(seed) for seed in range(3)]


@pytest.mark.parametrize("mean", JOININGS)
def test_several_runs_choose_as_counted_by_hand(
    runs: list[Path], data: Path, mean: Joining, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each member is asked alone, by a base of its own; words of several tokens, so that there are sums to compare."""
    alone = [Tuned.load(run) for run in runs]
    scores = [
        rank(one.frozen, one.codec, [{"source": x} for x in SOURCES], LABELS, one.prefix).tolist() for one in alone
    ]
    want = [LABELS[by_hand([one[row] for one in scores], mean)] for row in range(len(SOURCES))]
    others = ["--with", runs[1], "--with", runs[2], "--mean", mean]
    printed(capsys, "evaluate", runs[0], *others, "--data", data, "--precision", "fp32", "--json")
    kept = json.loads((runs[0] / "evaluations" / "ensemble-test.json").read_text())
    assert [x["prediction"] for x in kept["examples"]] == want
    assert kept["ensemble"]["mean"] == mean
    each = [one.generate(SOURCES) for one in alone]
    assert len({tuple(x) for x in each}) > 1, "members that agree on everything test nothing"
    first = alone[0]
    joined = first.ensemble(*runs[1:], mean=mean)
    rows = [{"source": x} for x in SOURCES]
    asked = [first.codec.source(row) for row in rows]
    few = ask(first.frozen, first.codec, asked, rows, joined, batch_size=2).texts
    assert few == want
    assert printed(capsys, "generate", runs[0], SOURCES[3], *others) == f"{want[3]}\n"


def test_members_are_asked_in_one_batch(runs: list[Path]) -> None:
    """One pass over all rows of all members, or one a label where labels are words of several tokens; no more."""
    first = Tuned.load(runs[0])
    joined = first.ensemble(*runs[1:], mean="majority")
    rows = [{"source": x} for x in SOURCES]
    passes: list[object] = []
    done: list[int] = []
    # Whether rows can be packed is tried once, in passes of its own.
    assert first.frozen.packs == (first.frozen.kind == "causal")
    handle = first.frozen.model.register_forward_hook(lambda *what: passes.append(what))
    asked = [first.codec.source(row) for row in rows]
    ask(first.frozen, first.codec, asked, rows, joined, batch_size=3 * len(rows), advance=done.append)
    handle.remove()
    num_tokens = {len(first.codec.candidate(label)) for label in LABELS}
    assert len(passes) == (1 if num_tokens == {1} else len(LABELS))
    assert done == [len(rows)]


def test_members_with_other_labels_are_refused(
    runs: list[Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = runs[0].parent / "model"
    text = json.loads((runs[0] / "recipe.json").read_text())["text"]["input_template"]
    words = ["train", "--model", model, "--data", data, "--steps", 1, "--out", tmp_path / "out"]
    assert call(*words, 'text.labels=["top","low","mid"]', "text.input_template=" + text) == 0
    said = refused(capsys, "generate", runs[0], "1+1", "--with", tmp_path / "out")
    assert "its text contract has labels ('top', 'low', 'mid'), expected ('low', 'mid', 'top')" in said
