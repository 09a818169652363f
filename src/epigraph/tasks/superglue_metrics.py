"""SuperGLUE's official metrics (Wang et al. 2019), as T5 computes them from texts (Raffel et al. 2020).

It knows texts only: no file and no model. An answer that is none of the allowed ones is wrong, and is counted.

With t_k the rows whose answer and label are both k, a_k those whose answer is k, and l_k those whose label is k::

    F1_k = 2 t_k / (a_k + l_k), 0 where a_k + l_k = 0      CB: macro-F1 = mean of F1_k over all three labels
                                                           MultiRC: F1a = F1_True over all answers to all questions
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from epigraph.errors import BadValue
from epigraph.tasks.base import Example, Scores
from epigraph.tasks.bootstrap import BOOTSTRAP_SEED, INTERVAL_VARIANT, NUM_RESAMPLES, Floats, Summed
from epigraph.tasks.choice_metrics import score_labels
from epigraph.tasks.metrics import check_rows
from epigraph.tasks.qa_metrics import exact_match_squad, f1, normalised

# The metrics whose mean is a set's part of the benchmark's average; the first is the set's own headline.
HEADLINES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "boolq": ("accuracy",),
        "cb": ("accuracy", "macro_f1"),
        "copa": ("accuracy",),
        "multirc": ("f1a", "em"),
        "record": ("f1", "em"),
        "rte": ("accuracy",),
        "wic": ("accuracy",),
        "wsc": ("accuracy",),
    }
)
TRUTH_VALUES = ("False", "True")
CB_LABELS = ("entailment", "contradiction", "neutral")
RTE_LABELS = ("entailment", "not_entailment")
COPA_LABELS = ("choice1", "choice2")

_QUESTIONS = (
    f"interval: {NUM_RESAMPLES:,} bootstrap resamples of the questions, each with all its answers, "
    f"seed {BOOTSTRAP_SEED}, 95 % percentile"
)
_CB_MACRO_F1 = (
    "mean of the F1 of all three labels in percent, also of a label that is neither an answer nor a row's label, whose "
    "F1 is 0 (scikit-learn's macro over fixed labels); an answer that is no label is wrong and no class of its own; "
    f"{INTERVAL_VARIANT}"
)
_CANDIDATE_VARIANTS = {
    "accuracy": f"percentage of answers that are the row's right candidate, outer blanks apart; {INTERVAL_VARIANT}",
    "illegal_share": f"percentage of answers that are no candidate of their row; lower is better; {INTERVAL_VARIANT}",
}
_MULTIRC_VARIANTS = {
    "f1a": (
        "F1 of True in percent over all answers to all questions; an answer that is neither True nor False counts as "
        f"the opposite of the row's label; {_QUESTIONS}"
    ),
    "em": f"percentage of questions all of whose answers are judged right; {_QUESTIONS}",
    "illegal_share": f"percentage of answers that are neither True nor False; lower is better; {_QUESTIONS}",
}
_SQUAD = (
    "SQuAD 1.1's script (lower case, without ASCII punctuation and the words a, an, the; the best of the query's "
    "answers); one row a query, however many answers it has"
)
_RECORD_VARIANTS = {
    "f1": f"mean over queries of the F1 of the words of prediction and answer in percent; {_SQUAD}; {INTERVAL_VARIANT}",
    "em": f"percentage of queries whose prediction is an answer; {_SQUAD}; {INTERVAL_VARIANT}",
    "illegal_share": (
        "percentage of predictions that are none of the passage's entities, compared like answers; lower is better; "
        f"{INTERVAL_VARIANT}"
    ),
}
_WSC_VARIANTS = {
    "accuracy": (
        "percentage of rows judged as labelled: the prediction names the row's referent if the words of one are all "
        "among the words of the other, in lower case, without determiners, and both or neither have an apostrophe; "
        f"a prediction of no words is wrong whatever the label; {INTERVAL_VARIANT}"
    ),
    "illegal_share": f"percentage of predictions without words but determiners; lower is better; {INTERVAL_VARIANT}",
}
_DETERMINERS = frozenset(
    (
        *("a", "an", "few", "her", "his", "each", "every", "many", "much", "my", "our"),
        *("some", "that", "the", "their", "these", "this", "those", "which", "whose", "your"),
    )
)


def score_choices(
    predictions: Sequence[str],
    examples: Sequence[Example],
    only: Collection[str] | None = None,
    *,
    labels: Sequence[str],
) -> Scores:
    """``accuracy`` and ``illegal_share`` of answers that should be one of ``labels`` (BoolQ, COPA, RTE, WiC).

    Takes and raises the same as :func:`~epigraph.tasks.choice_metrics.score_labels`.
    """
    wanted = {"accuracy", "illegal_share"} if only is None else {"accuracy", "illegal_share"} & set(only)
    return score_labels(predictions, examples, wanted, labels=labels)


def score_cb(predictions: Sequence[str], examples: Sequence[Example], only: Collection[str] | None = None) -> Scores:
    """``accuracy``, ``macro_f1`` over CB's three labels, ``illegal_share``; raises what :func:`score_choices` does."""
    scores = score_choices(predictions, examples, only, labels=CB_LABELS)
    if only is not None and "macro_f1" not in only:
        return scores
    macro = Summed(statistics=_counts(predictions, examples, CB_LABELS), finish=_macro_f1)
    variants = {**scores.variants, "macro_f1": _CB_MACRO_F1}
    return Scores.of({**scores.summed, "macro_f1": macro}, variants, len(predictions))


