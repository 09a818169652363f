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
from functools import partial
from typing import Any

import numpy as np
from sacrebleu.metrics.base import Metric
from sacrebleu.metrics.chrf import CHRF

from epigraph.errors import CountMismatch, TooFewExamples
from epigraph.tasks.base import Example, Scores
from epigraph.tasks.bootstrap import INTERVAL_VARIANT, Floats, Summed
from epigraph.tasks.ngrams import TOKENISER, clipped_matches, tokens_13a

MAX_NGRAM = 4

_FEWEST_MATCHES = 1e-15
_FEWEST_NGRAMS = 1e-9
# Columns of a row of BLEU statistics: reference length, matches of order 1 to 4, n-grams of order 1 to 4.
_MATCHES = slice(1, 1 + MAX_NGRAM)
_NGRAMS = slice(1 + MAX_NGRAM, 1 + 2 * MAX_NGRAM)
_CHRF = "chrF2 at document level, best reference of each row"
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

    ``bleu``, ``chrf`` and ``exact_match`` go from 0 to 100; ``mean_length_words`` counts words between blanks.
    ``only`` these of them; None for all. Raises :class:`CountMismatch` where rows do not pair up or a row has no
    reference, and :class:`TooFewExamples` for no rows at all.
    """
    check_rows(predictions, references)
    predictions = [x.strip() for x in predictions]
    references = [[x.strip() for x in row] for row in references]
    summed = {
        name: summed_of(predictions, references) for name, summed_of in _SUMMED.items() if only is None or name in only
    }
    variants = dict(_VARIANTS)
    if only is None or "chrf" in only:
        summed["chrf"], signature = by_sacrebleu(CHRF(), predictions, references)
        variants["chrf"] = f"{_CHRF}; sacrebleu {signature}; {INTERVAL_VARIANT}"
    return Scores.of(summed, variants, len(predictions))


def together(parts: Sequence[Scores], wanted: Sequence[str], num_examples: int) -> Scores:
    """Scores that have what each of ``parts`` has, in the order of ``wanted``."""
    return Scores(
        values={name: part.values[name] for name in wanted for part in parts if name in part.values},
        intervals={name: part.intervals[name] for name in wanted for part in parts if name in part.intervals},
        variants={name: part.variants[name] for name in wanted for part in parts if name in part.variants},
        missing={name: part.missing[name] for name in wanted for part in parts if name in part.missing},
        num_examples=num_examples,
        summed={name: part.summed[name] for name in wanted for part in parts if name in part.summed},
    )


def bleu_e2e(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU alone, 0 to 100; takes and raises the same as :func:`score_generation`."""
    check_rows(predictions, references)
    return _bleu_summed([x.strip() for x in predictions], [[x.strip() for x in row] for row in references]).value


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


def _bleu_summed(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Summed:
    return Summed(statistics=_bleu_statistics(predictions, references), finish=_bleu)


def _exact(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Summed:
    return Summed.mean([100.0 * (text in row) for text, row in zip(predictions, references, strict=True)])


def _words(predictions: Sequence[str], _: Sequence[Sequence[str]]) -> Summed:
    return Summed.mean([float(len(text.split())) for text in predictions])


_SUMMED: Mapping[str, Callable[[Sequence[str], Sequence[Sequence[str]]], Summed]] = {
    "bleu": _bleu_summed,
    "exact_match": _exact,
    "mean_length_words": _words,
}


def by_sacrebleu(metric: Metric, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[Summed, str]:
    """What a ``metric`` of sacrebleu sums over rows, any number of references a row, and its signature."""
    longest = max(len(row) for row in references)
    # sacrebleu takes the first reference of every row, then the second, with None where a row has no more.
    streams: list[list[Any]] = [
        [row[number] if number < len(row) else None for row in references] for number in range(longest)
    ]
    # sacrebleu's own paired tests stand on these two; what it offers in public has no statistics of a row.
    statistics = np.array(metric._extract_corpus_statistics(predictions, streams), dtype=np.float64)
    return Summed(statistics=statistics, finish=partial(_finished, metric)), str(metric.get_signature().format())


def _finished(metric: Metric, totals: Floats) -> Floats:
    def score(row: Floats) -> float:
        return float(metric._compute_score_from_stats(row.tolist()).score)

    return np.asarray(np.apply_along_axis(score, -1, totals))
