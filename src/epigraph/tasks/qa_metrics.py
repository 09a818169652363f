"""What counts as good where a question is answered in a few words: EM and F1 of SQuAD (Rajpurkar et al. 2016).

It knows texts only: no task, no file and no model. As in the set's own script, a text is compared in small letters,
without the 32 ASCII punctuation characters, without the words a, an and the, and split at blanks; of several
references the best one counts. With c the words that prediction and reference share, each as often as both have it::

    EM = 100 if both are the same words else 0        F1 = 100 * 2 c / (words of prediction + words of reference)

Punctuation is dropped without a blank in its place, so "well-known" is one word and "well - known" two. T5 puts
blanks around punctuation before anything is read or scored, which :func:`spaced` does.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Collection, Sequence

from epigraph.tasks.base import Example, Scores
from epigraph.tasks.bootstrap import INTERVAL_VARIANT, Summed
from epigraph.tasks.metrics import check_rows

QA_BETTER_WHEN_HIGHER = ("f1", "em")

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = re.compile(f"([{re.escape(string.punctuation)}])")
# What T5's expressions call a blank; others, such as a no-break space, stay.
_BLANKS = re.compile(r"[ \t\n\f\r]+")
_DROPPED = str.maketrans("", "", string.punctuation)

_WORDS = "SQuAD 1.1's script (small letters, no ASCII punctuation, no a, an, the; best reference; mean of questions)"
_AS_THEY_ARE = "prediction and references as they are"
_SPACED = (
    "prediction and references with blanks around punctuation first, as T5 scores (Lester et al. 2021, appendix A.3): "
    '"well-known" is two words here, one in scores of untouched answers'
)


def score_squad(
    predictions: Sequence[str],
    examples: Sequence[Example],
    only: Collection[str] | None = None,
    *,
    is_spaced: bool = False,
) -> Scores:
    """``em`` and ``f1`` of ``predictions``, one an example, 0 to 100, with 95 % bootstrap intervals.

    ``only`` these of them, None for both. ``is_spaced``: predictions and references go through :func:`spaced` first.
    Raises what :func:`~epigraph.tasks.metrics.check_rows` raises.
    """
    check_rows(predictions, [x.references for x in examples])
    spell = spaced if is_spaced else str
    pairs = [(spell(text), [spell(y) for y in x.references]) for text, x in zip(predictions, examples, strict=True)]
    found = {
        name: Summed.mean([100.0 * metric(text, references) for text, references in pairs])
        for name, metric in _METRICS.items()
        if only is None or name in only
    }
    return Scores.of(found, _variants(is_spaced), len(pairs))


def exact_match_squad(prediction: str, references: Sequence[str]) -> float:
    """1 where ``prediction`` is one of ``references`` after :func:`normalised`, else 0; raises ValueError for none."""
    have = normalised(prediction)
    return max(float(have == normalised(x)) for x in references)


def f1(prediction: str, references: Sequence[str]) -> float:
    """The F1 of words with the nearest of ``references``, 0 to 1, 0 for no shared word; raises ValueError for none."""
    have = Counter(normalised(prediction).split())
    return max(_f1(have, Counter(normalised(x).split())) for x in references)


def normalised(text: str) -> str:
    """``text`` as SQuAD's script compares it: small letters, no ASCII punctuation, no articles, single blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_DROPPED)).split())


def spaced(text: str) -> str:
    """``text`` with a blank on both sides of every ASCII punctuation character, single blanks, and none outside."""
    return _BLANKS.sub(" ", _PUNCTUATION.sub(r" \1 ", text)).strip(" ")


def _f1(have: Counter[str], wanted: Counter[str]) -> float:
    common = (have & wanted).total()
    return 2.0 * common / (have.total() + wanted.total()) if common else 0.0


def _variants(is_spaced: bool) -> dict[str, str]:
    spelling = _SPACED if is_spaced else _AS_THEY_ARE
    return {
        "em": f"percentage of answers that are a reference by {_WORDS}; {spelling}; {INTERVAL_VARIANT}",
        "f1": f"F1 of words in percent by {_WORDS}; {spelling}; {INTERVAL_VARIANT}",
    }


_METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {"em": exact_match_squad, "f1": f1}
