"""Whether two texts say the same: Quora's question pairs (QQP) and the newswire pairs of MRPC (Dolan & Brockett 2005).

It knows files and words for the tasks; it knows no model and no tokenizer. Rows are written as T5's are, without the
name of the task (Lester et al. 2021, appendix A.3), and the answer is said, not chosen: ``duplicate`` or
``not_duplicate``, ``equivalent`` or ``not_equivalent``. Each set is also there in the other's words, so that what was
trained on one can be asked about the other (table 2 there).

F1 is that of the positive label, with t the rows where answer and label are it, a the rows where the answer is it and
l those where the label is it; an answer that is no label counts as the opposite of the row's label, as T5 does::

    F1 = 100 * 2 t / (a + l)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

import numpy as np

from epigraph.tasks.base import Example, Scores, Task
from epigraph.tasks.bootstrap import INTERVAL_VARIANT, Floats, Summed
from epigraph.tasks.choice_metrics import score_labels
from epigraph.tasks.classification import read_numbered
from epigraph.tasks.fetch import SPLITS, find_file, found_files

_BETTER_WHEN_HIGHER = ("accuracy", "f1")
_F1 = (
    "F1 of the label {positive} in percent; an answer that is no label counts as the opposite of the row's label, as "
    f"T5 does; outer blanks apart, case kept; {INTERVAL_VARIANT}"
)
_FILES = {split: f"{split}.jsonl.gz" for split in SPLITS}


@dataclass(frozen=True, kw_only=True, slots=True)
class Wording:
    """What the two texts of a pair and its two labels are called; the negative label stands first, as in the files."""

    fields: tuple[str, str]
    labels: tuple[str, str]

    @property
    def input_template(self) -> str:
        """The first text is the source, the second the further text ``second``, in every wording."""
        first, second = self.fields
        return f"{first}: {{source}} {second}: {{second}}\n"


WORDINGS: Mapping[str, Wording] = MappingProxyType(
    {
        "qqp": Wording(fields=("question1", "question2"), labels=("not_duplicate", "duplicate")),
        "mrpc": Wording(fields=("sentence1", "sentence2"), labels=("not_equivalent", "equivalent")),
    }
)
_SUMMARIES = {
    "qqp": "QQP: whether two questions ask the same; 9,999 rows of the public set, train and test cut by hash, dev "
    "out of GLUE's (non-commercial)",
    "mrpc": "MRPC: whether two sentences of the news say the same; GLUE's splits, test with labels (research use)",
}


def paraphrase(rows: str, words: str) -> Task:
    """The pairs of ``rows`` in the words of ``words``, each ``qqp`` or ``mrpc``; ``mrpc-as-qqp`` where they differ.

    QQP here is a sample of 9,999 rows: compare with published scores of the 40,430 official development rows with
    care. MRPC is whole: 3,668, 408 and 1,725. Loading raises :class:`DataNotFound` and :class:`BadRows`.
    """
    wording = WORDINGS[words]
    name = rows if rows == words else f"{rows}-as-{words}"
    return Task(
        name=name,
        summary=_SUMMARIES[rows] if rows == words else f"{_SUMMARIES[rows]}; in the words of {words}",
        instruction=f"Say whether both mean the same: {wording.labels[1]} or {wording.labels[0]}.",
        splits={split: partial(_load, rows, wording, split) for split in SPLITS},
        score=partial(score_pairs, labels=wording.labels),
        headline="accuracy",
        better_when_higher=_BETTER_WHEN_HIGHER,
        input_template=wording.input_template,
        max_source_tokens=256,
        max_target_tokens=16,
        files=found_files(rows, _FILES),
    )


TASKS: Mapping[str, Callable[[], Task]] = MappingProxyType(
    {
        "qqp": partial(paraphrase, "qqp", "qqp"),
        "mrpc": partial(paraphrase, "mrpc", "mrpc"),
        "qqp-as-mrpc": partial(paraphrase, "qqp", "mrpc"),
        "mrpc-as-qqp": partial(paraphrase, "mrpc", "qqp"),
    }
)


def score_pairs(
    predictions: Sequence[str],
    examples: Sequence[Example],
    only: Collection[str] | None = None,
    *,
    labels: tuple[str, str],
) -> Scores:
    """``accuracy``, ``f1`` and ``illegal_share``, 0 to 100, with 95 % intervals; ``labels`` negative, then positive.

    ``only`` these of them, None for all. Raises what :func:`~epigraph.tasks.choice_metrics.score_labels` raises.
    """
    wanted = [name for name in ("accuracy", "illegal_share") if only is None or name in only]
    scores = score_labels(predictions, examples, wanted, labels=labels)
    if only is not None and "f1" not in only:
        return scores
    statistics = _positive_counts([x.strip() for x in predictions], [x.references[0] for x in examples], labels)
    variants = {**scores.variants, "f1": _F1.format(positive=labels[1])}
    summed = {"f1": Summed(statistics=statistics, finish=_f1)}
    extra = Scores.of(summed, variants, len(examples))
    return replace(
        scores,
        values={**scores.values, **extra.values},
        intervals={**scores.intervals, **extra.intervals},
        variants=variants,
        summed={**scores.summed, **summed},
    )


def _positive_counts(answers: Sequence[str], wanted: Sequence[str], labels: tuple[str, str]) -> Floats:
    """For each row whether answer and label are the positive one, the answer is, the label is, ``[rows, 3]``."""
    negative, positive = labels
    opposite = {negative: positive, positive: negative}
    is_label = np.array([label == positive for label in wanted])
    is_answer = np.array(
        [(x if x in labels else opposite[label]) == positive for x, label in zip(answers, wanted, strict=True)]
    )
    return np.stack([is_answer & is_label, is_answer, is_label], axis=1).astype(np.float64)


def _f1(totals: Floats) -> Floats:
    """F1 of summed counts ``[..., 3]``; 0 where neither an answer nor a label is the positive one."""
    seen = totals[..., 1] + totals[..., 2]
    return np.asarray(200.0 * totals[..., 0] / np.maximum(seen, 1.0))


def _load(rows: str, wording: Wording, split: str) -> list[Example]:
    first, second = WORDINGS[rows].fields
    found = read_numbered(find_file(rows, _FILES[split]), (first, second), wording.labels)
    return [Example(source=x[first], references=(x["label"],), further={"second": x[second]}) for x in found]
