"""Adafactor against transformers' own, on vectors, which that one does not factor."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from transformers.optimization import Adafactor as Theirs

from epigraph.train.adafactor import Adafactor


@pytest.mark.parametrize("weight_decay", [0.0, 1e-5, 0.1])
def test_the_same_steps_as_transformers_on_a_vector(weight_decay: float) -> None:
    torch.manual_seed(0)
    start, target = torch.randn(2, 60, dtype=torch.float64)
    ours, theirs = (start.clone().requires_grad_() for _ in range(2))
    settings = {"lr": 0.3, "weight_decay": weight_decay}
    optimizers = [
        Adafactor([ours], **settings),
        Theirs([theirs], scale_parameter=False, relative_step=False, warmup_init=False, **settings),
    ]
    for step in range(50):
        for x, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            ((x - target).square() * (1 + step % 3)).sum().backward()
            optimizer.step()
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-7)
    assert float((ours - start).detach().abs().mean()) > 0.1


def test_a_matrix_keeps_the_second_moment_of_every_number() -> None:
    """The paper's prompt: a matrix moves as its numbers in one long vector do; transformers' does not."""
    torch.manual_seed(0)
    start, gradients = torch.randn(6, 10), torch.randn(20, 6, 10).exp()
    matrix, vector = start.clone().requires_grad_(), start.flatten().clone().requires_grad_()
    factored = start.clone().requires_grad_()
    optimizers = [
        Adafactor([matrix]),
        Adafactor([vector]),
        Theirs([factored], lr=0.3, weight_decay=1e-5, scale_parameter=False, relative_step=False),
    ]
    for gradient in gradients:
        for x, optimizer in zip((matrix, vector, factored), optimizers, strict=True):
            x.grad = gradient.reshape(x.shape).clone()
            optimizer.step()
    assert torch.equal(matrix.flatten(), vector)
    assert float((matrix - factored).detach().abs().max()) > 1e-2


def test_its_state_goes_into_a_checkpoint_and_back() -> None:
    torch.manual_seed(0)
    a, b = (torch.zeros(5, requires_grad=True) for _ in range(2))
    first, second = Adafactor([a]), Adafactor([b])
    for _ in range(3):
        a.grad = torch.randn(5)
        first.step()
    with torch.no_grad():
        b.copy_(a)
    second.load_state_dict(deepcopy(first.state_dict()))
    gradient = torch.randn(5)
    a.grad, b.grad = gradient.clone(), gradient.clone()
    first.step()
    second.step()
    assert torch.equal(a, b)
    assert all(isinstance(x, torch.Tensor) for values in first.state_dict()["state"].values() for x in values.values())
