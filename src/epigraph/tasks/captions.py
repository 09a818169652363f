"""METEOR, ROUGE-L and CIDEr as the COCO caption scripts compute them, which the E2E challenge takes these three from.

It knows texts and the Java program that splits them; it knows no task. All three need that program: texts are split by
the Penn Treebank tokeniser of Stanford CoreNLP 3.4.1, lower-cased, and lose their punctuation tokens. Then, with c the
tokens of a row's prediction and R its references:

- METEOR 1.5 (Denkowski & Lavie 2014): English, ``-norm``, one score from the sums of all rows' statistics.
- ROUGE-L (Lin 2004): the mean over rows of (1 + b^2) P Q / (Q + b^2 P), b = 1.2, with P the longest common
  subsequence per token of c, Q the same per token of the reference, each the largest over R: they may come from
  different references.
- CIDEr (Vedantam et al. 2015), the kind called CIDEr-D: ten times the mean over rows, references and orders 1 to 4 of
  exp(-d^2 / 72) * sum_g min(c_g, r_g) r_g / (|c| |r|). c_g and r_g are counts of the n-gram times log(rows / rows that
  have it in a reference); d is the difference in *pairs* of tokens, where the paper takes tokens.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

from epigraph.errors import MetricUnavailable
from epigraph.tasks.base import Scores
from epigraph.tasks.bootstrap import INTERVAL_VARIANT, Summed
from epigraph.tasks.java import find_jar, run
from epigraph.tasks.meteor import meteor_summed
from epigraph.tasks.ngrams import Grams, ngrams

TOKENISER_JAR = "tokenizer/stanford-corenlp-3.4.1.jar"
ROUGE_BETA = 1.2
CIDER_SIGMA = 6.0
CIDER_MAX_NGRAM = 4

# A thousand lines take a tenth of a second: this is for a machine that has much else to do.
_TOKENISER_S = 300.0
_PUNCTUATION = frozenset(
    ("''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";")
)
_TOKENS = (
    "tokens of Stanford CoreNLP 3.4.1 (PTBTokenizer -lowerCase), punctuation dropped as in the COCO caption scripts"
)
_VARIANTS = {
    "meteor": (
        f"METEOR 1.5 (-l en -norm), 0 to 100, from the sums of all rows' statistics; {_TOKENS}; {INTERVAL_VARIANT}"
    ),
    "rouge_l": (
        f"E2E challenge variant: mean of rows, 0 to 100, beta {ROUGE_BETA}, best precision and best recall over the "
        f"references; {_TOKENS}; {INTERVAL_VARIANT}"
    ),
    "cider": (
        f"E2E challenge variant: CIDEr-D, 0 to 10, orders 1 to {CIDER_MAX_NGRAM}, sigma {CIDER_SIGMA:g}, document "
        f"frequencies from these references; {_TOKENS}; {INTERVAL_VARIANT}, document frequencies of the whole set"
    ),
}

Vector = Mapping[tuple[str, ...], float]


def score_captions(
    predictions: Sequence[str], references: Sequence[Sequence[str]], only: Collection[str] | None = None
) -> Scores:
    """``meteor`` and ``rouge_l``, 0 to 100, and ``cider``, 0 to 10; ``only`` these of them, None for all.

    Where Java or pycocoevalcap is not there, or fails, a metric is in ``missing`` with the reason.
    """
    names = [x for x in _VARIANTS if only is None or x in only]
    summed: dict[str, Summed] = {}
    missing: dict[str, str] = {}
    try:
        have, wanted = tokenise(predictions), _tokenise_rows(references)
    except MetricUnavailable as reason:
        missing = dict.fromkeys(names, str(reason))
    for name in [x for x in names if x not in missing]:
        try:
            summed[name] = _SUMMED[name](have, wanted)
        except MetricUnavailable as reason:
            missing[name] = str(reason)
    return Scores.of(summed, _VARIANTS, len(predictions), missing)


def tokenise(texts: Sequence[str]) -> list[str]:
    """The tokens of each text with one blank between them, lower-cased and without punctuation.

    Raises :class:`MetricUnavailable` where Java or pycocoevalcap is not there or fails.
    """
    # The program ends a line at more characters than one, and its lines must stay ours.
    lines = [" ".join(x.strip().splitlines()) for x in texts]
    arguments = ("-cp", str(find_jar(TOKENISER_JAR)), "edu.stanford.nlp.process.PTBTokenizer")
    answer = run([*arguments, "-preserveLines", "-lowerCase"], "\n".join(lines) + "\n", timeout_s=_TOKENISER_S)
    split = answer.removesuffix("\n").split("\n")
    if len(split) != len(lines):
        raise MetricUnavailable(
            f"the tokeniser gave {len(split)} lines for {len(lines)}; see the texts for odd characters"
        )
    return [" ".join(x for x in line.rstrip().split(" ") if x not in _PUNCTUATION) for line in split]


def _tokenise_rows(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    split = iter(tokenise([text for row in rows for text in row]))
    return [[next(split) for _ in row] for row in rows]


def rouge_l_rows(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """ROUGE-L of each row of tokenised texts, 0 to 1."""
    return [_rouge_l(x.split(" "), [y.split(" ") for y in row]) for x, row in zip(predictions, references, strict=True)]


def _rouge_l(have: Sequence[str], wanted: Sequence[Sequence[str]]) -> float:
    common = [_longest_common_subsequence(have, x) for x in wanted]
    precision = max(common) / len(have)
    recall = max(length / len(x) for length, x in zip(common, wanted, strict=True))
    if not precision:
        return 0.0
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def _longest_common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    above = [0] * (len(right) + 1)
    for token in left:
        row = [0]
        for place, other in enumerate(right):
            row.append(above[place] + 1 if token == other else max(row[place], above[place + 1]))
        above = row
    return above[-1]


def cider_rows(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr of each row of tokenised texts, 0 to 10; the document frequencies are those of all rows."""
    have, wanted = [x.split() for x in predictions], [[x.split() for x in row] for row in references]
    frequencies: Grams = Counter()
    for row in wanted:
        frequencies.update(
            {gram for tokens in row for n in range(1, CIDER_MAX_NGRAM + 1) for gram in ngrams(n, tokens)}
        )
    return [
        10.0 * sum(_cider(tokens, x, frequencies, len(wanted)) for x in row) / len(row)
        for tokens, row in zip(have, wanted, strict=True)
    ]


