"""What a soft prompt's neighbours say: clusters against chance, equals, distance from the first values."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity

from conftest import save_tiny, tiny
from epigraph.errors import BadValue, GeometryMismatch
from epigraph.frozen.model import FrozenModel
from epigraph.frozen.neighbours import read_prompt
from epigraph.frozen.reading import read_clusters, read_equals, read_moved
from epigraph.virtual import SoftPrompt
from test_cli import SUMS, run, train_words, write_rows
from test_neighbours import drawn, prompt_of, saved

CLUSTER = [40, 41, 42, 43, 44]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("model")))


def with_a_cluster() -> FrozenModel:
    """Five tokens are one direction and a little noise."""
    frozen = tiny("llama")
    table_VE = frozen.model.get_input_embeddings().weight
    noise = torch.randn(5, 64, generator=torch.Generator().manual_seed(1)) * frozen.embedding_rms * 0.3
    table_VE[CLUSTER] = table_VE[40] + noise
    return frozen


def test_tightness_is_the_mean_cosine_of_all_pairs(family: str) -> None:
    frozen = tiny(family)
    reading = read_prompt(frozen, drawn(frozen, 6), num_nearest=4)
    clusters = read_clusters(frozen, reading, num_draws=20)
    for token, tightness in zip(reading.tokens, clusters.tightness, strict=True):
        rows = [frozen.embed([near.token_id])[0] for near in token.nearest]
        pairs = [float(cosine_similarity(a, b, dim=0)) for a, b in itertools.combinations(rows, 2)]
        assert tightness == pytest.approx(sum(pairs) / 6, abs=1e-5)


def test_a_cluster_is_over_both_bars_and_chance_is_not() -> None:
    """Random virtual tokens are random directions: about one in twenty of them is over the directions' own bar."""
    frozen = with_a_cluster()
    near = read_clusters(frozen, read_prompt(frozen, prompt_of(frozen, [40, 60])))
    assert near.tightness[0] is not None
    assert near.tightness[0] > 0.8
    assert near.above(near.random_bar)[0] == near.above(near.direction_bar)[0] == 0
    chance = read_clusters(tiny("llama"), read_prompt(tiny("llama"), drawn(tiny("llama"), 200)))
    assert 2 <= len(chance.above(chance.direction_bar)) <= 22
    # What lies near one point lies near each other: against tokens picked blindly, most look tight.
    assert len(chance.above(chance.random_bar)) > 60


