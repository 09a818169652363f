"""Metrics that are models: BERTScore by its package, MoverScore and BLEURT by name. It knows texts and no model.

BERTScore (Zhang et al. 2020) is the mean over rows of F1, the best over a row's references, of tokens matched by the
cosine of what an encoder makes of them. It needs the package of the extra ``learned-metrics`` and an encoder, which
``$EPIGRAPH_BERT_SCORE`` names: a folder or hub id, with ``@LAYER`` where the package does not know it.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from epigraph.errors import MetricUnavailable
from epigraph.tasks.base import Scores
from epigraph.tasks.bootstrap import INTERVAL_VARIANT, Summed

LEARNED_METRICS = ("bert_score", "mover_score", "bleurt")
BERT_SCORE_MODEL = "EPIGRAPH_BERT_SCORE"
# What the package takes for English, and so do DART's scripts.
USUAL_MODEL = "roberta-large"


def score_learned(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    only: Collection[str] | None = None,
    *,
    model: str | None = None,
) -> Scores:
    """Those of :data:`LEARNED_METRICS` that can be computed here, 0 to 100; the others are ``missing`` with the reason.

    ``model`` is the encoder of BERTScore, else ``$EPIGRAPH_BERT_SCORE``.
    """
    summed: dict[str, Summed] = {}
    variants: dict[str, str] = {}
    missing: dict[str, str] = {}
    for name in [x for x in LEARNED_METRICS if only is None or x in only]:
        try:
            rows, variants[name] = _ROWS[name](predictions, references, model)
            summed[name] = Summed.mean(rows)
        except MetricUnavailable as reason:
            missing[name] = str(reason)
    return Scores.of(summed, variants, len(predictions), missing)


def bert_score_rows(
    predictions: Sequence[str], references: Sequence[Sequence[str]], model: str | None = None
) -> tuple[list[float], str]:
    """F1 of each row, 0 to 100 and below 0 where texts have nothing in common, and what was computed, in words.

    Raises :class:`MetricUnavailable` where the package or the encoder is not there, or fails.
    """
    named = model or os.environ.get("EPIGRAPH_BERT_SCORE")
    try:
        package: Any = importlib.import_module("bert_score")
    except ImportError:
        raise MetricUnavailable(
            "needs bert-score, which is not installed; run: pip install 'epigraph[learned-metrics]', and set "
            f"{BERT_SCORE_MODEL}, usually to {USUAL_MODEL}"
        ) from None
    if not named:
        raise MetricUnavailable(
            f"needs an encoder's weights: {BERT_SCORE_MODEL} is unset; set it to {USUAL_MODEL}, or to FOLDER@LAYER"
        )
    encoder, _, layer = named.rpartition("@") if "@" in named else (named, "", "")
    try:
        (_, _, found), code = package.score(
            list(predictions),
            [list(row) for row in references],
            model_type=encoder,
            num_layers=int(layer) if layer else None,
            return_hash=True,
        )
    # The package and what it loads raise what they like: no weights, no such layer, no network, no memory.
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise MetricUnavailable(
            f"bert-score failed with {named}: {type(error).__name__}: {said}; set {BERT_SCORE_MODEL} to {USUAL_MODEL}, "
            "or to FOLDER@LAYER"
        ) from error
    what = f"BERTScore F1, 0 to 100, mean of rows, best reference, no idf, no rescaling; {Path(code).name}"
    return [100.0 * x for x in found.tolist()], f"{what}; {INTERVAL_VARIANT}"


def _mover_score(*_: object) -> tuple[list[float], str]:
    raise MetricUnavailable(_no_wheel("MoverScore"))


def _bleurt(*_: object) -> tuple[list[float], str]:
    raise MetricUnavailable(_no_wheel("BLEURT"))


def _no_wheel(name: str) -> str:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return f"{name} has no maintained package for Python {version}; score the predictions with its own program"


_ROWS: Mapping[str, Callable[[Sequence[str], Sequence[Sequence[str]], str | None], tuple[list[float], str]]] = {
    "bert_score": bert_score_rows,
    "mover_score": _mover_score,
    "bleurt": _bleurt,
}
