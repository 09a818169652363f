"""Triples into sentences, as Prefix-Tuning has them: WebNLG 2017 (Gardent et al. 2017), DART v1.1.1 (Nan et al. 2021).

It knows files and words for the two tasks; it knows no model and no tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from epigraph.errors import DataNotFound
from epigraph.tasks.base import Example, Loader, Task
from epigraph.tasks.faults import Fault, missing, shown, text_faults
from epigraph.tasks.fetch import find_file, found_files
from epigraph.tasks.lines import read_checked
from epigraph.tasks.translation import BETTER_WHEN_HIGHER, DART_SCRIPT, WEBNLG_SCRIPT, score_translation

Triple = tuple[str, str, str]

WEBNLG = "webnlg2017"
# What the references of DART come from, as ``reference_sources`` has it.
DART_SOURCES = (
    *("WikiSQL_decl_sents", "WikiSQL_lily", "WikiTableQuestions_lily", "WikiTableQuestions_mturk", "e2e", "webnlg"),
)

_WEBNLG_FILES: Mapping[str, tuple[str, ...]] = {
    "train": ("train.jsonl.gz",),
    "dev": ("dev.jsonl.gz",),
    "test": ("test_seen.jsonl.gz", "test_unseen.jsonl.gz"),
    "test-seen": ("test_seen.jsonl.gz",),
    "test-unseen": ("test_unseen.jsonl.gz",),
}
_DART_FILES = {split: f"{split}.jsonl.gz" for split in ("train", "dev", "test")}
_WORD_STARTS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])| ")
# Relations of WebNLG's training entries that DART calls otherwise, as its development and test entries show.
_RENAMED = MappingProxyType(
    {
        "LibraryofCongressClassification": "LIBRARY_OF_CONGRESS_CLASSIFICATION",
        "awards": "AWARD",
        "birthDate": "DATE_OF_BIRTH",
        "deathDate": "DATE_OF_DEATH",
        "director": "DIRECTED_BY",
        "elevationAboveTheSeaLevel": "ELEVATION",
        "elevationAboveTheSeaLevel_(in_feet)": "ELEVATION",
        "elevationAboveTheSeaLevel_(in_metres)": "ELEVATION",
        "fullname": "FULL_NAME",
        "literaryGenre": "GENRE",
        "youthclub": "YOUTH_CLUB",
    }
)
_SHAPE = "an object with triples and references"


def webnlg() -> Task:
    """WebNLG 2017: up to seven triples into a text, every lexicalisation a reference; 6,940 training entries.

    ``test`` is ``test-seen``, of the ten categories that are trained on, and then ``test-unseen``, of five others. A
    pipe stands in front of every triple, the first one too. Loading raises :class:`DataNotFound` where there is no
    ``webnlg2017`` in ``$EPIGRAPH_DATA``, and :class:`BadRows`.
    """
    files = {split: names[0] for split, names in _WEBNLG_FILES.items() if len(names) == 1}
    return Task(
        name="webnlg",
        summary="WebNLG 2017: triples into a text; test is seen and unseen categories (CC BY-NC-SA 4.0)",
        instruction="Say the facts in one or more sentences.",
        splits={split: partial(_load_webnlg, names) for split, names in _WEBNLG_FILES.items()},
        score=partial(score_translation, script=WEBNLG_SCRIPT),
        headline="bleu_multi",
        better_when_higher=BETTER_WHEN_HIGHER,
        files=found_files(WEBNLG, files),
    )


def dart() -> Task:
    """DART v1.1.1: triples into a text, relations in small letters, every text a reference.

    Splits ``test-SOURCE`` are the test entries that have references from that source, with those alone. The official
    training file is read where ``dart`` has one; where it has none, ``train`` is what DART takes from other sets,
    E2E's and WebNLG's training entries in DART's form, and the summary says so. Loading raises
    :class:`DataNotFound` and :class:`BadRows`.
    """
    files = found_files("dart", _DART_FILES)
    others = "" if "train" in files else "; train is its E2E and WebNLG parts, the part from tables is not here"
    by_source: dict[str, Loader] = {f"test-{x}": partial(_load_dart, "test", x) for x in DART_SOURCES}
    return Task(
        name="dart",
        summary=f"DART v1.1.1: triples into a text{others} (MIT; its parts have their own licences)",
        instruction="Say the facts in one or more sentences.",
        splits={"train": _load_dart_train, **{x: partial(_load_dart, x) for x in ("dev", "test")}, **by_source},
        score=partial(score_translation, script=DART_SCRIPT, learned=True),
        headline="bleu_multi",
        better_when_higher=(*BETTER_WHEN_HIGHER, "bert_score"),
        files=files,
    )


TASKS: Mapping[str, Callable[[], Task]] = MappingProxyType({"webnlg": webnlg, "dart": dart})


def webnlg_source(triples: Sequence[Triple]) -> str:
    """``| subject : property : object | ...``, names as the set writes them: Prefix-Tuning's training input."""
    return " ".join(f"| {' : '.join(x)}" for x in triples)


