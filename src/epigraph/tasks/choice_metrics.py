"""What counts as good where an answer is chosen: accuracy and macro-F1 of labels, P@1 of ranked words.

It knows texts only: no task, no file and no model. An answer is compared letter for letter, outer blanks apart.

With t_k the rows whose answer and label are both k, a_k those whose answer is k, and l_k those whose label is k::

    F1_k = 2 t_k / (a_k + l_k)        macro-F1 = mean of F1_k over the labels with a_k + l_k > 0

An answer that is no label is wrong and belongs to no k: it lowers the accuracy, and F1 of the row's label.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from epigraph.errors import BadValue, CountMismatch
from epigraph.tasks.base import Example, Scores
from epigraph.tasks.bootstrap import INTERVAL_VARIANT, Floats, Summed
from epigraph.tasks.metrics import check_rows

# What a run may be chosen by: a share of answers that are no label is better when lower.
LABELS_BETTER_WHEN_HIGHER = ("accuracy", "macro_f1")
PROBES_BETTER_WHEN_HIGHER = ("p_at_1",)

_LABEL_VARIANTS = {
    "accuracy": (
        "percentage of answers that are the row's label, outer blanks apart, case kept; an answer that is no label is "
        f"wrong; {INTERVAL_VARIANT}"
    ),
    "macro_f1": (
        "mean of the labels' F1 in percent, every label with the same weight; labels that are neither an answer nor a "
        f"row's label are left out; an answer that is no label is wrong and no class of its own; {INTERVAL_VARIANT}"
    ),
    "illegal_share": f"percentage of answers that are no label; lower is better; {INTERVAL_VARIANT}",
}
_P_AT_1 = (
    "percentage of facts whose first-ranked answer is the fact's object, outer blanks apart, case kept; micro: every "
    f"fact has the same weight; {INTERVAL_VARIANT}"
)


def score_labels(
    predictions: Sequence[str],
    examples: Sequence[Example],
    only: Collection[str] | None = None,
    *,
    labels: Sequence[str],
) -> Scores:
    """Scores of ``predictions``, one an example, each of whose one reference is one of ``labels``.

    ``accuracy``, ``macro_f1`` and ``illegal_share`` go from 0 to 100 and have a 95 % bootstrap interval. ``only``
    these of them; None for all. Raises :class:`BadValue` for a reference that is no label, and what
    :func:`~epigraph.tasks.metrics.check_rows` raises, also where an example has several references.
    """
    check_rows(predictions, [x.references for x in examples])
    answers, wanted = [x.strip() for x in predictions], _labels_of(examples, labels)
    found: dict[str, Summed] = {}
    if only is None or "accuracy" in only:
        found["accuracy"] = Summed.mean([100.0 * (x == label) for x, label in zip(answers, wanted, strict=True)])
    if only is None or "macro_f1" in only:
        found["macro_f1"] = Summed(statistics=_label_counts(answers, wanted, labels), finish=_macro_f1)
    if only is None or "illegal_share" in only:
        found["illegal_share"] = Summed.mean([100.0 * (answer not in labels) for answer in answers])
    return Scores.of(found, _LABEL_VARIANTS, len(answers))


def score_probes(
    predictions: Sequence[str], examples: Sequence[Example], only: Collection[str] | None = None
) -> Scores:
    """``p_at_1`` of ``predictions``, the first-ranked answer of each example, 0 to 100, with a 95 % interval.

    Raises what :func:`~epigraph.tasks.metrics.check_rows` raises. Examples of several relations may be scored together.
    """
    check_rows(predictions, [x.references for x in examples])
    right = [text.strip() in x.references for text, x in zip(predictions, examples, strict=True)]
    is_wanted = only is None or "p_at_1" in only
    found = {"p_at_1": Summed.mean([100.0 * x for x in right])} if is_wanted else {}
    return Scores.of(found, {"p_at_1": _P_AT_1}, len(right))


def _labels_of(examples: Sequence[Example], labels: Sequence[str]) -> list[str]:
    for number, example in enumerate(examples):
        if len(example.references) > 1:
            raise CountMismatch(f"row {number}: got {len(example.references)} references, expected the one label")
        if example.references[0] not in labels:
            raise BadValue(
                f"row {number}: got the reference {example.references[0][:60]!r}, expected one of the labels "
                f"{', '.join(labels)[:200]}; score texts with another task"
            )
    return [x.references[0] for x in examples]


def _label_counts(answers: Sequence[str], wanted: Sequence[str], labels: Sequence[str]) -> Floats:
    """For each row whether answer and label are k, the answer is k, the label is k, ``[rows, 3 * labels]``."""
    names = np.array(labels)
    is_answer = np.array(answers)[:, None] == names
    is_label = np.array(wanted)[:, None] == names
    return np.concatenate([is_answer & is_label, is_answer, is_label], axis=1).astype(np.float64)


def _macro_f1(totals: Floats) -> Floats:
    """Macro-F1 of summed counts ``[..., 3 * labels]``."""
    both, answered, wanted = np.split(totals, 3, axis=-1)
    seen = answered + wanted
    f1 = 2.0 * both / np.maximum(seen, 1.0)
    return np.asarray(100.0 * f1.sum(axis=-1) / (seen > 0).sum(axis=-1))