def score_candidates(
    predictions: Sequence[str], examples: Sequence[Example], only: Collection[str] | None = None
) -> Scores:
    """``accuracy`` and ``illegal_share`` where every row has ``candidates`` of its own, one of which is right (COPA).

    Raises :class:`BadValue` where a reference is none of its row's candidates, and what
    :func:`~epigraph.tasks.metrics.check_rows` raises.
    """
    check_rows(predictions, [x.references for x in examples])
    for number, row in enumerate(examples):
        if row.references[0] not in row.candidates:
            own = ", ".join(row.candidates)[:200] or "which are none"
            raise BadValue(
                f"row {number}: got the reference {row.references[0][:60]!r}, expected one of the row's own "
                f"candidates, {own}; score texts with another task"
            )
    rows = [(text.strip(), row) for text, row in zip(predictions, examples, strict=True)]
    made = {
        "accuracy": lambda: Summed.mean([100.0 * (text == row.references[0]) for text, row in rows]),
        "illegal_share": lambda: Summed.mean([100.0 * (text not in row.candidates) for text, row in rows]),
    }
    return _scores(made, _CANDIDATE_VARIANTS, len(rows), only)


def score_multirc(
    predictions: Sequence[str], examples: Sequence[Example], only: Collection[str] | None = None
) -> Scores:
    """``f1a``, ``em`` and ``illegal_share`` of rows that are one answer to a question each, judged True or False.

    Rows of the same ``group`` are the answers to one question, and are one row of the statistics; a row without a
    group is a question of its own. Raises what :func:`score_choices` does.
    """
    _check_labels(predictions, examples, TRUTH_VALUES)
    said = [_legal(text.strip(), row.references[0]) for text, row in zip(predictions, examples, strict=True)]
    illegal = [[100.0 * (text.strip() not in TRUTH_VALUES), 1.0] for text in predictions]
    wrong = [[float(answer != row.references[0])] for answer, row in zip(said, examples, strict=True)]
    made = {
        "f1a": lambda: Summed(statistics=_by_question(_counts(said, examples, ("True",)), examples), finish=_macro_f1),
        "em": lambda: Summed.mean([100.0 * (count == 0) for count in _by_question(wrong, examples)[:, 0]]),
        "illegal_share": lambda: Summed(statistics=_by_question(illegal, examples), finish=_ratio),
    }
    return _scores(made, _MULTIRC_VARIANTS, len(predictions), only)


def score_record(
    predictions: Sequence[str], examples: Sequence[Example], only: Collection[str] | None = None
) -> Scores:
    """``f1``, ``em`` and ``illegal_share`` of rows that are one query each, with all its answers as references.

    The row's entities stand one a line in its field ``choices``; where it has none, every prediction with words is
    allowed. Raises what :func:`~epigraph.tasks.metrics.check_rows` raises.
    """
    check_rows(predictions, [x.references for x in examples])
    rows = list(zip(predictions, examples, strict=True))
    made = {
        "f1": lambda: Summed.mean([100.0 * f1(text, row.references) for text, row in rows]),
        "em": lambda: Summed.mean([100.0 * exact_match_squad(text, row.references) for text, row in rows]),
        "illegal_share": lambda: Summed.mean([100.0 * (not _is_entity(text, row)) for text, row in rows]),
    }
    return _scores(made, _RECORD_VARIANTS, len(rows), only)


