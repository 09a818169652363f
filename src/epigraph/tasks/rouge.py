"""ROUGE (Lin 2004) of summaries, by the library of the Prefix-Tuning authors, with our intervals.

It knows texts only: no task, no file and no model.

A row's score is an F1 of what prediction and reference share: words, pairs of neighbouring words, or the longest
common subsequence of words. The score of a test set is the mean of its rows, times 100. The authors print something
else: ``mid`` of the library's BootstrapAggregator, the median of the means of 1,000 resamples, which another seed
changes. It is apart from the mean by the resampling's noise, far less than the interval is wide.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from importlib.metadata import version
from typing import Any

from epigraph.tasks.base import Example, Scores
from epigraph.tasks.bootstrap import INTERVAL_VARIANT, Summed
from epigraph.tasks.metrics import check_rows

# Our names, and the library's.
_KINDS = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL", "rouge_lsum": "rougeLsum"}
_WHAT = {
    "rouge_1": "F1 of words",
    "rouge_2": "F1 of pairs of neighbouring words",
    "rouge_l": "F1 of the longest common subsequence of words, line breaks read as blanks",
    "rouge_lsum": (
        "summary level: F1 of the union of the longest common subsequences of sentences, which are lines; the same as "
        "rouge_l where both texts are one line"
    ),
}
METRICS = (*_KINDS, "mean_length_words")
# What a run may be chosen by: longer is not better.
BETTER_WHEN_HIGHER = tuple(_KINDS)
# Not rouge_2: it is 0 on most rows of weak systems, so that its interval is wide where runs are chosen on a few rows.
HEADLINE = "rouge_l"


def score_rouge(
    predictions: Sequence[str], examples: Sequence[Example], only: Collection[str] | None = None, *, stem: bool = True
) -> Scores:
    """Scores of ``predictions``, one an example, by all :data:`METRICS` or ``only`` some, with 95 % intervals.

    ROUGE goes from 0 to 100. With several references each metric takes a row's best F1, which may be another
    reference's for another metric. ``stem`` is the library's Porter stemmer, on as the authors have it. A prediction
    without a letter a to z or a digit scores 0. Raises what :func:`~epigraph.tasks.metrics.check_rows` raises.
    """
    references = [x.references for x in examples]
    check_rows(predictions, references)
    kinds = [name for name in _KINDS if only is None or name in only]
    summed = dict(zip(kinds, _rouge(predictions, references, kinds, stem=stem), strict=True))
    if only is None or "mean_length_words" in only:
        summed["mean_length_words"] = Summed.mean([len(x.split()) for x in predictions])
    return Scores.of(summed, _variants(kinds, stem=stem), len(predictions))


def _rouge(
    predictions: Sequence[str], references: Sequence[Sequence[str]], kinds: Sequence[str], *, stem: bool
) -> list[Summed]:
    if not kinds:
        return []
    scorer = _scorer(kinds, stem=stem)
    rows = [scorer.score_multi(wanted, text) for text, wanted in zip(predictions, references, strict=True)]
    return [Summed.mean([100.0 * row[_KINDS[name]].fmeasure for row in rows]) for name in kinds]


def _scorer(kinds: Sequence[str], *, stem: bool) -> Any:
    # Here and not above: it imports nltk, which takes seconds that a command without summaries need not wait.
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([_KINDS[name] for name in kinds], use_stemmer=stem)


def _variants(kinds: Sequence[str], *, stem: bool) -> dict[str, str]:
    words = "lower case, words of a-z and 0-9 only, " + (
        "Porter stems of words over 3 letters" if stem else "no stemmer"
    )
    how = (
        f"0 to 100, mean of the rows, best reference of each row by this metric's F1; rouge-score "
        f"{version('rouge-score')}, {words}; {INTERVAL_VARIANT}"
    )
    rouge = {name: f"ROUGE: {_WHAT[name]}; {how}" for name in kinds}
    return {**rouge, "mean_length_words": f"mean number of words between blanks; {INTERVAL_VARIANT}"}
