"""NIST as the E2E challenge computes it. It knows texts only: no task, no file and no model.

NIST (Doddington 2002) counts n-gram matches by their information: rare ones are worth more. The variant is that of
``measure_scores.py -p`` of the E2E challenge (Dusek et al. 2020), a port of mteval-v13a. With N(g) the count of g in
all references of all rows, N() their number of tokens, m(g) the clipped matches of a row, l_n the n-grams of the
predictions, c their tokens and r the sum over rows of the mean reference length::

    info(w_1 .. w_n) = log2(N(w_1 .. w_{n-1}) / N(w_1 .. w_n))
    NIST = exp(-b * log(min(1, c / r)) ** 2) * sum_{n=1..5} sum_g m(g) * info(g) / l_n,   b = log(2) / log(1.5) ** 2

- Tokens are lower-cased ``13a``, the same as those of BLEU.
- l_n counts len - n + 1 for every prediction, also where that is negative, as in BLEU.
- Where l_n is not positive in all, that order adds nothing; the challenge's script divides by it.
- A resample of the rows keeps the information of the whole set.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from epigraph.tasks.base import Scores
from epigraph.tasks.bootstrap import INTERVAL_VARIANT, Floats, Summed
from epigraph.tasks.ngrams import TOKENISER, Grams, clipped_matches, ngrams, tokens_13a

MAX_NGRAM = 5
# At two thirds of the references' length the penalty is a half (Doddington 2002, section 5).
PENALTY_STRENGTH = math.log(2) / math.log(1.5) ** 2

# Columns of a row of statistics: mean reference length, matched information and n-grams of order 1 to 5.
_INFORMATION = slice(1, 1 + MAX_NGRAM)
_NGRAMS = slice(1 + MAX_NGRAM, 1 + 2 * MAX_NGRAM)
_VARIANT = (
    "E2E challenge variant (measure_scores.py -p, mteval-v13a): document level, case-insensitive, orders 1 to "
    f"{MAX_NGRAM}, any number of references, information from all references, mean reference length; "
    f"no upper end, usually below 15; {TOKENISER}; {INTERVAL_VARIANT}, information of the whole set"
)


def score_nist(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """``nist`` of ``predictions``, one a row, against the ``references`` of each row; 0 or more, with interval."""
    nist = Summed(statistics=_statistics(predictions, references), finish=_nist)
    return Scores.of({"nist": nist}, {"nist": _VARIANT}, len(predictions))


def _statistics(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
    """What NIST is computed from, one row ``[1 + 5 + 5]`` a prediction."""
    wanted = [tokens_13a(row) for row in references]
    counts = _reference_counts(wanted)
    rows = []
    for have, texts in zip(tokens_13a(predictions), wanted, strict=True):
        mean_length = sum(len(x) for x in texts) / len(texts)
        found = [_information(clipped_matches(n, have, texts), counts) for n in range(1, MAX_NGRAM + 1)]
        rows.append([mean_length, *found, *(len(have) - n for n in range(MAX_NGRAM))])
    return np.array(rows, dtype=np.float64)


def _reference_counts(wanted: Sequence[Sequence[Sequence[str]]]) -> Grams:
    counts: Grams = Counter()
    for tokens in (tokens for row in wanted for tokens in row):
        counts[()] += len(tokens)
        for n in range(1, MAX_NGRAM + 1):
            counts.update(ngrams(n, tokens))
    return counts


def _information(matches: Grams, counts: Grams) -> float:
    return sum(number * math.log2(counts[gram[:-1]] / counts[gram]) for gram, number in matches.items())


def _nist(totals: Floats) -> Floats:
    """NIST of summed statistics ``[..., 11]``."""
    possible = totals[..., _NGRAMS]
    kept = np.where(possible > 0, totals[..., _INFORMATION] / np.where(possible > 0, possible, 1.0), 0.0)
    ratio = np.clip(totals[..., _NGRAMS.start] / totals[..., 0], 0.0, 1.0)
    return np.asarray(np.exp(-PENALTY_STRENGTH * np.log(ratio) ** 2) * kept.sum(axis=-1))
