"""Prompt Tuning: first values are what the paper says, folding changes nothing, and small runs learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from conftest import FAMILIES, random_ids, tiny, tiny_tokenizer
from epigraph.errors import BadValue, GeometryMismatch
from epigraph.frozen.inputs import frequent_ids
from epigraph.frozen.model import FrozenModel
from epigraph.methods import initial
from epigraph.methods.prompt_tuning import PromptTuning, PromptTuningConfig
from epigraph.train.loop import train
from epigraph.train.parts import TrainingPart
from epigraph.virtual import SoftPrompt
from test_train import rows

PARAMETERIZATIONS = ("raw", "residual", "mlp")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(frozen: FrozenModel, **config: Any) -> PromptTuning:
    torch.manual_seed(1)
    chosen = PromptTuningConfig(**{"num_virtual_tokens": 5, "mlp_width": 16, **config})
    first = frozen.embed(random_ids(chosen.num_virtual_tokens, 7))
    return PromptTuning(chosen, first, frozen.embedding_rms)


# First values


def test_uniform_fills_its_range() -> None:
    drawn = initial.uniform(300, 40, limit=0.5, generator=generator())
    assert drawn.shape == (40, 300)
    assert float(drawn.abs().max()) <= 0.5
    assert float(drawn.abs().max()) > 0.499
    assert float(drawn.var()) == pytest.approx(1 / 12, rel=0.05)
    assert abs(float(drawn.mean())) < 0.02


def test_the_vocabulary_is_drawn_without_repeating_from_the_frequent() -> None:
    frozen = tiny("llama")
    frequent = list(range(10, 40))
    drawn = initial.from_vocabulary(frozen.embed, frequent, 30, generator=generator())
    table = frozen.embed(range(120))
    nearest = torch.cdist(drawn, table).argmin(1).tolist()
    assert sorted(nearest) == frequent
    assert nearest != frequent
    assert torch.equal(drawn, initial.from_vocabulary(frozen.embed, frequent, 30, generator=generator()))
    assert not torch.equal(drawn, initial.from_vocabulary(frozen.embed, frequent, 30, generator=generator(1)))
    with pytest.raises(BadValue, match=r"31 virtual tokens cannot be drawn from 30 .* method\.vocabulary_size"):
        initial.from_vocabulary(frozen.embed, frequent, 31, generator=generator())


def test_labels_are_averaged_and_the_rest_is_drawn() -> None:
    frozen = tiny("gemma3")
    labels, frequent = [[5], [6, 7, 8]], list(range(20, 60))
    first = initial.from_labels(frozen.embed, labels, frequent, 6, generator=generator())
    assert first.shape == (6, 64)
    torch.testing.assert_close(first[0], frozen.embed([5])[0])
    torch.testing.assert_close(first[1], frozen.embed([6, 7, 8]).mean(0))
    assert set(torch.cdist(first[2:], frozen.embed(range(120))).argmin(1).tolist()) <= set(frequent)
    assert initial.from_labels(frozen.embed, labels, frequent, 2, generator=generator()).shape == (2, 64)


def test_embeddings_are_those_the_first_layer_receives() -> None:
    """Gemma multiplies by the root of its width after the lookup, so a row of the table would be 8 times too small."""
    frozen = tiny("gemma3")
    table = frozen.model.get_input_embeddings().weight
    torch.testing.assert_close(frozen.embed([9])[0], table[9] * 8.0)
    assert frozen.embedding_rms == pytest.approx(8 * float(table.pow(2).mean().sqrt()), rel=1e-5)


def test_another_prompt_must_have_the_same_length_and_model() -> None:
    frozen = tiny("llama")
    prompt = SoftPrompt(embeddings_PE=torch.ones(4, 64))
    assert torch.equal(initial.from_prompt(prompt, frozen.geometry, 4), prompt.embeddings_PE)
    with pytest.raises(GeometryMismatch, match="has 4 virtual tokens, num_virtual_tokens is 5"):
        initial.from_prompt(prompt, frozen.geometry, 5)
    with pytest.raises(GeometryMismatch, match="width of the model's input embeddings"):
        initial.from_prompt(SoftPrompt(embeddings_PE=torch.ones(4, 32)), frozen.geometry, 4)


def test_frequent_tokens_are_the_first_that_are_no_special_ones() -> None:
    assert frequent_ids(tiny_tokenizer(), 5) == [4, 5, 6, 7, 8]
    assert len(frequent_ids(tiny_tokenizer(), 10_000)) == len(tiny_tokenizer()) - 4


# The method


def test_the_first_prompt_is_the_first_values() -> None:
    frozen = tiny("llama")
    raw = made(frozen)
    assert torch.equal(raw.fold().embeddings_PE, frozen.embed(random_ids(5, 7)))
    assert raw.num_trained == 5 * 64


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_folded_is_live_and_dropout_is_off(parameterization: str) -> None:
    frozen = tiny("llama")
    method = made(frozen, parameterization=parameterization, dropout=0.5)
    live = method.train()()
    folded = method.fold()
    assert method.training
    assert not folded.embeddings_PE.requires_grad
    assert not torch.equal(live.embeddings_PE, folded.embeddings_PE)
    method.eval()
    assert torch.equal(method().embeddings_PE, folded.embeddings_PE)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_it_learns_and_the_base_does_not_move(family: str, parameterization: str) -> None:
    frozen = tiny(family)
    before = {name: x.clone() for name, x in frozen.model.state_dict().items()}
    method = made(frozen, parameterization=parameterization)
    records: list[Any] = []
    lr = {"raw": 0.5, "residual": 0.1, "mlp": 0.05}[parameterization]
    train(frozen, method, rows(), TrainingPart(batch_size=4), steps=60, lr=lr, report=records.append)
    assert records[-1]["loss"] < 0.9 * records[0]["loss"]
    for name, x in frozen.model.state_dict().items():
        assert torch.equal(x, before[name]), name


def test_the_learning_rate_follows_the_size_of_the_embeddings() -> None:
    """A model whose embeddings are ten times as large is taught alike: the change is in their units."""
    frozen = tiny("llama")
    plain, relative = (made(frozen, relative_lr=x) for x in (False, True))
    for method in (plain, relative):
        with torch.no_grad():
            method.plain.change_PN.fill_(1.0)
    first = frozen.embed(random_ids(5, 7))
    torch.testing.assert_close(plain.fold().embeddings_PE - first, torch.ones(5, 64))
    torch.testing.assert_close(relative.fold().embeddings_PE - first, torch.full((5, 64), frozen.embedding_rms))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"initial": "document"}, "needs initial_path"),
        ({"initial": "artifact"}, "needs initial_path"),
        ({"initial": "labels"}, "needs labels"),
        ({"labels": ("a", "b"), "num_virtual_tokens": 1}, "2 labels, expected at most 1"),
        ({"num_virtual_tokens": 0}, "greater than or equal to 1"),
    ],
)
def test_configurations_that_make_no_sense(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        PromptTuningConfig(**config)