def dart_source(triples: Sequence[Triple]) -> str:
    """``subject : relation : object | ...`` with the relation in small letters."""
    return " | ".join(f"{subject} : {relation.lower()} : {object_}" for subject, relation, object_ in triples)


def as_in_dart(triple: Triple) -> Triple:
    """A triple of WebNLG as DART writes it: names without underscores, ``isPartOf`` as ``IS_PART_OF``, some renamed."""
    subject, relation, object_ = triple
    name = _RENAMED.get(relation) or _WORD_STARTS.sub("_", relation).upper()
    return subject.replace("_", " "), name, object_.replace("_", " ")


def e2e_triples(slots: Mapping[str, str]) -> list[Triple]:
    """A table of E2E as DART has it: a triple of the restaurant for every other slot."""
    return [(slots["name"], name, value) for name, value in slots.items() if name != "name"]


def _load_webnlg(files: Sequence[str]) -> list[Example]:
    rows = [row for file in files for row in _read(find_file(WEBNLG, file))]
    return [_example(webnlg_source(_triples(x)), x["references"]) for x in rows]


def _load_dart_train() -> list[Example]:
    try:
        find_file("dart", _DART_FILES["train"])
    except DataNotFound:
        return [*_e2e_as_in_dart(), *_webnlg_as_in_dart()]
    return _load_dart("train")


def _load_dart(split: str, source: str | None = None) -> list[Example]:
    """The entries of ``split``; of one ``source``, those that have references from it, with no others."""
    examples = []
    for row in _read(find_file("dart", _DART_FILES[split]), sources=source is not None):
        texts = row["references"]
        if source is not None:
            texts = [x for x, got in zip(texts, row["reference_sources"], strict=True) if got == source]
        if any(x.strip() for x in texts):
            examples.append(_example(dart_source(_triples(row)), texts))
    return examples


def _webnlg_as_in_dart() -> list[Example]:
    rows = _read(find_file(WEBNLG, "train.jsonl.gz"))
    return [_example(dart_source([as_in_dart(x) for x in _triples(row)]), row["references"]) for row in rows]


def _e2e_as_in_dart() -> list[Example]:
    path = find_file("e2e", "train.jsonl.gz")
    rows = read_checked(path, "an object with slots and references", _table_faults)
    return [_example(dart_source(triples), row["references"]) for row in rows if (triples := e2e_triples(row["slots"]))]


def _example(source: str, texts: Sequence[str]) -> Example:
    # The test file of DART has an empty reference, which says nothing of any text.
    return Example(source=source, references=tuple(x for x in texts if x.strip()))


def _triples(row: Mapping[str, Any]) -> list[Triple]:
    return [(subject, relation, object_) for subject, relation, object_ in row["triples"]]


def _read(path: Path, *, sources: bool = False) -> list[dict[str, Any]]:
    """Rows with ``triples``, ``references`` and, where ``sources`` are asked for, one source a reference."""
    return read_checked(path, _SHAPE, _sourced_faults if sources else _entry_faults)


def _entry_faults(row: Mapping[str, Any]) -> Iterator[Fault]:
    triples = row.get("triples")
    if not isinstance(triples, list) or not triples:
        yield Fault(where="field triples", got=shown(triples), expected="a list of one triple or more")
    else:
        for number, triple in enumerate(triples):
            if not (isinstance(triple, list) and len(triple) == 3 and all(isinstance(x, str) for x in triple)):
                yield Fault(where=f"field triples[{number}]", got=shown(triple), expected="three texts")
    yield from _text_list_faults(row, "references")


def _sourced_faults(row: Mapping[str, Any]) -> Iterator[Fault]:
    yield from _entry_faults(row)
    yield from _text_list_faults(row, "reference_sources")
    counts = [len(x) for name in ("references", "reference_sources") if isinstance(x := row.get(name), list)]
    if len(set(counts)) == 2:
        yield Fault(
            where="field reference_sources", got=f"{counts[1]} of them", expected=f"{counts[0]}, one a reference"
        )


def _table_faults(row: Mapping[str, Any]) -> Iterator[Fault]:
    slots = row.get("slots")
    if not isinstance(slots, dict) or "name" not in slots:
        yield Fault(where="field slots", got=shown(slots), expected="an object of texts with a name")
    else:
        for name, value in slots.items():
            yield from text_faults(value, f"slots.{name}")
    yield from _text_list_faults(row, "references")


def _text_list_faults(row: Mapping[str, Any], name: str) -> Iterator[Fault]:
    texts = row.get(name)
    if texts is None:
        yield missing(name, "a list of texts")
    elif not isinstance(texts, list) or not all(isinstance(x, str) for x in texts):
        yield Fault(where=f"field {name}", got=shown(texts), expected="a list of texts")
    elif not any(x.strip() for x in texts):
        yield Fault(where=f"field {name}", got="no text in it", expected="one text or more that is not empty")