def score_wsc(predictions: Sequence[str], examples: Sequence[Example], only: Collection[str] | None = None) -> Scores:
    """``accuracy`` and ``illegal_share`` where the answer is what a pronoun stands for, said freely.

    The reference is a phrase of the text; the field ``label`` says whether the pronoun does stand for it, ``True``
    where there is none. Raises what :func:`~epigraph.tasks.metrics.check_rows` raises.
    """
    check_rows(predictions, [x.references for x in examples])
    said = [_without_determiners(text) for text in predictions]
    right = [
        bool(words) and names_referent(text, row.references[0]) == (row.further.get("label", "True") == "True")
        for text, words, row in zip(predictions, said, examples, strict=True)
    ]
    made = {
        "accuracy": lambda: Summed.mean([100.0 * x for x in right]),
        "illegal_share": lambda: Summed.mean([100.0 * (not words) for words in said]),
    }
    return _scores(made, _WSC_VARIANTS, len(said), only)


def names_referent(answer: str, referent: str) -> bool:
    """Whether the words of one are all among the words of the other, in lower case and without determiners.

    Where one of them has an apostrophe and the other has none they differ: "Bob's hat" is not "Bob".
    """
    said, meant = _without_determiners(answer), _without_determiners(referent)
    if ("'" in said) != ("'" in meant):
        return False
    # Parted at single blanks, as T5's script does: no word at all, or a second blank, is an empty word of its own.
    one, other = set(said.split(" ")), set(meant.split(" "))
    return one <= other or other <= one


def _scores(
    made: Mapping[str, Callable[[], Summed]], variants: Mapping[str, str], num_rows: int, only: Collection[str] | None
) -> Scores:
    wanted = {name: make() for name, make in made.items() if only is None or name in only}
    return Scores.of(wanted, variants, num_rows)


def _check_labels(predictions: Sequence[str], examples: Sequence[Example], labels: Sequence[str]) -> None:
    """Raise what :func:`score_labels` raises for rows that have no label; nothing is computed."""
    score_labels(predictions, examples, (), labels=labels)


def _legal(answer: str, label: str) -> str:
    """The answer; where it is neither True nor False, the opposite of the label."""
    return answer if answer in TRUTH_VALUES else TRUTH_VALUES[label == "False"]


def _counts(answers: Sequence[str], examples: Sequence[Example], labels: Sequence[str]) -> Floats:
    """For each row whether answer and label are k, the answer is k, the label is k, ``[rows, 3 * labels]``."""
    names = np.array(labels)
    is_answer = np.array([x.strip() for x in answers])[:, None] == names
    is_label = np.array([x.references[0] for x in examples])[:, None] == names
    return np.concatenate([is_answer & is_label, is_answer, is_label], axis=1).astype(np.float64)


def _macro_f1(totals: Floats) -> Floats:
    """The mean F1 of summed counts ``[..., 3 * labels]``; every label counts, also one that was never seen."""
    both, answered, wanted = np.split(totals, 3, axis=-1)
    return np.asarray(100.0 * (2.0 * both / np.maximum(answered + wanted, 1.0)).mean(axis=-1))


def _ratio(totals: Floats) -> Floats:
    return np.asarray(totals[..., 0] / totals[..., 1])


def _by_question(rows: Floats | Sequence[Sequence[float]], examples: Sequence[Example]) -> Floats:
    """Sums of ``rows`` ``[rows, K]`` over the rows of each group, ``[groups, K]``, groups in order of appearance."""
    numbers: dict[str | int, int] = {}
    which = [numbers.setdefault(x.group or number, len(numbers)) for number, x in enumerate(examples)]
    values = np.asarray(rows, dtype=np.float64)
    totals = np.zeros((len(numbers), values.shape[1]))
    np.add.at(totals, which, values)
    return totals


def _is_entity(answer: str, row: Example) -> bool:
    entities, said = row.further.get("choices", ""), normalised(answer)
    return said in {normalised(x) for x in entities.split("\n")} if entities else bool(said)


def _without_determiners(text: str) -> str:
    return " ".join(x for x in text.strip().lower().split(" ") if x not in _DETERMINERS)