def _cider(have: Sequence[str], wanted: Sequence[str], frequencies: Grams, num_rows: int) -> float:
    """One prediction against one reference, 0 to 1."""
    # Fewer than two tokens are no pair.
    apart = max(len(have) - 1, 0) - max(len(wanted) - 1, 0)
    penalty = math.exp(-(apart**2) / (2 * CIDER_SIGMA**2))
    cosines = [
        _clipped_cosine(_weighted(n, have, frequencies, num_rows), _weighted(n, wanted, frequencies, num_rows))
        for n in range(1, CIDER_MAX_NGRAM + 1)
    ]
    return penalty * sum(cosines) / CIDER_MAX_NGRAM


def _weighted(order: int, tokens: Sequence[str], frequencies: Grams, num_rows: int) -> Vector:
    return {x: count * math.log(num_rows / max(1, frequencies[x])) for x, count in ngrams(order, tokens).items()}


def _clipped_cosine(have: Vector, wanted: Vector) -> float:
    norms = math.hypot(*have.values()) * math.hypot(*wanted.values())
    return (
        sum(min(weight, wanted[x]) * wanted[x] for x, weight in have.items() if x in wanted) / norms if norms else 0.0
    )


def _rouge_l_mean(have: Sequence[str], wanted: Sequence[Sequence[str]]) -> Summed:
    return Summed.mean([100.0 * x for x in rouge_l_rows(have, wanted)])


def _cider_mean(have: Sequence[str], wanted: Sequence[Sequence[str]]) -> Summed:
    return Summed.mean(cider_rows(have, wanted))


_SUMMED: Mapping[str, Callable[[Sequence[str], Sequence[Sequence[str]]], Summed]] = {
    "meteor": meteor_summed,
    "rouge_l": _rouge_l_mean,
    "cider": _cider_mean,
}
