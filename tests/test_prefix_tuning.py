"""Prefix-Tuning: its three parameterisations, its first values, and that folding changes nothing (guarantee 4)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from conftest import random_ids, random_prefix, tiny
from epigraph import artifact
from epigraph.errors import BadValue, GeometryMismatch
from epigraph.frozen.model import FrozenModel
from epigraph.methods import initial
from epigraph.methods.base import flatten, unflatten
from epigraph.methods.prefix_tuning import PrefixTuning, PrefixTuningConfig
from epigraph.virtual import KVPrefix
from test_attention import assert_same, logits

PARAMETERIZATIONS = ("raw", "mlp", "mlp-code")


def method(frozen: FrozenModel, parameterization: str = "raw", **changes: object) -> PrefixTuning:
    config = PrefixTuningConfig.model_validate(
        {"num_virtual_tokens": 5, "parameterization": parameterization, "mlp_width": 16, "fit_steps": 0, **changes}
    )
    first = random_prefix(frozen.geometry, config.num_virtual_tokens, 1) if config.start else None
    return PrefixTuning(config, frozen.geometry, first)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_folded_saved_and_loaded_equals_live(family: str, parameterization: str, tmp_path: Path) -> None:
    frozen = tiny(family)
    live = method(frozen, parameterization)
    row = random_ids(12, 1)
    want = logits(frozen, row, live())
    assert_same(logits(frozen, row, live.fold()), want)
    saved = saved_and_loaded(frozen, live.fold(), tmp_path)
    assert (logits(frozen, row, saved) - want).abs().max() < 1e-5


def saved_and_loaded(frozen: FrozenModel, prefix: KVPrefix, folder: Path) -> KVPrefix:
    from epigraph.contract import TextContract

    content = artifact.Artifact(
        tokens=prefix,
        geometry=frozen.geometry,
        contract=TextContract(),
        base_name=frozen.name,
        base_fingerprint=frozen.fingerprint,
        tokenizer_fingerprint=frozen.tokenizer_fingerprint,
        method="prefix-tuning",
        method_config={},
        provenance={},
    )
    path = folder / "artifact.safetensors"
    artifact.save(content, path, dtype=torch.float32)
    return artifact.load(path).tokens


def test_shapes_of_the_papers_text_and_of_its_code() -> None:
    """Li & Liang 2021, section 4.3: P' is P x k; the authors' code has P' as wide as the embeddings."""
    frozen = tiny("llama")
    numbers = frozen.geometry.numbers_per_token()
    text, code = method(frozen, "mlp"), method(frozen, "mlp-code")
    assert text.num_trained == 5 * 16 + (16 * 16 + 16) + (16 * numbers + numbers)
    assert code.num_trained == 5 * 64 + (64 * 16 + 16) + (16 * numbers + numbers)
    assert method(frozen, "raw").num_trained == 5 * numbers
    for made in (text, code):
        assert made.fold().num_numbers == 5 * numbers


def test_e2e_on_gpt2_medium_has_the_papers_sizes() -> None:
    """papers.md 1.2: 25,744,896 trained and 245,760 stored at length 5 on GPT-2 medium."""
    from epigraph.virtual import Geometry, LayerGeometry

    layers = (LayerGeometry(num_kv_heads=16, head_dim=64),) * 24
    medium = Geometry(sites={"decoder.self": layers}, embedding_dim=1024, position_kind="absolute", max_positions=1024)
    made = PrefixTuning(PrefixTuningConfig(num_virtual_tokens=5, parameterization="mlp-code"), medium)
    assert made.num_trained == 25_744_896
    assert made.fold().num_numbers == 245_760


def test_flatten_and_unflatten_are_inverse(family: str) -> None:
    geometry = tiny(family).geometry
    prefix = random_prefix(geometry, 4, 1)
    again = unflatten(flatten(prefix), geometry, text_start=4, visibility="always")
    for (_, _, one), (_, _, other) in zip(prefix.layers(), again.layers(), strict=True):
        assert torch.equal(one.keys_PKH, other.keys_PKH)
        assert torch.equal(one.values_PKH, other.values_PKH)


def test_text_initialiser_is_exact(family: str) -> None:
    """The first values are the text's own keys and values: the model answers as if it had read the text."""
    frozen = tiny(family)
    words, tail = random_ids(5, 1), random_ids(9, 2)
    made = method(frozen, visibility="window")
    made = PrefixTuning(made.config, frozen.geometry, initial.from_text(frozen.read, words, 5))
    assert_same(logits(frozen, tail, made()), logits(frozen, words + tail, None)[5:])


def test_text_initialiser_repeats_and_cuts() -> None:
    frozen = tiny("llama")
    words = random_ids(3, 1)
    assert_prefixes_equal(initial.from_text(frozen.read, words, 7), frozen.read([*words, *words, words[0]]))
    assert_prefixes_equal(initial.from_text(frozen.read, words, 2), frozen.read(words[:2]))
    with pytest.raises(BadValue, match="no tokens"):
        initial.from_text(frozen.read, [], 3)


