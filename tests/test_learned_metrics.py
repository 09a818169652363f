"""BERTScore against its definition with a small encoder, and what is said where a metric cannot be computed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from epigraph.errors import MetricUnavailable
from epigraph.home import home
from epigraph.tasks.learned_metrics import BERT_SCORE_MODEL, LEARNED_METRICS, bert_score_rows, score_learned

INSTALLED = importlib.util.find_spec("bert_score") is not None
needs_package = pytest.mark.skipif(not INSTALLED, reason="no bert-score: pip install 'epigraph[learned-metrics]'")
ENCODER = home() / "models" / "minilm"
needs_encoder = pytest.mark.skipif(not ENCODER.is_dir(), reason="no encoder: epigraph models fetch minilm")

SYSTEM = ["harbour light is a cheap pub .", "ana norde wrote the glass orchard ."]
GOLD = [["harbour light is an expensive pub .", "there is a pub ."], ["ana norde wrote the glass orchard ."]]


def test_what_cannot_be_computed_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bert_score", None)
    scores = score_learned(SYSTEM, GOLD)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert scores.values == {}
    assert scores.missing == {
        "bert_score": (
            "needs bert-score, which is not installed; run: pip install 'epigraph[learned-metrics]', and set "
            "EPIGRAPH_BERT_SCORE, usually to roberta-large"
        ),
        "mover_score": (
            f"MoverScore has no maintained package for Python {version}; score the predictions with its own program"
        ),
        "bleurt": f"BLEURT has no maintained package for Python {version}; score the predictions with its own program",
    }
    assert tuple(scores.missing) == LEARNED_METRICS
    assert [*score_learned(SYSTEM, GOLD, ["bleurt", "bleu"]).missing] == ["bleurt"]


@needs_package
def test_without_weights_it_says_how_to_name_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(BERT_SCORE_MODEL, raising=False)
    with pytest.raises(MetricUnavailable, match="EPIGRAPH_BERT_SCORE is unset; set it to roberta-large, or to FOLDER@"):
        bert_score_rows(SYSTEM, GOLD)
    monkeypatch.setenv(BERT_SCORE_MODEL, f"{tmp_path}/nothing@3")
    with pytest.raises(
        MetricUnavailable, match=r"bert-score failed with .*nothing@3: \w+: .*; set EPIGRAPH_BERT_SCORE"
    ):
        bert_score_rows(SYSTEM, GOLD)


@needs_package
@needs_encoder
@pytest.mark.slow
def test_bert_score_is_its_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    monkeypatch.setenv(BERT_SCORE_MODEL, f"{ENCODER}@4")
    scores = score_learned(SYSTEM, GOLD, ["bert_score"])
    assert scores.missing == {}
    assert f"{ENCODER.name}_L4_no-idf" in scores.variants["bert_score"]
    assert str(ENCODER.parent) not in scores.variants["bert_score"]

    model, tokenizer = AutoModel.from_pretrained(ENCODER).eval(), AutoTokenizer.from_pretrained(ENCODER)

    def states(text: str) -> torch.Tensor:
        with torch.no_grad():
            found = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states[4][0]
        return found / found.norm(dim=-1, keepdim=True)

    def f1(text: str, reference: str) -> float:
        # Zhang et al. (2020), section 3: greedy matches, where [CLS] and [SEP] are matched but not counted.
        similar = states(text) @ states(reference).T
        precision = similar.max(dim=1).values[1:-1].mean()
        recall = similar.max(dim=0).values[1:-1].mean()
        return float(2 * precision * recall / (precision + recall))

    want = [100 * max(f1(text, x) for x in row) for text, row in zip(SYSTEM, GOLD, strict=True)]
    assert bert_score_rows(SYSTEM, GOLD)[0] == pytest.approx(want, abs=1e-3)
    assert scores.values["bert_score"] == pytest.approx(sum(want) / 2, abs=1e-3)
    assert want[1] == pytest.approx(100, abs=1e-3)
    assert 20 < want[0] < 99
