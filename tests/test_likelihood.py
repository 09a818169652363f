"""Our cross-entropy against torch's: the same numbers and gradients, without torch's tables."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from epigraph.frozen import likelihood
from epigraph.frozen.likelihood import negative_log_likelihood


def both(logits: Tensor, targets: Tensor, weights: Tensor) -> list[tuple[Tensor, Tensor]]:
    found = []
    for way in (negative_log_likelihood, lambda x, y: functional.cross_entropy(x.float(), y, reduction="none")):
        leaf = logits.clone().requires_grad_()
        losses = way(leaf, targets)
        (losses * weights).sum().backward()
        assert leaf.grad is not None
        found.append((losses.detach(), leaf.grad))
    return found


@pytest.mark.parametrize("num_rows", [0, 1, 5, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_is_torchs(dtype: torch.dtype, num_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Pieces of three rows, the last one shorter.
    monkeypatch.setattr(likelihood, "_PIECE", 3 * 97)
    torch.manual_seed(num_rows)
    logits = (4 * torch.randn(num_rows, 97)).to(dtype)
    targets, weights = torch.randint(0, 97, (num_rows,)), torch.rand(num_rows)
    (ours, our_grad), (theirs, their_grad) = both(logits, targets, weights)
    assert ours.dtype == torch.float32
    assert our_grad.dtype == dtype
    assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    assert torch.allclose(
        our_grad.float(), their_grad.float(), rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-7
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sure_answer_still_has_its_small_gradient(dtype: torch.dtype) -> None:
    """At a probability of 0.999 the gradient is -0.001, which bf16 can say, though not as 0.999 less 1."""
    logits = torch.tensor([[7.0, 0.0]], dtype=dtype)
    (_, ours), (_, theirs) = both(logits, torch.tensor([0]), torch.ones(1))
    assert float(ours[0, 0]) == pytest.approx(-9.1e-4, rel=1e-2)
    assert torch.allclose(ours.float(), theirs.float(), rtol=1e-2)


def test_large_logits_do_not_overflow() -> None:
    logits = torch.tensor([[3e4, -3e4, 0.0]])
    assert negative_log_likelihood(logits, torch.tensor([1])).tolist() == [6e4]
    assert negative_log_likelihood(logits, torch.tensor([0])).tolist() == [0.0]


def test_what_is_no_number_stays_none() -> None:
    """A loss that is no number must reach the trainer, which ends the run."""
    logits = torch.tensor([[float("nan"), 0.0], [1.0, 0.0]])
    found = negative_log_likelihood(logits, torch.tensor([1, 0]))
    assert bool(found[0].isnan())
    assert not bool(found[1].isnan())
