"""Texts into one of a few labels: question types (TREC), sentiment (SST-2, CR), subjectivity, topics (AG News).

It knows files and words for the tasks; it knows no model and no tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from epigraph.tasks.base import Example, Loader, Task
from epigraph.tasks.choice_metrics import LABELS_BETTER_WHEN_HIGHER, score_labels
from epigraph.tasks.faults import Fault, shown
from epigraph.tasks.fetch import SPLITS, find_file, found_files
from epigraph.tasks.lines import field_faults, is_held_out, read_checked, read_records

TREC_LABELS = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
TREC_WORDS = ("abbreviation", "description", "entity", "person", "location", "number")
# One vocabulary for both sets of reviews, so that what is trained on one can be asked about the other.
SENTIMENTS = ("negative", "positive")
SUBJ_LABELS = ("objective", "subjective")
TOPICS = ("World", "Sports", "Business", "Sci/Tech")
TOPIC_WORDS = ("world", "sports", "business", "technology")
AGNEWS_FILES: Mapping[str, str] = MappingProxyType(
    {"train": "train_subset.jsonl.gz", "dev": "train_subset.jsonl.gz", "test": "test.jsonl.gz"}
)


_HELD_OUT = {"train": "train.jsonl.gz", "dev": "train.jsonl.gz", "test": "test.jsonl.gz"}
_OWN_FILES = {split: f"{split}.jsonl.gz" for split in SPLITS}


def trec() -> Task:
    """The TREC questions and their six coarse types (Li & Roth 2002; splits of Voorhees & Tice 2000): 5,452 and 500.

    The set has no development split: a tenth of the training questions, the same on every machine, is held out for
    it. Loading raises :class:`DataNotFound` where there is no ``trec`` in ``$EPIGRAPH_DATA``, and :class:`BadRows`.
    """
    return _task(
        "trec",
        "TREC: what kind of answer a question asks for, one of six; dev is a fixed tenth of the official train",
        f"Say what the question asks for: {_either(TREC_WORDS)}.",
        _load_trec,
        _HELD_OUT,
        TREC_LABELS,
        TREC_WORDS,
    )


def sst2() -> Task:
    """SST-2 (Socher et al. 2013): 67,349 phrases for training, GLUE's 872 for development, 1,821 sentences for testing.

    ``dev`` is what published GLUE development scores are of; ``test`` is the Stanford test set, with labels, which is
    not in GLUE's order. One test sentence is a training text too. Loading raises what :func:`trec` does.
    """
    return _task(
        "sst2",
        "SST-2: whether a piece of a film review is positive; dev is GLUE's, test the 1,821 labelled sentences",
        f"Say whether the review is {_either(SENTIMENTS)}.",
        partial(_load_numbered, "sst2", "sentence", SENTIMENTS),
        _OWN_FILES,
        SENTIMENTS,
    )


def cr() -> Task:
    """Customer reviews (Hu & Liu 2004), labels as in :func:`sst2`: 2,623, 354 and 794 sentences.

    There are no official splits: these were cut by hash, so scores are comparable on these files only.
    """
    return _task(
        "cr",
        "CR: whether a sentence of a customer review is positive; splits cut by hash, none are official",
        f"Say whether the review is {_either(SENTIMENTS)}.",
        partial(_load_named, "cr", SENTIMENTS),
        _OWN_FILES,
        SENTIMENTS,
    )


def subj() -> Task:
    """Subjectivity (Pang & Lee 2004): 7,025, 996 and 1,979 sentences; splits as those of :func:`cr`."""
    return _task(
        "subj",
        "SUBJ: whether a sentence about a film says an opinion; splits cut by hash, none are official",
        f"Say whether the sentence is {_either(SUBJ_LABELS)}.",
        partial(_load_named, "subj", SUBJ_LABELS),
        _OWN_FILES,
        SUBJ_LABELS,
    )


def agnews() -> Task:
    """AG News (Zhang et al. 2015), title and description into one of four topics: 5,995 of its training rows, 7,600.

    A tenth of the training rows, told by their descriptions, is held out for development. The official set has
    120,000 training rows: compare with scores of as few.
    """
    return _task(
        "agnews",
        "AG News: the topic of a news item, one of four; train is a part of the official one, dev a fixed tenth of it",
        f"Say what the news is about: {_either(TOPIC_WORDS)}.",
        _load_agnews,
        AGNEWS_FILES,
        TOPICS,
        TOPIC_WORDS,
        max_source_tokens=256,
    )


TASKS: Mapping[str, Callable[[], Task]] = MappingProxyType(
    {"trec": trec, "sst2": sst2, "cr": cr, "subj": subj, "agnews": agnews}
)


def read_news(split: str) -> list[tuple[str, str, str]]:
    """Title, description and topic of the AG News rows of ``split``; raises what :func:`agnews` does on loading."""
    rows = read_numbered(find_file("agnews", AGNEWS_FILES[split]), ("title", "description"), TOPICS)
    news = [(row["title"], row["description"], row["label"]) for row in rows]
    return news if split == "test" else [x for x in news if is_held_out(x[1]) == (split == "dev")]


def read_numbered(path: Path, fields: Sequence[str], labels: Sequence[str]) -> list[dict[str, str]]:
    """Every row as its ``fields``, each a text, and its ``label``: in the file a number, here the label it stands for.

    Raises what :func:`read_checked` raises.
    """
    rows = read_checked(
        path, f"an object with {', '.join(fields)}, label", partial(_numbered_faults, fields=fields, labels=labels)
    )
    return [{name: row[name] for name in fields} | {"label": labels[row["label"]]} for row in rows]


def _task(
    name: str,
    summary: str,
    instruction: str,
    load: Callable[[str], list[Example]],
    files: Mapping[str, str],
    labels: tuple[str, ...],
    label_words: tuple[str, ...] = (),
    max_source_tokens: int = 128,
) -> Task:
    splits: dict[str, Loader] = {split: partial(load, split) for split in SPLITS}
    return Task(
        name=name,
        summary=summary,
        instruction=instruction,
        splits=splits,
        score=partial(score_labels, labels=labels),
        headline="accuracy",
        better_when_higher=LABELS_BETTER_WHEN_HIGHER,
        max_source_tokens=max_source_tokens,
        max_target_tokens=16,
        labels=labels,
        label_words=label_words,
        files=found_files(name, files),
    )


def _load_trec(split: str) -> list[Example]:
    path = find_file("trec", _HELD_OUT[split])
    rows = read_records(path, ("text", "coarse"), {"coarse": TREC_LABELS})
    if split != "test":
        rows = [x for x in rows if is_held_out(x["text"]) == (split == "dev")]
    return [Example(source=x["text"], references=(x["coarse"],)) for x in rows]


def _load_numbered(name: str, field: str, labels: Sequence[str], split: str) -> list[Example]:
    rows = read_numbered(find_file(name, _OWN_FILES[split]), (field,), labels)
    return [Example(source=x[field], references=(x["label"],)) for x in rows]


def _load_named(name: str, labels: Sequence[str], split: str) -> list[Example]:
    path = find_file(name, _OWN_FILES[split])
    rows = read_records(path, ("text", "label_text"), {"label_text": labels})
    return [Example(source=x["text"], references=(x["label_text"],)) for x in rows]


def _load_agnews(split: str) -> list[Example]:
    return [Example(source=f"{title} {text}", references=(topic,)) for title, text, topic in read_news(split)]


def _numbered_faults(row: Mapping[str, Any], fields: Sequence[str], labels: Sequence[str]) -> Iterator[Fault]:
    yield from field_faults(row, fields)
    number = row.get("label")
    # True and 1.0 are equal to 1 in Python.
    if type(number) is not int or not 0 <= number < len(labels):
        got = shown(number) if "label" in row else "nothing"
        yield Fault(where="field label", got=got, expected=f"a number from 0 to {len(labels) - 1}")


def _either(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
