"""METEOR 1.5 (Denkowski & Lavie 2014) by its own Java program. It knows texts, and where the program is.

The E2E challenge, the COCO caption scripts and DART's scripts run the same program with the same options. It aligns a
text with each reference and says, of the best one, what the score is made of; the sums over rows are a score again::

    P = sum_i w_i * (d * c_i + (1 - d) * f_i) / (d * C + (1 - d) * F)      R the same of the reference
    METEOR = (1 - g * (chunks / matches) ** b) / ((1 - a) / P + a / R)

with c_i and f_i the content and function words that matched in stage i, C and F all of them, and matches the mean of
both sides. The parameters are the program's for English.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import numpy as np

from epigraph.tasks.bootstrap import Floats, Summed
from epigraph.tasks.java import Conversation, conversation, find_jar

JAR = "meteor/meteor-1.5.jar"

# Reading its tables takes ten seconds, a row a hundredth of one: these are for a machine that has much else to do.
_START_S = 300.0
_ROW_S = 1.0

_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
# Exact, stem, synonym and paraphrase matches.
_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
# Content and function words.
_KINDS = np.array([_DELTA, 1.0 - _DELTA])
# What the program says of a row; of all but the chunks the text's number, then the reference's.
_LENGTHS, _FUNCTION, _STAGES, _CHUNKS, _MATCHES = slice(0, 2), slice(2, 4), slice(4, 20), 20, slice(21, 23)


def meteor(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
    """METEOR of all rows, from the sums of their statistics, and of each row alone, as the program says; 0 to 1.

    Texts are tokens with one blank between them. Raises :class:`MetricUnavailable` where Java or the program is not
    there, fails, or takes longer than five minutes and a second a row.
    """
    with _program(len(predictions)) as java:
        statistics = [_statistics(java, *row) for row in zip(predictions, references, strict=True)]
        java.tell(" ||| ".join(["EVAL", *statistics]))
        rows = [float(java.hear()) for _ in predictions]
        return float(java.hear()), rows


def meteor_summed(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Summed:
    """METEOR as sums over rows ``[rows, 23]``, 0 to 100; raises what :func:`meteor` raises."""
    with _program(len(predictions)) as java:
        lines = [_statistics(java, *row) for row in zip(predictions, references, strict=True)]
    rows = np.array([[float(x) for x in line.split()] for line in lines])
    # A row that is its reference word by word is in one piece, and adds none to the sum.
    whole = (rows[:, _MATCHES] == rows[:, _LENGTHS]).all(axis=-1) & (rows[:, _CHUNKS] == 1)
    rows[whole, _CHUNKS] = 0.0
    return Summed(statistics=rows, finish=meteor_percent)


def meteor_percent(totals: Floats) -> Floats:
    """METEOR of summed statistics ``[..., 23]``, 0 to 100; no match is 0."""
    # Stage, then content and function words, then the text's side and the reference's.
    stages = totals[..., _STAGES].reshape(*totals.shape[:-1], len(_WEIGHTS), 2, 2)
    matched = np.einsum("...nks,n,k->...s", stages, _WEIGHTS, _KINDS)
    function = totals[..., _FUNCTION]
    lengths = np.stack([totals[..., _LENGTHS] - function, function], axis=-1) @ _KINDS
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = np.moveaxis(matched / lengths, -1, 0)
        mean = 1.0 / ((1.0 - _ALPHA) / precision + _ALPHA / recall)
        pieces = totals[..., _CHUNKS] / totals[..., _MATCHES].mean(axis=-1)
        return np.asarray(100.0 * np.nan_to_num(mean * (1.0 - _GAMMA * pieces**_BETA)))


def _program(num_rows: int) -> AbstractContextManager[Conversation]:
    arguments = ("-Xmx2G", "-jar", str(find_jar(JAR)), "-", "-", "-stdio", "-l", "en", "-norm")
    return conversation(arguments, timeout_s=_START_S + _ROW_S * num_rows)


def _statistics(java: Conversation, prediction: str, references: Sequence[str]) -> str:
    # The mark between texts must not stand in one, and the scripts drop it too.
    java.tell(" ||| ".join(["SCORE", *(x.replace("|||", "") for x in references), prediction.replace("|||", "")]))
    return java.hear()
