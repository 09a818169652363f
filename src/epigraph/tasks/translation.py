"""BLEU of multi-bleu.perl, METEOR, TER and sacreBLEU, with texts prepared as the scripts for WebNLG and DART do it.

It knows texts only: no task and no file. The scripts are those of the DART repository (Nan et al. 2021), which score
WebNLG 2017 by the challenge's own (Gardent et al. 2017). Prefix-Tuning's scores of both are theirs. Before they score,
texts are lower-cased and split at every character that is no letter, digit or underscore: ``3.5`` is three tokens.

BLEU (Papineni et al. 2002) as multi-bleu.perl computes it: with c the tokens of all predictions, r the sum over rows of
the reference length nearest to the prediction's (the shorter one on ties), m_n the clipped matches and l_n the n-grams
of the predictions::

    BLEU = min(1, exp(1 - r / c)) * (prod_{n=1..4} m_n / l_n) ** (1 / 4)

- Tokens are what stands between blanks, and an empty text has none.
- An order without a match gives 0: nothing is smoothed.
- It is given three files of references. A row that has fewer has an empty line in the others, which is a reference of
  length 0 and can be the nearest one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.ter import TER

from epigraph.errors import MetricUnavailable
from epigraph.tasks.base import Example, Scores
from epigraph.tasks.bootstrap import INTERVAL_VARIANT, Floats, Summed
from epigraph.tasks.learned_metrics import LEARNED_METRICS, score_learned
from epigraph.tasks.meteor import meteor_summed
from epigraph.tasks.metrics import by_sacrebleu, check_rows, score_generation, together
from epigraph.tasks.ngrams import clipped_matches

MAX_NGRAM = 4
NUM_REFERENCES = 3
TEXT_METRICS = ("chrf", "exact_match", "mean_length_words")
METRICS = ("bleu_multi", "meteor", "ter", "sacrebleu", *TEXT_METRICS)
BETTER_WHEN_HIGHER = ("bleu_multi", "meteor", "sacrebleu", "chrf", "exact_match")

# Columns of a row of BLEU statistics: reference length, matches of order 1 to 4, n-grams of order 1 to 4.
_MATCHES = slice(1, 1 + MAX_NGRAM)
_NGRAMS = slice(1 + MAX_NGRAM, 1 + 2 * MAX_NGRAM)
_NO_WORD = re.compile(r"(\W)")
# Letters and signs that are no plain character with marks, as far as the texts of WebNLG have any.
_PLAIN = str.maketrans(
    {"\u2013": "-", "\u2014": "-", "\u2212": "-", "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'}
    | {"\u0131": "i", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "ß": "ss", "æ": "ae", "œ": "oe", "þ": "th", "ə": "@"}
)

Rows = Sequence[Sequence[str]]


def split_words(text: str) -> str:
    """The tokens of ``text`` with one blank between them: lower-cased, and every other character a token."""
    return " ".join(_NO_WORD.sub(r" \1 ", text.lower()).split())


def split_plain_words(text: str) -> str:
    """:func:`split_words` without accents: ``é`` is ``e``, and a dash or a quotation mark is the typewriter's."""
    marked = unicodedata.normalize("NFKD", text.lower().translate(_PLAIN))
    return split_words("".join(x for x in marked if not unicodedata.combining(x)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Script:
    """How one of the scripts has a text ``prepared``, in ``words``, whether it gives multi-bleu.perl ``-lc``, and how
    many references of a row it gives METEOR and TER."""

    prepared: Callable[[str], str]
    words: str
    lowercase: bool
    num_references: int


WEBNLG_SCRIPT = Script(
    prepared=split_plain_words,
    words=(
        "lower-cased, accents dropped (NFKD and a table; the script has unidecode), split at all but letters and digits"
    ),
    lowercase=True,
    num_references=NUM_REFERENCES,
)
DART_SCRIPT = Script(
    prepared=split_words,
    words=(
        "lower-cased and split at all but letters and digits, as the script's references are; it leaves predictions as "
        "they come, Prefix-Tuning's authors lower-case them first"
    ),
    lowercase=False,
    # The files that it makes for METEOR and TER have the first reference and nothing else.
    num_references=1,
)


def score_translation(
    predictions: Sequence[str],
    examples: Sequence[Example],
    only: Collection[str] | None = None,
    *,
    script: Script,
    learned: bool = False,
) -> Scores:
    """Scores of ``predictions``, one an example, as ``script`` does it; ``only`` some of :data:`METRICS`.

    All are from 0 to 100 but ``ter``, where lower is better and more than 100 can be, and ``mean_length_words``. With
    ``learned``, the metrics that need a model's weights too. What cannot be computed is in ``missing``. Raises what
    :func:`~epigraph.tasks.metrics.score_generation` raises.
    """
    references = [[text.strip() for text in x.references] for x in examples]
    check_rows(predictions, references)
    predictions = [x.strip() for x in predictions]
    offered = (*METRICS[:3], *LEARNED_METRICS, *METRICS[3:]) if learned else METRICS
    wanted = [x for x in offered if only is None or x in only]
    have = [script.prepared(x) for x in predictions]
    given = [[script.prepared(x) for x in row[:NUM_REFERENCES]] for row in references]
    parts = [_score(name, have, given, script) for name in wanted if name in _SUMMED]
    if "sacrebleu" in wanted:
        parts.append(score_sacrebleu(predictions, references))
    if not set(wanted).isdisjoint(TEXT_METRICS):
        parts.append(score_generation(predictions, references, wanted))
    if not set(wanted).isdisjoint(LEARNED_METRICS):
        parts.append(score_learned(have, given, wanted))
    return together(parts, wanted, len(predictions))


def _score(name: str, have: Sequence[str], given: Rows, script: Script) -> Scores:
    try:
        summed, what = _SUMMED[name](have, given, script)
    except MetricUnavailable as reason:
        return Scores(values={}, intervals={}, variants={}, num_examples=len(have), missing={name: str(reason)})
    return Scores.of({name: summed}, {name: f"{what}; {script.words}; {INTERVAL_VARIANT}"}, len(have))


def score_sacrebleu(predictions: Sequence[str], references: Rows) -> Scores:
    """``sacrebleu``, 0 to 100: sacreBLEU (Post 2018) with its own settings, on texts as they are and all references."""
    summed, signature = by_sacrebleu(BLEU(force=True), predictions, references)
    variant = f"sacreBLEU with its own settings, all references, texts as they are; {signature}; {INTERVAL_VARIANT}"
    return Scores.of({"sacrebleu": summed}, {"sacrebleu": variant}, len(predictions))


def multi_bleu(predictions: Sequence[str], references: Rows, *, lowercase: bool = False) -> Summed:
    """BLEU, 0 to 100, of texts with blanks between tokens; a row of fewer than three references has empty ones.

    ``lowercase`` is the option ``-lc``. Raises what :func:`~epigraph.tasks.metrics.score_generation` raises.
    """
    check_rows(predictions, references)
    spell = str.lower if lowercase else str
    rows = []
    for prediction, texts in zip(predictions, references, strict=True):
        have, wanted = spell(prediction).split(), [spell(x).split() for x in texts]
        wanted += [[]] * (NUM_REFERENCES - len(wanted))
        nearest = min((len(x) for x in wanted), key=lambda length: (abs(length - len(have)), length))
        matches = [clipped_matches(n, have, wanted).total() for n in range(1, MAX_NGRAM + 1)]
        rows.append([nearest, *matches, *(max(0, len(have) - n) for n in range(MAX_NGRAM))])
    return Summed(statistics=np.array(rows, dtype=np.float64), finish=_multi_bleu)


def _multi_bleu(totals: Floats) -> Floats:
    """BLEU of summed statistics ``[..., 9]``."""
    possible = totals[..., _NGRAMS]
    with np.errstate(divide="ignore"):
        logarithms = np.log(totals[..., _MATCHES] / np.maximum(possible, 1.0)).mean(axis=-1)
    brevity = np.minimum(0.0, 1.0 - totals[..., 0] / np.maximum(possible[..., 0], 1.0))
    return np.asarray(100.0 * np.exp(brevity + logarithms))


def _bleu(have: Sequence[str], given: Rows, script: Script) -> tuple[Summed, str]:
    what = (
        f"multi-bleu.perl{' -lc' if script.lowercase else ''}: document level, orders 1 to {MAX_NGRAM}, no smoothing, "
        f"nearest reference length (shorter on ties), the first {NUM_REFERENCES} references, an empty one for each "
        "that a row has not"
    )
    return multi_bleu(have, given, lowercase=script.lowercase), what


def _meteor(have: Sequence[str], given: Rows, script: Script) -> tuple[Summed, str]:
    summed = meteor_summed(have, [row[: script.num_references] for row in given])
    return summed, f"METEOR 1.5 (-l en -norm), 0 to 100, from the sums of all rows' statistics; {_first(script)}"


def _ter(have: Sequence[str], given: Rows, script: Script) -> tuple[Summed, str]:
    """TER (Snover et al. 2006) of tokens with blanks between them: fewest edits over the references' mean length."""
    summed, signature = by_sacrebleu(TER(), have, [row[: script.num_references] for row in given])
    return summed, (
        "TER in percent, lower is better: fewest edits over the references, by their mean length; sacrebleu's "
        f"tercom, {signature}, where the script runs tercom 0.7.25; {_first(script)}"
    )


def _first(script: Script) -> str:
    return "the first reference" if script.num_references == 1 else f"the first {script.num_references} references"


_SUMMED: Mapping[str, Callable[[Sequence[str], Rows, Script], tuple[Summed, str]]] = {
    "bleu_multi": _bleu,
    "meteor": _meteor,
    "ter": _ter,
}
