"""Texts into one of a few labels: the question types of TREC (Li & Roth 2002; splits of Voorhees & Tice 2000).

It knows files and words for the task; it knows no model and no tokenizer.
"""

from __future__ import annotations

import hashlib
from functools import partial

from epigraph.tasks.base import Example, Task
from epigraph.tasks.choice_metrics import LABELS_BETTER_WHEN_HIGHER, score_labels
from epigraph.tasks.fetch import SPLITS, find_file, found_files
from epigraph.tasks.lines import read_records

TREC_LABELS = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
TREC_WORDS = ("abbreviation", "description", "entity", "person", "location", "number")

# One training question in so many is a development question.
_DEV_SHARE = 10
_FILES = {"train": "train.jsonl.gz", "dev": "train.jsonl.gz", "test": "test.jsonl.gz"}


def trec() -> Task:
    """The TREC questions and their six coarse types: 5,452 for training, 500 for testing.

    The set has no development split: a tenth of the training questions, the same on every machine, is held out for
    it. Loading raises :class:`DataNotFound` where there is no ``trec`` in ``$EPIGRAPH_DATA``, and :class:`BadRows`.
    """
    return Task(
        name="trec",
        summary="TREC: what kind of answer a question asks for, one of six; dev is a fixed tenth of the official train",
        instruction=f"Say what the question asks for: {', '.join(TREC_WORDS[:-1])} or {TREC_WORDS[-1]}.",
        splits={split: partial(_load_trec, split) for split in SPLITS},
        score=partial(score_labels, labels=TREC_LABELS),
        headline="accuracy",
        better_when_higher=LABELS_BETTER_WHEN_HIGHER,
        max_source_tokens=128,
        max_target_tokens=16,
        labels=TREC_LABELS,
        label_words=TREC_WORDS,
        files=found_files("trec", _FILES),
    )


def _load_trec(split: str) -> list[Example]:
    path = find_file("trec", _FILES[split])
    rows = read_records(path, ("text", "coarse"), {"coarse": TREC_LABELS})
    if split != "test":
        rows = [x for x in rows if _is_dev(x["text"]) == (split == "dev")]
    return [Example(source=x["text"], references=(x["coarse"],)) for x in rows]


def _is_dev(text: str) -> bool:
    """Whether a training question is held out: by its text alone, so that no question is on both sides."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()) % _DEV_SHARE == 0
