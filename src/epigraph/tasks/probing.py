"""What a model knows: the T-REx part of LAMA (Petroni et al. 2019), one task a relation, from a subject to its object.

It knows files and words for the tasks; it knows no model and no tokenizer, and so not how many tokens an object has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

from epigraph.errors import BadRows, DataNotFound, TaskNotFound
from epigraph.tasks.base import Example, Loader, Task
from epigraph.tasks.choice_metrics import PROBES_BETTER_WHEN_HIGHER, score_probes
from epigraph.tasks.fetch import SPLITS, find_file, found_files
from epigraph.tasks.lines import read_records

MASK = "[MASK]"
SUMMARY = "LAMA T-REx: the object of a fact from its subject, one task a relation (CC BY-NC 4.0)"
RELATIONS = (
    *("P17", "P19", "P20", "P27", "P30", "P31", "P36", "P37", "P39", "P47", "P101", "P103", "P106", "P108"),
    *("P127", "P131", "P136", "P138", "P140", "P159", "P176", "P178", "P190", "P264", "P276", "P279", "P361"),
    *("P364", "P407", "P413", "P449", "P463", "P495", "P527", "P530", "P740", "P937", "P1001", "P1303"),
    *("P1376", "P1412"),
)

_SUBJECT, _OBJECT = "[X]", "[Y]"
_FILES = {"relations": "relations.jsonl.gz", **{split: f"trex_{split}.jsonl.gz" for split in SPLITS}}
_NO_TEMPLATE = f"{{source}} {MASK}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Probes:
    """All that the files have: templates by relation, facts by split and relation, and the shared vocabulary."""

    templates: Mapping[str, str]
    facts: Mapping[str, Mapping[str, Sequence[Example]]]
    vocabulary: tuple[str, ...]


def task_name(relation: str) -> str:
    """What the task of ``relation`` is called: ``lama-P19``."""
    return f"lama-{relation}"


def lama(relation: str) -> Task:
    """One relation of T-REx: subjects as sources, objects as references, the manual template with a mask.

    The files are read now, all relations of them: ``candidates`` is :func:`shared_vocabulary`. A relation has the
    splits that have facts of it. Where the files are not here there are no candidates and no template, and loading any
    split raises :class:`DataNotFound`. Raises :class:`TaskNotFound` for another relation, and :class:`BadRows`.
    """
    if relation not in RELATIONS:
        raise TaskNotFound(f"got the relation {relation[:60]!r}, expected one of {', '.join(RELATIONS)}")
    try:
        probes = read_probes()
    except DataNotFound as error:
        refuse = partial(_refuse, str(error))
        return _task(relation, _NO_TEMPLATE, dict.fromkeys(SPLITS, refuse), candidates=())
    splits: dict[str, Loader] = {
        split: partial(list, facts[relation]) for split, facts in probes.facts.items() if relation in facts
    }
    return _task(relation, probes.templates[relation], splits, candidates=probes.vocabulary)


def read_probes() -> Probes:
    """Read everything; raises :class:`DataNotFound` where one file is not here, and :class:`BadRows`."""
    templates = _load_templates()
    facts = {split: _load_facts(split) for split in SPLITS}
    every = [fact for by_relation in facts.values() for some in by_relation.values() for fact in some]
    return Probes(templates=templates, facts=facts, vocabulary=shared_vocabulary(every))


def load_every_fact(split: str) -> list[Example]:
    """The facts of all relations in ``split``; raises what :func:`read_probes` raises."""
    return [fact for facts in _load_facts(split).values() for fact in facts]


def shared_vocabulary(facts: Sequence[Example]) -> tuple[str, ...]:
    """The words that every relation's answers are ranked among: all objects of ``facts``, each once, by code point.

    LAMA has a file for this, the words that several models' vocabularies share, which is not among the data.
    """
    return tuple(sorted({word for fact in facts for word in fact.references}))


def masked(template: str) -> str:
    """LAMA's ``[X] was born in [Y] .`` as an input template, ``{source} was born in [MASK] .``.

    Raises ValueError unless subject and object stand in it once each, without braces and without a mask of its own.
    """
    if any(template.count(x) != 1 for x in (_SUBJECT, _OBJECT)) or any(x in template for x in ("{", "}", MASK)):
        raise ValueError(f"got {template[:60]!r}, expected {_SUBJECT} and {_OBJECT} once each, no braces, no {MASK}")
    return template.replace(_OBJECT, MASK).replace(_SUBJECT, "{source}")


def _task(relation: str, template: str, splits: Mapping[str, Loader], candidates: tuple[str, ...]) -> Task:
    absent = [split for split in SPLITS if split not in splits]
    without = f"; no {' and no '.join(absent)} split" if absent else ""
    return Task(
        name=task_name(relation),
        summary=f"LAMA T-REx, relation {relation}: the object of a fact from its subject{without}",
        instruction="Say the word that is missing.",
        splits=splits,
        score=score_probes,
        headline="p_at_1",
        better_when_higher=PROBES_BETTER_WHEN_HIGHER,
        input_template=template,
        max_source_tokens=128,
        max_target_tokens=16,
        candidates=candidates,
        files=found_files("lama", {name: file for name, file in _FILES.items() if name not in absent}),
    )


def _refuse(message: str) -> NoReturn:
    raise DataNotFound(message)


def _load_templates() -> dict[str, str]:
    path = find_file("lama", _FILES["relations"])
    written = {x["relation"]: x["template"] for x in read_records(path, ("relation", "template"))}
    templates: dict[str, str] = {}
    for relation in RELATIONS:
        if relation not in written:
            raise BadRows(f"{path}: got no row of relation {relation}, expected one of each; copy the file again")
        try:
            templates[relation] = masked(written[relation])
        except ValueError as error:
            raise BadRows(f"{path}: template of {relation}: {error}") from error
    return templates


def _load_facts(split: str) -> dict[str, list[Example]]:
    """The facts of each relation that has any, relations in the order of :data:`RELATIONS`, facts in the file's."""
    rows = read_records(find_file("lama", _FILES[split]), ("relation", "sub_label", "obj_label"))
    facts: dict[str, list[Example]] = {relation: [] for relation in RELATIONS}
    for row in rows:
        if row["relation"] in facts:
            facts[row["relation"]].append(Example(source=row["sub_label"], references=(row["obj_label"],)))
    return {relation: some for relation, some in facts.items() if some}