def test_document_initialiser_takes_the_first_tokens() -> None:
    frozen = tiny("llama")
    words = random_ids(9, 1)
    assert_prefixes_equal(initial.from_document(frozen.read, words, 4), frozen.read(words[:4]))
    with pytest.raises(BadValue, match="9 tokens, 10 virtual"):
        initial.from_document(frozen.read, words, 10)


def assert_prefixes_equal(one: KVPrefix, other: KVPrefix) -> None:
    assert one.text_start == other.text_start
    assert torch.equal(flatten(one), flatten(other))


def test_random_has_the_stated_scale_and_follows_the_seed() -> None:
    geometry = tiny("llama").geometry
    flat = flatten(random_prefix(geometry, 200, 1, std=0.5))
    assert flat.std().item() == pytest.approx(0.5, rel=0.02)
    assert abs(flat.mean().item()) < 0.01
    assert torch.equal(flat, flatten(random_prefix(geometry, 200, 1, std=0.5)))


def test_a_relative_learning_rate_moves_each_layer_by_its_own_size() -> None:
    """One Adam step changes every number by lr times the size of its layer's first keys, or values."""
    frozen = tiny("llama")
    first = initial.from_text(frozen.read, random_ids(5, 1), 5)
    for relative in (True, False):
        made = PrefixTuning(PrefixTuningConfig(num_virtual_tokens=5, relative_lr=relative), frozen.geometry, first)
        assert torch.equal(flatten(made.fold()), flatten(first))
        flatten(made()).sum().backward()
        torch.optim.Adam(made.parameters(), lr=0.01).step()
        for (_, _, before), (_, _, after) in zip(first.layers(), made.fold().layers(), strict=True):
            for old, new in ((before.keys_PKH, after.keys_PKH), (before.values_PKH, after.values_PKH)):
                size = old.flatten(1).pow(2).mean(1).sqrt().median().item() if relative else 1.0
                assert (new - old).abs().mean().item() == pytest.approx(0.01 * size, rel=1e-2)


def test_zeros_still_learn() -> None:
    frozen = tiny("llama")
    made = PrefixTuning(PrefixTuningConfig(num_virtual_tokens=5), frozen.geometry, initial.zero(frozen.geometry, 5))
    flatten(made()).sum().backward()
    assert next(made.parameters()).grad.abs().min() == 1  # type: ignore[union-attr]


def test_zero_is_not_a_no_op() -> None:
    frozen = tiny("llama")
    row = random_ids(9, 1)
    zero = initial.zero(frozen.geometry, 5)
    assert flatten(zero).abs().max() == 0
    assert (logits(frozen, row, zero) - logits(frozen, row, None)).abs().max() > 1e-3


def test_another_prefix_must_have_as_many_tokens() -> None:
    geometry = tiny("llama").geometry
    there = random_prefix(geometry, 4, 1)
    assert_prefixes_equal(initial.from_prefix(there, geometry, 4), there)
    with pytest.raises(GeometryMismatch, match="has 4 virtual tokens, num_virtual_tokens is 5"):
        initial.from_prefix(there, geometry, 5)


@pytest.mark.parametrize("parameterization", ["mlp", "mlp-code"])
def test_the_mlp_is_fitted_to_first_values(parameterization: str) -> None:
    """Li & Liang 2021, low data: the MLP, not P', is fitted by MSE before training."""
    frozen = tiny("llama")
    torch.manual_seed(0)
    loose = method(frozen, parameterization, initial="random", fit_steps=0)
    torch.manual_seed(0)
    fitted = method(frozen, parameterization, initial="random", fit_steps=300)
    target = flatten(random_prefix(frozen.geometry, 5, 1))
    error = [(flatten(made()) - target).pow(2).mean().item() for made in (loose, fitted)]
    assert error[1] < 0.05 * error[0]
    assert torch.equal(loose.free[0].inputs, fitted.free[0].inputs)  # type: ignore[arg-type]


def test_sink_tokens_stay() -> None:
    frozen = tiny("llama")
    made = method(frozen, num_sink_tokens=2)
    before = flatten(made.fold())
    assert_same(before, flatten(random_prefix(frozen.geometry, 5, 1)))
    optimizer = torch.optim.AdamW(made.parameters(), lr=0.1)
    flatten(made()).pow(2).sum().backward()
    optimizer.step()
    after = flatten(made.fold())
    assert torch.equal(after[:2], before[:2])
    assert not torch.equal(after[2:], before[2:])
    assert made.num_trained == 3 * frozen.geometry.numbers_per_token()


def test_dropout_is_on_in_training_only() -> None:
    frozen = tiny("llama")
    made = method(frozen, dropout=0.5)
    made.train()
    torch.manual_seed(0)
    assert (flatten(made()) == 0).float().mean() > 0.3
    assert torch.equal(flatten(made.fold()), flatten(random_prefix(frozen.geometry, 5, 1)))
    assert made.training


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_virtual_tokens": 0},
        {"num_sink_tokens": 11},
        {"initial": "document"},
        {"visibility": "never"},
        {"parameterization": "mlp", "num_sink_tokens": 1},
        {"nonsense": 1},
    ],
)
def test_bad_configurations_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PrefixTuningConfig.model_validate(wrong)
