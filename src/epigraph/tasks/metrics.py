"""What counts as good for generated text: BLEU as the E2E challenge computes it, chrF, exact match and length.

It knows texts only: no task, no file and no model.

BLEU (Papineni et al. 2002) follows ``measure_scores.py -p`` of the E2E challenge (Dusek et al. 2020), a port of
mteval-v13a. With c the length of all predictions, r the sum over rows of the reference length nearest to the
prediction's (the shorter one on ties), m_n the clipped matches and l_n the n-grams of the predictions::

    BLEU = min(1, exp(1 - r / c)) * (prod_{n=1..4} max(m_n, 1e-15) / max(l_n, 1e-9)) ** (1 / 4)

Tokenisation is sacrebleu's ``13a``. Where sacrebleu's own BLEU differs, this follows the challenge:

- a token is lower-cased after tokenisation, not the line before it (``&QUOT;`` stays, a final sigma ends a token);
- l_n counts len - n + 1 for every prediction, also where that is negative; sacrebleu counts no less than 0;
- an empty prediction is one empty token, not none;
- no match of some order, or no n-gram of it, gives a tiny BLEU and not 0.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from sacrebleu.metrics.chrf import CHRF

from epigraph.errors import CountMismatch, TooFewExamples
from epigraph.tasks.base import Example, Scores
from epigraph.tasks.bootstrap import INTERVAL_VARIANT, Floats, estimate
from epigraph.tasks.ngrams import TOKENISER, clipped_matches, tokens_13a

MAX_NGRAM = 4

_FEWEST_MATCHES = 1e-15
_FEWEST_NGRAMS = 1e-9
# Columns of a row of BLEU statistics: reference length, matches of order 1 to 4, n-grams of order 1 to 4.
_MATCHES = slice(1, 1 + MAX_NGRAM)
_NGRAMS = slice(1 + MAX_NGRAM, 1 + 2 * MAX_NGRAM)
_VARIANTS = {
    "bleu": (
        "E2E challenge variant (measure_scores.py -p, mteval-v13a): document level, case-insensitive, orders 1 to "
        f"{MAX_NGRAM}, any number of references, nearest reference length (shorter on ties), no smoothing but "
        f"1e-15 for no match; {TOKENISER}; {INTERVAL_VARIANT}"
    ),
    "exact_match": f"percentage of predictions that are a reference, outer blanks apart, case kept; {INTERVAL_VARIANT}",
    "mean_length_words": f"mean number of words between blanks; {INTERVAL_VARIANT}",
}


def score_texts(predictions: Sequence[str], examples: Sequence[Example], only: Collection[str] | None = None) -> Scores:
    """The scorer of a task that has texts and nothing else: :func:`score_generation` with the examples' references."""
    return score_generation(predictions, [x.references for x in examples], only)


def score_generation(
    predictions: Sequence[str], references: Sequence[Sequence[str]], only: Collection[str] | None = None
) -> Scores:
    """Scores of ``predictions``, one a row, against the ``references`` of each row (one or more, any number).

    ``bleu``, ``chrf`` and ``exact_match`` go from 0 to 100; ``mean_length_words`` counts words between blanks. All
    but ``chrf`` have a 95 % bootstrap interval. ``only`` these of them; None for all. Raises :class:`CountMismatch`
    where rows do not pair up or a row has no reference, and :class:`TooFewExamples` for no rows at all.
    """
    check_rows(predictions, references)
    predictions = [x.strip() for x in predictions]
    references = [[x.strip() for x in row] for row in references]
    values: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    variants = {name: text for name, text in _VARIANTS.items() if only is None or name in only}
    for name in variants:
        statistics, finish = _SUMMED[name]
        values[name], intervals[name] = estimate(statistics(predictions, references), finish)
    if only is None or "chrf" in only:
        values["chrf"], variants["chrf"] = _chrf(predictions, references)
    return Scores(values=values, intervals=intervals, variants=variants, num_examples=len(predictions))


def bleu_e2e(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU alone, 0 to 100; takes and raises the same as :func:`score_generation`."""
    check_rows(predictions, references)
    statistics = _bleu_statistics([x.strip() for x in predictions], [[x.strip() for x in row] for row in references])
    return float(_bleu(statistics.sum(axis=0)))


def check_rows(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Raise :class:`CountMismatch` or :class:`TooFewExamples` unless each prediction has a row of references."""
    if len(predictions) != len(references):
        raise CountMismatch(
            f"got {len(predictions)} predictions for {len(references)} rows of references, expected one a row"
        )
    if not predictions:
        raise TooFewExamples("got no predictions to score, expected one or more")
    for number, row in enumerate(references):
        # A bare string is a sequence of strings too, each of one character.
        if isinstance(row, str) or not row:
            got = "a bare string" if isinstance(row, str) else "no reference"
            raise CountMismatch(f"row {number}: got {got}, expected a list of one reference or more")


def _bleu_statistics(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
    """What BLEU is computed from, one row ``[1 + 4 + 4]`` a prediction; document level is the sum of the rows."""
    rows = []
    for have, texts in zip(tokens_13a(predictions), references, strict=True):
        wanted = tokens_13a(texts)
        nearest = min((len(x) for x in wanted), key=lambda length: (abs(length - len(have)), length))
        matches = [clipped_matches(n, have, wanted).total() for n in range(1, MAX_NGRAM + 1)]
        rows.append([nearest, *matches, *(len(have) - n for n in range(MAX_NGRAM))])
    return np.array(rows, dtype=np.float64)


def _bleu(totals: Floats) -> Floats:
    """BLEU of summed statistics ``[..., 9]``."""
    matches = np.maximum(totals[..., _MATCHES], _FEWEST_MATCHES)
    ngrams = np.maximum(totals[..., _NGRAMS], _FEWEST_NGRAMS)
    brevity = np.exp(np.minimum(0.0, 1.0 - totals[..., 0] / totals[..., _NGRAMS.start]))
    return np.asarray(100.0 * brevity * np.exp(np.log(matches / ngrams).mean(axis=-1)))


def _exact(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
    """Exact matches times 100 and a one, ``[rows, 2]``."""
    return np.array([[100.0 * (text in row), 1.0] for text, row in zip(predictions, references, strict=True)])


def _words(predictions: Sequence[str], _: Sequence[Sequence[str]]) -> Floats:
    """Words between blanks and a one, ``[rows, 2]``."""
    return np.array([[len(text.split()), 1.0] for text in predictions])


def _mean(totals: Floats) -> Floats:
    return np.asarray(totals[..., 0] / totals[..., 1])


# Each metric's row statistics, and the metric of their sums.
_SUMMED: Mapping[str, tuple[Callable[[Sequence[str], Sequence[Sequence[str]]], Floats], Callable[[Floats], Floats]]] = {
    "bleu": (_bleu_statistics, _bleu),
    "exact_match": (_exact, _mean),
    "mean_length_words": (_words, _mean),
}


def _chrf(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, str]:
    metric = CHRF()
    longest = max(len(row) for row in references)
    # sacrebleu takes the first reference of every row, then the second, with None where a row has no more.
    streams: list[list[Any]] = [
        [row[number] if number < len(row) else None for row in references] for number in range(longest)
    ]
    value = float(metric.corpus_score(predictions, streams).score)
    return value, f"chrF2 at document level, best reference of each row; sacrebleu {metric.get_signature().format()}"
