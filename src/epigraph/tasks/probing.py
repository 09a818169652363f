"""What a model knows: T-REx and Google-RE of LAMA (Petroni et al. 2019), one task a relation, from subject to object.

It knows files and words for the tasks; it knows no model and no tokenizer, and so not how many tokens an object has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import NoReturn

import numpy as np

from epigraph.errors import BadRows, DataNotFound, MetricUnavailable, TaskNotFound, TooFewExamples
from epigraph.tasks.base import Example, Loader, Scores, Task
from epigraph.tasks.bootstrap import INTERVAL_VARIANT, Floats, Summed
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
# Without training facts in AutoPrompt's files: P47 has no development facts either.
UNTRAINABLE = ("P47", "P190", "P530")
TRAINABLE = tuple(x for x in RELATIONS if x not in UNTRAINABLE)
GOOGLE_RE = ("place_of_birth", "date_of_birth", "place_of_death")

_SUBJECT, _OBJECT = "[X]", "[Y]"
_FILES = {"relations": "relations.jsonl.gz", **{split: f"trex_{split}.jsonl.gz" for split in SPLITS}}
_GOOGLE_RE_FILES = {"relations": "relations.jsonl.gz", "test": "google_re_test.jsonl.gz"}
_NO_TEMPLATE = f"{{source}} {MASK}"
_RANKED = "percentage of facts whose first-ranked answer is the fact's object, outer blanks apart, case kept"
_GROUP_VARIANTS = {
    "p_at_1_micro": f"{_RANKED}; micro: every fact has the same weight, whichever its relation; {INTERVAL_VARIANT}",
    "p_at_1_macro": (
        f"{_RANKED}; macro: mean over relations of each relation's P@1; {INTERVAL_VARIANT}; facts of all relations are "
        "drawn together, so how many a relation has varies from draw to draw, and one without any is left out of that "
        "draw; the relations themselves are not drawn"
    ),
}


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
    name, part = task_name(relation), f"T-REx, relation {relation}"
    try:
        probes = read_probes()
    except DataNotFound as error:
        refuse = partial(_refuse, str(error))
        return _task(name, part, _NO_TEMPLATE, dict.fromkeys(SPLITS, refuse), (), _FILES)
    splits: dict[str, Loader] = {
        split: partial(list, facts[relation]) for split, facts in probes.facts.items() if relation in facts
    }
    return _task(name, part, probes.templates[relation], splits, probes.vocabulary, _FILES)


def google_re(relation: str) -> Task:
    """One relation of Google-RE: 2,936 places of birth, 1,825 years of birth or 765 places of death, for testing only.

    There are no training facts, so virtual tokens cannot be trained on it: ask the untouched model by the manual
    template, or what was trained on another relation. ``candidates`` are all objects of the three relations, which is
    neither :func:`shared_vocabulary` nor LAMA's. Raises what :func:`lama` raises.
    """
    if relation not in GOOGLE_RE:
        raise TaskNotFound(f"got the relation {relation[:60]!r}, expected one of {', '.join(GOOGLE_RE)}")
    name, part = task_name(f"google-re-{relation}"), f"Google-RE, relation {relation}"
    try:
        template = _load_templates(GOOGLE_RE)[relation]
        facts = _read_facts(_GOOGLE_RE_FILES["test"], GOOGLE_RE)
    except DataNotFound as error:
        refuse = partial(_refuse, str(error))
        return _task(name, part, _NO_TEMPLATE, {"test": refuse}, (), _GOOGLE_RE_FILES)
    vocabulary = shared_vocabulary([fact for some in facts.values() for fact in some])
    loader: Loader = partial(list, facts.get(relation, []))
    return _task(name, part, template, {"test": loader}, vocabulary, _GOOGLE_RE_FILES)


TASKS: Mapping[str, Callable[[], Task]] = MappingProxyType(
    {task_name(x): partial(lama, x) for x in RELATIONS}
    | {task_name(f"google-re-{x}"): partial(google_re, x) for x in GOOGLE_RE}
)


def lama_groups(by_relation: Mapping[str, Scores]) -> Scores:
    """Scores of relations together: ``p_at_1_micro`` and ``p_at_1_macro``, each with its 95 % bootstrap interval.

    ``by_relation`` are what :func:`~epigraph.tasks.choice_metrics.score_probes` gave for each. A fact's statistics for
    the macro mean stand in columns of its relation, ``[facts, 2 * relations]``, so that it too is a function of sums
    over facts and two systems can be compared in it. Raises :class:`TooFewExamples` for no relation, and
    :class:`MetricUnavailable` for scores without P@1 row by row, such as those of a record.
    """
    if not by_relation:
        raise TooFewExamples("got no relations to score together, expected one or more")
    for relation, scores in by_relation.items():
        if "p_at_1" not in scores.summed:
            raise MetricUnavailable(
                f"relation {relation}: got scores without the rows of p_at_1, expected them as they come from scoring "
                "predictions; score those again"
            )
    rows = [scores.summed["p_at_1"].statistics for scores in by_relation.values()]
    found = {
        "p_at_1_micro": Summed.mean(np.concatenate(rows)[:, 0].tolist()),
        "p_at_1_macro": Summed(statistics=_apart(rows), finish=_macro),
    }
    return Scores.of(found, _GROUP_VARIANTS, sum(len(x) for x in rows))


def read_probes() -> Probes:
    """Read everything; raises :class:`DataNotFound` where one file is not here, and :class:`BadRows`."""
    templates = _load_templates(RELATIONS)
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


def _task(
    name: str,
    part: str,
    template: str,
    splits: Mapping[str, Loader],
    candidates: tuple[str, ...],
    files: Mapping[str, str],
) -> Task:
    absent = [split for split in SPLITS if split not in splits]
    without = f"; no {' and no '.join(absent)} split" if absent else ""
    return Task(
        name=name,
        summary=f"LAMA {part}: the object of a fact from its subject{without}",
        instruction="Say the word that is missing.",
        splits=splits,
        score=score_probes,
        headline="p_at_1",
        better_when_higher=PROBES_BETTER_WHEN_HIGHER,
        input_template=template,
        max_source_tokens=128,
        max_target_tokens=16,
        candidates=candidates,
        files=found_files("lama", {called: file for called, file in files.items() if called not in absent}),
    )


def _refuse(message: str) -> NoReturn:
    raise DataNotFound(message)


def _load_templates(relations: Sequence[str]) -> dict[str, str]:
    path = find_file("lama", _FILES["relations"])
    written = {x["relation"]: x["template"] for x in read_records(path, ("relation", "template"))}
    templates: dict[str, str] = {}
    for relation in relations:
        if relation not in written:
            raise BadRows(f"{path}: got no row of relation {relation}, expected one of each; copy the file again")
        try:
            templates[relation] = masked(written[relation])
        except ValueError as error:
            raise BadRows(f"{path}: template of {relation}: {error}") from error
    return templates


def _load_facts(split: str) -> dict[str, list[Example]]:
    return _read_facts(_FILES[split], RELATIONS)


def _read_facts(file: str, relations: Sequence[str]) -> dict[str, list[Example]]:
    """The facts of each relation that has any, in the order of ``relations``, facts in the file's."""
    rows = read_records(find_file("lama", file), ("relation", "sub_label", "obj_label"))
    facts: dict[str, list[Example]] = {relation: [] for relation in relations}
    for row in rows:
        if row["relation"] in facts:
            facts[row["relation"]].append(Example(source=row["sub_label"], references=(row["obj_label"],)))
    return {relation: some for relation, some in facts.items() if some}


def _apart(rows: Sequence[Floats]) -> Floats:
    """The rows ``[facts, 2]`` of each relation one below the other, in columns of their own."""
    apart = np.zeros((sum(len(x) for x in rows), 2 * len(rows)))
    start = 0
    for number, some in enumerate(rows):
        apart[start : start + len(some), 2 * number : 2 * number + 2] = some
        start += len(some)
    return apart


def _macro(totals: Floats) -> Floats:
    """The mean of the relations' P@1 from sums ``[..., 2 * relations]``: of each, its value and its number of facts."""
    right, facts = totals[..., ::2], totals[..., 1::2]
    return np.asarray((right / np.maximum(facts, 1.0)).sum(axis=-1) / (facts > 0).sum(axis=-1))
