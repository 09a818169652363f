"""SuperGLUE (Wang et al. 2019) as texts to texts: T5's format without the name of the task (Lester et al. 2021).

It knows files and words for the tasks; it knows no model and no tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from epigraph.tasks.base import Example, Scorer, Task
from epigraph.tasks.fetch import find_file, found_files
from epigraph.tasks.lines import is_held_out
from epigraph.tasks.superglue_metrics import (
    COPA_LABELS,
    HEADLINES,
    RTE_LABELS,
    TRUTH_VALUES,
    score_cb,
    score_choices,
    score_multirc,
    score_record,
    score_wsc,
)
from epigraph.tasks.superglue_rows import CB, COPA, RTE, WSC, BoolQ, Line, MultiRC, ReCoRD, WiC, read_lines

SPLITS = ("train", "dev", "test", "train32", "dev32")
# Whose rows are learnt from.
LESSONS = ("train", "train32")
SPLIT_NOTE = "dev is held out of train, test is the official validation set"

_FILES = {"train": "train", "dev": "train", "test": "val", "train32": "train32", "dev32": "dev32"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Files:
    """A set's folder, what its lines are, and which share of its official training lines is held out."""

    folder: str
    line: type[Line]
    dev_share: int = 10


FILES: Mapping[str, Files] = MappingProxyType(
    {
        "boolq": Files(folder="BoolQ", line=BoolQ),
        "cb": Files(folder="CB", line=CB, dev_share=5),
        "copa": Files(folder="COPA", line=COPA, dev_share=5),
        "multirc": Files(folder="MultiRC", line=MultiRC),
        "record": Files(folder="ReCoRD", line=ReCoRD),
        "rte": Files(folder="RTE", line=RTE),
        "wic": Files(folder="WiC", line=WiC),
        "wsc": Files(folder="WSC", line=WSC, dev_share=5),
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """How a set's rows are written, and what their answers are scored by."""

    what: str
    instruction: str
    input_template: str
    score: Scorer
    max_target_tokens: int = 16


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "boolq": Format(
            what="BoolQ: a yes-no question to a passage (CC BY-SA 3.0)",
            instruction="Say whether the answer to the question is yes: True or False.",
            input_template="passage: {source} question: {question}\n",
            score=partial(score_choices, labels=TRUTH_VALUES),
        ),
        "cb": Format(
            what="CB: whether a text commits its writer to a hypothesis",
            instruction="Say what follows for the hypothesis: entailment, contradiction or neutral.",
            input_template="hypothesis: {hypothesis} premise: {source}\n",
            score=score_cb,
        ),
        "copa": Format(
            what="COPA: which of two is the cause or the effect (BSD-2-Clause)",
            instruction="Say which choice is the cause or the effect of the premise: choice1 or choice2.",
            input_template="choice1: {choice1} choice2: {choice2} premise: {source} question: {question}\n",
            score=partial(score_choices, labels=COPA_LABELS),
        ),
        "multirc": Format(
            what="MultiRC: which answers to a question about a paragraph are right",
            instruction="Say whether the answer to the question is right: True or False.",
            input_template="question: {question} answer: {answer} paragraph: {source}\n",
            score=score_multirc,
        ),
        "record": Format(
            what="ReCoRD: which entity of an article fills a gap (Apache-2.0)",
            instruction="Say which entity stands at the placeholder of the query.",
            input_template="query: {query} entities: {entities} passage: {source}\n",
            score=score_record,
            max_target_tokens=32,
        ),
        "rte": Format(
            what="RTE: whether a text entails a hypothesis",
            instruction="Say whether the premise entails the hypothesis: entailment or not_entailment.",
            input_template="hypothesis: {hypothesis} premise: {source}\n",
            score=partial(score_choices, labels=RTE_LABELS),
        ),
        "wic": Format(
            what="WiC: whether a word means the same in two sentences (CC BY-NC 4.0)",
            instruction="Say whether the word means the same in both sentences: True or False.",
            input_template="sentence1: {source} sentence2: {sentence2} word: {word}\n",
            score=partial(score_choices, labels=TRUTH_VALUES),
        ),
        "wsc": Format(
            what="WSC: what a marked pronoun stands for; learnt from rows with the right referent alone (CC BY 4.0)",
            instruction="Say what the pronoun between asterisks stands for.",
            input_template="{source}\n",
            score=score_wsc,
            max_target_tokens=32,
        ),
    }
)


def superglue(name: str) -> Task:
    """The set ``name`` as texts to texts; the model says its answer freely. (Lester et al. 2021, section 3 and A.1.)

    ``test`` is the official validation set, since test labels are not public; ``dev`` is held out of the official
    training set; ``train32`` and ``dev32`` are FewGLUE's, and belong together. Loading a split whose file is not in
    ``$EPIGRAPH_DATA/superglue`` raises :class:`DataNotFound`, and :class:`BadRows` for a file of something else.
    """
    form = FORMATS[name]
    return Task(
        name=name,
        summary=f"{form.what}; T5's format; {SPLIT_NOTE}",
        instruction=form.instruction,
        splits={split: partial(load, name, split) for split in SPLITS},
        score=form.score,
        headline=HEADLINES[name][0],
        better_when_higher=HEADLINES[name],
        input_template=form.input_template,
        max_target_tokens=form.max_target_tokens,
        files=files_here(name),
    )


TASKS: Mapping[str, Callable[[], Task]] = MappingProxyType({name: partial(superglue, name) for name in FORMATS})


def load(name: str, split: str) -> list[Example]:
    """The rows of one split of a set, in the file's order; raises what loading a split of :func:`superglue` does."""
    files = FILES[name]
    rows = read_lines(find_file("superglue", _file(name, split)), files.line)
    if split in ("train", "dev"):
        rows = [x for x in rows if is_held_out(x.held_out_by, files.dev_share) == (split == "dev")]
    return [x.example for x in rows if x.is_lesson or split not in LESSONS]


def files_here(name: str) -> dict[str, str]:
    """The paths of the set's files that are here, by split."""
    return found_files("superglue", {split: _file(name, split) for split in SPLITS})


def _file(name: str, split: str) -> str:
    return f"{FILES[name].folder}/{_FILES[split]}.jsonl.gz"
