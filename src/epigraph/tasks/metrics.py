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

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import sacrebleu
from numpy.typing import NDArray
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from epigraph.errors import CountMismatch, TooFewExamples
from epigraph.tasks.base import Scores

NUM_RESAMPLES = 1_000
BOOTSTRAP_SEED = 12_345
MAX_NGRAM = 4

_FEWEST_MATCHES = 1e-15
_FEWEST_NGRAMS = 1e-9
# Columns of a row of BLEU statistics: reference length, matches of order 1 to 4, n-grams of order 1 to 4.
_MATCHES = slice(1, 1 + MAX_NGRAM)
_NGRAMS = slice(1 + MAX_NGRAM, 1 + 2 * MAX_NGRAM)
_BLEU_WIDTH = 1 + 2 * MAX_NGRAM

Floats = NDArray[np.float64]


def score_generation(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """Scores of ``predictions``, one a row, against the ``references`` of each row (one or more, any number).

    ``bleu``, ``chrf`` and ``exact_match`` go from 0 to 100; ``mean_length_words`` counts words between blanks. All
    but ``chrf`` have a 95 % bootstrap interval. Raises :class:`CountMismatch` where rows do not pair up or a row has
    no reference, and :class:`TooFewExamples` for no rows at all.
    """
    _check(predictions, references)
    predictions = [x.strip() for x in predictions]
    references = [[x.strip() for x in row] for row in references]
    exact = [100.0 * (text in row) for text, row in zip(predictions, references, strict=True)]
    words = [len(text.split()) for text in predictions]
    ones = np.ones(len(predictions))
    statistics = np.column_stack([_bleu_statistics(predictions, references), exact, words, ones])
    values = {name: float(x) for name, x in _finish(statistics.sum(axis=0)).items()}
    spread = _finish(_resampled_totals(statistics))
    intervals = {name: tuple(np.percentile(x, [2.5, 97.5]).tolist()) for name, x in spread.items()}
    chrf, chrf_variant = _chrf(predictions, references)
    return Scores(
        values=values | {"chrf": chrf},
        intervals=intervals,
        variants=_variants() | {"chrf": chrf_variant},
        num_examples=len(predictions),
    )


def bleu_e2e(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU alone, 0 to 100; takes and raises the same as :func:`score_generation`."""
    _check(predictions, references)
    statistics = _bleu_statistics([x.strip() for x in predictions], [[x.strip() for x in row] for row in references])
    return float(_bleu(statistics.sum(axis=0)))


def _check(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
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
    tokenize = BLEU(tokenize="13a").tokenizer

    def tokens(text: str) -> list[str]:
        return [x.lower() for x in tokenize(text).split(" ")]

    rows = []
    for prediction, texts in zip(predictions, references, strict=True):
        have = tokens(prediction)
        wanted = [tokens(x) for x in texts]
        nearest = min((len(x) for x in wanted), key=lambda length: (abs(length - len(have)), length))
        matches = [_clipped_matches(n, have, wanted) for n in range(1, MAX_NGRAM + 1)]
        rows.append([nearest, *matches, *(len(have) - n for n in range(MAX_NGRAM))])
    return np.array(rows, dtype=np.float64)


def _clipped_matches(n: int, have: list[str], wanted: list[list[str]]) -> int:
    counts = _ngrams(n, have)
    most: Counter[tuple[str, ...]] = Counter()
    for tokens in wanted:
        most |= _ngrams(n, tokens)
    return (counts & most).total()


def _ngrams(n: int, tokens: list[str]) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(tokens[start:] for start in range(n)), strict=False))


def _bleu(totals: Floats) -> Floats:
    """BLEU of summed statistics ``[..., 9]``."""
    matches = np.maximum(totals[..., _MATCHES], _FEWEST_MATCHES)
    ngrams = np.maximum(totals[..., _NGRAMS], _FEWEST_NGRAMS)
    brevity = np.exp(np.minimum(0.0, 1.0 - totals[..., 0] / totals[..., _NGRAMS.start]))
    return np.asarray(100.0 * brevity * np.exp(np.log(matches / ngrams).mean(axis=-1)))


def _finish(totals: Floats) -> dict[str, Floats]:
    """Every metric of summed statistics ``[..., 12]``: those of BLEU, then exact matches, words and rows."""
    exact, words, rows = totals[..., _BLEU_WIDTH], totals[..., _BLEU_WIDTH + 1], totals[..., _BLEU_WIDTH + 2]
    bleu = _bleu(totals[..., :_BLEU_WIDTH])
    return {"bleu": bleu, "exact_match": exact / rows, "mean_length_words": words / rows}


def _resampled_totals(statistics: Floats) -> Floats:
    """Sums over rows drawn with replacement, ``[1000, statistics]``."""
    num_rows = len(statistics)
    random = np.random.default_rng(BOOTSTRAP_SEED)
    draws = (random.integers(num_rows, size=num_rows) for _ in range(NUM_RESAMPLES))
    return np.stack([np.bincount(draw, minlength=num_rows) @ statistics for draw in draws])


def _chrf(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, str]:
    metric = CHRF()
    longest = max(len(row) for row in references)
    # sacrebleu takes the first reference of every row, then the second, with None where a row has no more.
    streams: list[list[Any]] = [
        [row[number] if number < len(row) else None for row in references] for number in range(longest)
    ]
    value = float(metric.corpus_score(predictions, streams).score)
    return value, f"chrF2 at document level, best reference of each row; sacrebleu {metric.get_signature().format()}"


def _variants() -> dict[str, str]:
    resampled = f"interval: {NUM_RESAMPLES:,} bootstrap resamples of the rows, seed {BOOTSTRAP_SEED}, 95 % percentile"
    return {
        "bleu": (
            "E2E challenge variant (measure_scores.py -p, mteval-v13a): document level, case-insensitive, orders 1 to "
            f"{MAX_NGRAM}, any number of references, nearest reference length (shorter on ties), no smoothing but "
            f"1e-15 for no match; 13a tokeniser of sacrebleu {sacrebleu.__version__}; {resampled}"
        ),
        "exact_match": f"percentage of predictions that are a reference, outer blanks apart, case kept; {resampled}",
        "mean_length_words": f"mean number of words between blanks; {resampled}",
    }
