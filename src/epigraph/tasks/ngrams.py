"""Tokens as mteval-v13a splits them, and counted runs of them: what BLEU and NIST share. It knows no metric.

Tokenisation is sacrebleu's ``13a``; tokens are lower-cased after it, not the line before it, as in the scripts of the
E2E challenge (Dusek et al. 2020). An empty text is one empty token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import sacrebleu
from sacrebleu.metrics.bleu import BLEU

Grams = Counter[tuple[str, ...]]

TOKENISER = f"13a tokeniser of sacrebleu {sacrebleu.__version__}"


def tokens_13a(texts: Sequence[str]) -> list[list[str]]:
    """The tokens of each text; outer blanks go."""
    tokenize = BLEU(tokenize="13a").tokenizer
    return [[x.lower() for x in tokenize(text.strip()).split(" ")] for text in texts]


def ngrams(order: int, tokens: Sequence[str]) -> Grams:
    """How often each run of ``order`` tokens stands in ``tokens``."""
    return Counter(zip(*(tokens[start:] for start in range(order)), strict=False))


def clipped_matches(order: int, have: Sequence[str], wanted: Sequence[Sequence[str]]) -> Grams:
    """The runs of ``have`` that are in ``wanted``, each counted at most as often as one of ``wanted`` has it."""
    most: Grams = Counter()
    for tokens in wanted:
        most |= ngrams(order, tokens)
    return ngrams(order, have) & most
