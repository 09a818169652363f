"""P-Tuning: the encoder is the authors', every virtual token depends on all, and folding changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from conftest import tiny
from epigraph.errors import BadValue
from epigraph.methods import initial
from epigraph.methods.p_tuning import PromptEncoder, PTuning, PTuningConfig
from epigraph.methods.prompt_tuning import PromptTuning, PromptTuningConfig

PARAMETERIZATIONS = ("lstm", "mlp", "raw")
P, E = 6, 16


def made(seed: int = 1, scale: float = 0.5, shape: tuple[int, int] = (P, E), **config: Any) -> PTuning:
    torch.manual_seed(seed)
    return PTuning(PTuningConfig(**config), torch.randn(shape, generator=torch.Generator().manual_seed(9)), scale)


def embeddings(method: PTuning) -> Tensor:
    prompt = method.fold()
    assert prompt.placed
    return prompt.embeddings_PE


# The shape of the authors' code


def num_in_lstm(width: int, hidden: int) -> int:
    """Two layers, two directions of ``hidden`` each: four gates, of two matrices and two biases."""
    first = 2 * 4 * (hidden * width + hidden * hidden + 2 * hidden)
    second = 2 * 4 * (hidden * 2 * hidden + hidden * hidden + 2 * hidden)
    return first + second


def num_in_mlp(width_in: int, hidden: int, width: int) -> int:
    return width_in * hidden + hidden + hidden * width + width


@pytest.mark.parametrize(("num_tokens", "width"), [(3, 8), (9, 64)])
def test_the_encoder_has_as_many_numbers_as_the_authors(num_tokens: int, width: int) -> None:
    """Embedding(P, E), LSTM of E/2 a direction, Linear(E, E), ReLU, Linear(E, E): 14 E^2 + 18 E + P E."""
    method = made(shape=(num_tokens, width))
    assert method.num_trained == num_tokens * width + num_in_lstm(width, width // 2) + num_in_mlp(width, width, width)
    assert method.num_trained == 14 * width**2 + 18 * width + num_tokens * width
    assert embeddings(method).shape == (num_tokens, width)


@pytest.mark.parametrize(
    ("config", "num_trained"),
    [
        ({"hidden_width": 10}, P * E + num_in_lstm(E, 5) + num_in_mlp(10, 10, E)),
        ({"parameterization": "mlp"}, P * E + num_in_mlp(E, E, E)),
        ({"parameterization": "mlp", "hidden_width": 7}, P * E + num_in_mlp(E, 7, E)),
        ({"parameterization": "raw"}, P * E),
    ],
)
def test_the_other_shapes(config: dict[str, Any], num_trained: int) -> None:
    method = made(**config)
    assert method.num_trained == num_trained
    assert embeddings(method).shape == (P, E)
    assert all(x.dtype == torch.float32 for x in method.parameters())


def test_the_encoder_is_what_the_paper_writes() -> None:
    """The slow twin: the gates of each direction one token after the other, then linear, ReLU, linear."""
    torch.manual_seed(0)
    encoder = PromptEncoder(P, E, E, "lstm")
    assert encoder.lstm is not None
    weights = dict(encoder.lstm.named_parameters())

    def direction(inputs_PE: Tensor, suffix: str) -> Tensor:
        hidden = cell = torch.zeros(E // 2)
        states = []
        for x in inputs_PE.flip(0) if suffix.endswith("reverse") else inputs_PE:
            gates = weights[f"weight_ih_{suffix}"] @ x + weights[f"bias_ih_{suffix}"]
            gates = gates + weights[f"weight_hh_{suffix}"] @ hidden + weights[f"bias_hh_{suffix}"]
            enter, forget, new, out = gates.chunk(4)
            cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
            hidden = out.sigmoid() * cell.tanh()
            states.append(hidden)
        return torch.stack(states[::-1] if suffix.endswith("reverse") else states)

    mixed = encoder.inputs
    for layer in ("l0", "l1"):
        mixed = torch.cat([direction(mixed, layer), direction(mixed, f"{layer}_reverse")], dim=1)
    first, _, last = encoder.mlp
    expected = (mixed @ first.weight.T + first.bias).clamp(min=0) @ last.weight.T + last.bias  # type: ignore[operator]
    torch.testing.assert_close(encoder(), expected, rtol=1e-5, atol=1e-6)


def test_inputs_are_drawn_from_the_normal_distribution() -> None:
    inputs = made(shape=(64, 64)).encoder.inputs.detach()
    assert float(inputs.mean()) == pytest.approx(0, abs=0.05)
    assert float(inputs.std()) == pytest.approx(1, abs=0.05)


# What it is for


@pytest.mark.parametrize("changed", range(P))
def test_every_virtual_token_depends_on_every_input_through_the_lstm(changed: int) -> None:
    """The association of the paper: it is what plain embeddings, and an MLP over each alone, do not have."""
    moved = {}
    for parameterization in ("lstm", "mlp"):
        method = made(parameterization=parameterization)
        before = embeddings(method)
        with torch.no_grad():
            method.encoder.inputs[changed] += 1.0
        moved[parameterization] = [bool(x) for x in (embeddings(method) != before).any(dim=1)]
    assert moved == {"lstm": [True] * P, "mlp": [number == changed for number in range(P)]}


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_every_parameter_gets_a_gradient(parameterization: str) -> None:
    method = made(parameterization=parameterization)
    method().embeddings_PE.square().sum().backward()
    for name, x in method.named_parameters():
        assert x.grad is not None, name
        assert float(x.grad.abs().max()) > 0, name


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_folded_is_live_and_dropout_is_off(parameterization: str) -> None:
    method = made(parameterization=parameterization, dropout=0.5)
    live = method.train()()
    folded = method.fold()
    assert method.training
    assert live.placed
    assert folded.placed
    assert not folded.embeddings_PE.requires_grad
    assert not torch.equal(live.embeddings_PE, folded.embeddings_PE)
    method.eval()
    assert torch.equal(method().embeddings_PE, folded.embeddings_PE)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_training_moves_it_and_folding_follows(parameterization: str) -> None:
    method = made(parameterization=parameterization)
    want = torch.randn(P, E, generator=torch.Generator().manual_seed(3)) * 0.2
    optimizer = torch.optim.Adam(method.parameters(), lr=3e-2)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = (method().embeddings_PE - want).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]
    method.eval()
    assert torch.equal(method.fold().embeddings_PE, method().embeddings_PE)


@pytest.mark.parametrize("parameterization", ["lstm", "mlp"])
def test_the_seed_decides_the_encoder(parameterization: str) -> None:
    first, again, other = (embeddings(made(seed, parameterization=parameterization)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)


# Sizes and first values


@pytest.mark.parametrize("parameterization", ["lstm", "mlp"])
def test_what_the_encoder_makes_is_in_units_of_the_embeddings(parameterization: str) -> None:
    bare = embeddings(made(parameterization=parameterization, relative_scale=False))
    torch.testing.assert_close(embeddings(made(parameterization=parameterization)), 0.5 * bare)


def test_raw_is_a_placed_prompt() -> None:
    """The same as prompt-tuning's, but for where it stands."""
    frozen = tiny("llama")
    first = initial.from_vocabulary(frozen.embed, range(10, 60), P, generator=torch.Generator().manual_seed(0))
    placed = PTuning(PTuningConfig(parameterization="raw"), first, frozen.embedding_rms)
    leading = PromptTuning(PromptTuningConfig(num_virtual_tokens=P), first, frozen.embedding_rms)
    assert torch.equal(embeddings(placed), first)
    with torch.no_grad():
        for method in (placed, leading):
            for x in method.parameters():
                x.fill_(1.0)
    assert torch.equal(embeddings(placed), leading.fold().embeddings_PE)
    assert not torch.equal(embeddings(placed), first)


