"""Where versions of transformers differ and epigraph must not: the same answer, or the same refusal, on each."""

from __future__ import annotations

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from conftest import IDS, WIDTHS, WINDOW, random_ids, random_prefix, tiny_tokenizer
from epigraph.errors import UnsupportedModel
from epigraph.frozen.model import FrozenModel
from test_attention import assert_same, batch_logits, logits


def gemma2(cap: float | None) -> Gemma2ForCausalLM:
    torch.manual_seed(0)
    shape = {**IDS, **WIDTHS, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": WINDOW}
    return Gemma2ForCausalLM(Gemma2Config(**shape, query_pre_attn_scalar=1, attn_logit_softcapping=cap)).eval()


def test_capped_scores_are_refused_by_sdpa() -> None:
    """transformers 5.16 to 5.19 attends by sdpa without the cap and says nothing; newer ones raise."""
    with pytest.raises(UnsupportedModel, match=r"^Gemma2ForCausalLM cannot .*sdpa"):
        FrozenModel(gemma2(0.5), tiny_tokenizer())


def test_capped_scores_are_taken_by_eager() -> None:
    """And the cap is felt, behind a prefix too."""
    frozen, uncapped = (FrozenModel(gemma2(cap), tiny_tokenizer(), attention_name="eager") for cap in (0.01, None))
    rows = [random_ids(12, 1), random_ids(7, 2)]
    prefixes = [random_prefix(frozen.geometry, 5, 1, std=4.0), random_prefix(frozen.geometry, 3, 2, std=4.0)]
    for row, prefix, got in zip(rows, prefixes, batch_logits(frozen, rows, prefixes, left=True), strict=True):
        assert_same(got, logits(frozen, row, prefix))
        assert (got - logits(uncapped, row, prefix)).abs().max() > 1e-3
