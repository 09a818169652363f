"""SuperGLUE as P-Tuning asks it: a pattern with a mask, and words for the labels (Liu et al. 2021, few-shot code).

It knows patterns and words; files, splits and rows are those of the text-to-text tasks, and it knows no model.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

from epigraph.tasks.base import Example, Task
from epigraph.tasks.superglue import FORMATS, LESSONS, SPLIT_NOTE, SPLITS, files_here, load
from epigraph.tasks.superglue_metrics import (
    CB_LABELS,
    COPA_LABELS,
    HEADLINES,
    RTE_LABELS,
    TRUTH_VALUES,
    score_candidates,
)

_CONJUNCTIONS = {"cause": "because", "effect": "so"}
_PLACE = re.compile(r" *\{[0-9]+\}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pattern:
    """How a set is asked: ``placed`` is the pattern with the authors' places for virtual tokens, one or two of them.

    ``labels`` are called ``words`` at the mask; without them the answer is a candidate of the row's own, or any text.
    """

    placed: str
    instruction: str
    max_source_tokens: int = 256
    labels: tuple[str, ...] = ()
    words: tuple[str, ...] = ()


PATTERNS: Mapping[str, Pattern] = MappingProxyType(
    {
        "boolq": Pattern(
            placed="{source} . {1} Question: {question} ? Answer: [MASK] .",
            instruction="Answer the question: No or Yes.",
            labels=TRUTH_VALUES,
            words=("No", "Yes"),
        ),
        "cb": Pattern(
            placed="{source} [SEP] {hypothesis} ? {1} answer: [MASK]",
            instruction="Say whether the hypothesis is so: Yes, No or Maybe.",
            labels=CB_LABELS,
            words=("Yes", "No", "Maybe"),
        ),
        "copa": Pattern(
            placed="{choice1} or {choice2} ? {source} {conjunction} {1} [MASK] .",
            instruction="Say which of the two it is.",
            max_source_tokens=96,
        ),
        "multirc": Pattern(
            placed="{source} . Question: {question} ? Is it {answer} ? {1} [MASK] .",
            instruction="Say whether that is the answer to the question: No or Yes.",
            max_source_tokens=512,
            labels=TRUTH_VALUES,
            words=("No", "Yes"),
        ),
        "rte": Pattern(
            placed="{source} Question: {hypothesis} ? {1} Answer: [MASK] .",
            instruction="Say whether it follows from the text: Yes or No.",
            labels=RTE_LABELS,
            words=("Yes", "No"),
        ),
        "wic": Pattern(
            placed="{source} [SEP] {sentence2} {1} *{word} *? [MASK]",
            instruction="Say whether the word means the same in both sentences: No or Yes.",
            labels=TRUTH_VALUES,
            words=("No", "Yes"),
        ),
        "wsc": Pattern(
            placed="{1} {source} {1} pronoun '* {pronoun} *' refers to [MASK] .",
            instruction="Say what the pronoun between asterisks stands for.",
            max_source_tokens=128,
        ),
    }
)


def task_name(name: str) -> str:
    """What the set ``name`` is called when a pattern asks: ``rte-cloze``."""
    return f"{name}-cloze"


# For p-tuning, as text.input_template: the patterns of the tasks with their places for virtual tokens.
PLACED: Mapping[str, str] = MappingProxyType({task_name(name): x.placed for name, x in PATTERNS.items()})


def superglue_cloze(name: str) -> Task:
    """The set ``name`` with P-Tuning's pattern, answers ranked by their words at the mask; any method can be trained.

    The template has no places for virtual tokens, which not every method fills: those of P-Tuning are :data:`PLACED`.
    Labels, splits and scores are those of :func:`~epigraph.tasks.superglue.superglue`. COPA's answers are the row's own
    two candidates, WSC's are said freely: there is nothing that the referent could be ranked among.
    """
    pattern, form = PATTERNS[name], FORMATS[name]
    return Task(
        name=task_name(name),
        summary=f"{form.what}; P-Tuning's pattern; {SPLIT_NOTE}",
        instruction=pattern.instruction,
        splits={split: partial(_load, name, split) for split in SPLITS},
        score=score_candidates if name == "copa" else form.score,
        headline=HEADLINES[name][0],
        better_when_higher=HEADLINES[name],
        input_template=_PLACE.sub("", pattern.placed).lstrip(" "),
        max_source_tokens=pattern.max_source_tokens,
        max_target_tokens=32 if name in ("copa", "wsc") else 16,
        labels=pattern.labels,
        label_words=pattern.words,
        files=files_here(name),
    )


TASKS: Mapping[str, Callable[[], Task]] = MappingProxyType(
    {task_name(name): partial(superglue_cloze, name) for name in PATTERNS}
)


def _load(name: str, split: str) -> list[Example]:
    rows = load(name, split)
    match name:
        case "rte":
            return [_without_last_punctuation(row, "hypothesis") for row in rows]
        case "copa":
            mirrored = [_mirrored(row) for row in rows] if split in LESSONS else []
            return [_to_choose(row) for row in [*rows, *mirrored]]
    return rows


def _without_last_punctuation(row: Example, field: str) -> Example:
    return replace(row, further={**row.further, field: row.further[field].rstrip(string.punctuation)})


def _mirrored(row: Example) -> Example:
    """The row with its choices changed round, so that nothing is learnt from which one comes first."""
    swapped = {"choice1": row.further["choice2"], "choice2": row.further["choice1"]}
    right = COPA_LABELS[row.references[0] == COPA_LABELS[0]]
    return replace(row, references=(right,), further={**row.further, **swapped})


def _to_choose(row: Example) -> Example:
    """The row's choices as candidates, written as they go on with the premise."""
    first, second = (_lowered(row.further[x].rstrip(string.punctuation)) for x in COPA_LABELS)
    right = first if row.references[0] == COPA_LABELS[0] else second
    conjunction = _CONJUNCTIONS[row.further["question"]]
    return Example(
        source=row.source.rstrip(string.punctuation),
        references=(right,),
        further={"choice1": first, "choice2": second, "conjunction": conjunction},
        candidates=(first, second),
    )


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]