def test_chance_is_seeded_and_there_is_none_for_single_tokens() -> None:
    frozen = tiny("llama")
    reading = read_prompt(frozen, drawn(frozen, 3))
    first, again, other = (read_clusters(frozen, reading, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.random_bar != other.random_bar
    assert first.tightness == other.tightness
    alone = read_clusters(frozen, read_prompt(frozen, drawn(frozen, 3), num_nearest=1))
    assert alone.tightness == (None, None, None)
    assert alone.random_bar is alone.direction_bar is None
    assert alone.above(alone.random_bar) == ()
    with pytest.raises(BadValue, match="num_draws is 0, expected 1 or more"):
        read_clusters(frozen, reading, num_draws=0)


def test_equals_are_counted_once_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = tiny("llama")
    made = prompt_of(frozen, [20, 30, 20, 40, 20, 50]).embeddings_PE
    made[2] *= 3
    made[5] = made[1] + made[1].roll(1) * 0.2
    for chunk in (1, 4, 100):
        monkeypatch.setattr("epigraph.frozen.reading._CHUNK", chunk)
        equals = read_equals(SoftPrompt(embeddings_PE=made))
        assert [(one, other) for one, other, _ in equals.first] == [(0, 2), (0, 4), (2, 4)]
        assert equals.num_pairs == 3
        assert all(cosine == pytest.approx(1, abs=1e-5) for _, _, cosine in equals.first)
        few = read_equals(SoftPrompt(embeddings_PE=made), num_first=1)
        assert (few.num_pairs, len(few.first)) == (3, 1)
    assert (1, 5) in [pair[:2] for pair in read_equals(SoftPrompt(embeddings_PE=made), limit=0.9).first]


def test_distance_is_in_sizes_of_an_embedding(family: str) -> None:
    frozen = tiny(family)
    first = prompt_of(frozen, [20, 30, 40]).embeddings_PE
    now = first.clone()
    now[1] += 2 * frozen.embedding_rms
    now[2] *= -1
    still, shifted, turned = read_moved(frozen, SoftPrompt(embeddings_PE=now), first)
    assert (still.number, still.distance, still.cosine) == (0, 0, pytest.approx(1, abs=1e-6))
    assert shifted.distance == pytest.approx(2, rel=1e-5)
    assert shifted.cosine == pytest.approx(float(cosine_similarity(now[1], first[1], dim=0)), abs=1e-6)
    assert turned.cosine == pytest.approx(-1, abs=1e-6)
    with pytest.raises(GeometryMismatch, match=r"first values are \[2, \d+\], expected \[3, \d+\] as the prompt has"):
        read_moved(frozen, SoftPrompt(embeddings_PE=now), first[:2])


# The command


@pytest.mark.parametrize(
    "flags",
    [
        ["method.initial_text=(x+y)"],
        ["method.initial=vocabulary", "method.vocabulary_size=50"],
        ["method.initial=labels", 'method.labels=["7", "(x"]'],
        ["method.initial=uniform"],
    ],
    ids=["text", "vocabulary", "labels", "uniform"],
)
def test_first_values_are_computed_again(
    base: str, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run of two tiny steps still is where it began, which the file's recipe and seed say: in stored bfloat16."""
    rows, out = write_rows(tmp_path / "sums.jsonl", SUMS), tmp_path / "prompt"
    flags = ["--method", "prompt-tuning", *flags, "training.seed=3", "--steps", "2", "--lr", "0.000001"]
    code, _, err = run(capsys, *train_words(base, rows, out), *flags)
    assert code == 0, err
    code, printed, err = run(capsys, "inspect", str(out), "--neighbours", "--json")
    assert code == 0, err
    moved = json.loads(printed)["neighbours"]["moved"]
    assert [one["number"] for one in moved] == [0, 1, 2, 3]
    assert all(one["cosine"] > 0.9999 and one["distance"] < 0.01 for one in moved)
    code, printed, _ = run(capsys, "inspect", str(out), "--neighbours")
    assert "by 0.00 from the first values" in printed
    assert "equal pairs" in printed
    assert "near a random direction" in " ".join(printed.replace("│", " ").split())


def recipe(seed: Any = 0, **method: Any) -> dict[str, Any]:
    known = {"name": "prompt-tuning", "parameterization": "raw", "num_virtual_tokens": 2, "initial": "uniform"}
    return {"method": {**known, **method}, "training": {"seed": seed}}


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({}, "no recipe of prompt-tuning"),
        ({"recipe": {"method": {"name": "p-tuning"}}}, "no recipe of prompt-tuning"),
        ({"recipe": recipe(parameterization="mlp")}, "behind 'mlp' it started from a network's random weights"),
        ({"recipe": recipe(initial="artifact")}, "initial is 'artifact', which does not travel with the artifact"),
        ({"recipe": recipe(num_virtual_tokens=3)}, "no recipe that this prompt can come from"),
        ({"recipe": recipe(initial="text")}, "no recipe that this prompt can come from"),
        ({"recipe": recipe(initial="vocabulary", vocabulary_size=1)}, "no recipe that this prompt can come from"),
        ({"recipe": recipe(seed="0")}, "no recipe that this prompt can come from"),
        ({"recipe": recipe(seed=-1)}, "no recipe that this prompt can come from"),
        ({"recipe": recipe(seed=10**40)}, "no recipe that this prompt can come from"),
        ({"recipe": recipe(uniform_range="wide")}, "no recipe that this prompt can come from"),
    ],
)
def test_first_values_that_cannot_be_known_are_unknown_by_name(
    base: str, said: dict[str, Any], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frozen = FrozenModel.load(base)
    path = saved(frozen, tmp_path / "x.safetensors", prompt_of(frozen, [40, 50]), **said)
    code, printed, err = run(capsys, "inspect", path, "--neighbours", "--model", base, "--json")
    assert code == 0, err
    assert json.loads(printed)["neighbours"]["moved"]["unknown"].endswith(reason)
    code, printed, _ = run(capsys, "inspect", path, "--neighbours", "--model", base)
    assert "unknown: " in printed


def test_another_base_says_nothing_of_first_values(
    base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frozen = FrozenModel.load(base)
    path = saved(frozen, tmp_path / "x.safetensors", prompt_of(frozen, [40, 50]), recipe=recipe())
    other = save_tiny(tmp_path / "other")
    changed = FrozenModel.load(str(other))
    changed.model.get_input_embeddings().weight.mul_(1.5)
    changed.model.save_pretrained(other)
    words = ["inspect", path, "--neighbours", "--json", "--model", str(other)]
    code, printed, err = run(capsys, *words, "--allow-base", FrozenModel.load(str(other)).fingerprint)
    assert code == 0, err
    assert json.loads(printed)["neighbours"]["moved"] == {"unknown": "the base has other weights than in training"}