def test_only_raw_starts_from_given_values() -> None:
    assert [PTuningConfig(parameterization=x).start for x in PARAMETERIZATIONS] == [None, None, "vocabulary"]  # type: ignore[arg-type]
    assert PTuningConfig(parameterization="raw", initial="text").start == "text"


def test_widths_and_lengths_that_do_not_fit_are_named() -> None:
    with pytest.raises(BadValue, match="the LSTM has width 15, half of it for each direction, so it must be even"):
        made(shape=(P, 15))
    assert embeddings(made(shape=(P, 15), hidden_width=16)).shape == (P, 15)
    assert embeddings(made(shape=(P, 15), parameterization="mlp")).shape == (P, 15)
    assert embeddings(made(num_virtual_tokens=P)).shape == (P, E)
    with pytest.raises(BadValue, match="num_virtual_tokens is 5, the template has places for 6; leave"):
        made(num_virtual_tokens=5)
    with pytest.raises(BadValue, match="7 labels to start from, expected at most 6"):
        initial.from_labels(lambda ids: torch.ones(len(ids), E), [[1]] * 7, range(9), P, generator=torch.Generator())


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"parameterization": "residual"}, "'lstm', 'mlp' or 'raw'"),
        ({"num_virtual_tokens": 0}, "greater than or equal to 1"),
        ({"hidden_width": 0}, "greater than or equal to 1"),
        ({"initial": "document"}, "needs initial_path"),
        ({"initial": "labels"}, "needs labels"),
        ({"mlp_width": 3}, "Extra inputs are not permitted"),
    ],
)
def test_configurations_that_make_no_sense(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        PTuningConfig(**config)
