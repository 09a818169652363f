"""Questions about a passage: SQuAD (Rajpurkar et al. 2016) and sets of other domains that it is carried over to.

It knows files and words for the tasks; it knows no model and no tokenizer. Rows are written as T5's are (Lester et al.
2021, appendix A.3): ``question: .. context: ..``, with a blank on both sides of every ASCII punctuation character in
question, context and answer. A source is the context; the question is the further text ``question``, so that the
longer one of the two, nearly always the context, is shortened where a row is too long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from epigraph.errors import BadRows, DataNotFound
from epigraph.tasks.base import Example, Loader, Task
from epigraph.tasks.choice_metrics import LABELS_BETTER_WHEN_HIGHER, score_labels
from epigraph.tasks.faults import Fault, missing, shown, text_faults
from epigraph.tasks.fetch import find_file, found_files
from epigraph.tasks.lines import field_faults, is_held_out, read_checked
from epigraph.tasks.qa_metrics import QA_BETTER_WHEN_HIGHER, score_squad, spaced

INPUT_TEMPLATE = "question: {question} context: {source}\n"
SHIFTS = ("amazon", "new_wiki", "reddit")
PUBMEDQA_LABELS = ("yes", "no", "maybe")
# File name and number of questions of the out-of-domain development sets, by the shared task's table.
MRQA: Mapping[str, tuple[str, int]] = MappingProxyType(
    {
        "textbookqa": ("TextbookQA", 1_503),
        "bioasq": ("BioASQ", 1_504),
        "race": ("RACE", 674),
        "relationextraction": ("RelationExtraction", 2_948),
        "duorc": ("DuoRC", 1_501),
        "drop": ("DROP", 1_503),
    }
)

_SQUAD = {"train": "train_subset.jsonl.gz", "dev": "train_subset.jsonl.gz", "test": "dev.jsonl.gz"}
_PUBMEDQA = "pqa_l.jsonl.gz"
_OFFICIAL = ("dev", "test")
_MRQA_SOURCE = (
    "MRQA's files come from the repository of the MRQA 2019 shared task, mrqa/MRQA-Shared-Task-2019, by its "
    "download_out_of_domain_dev.sh; squadshifts-amazon, -new_wiki, -reddit and pubmedqa stand in here"
)


def squad() -> Task:
    """SQuAD 1.1: 4,330 of its 87,599 training questions, and the 10,570 of the official dev set as ``test``.

    ``dev`` is a fixed tenth of the training contexts, so that no context is on both sides. The first reference is the
    answer as it is taught, spaced; in ``dev`` and ``test`` all official answers follow, untouched, and scoring spaces
    whatever it compares. Loading raises :class:`DataNotFound` and :class:`BadRows`.
    """
    return _task(
        "squad",
        "SQuAD 1.1: the answer to a question, in words of the passage; train is a part of the official one, dev a "
        "fixed tenth of it by context, test the official dev (CC BY-SA 4.0)",
        {split: partial(_load_squad, split) for split in _SQUAD},
        found_files("squad", _SQUAD),
    )


def squadshifts(domain: str) -> Task:
    """One domain of SQuADShifts (Miller et al. 2020), for testing what was trained on :func:`squad`."""
    file = {"test": f"{domain}.jsonl.gz"}
    return _task(
        f"squadshifts-{domain}",
        f"SQuADShifts, {domain}: questions as SQuAD's about other texts, test only (CC BY 4.0)",
        {"test": partial(_load_shift, file["test"])},
        found_files("squadshifts", file),
    )


def mrqa(name: str) -> Task:
    """One of MRQA 2019's out-of-domain development sets (Fisch et al. 2019), the ``test`` of Lester et al., table 1.

    Files are read as the shared task gives them, ``mrqa/TextbookQA.jsonl.gz`` and so on: a header line, then a context
    a line with its questions. Sizes by :data:`MRQA`. Loading raises :class:`DataNotFound` saying where they come from.
    """
    title, count = MRQA[name]
    file = {"test": f"{title}.jsonl.gz"}
    return _task(
        f"mrqa-{name}",
        f"MRQA 2019, {title}: the {count:,} questions of its out-of-domain dev set, test only",
        {"test": partial(_load_mrqa, file["test"])},
        found_files("mrqa", file),
    )


def pubmedqa() -> Task:
    """PubMedQA, expert-labelled (Jin et al. 2019): yes, no or maybe from question and abstract without its conclusion.

    ``dev`` and ``test`` have 500 questions each, the official halves. Nothing is for training.
    """
    return Task(
        name="pubmedqa",
        summary="PubMedQA: yes, no or maybe from a question and an abstract; official dev and test, no train (MIT)",
        instruction="Answer the question by the context: yes, no or maybe.",
        splits={split: partial(_load_pubmedqa, split) for split in _OFFICIAL},
        score=partial(score_labels, labels=PUBMEDQA_LABELS),
        headline="accuracy",
        better_when_higher=LABELS_BETTER_WHEN_HIGHER,
        input_template=INPUT_TEMPLATE,
        max_target_tokens=16,
        labels=PUBMEDQA_LABELS,
        files=found_files("pubmedqa", dict.fromkeys(_OFFICIAL, _PUBMEDQA)),
    )


TASKS: Mapping[str, Callable[[], Task]] = MappingProxyType(
    {
        "squad": squad,
        **{f"squadshifts-{x}": partial(squadshifts, x) for x in SHIFTS},
        **{f"mrqa-{x}": partial(mrqa, x) for x in MRQA},
        "pubmedqa": pubmedqa,
    }
)


def _task(name: str, summary: str, splits: Mapping[str, Loader], files: Mapping[str, str]) -> Task:
    return Task(
        name=name,
        summary=summary,
        instruction="Answer the question with words of the context.",
        splits=splits,
        score=partial(score_squad, is_spaced=True),
        headline="f1",
        better_when_higher=QA_BETTER_WHEN_HIGHER,
        input_template=INPUT_TEMPLATE,
        max_source_tokens=512,
        max_target_tokens=64,
        files=files,
    )


def _load_squad(split: str) -> list[Example]:
    rows = _read_squad(find_file("squad", _SQUAD[split]))
    if split == "test":
        return [_asked(*row) for row in rows]
    kept = [row for row in rows if is_held_out(row[0]) == (split == "dev")]
    return [_taught(*row) if split == "train" else _asked(*row) for row in kept]


def _load_shift(file: str) -> list[Example]:
    return [_asked(*row) for row in _read_squad(find_file("squadshifts", file))]


def _load_mrqa(file: str) -> list[Example]:
    try:
        path = find_file("mrqa", file)
    except DataNotFound as error:
        raise DataNotFound(f"{error}; {_MRQA_SOURCE}") from None
    rows = read_checked(path, "an object with context, qas, behind one with header", _mrqa_faults)
    passages = [row for row in rows if "header" not in row]
    if not passages:
        raise BadRows(f"no rows in {path}: got a header alone, expected one context a line behind it; copy it again")
    return [_asked(row["context"], x["question"], x["answers"]) for row in passages for x in row["qas"]]


def _load_pubmedqa(split: str) -> list[Example]:
    rows = read_checked(
        find_file("pubmedqa", _PUBMEDQA), "an object with split, question, contexts, label", _pubmedqa_faults
    )
    return [
        _example(" ".join(row["contexts"]), row["question"], (row["label"],)) for row in rows if row["split"] == split
    ]


def _read_squad(path: Path) -> list[tuple[str, str, list[str]]]:
    """Context, question and answers of every row, untouched."""
    rows = read_checked(path, "an object with context, question, answers", _squad_faults)
    return [(row["context"], row["question"], [x["text"] for x in row["answers"]]) for row in rows]


def _taught(context: str, question: str, answers: Sequence[str]) -> Example:
    """T5 teaches the first answer alone."""
    return _example(context, question, (spaced(answers[0]),))


def _asked(context: str, question: str, answers: Sequence[str]) -> Example:
    return _example(context, question, tuple(dict.fromkeys((spaced(answers[0]), *answers))))


def _example(context: str, question: str, references: tuple[str, ...]) -> Example:
    return Example(source=spaced(context), references=references, further={"question": spaced(question)})


def _squad_faults(row: Mapping[str, Any]) -> Iterator[Fault]:
    yield from field_faults(row, ("context", "question"))
    for number, answer in _each(row, "answers"):
        if isinstance(answer, dict):
            yield from field_faults(answer, ("text",), f"answers[{number}].")
        else:
            yield answer if isinstance(answer, Fault) else _no_object(answer, f"answers[{number}]", "text")


def _mrqa_faults(row: Mapping[str, Any]) -> Iterator[Fault]:
    if "header" in row:
        return
    yield from field_faults(row, ("context",))
    for number, asked in _each(row, "qas"):
        if not isinstance(asked, dict):
            where = f"qas[{number}]"
            yield asked if isinstance(asked, Fault) else _no_object(asked, where, "question, answers")
            continue
        yield from field_faults(asked, ("question",), f"qas[{number}].")
        yield from _text_list_faults(asked, "answers", f"qas[{number}].")


def _pubmedqa_faults(row: Mapping[str, Any]) -> Iterator[Fault]:
    yield from field_faults(row, ("question",))
    yield from _text_list_faults(row, "contexts")
    for name, words in (("split", _OFFICIAL), ("label", PUBMEDQA_LABELS)):
        if row.get(name) not in words:
            got = shown(row[name]) if name in row else "nothing"
            yield Fault(where=f"field {name}", got=got, expected=f"one of {', '.join(words)}")


def _text_list_faults(row: Mapping[str, Any], name: str, prefix: str = "") -> Iterator[Fault]:
    for number, text in _each(row, name, prefix):
        if isinstance(text, Fault):
            yield text
        else:
            yield from text_faults(text, f"{prefix}{name}[{number}]")


def _each(row: Mapping[str, Any], name: str, prefix: str = "") -> Iterable[tuple[int, Any]]:
    """The items of a list, numbered, or the one fault of what is no list of one item or more."""
    if name not in row:
        return [(0, missing(f"{prefix}{name}", "a list of one or more"))]
    if not isinstance(row[name], list) or not row[name]:
        return [(0, Fault(where=f"field {prefix}{name}", got=shown(row[name]), expected="a list of one or more"))]
    return enumerate(row[name])


def _no_object(value: object, where: str, fields: str) -> Fault:
    return Fault(where=f"field {where}", got=shown(value), expected=f"an object with {fields}")
