"""Every task by name, several joined by +, a user's own as a task, and draws from examples. It reads no file itself."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import MappingProxyType

from epigraph.errors import BadRows, BadValue, TaskNotFound, TooFewExamples
from epigraph.tasks import (
    classification,
    paraphrase,
    probing,
    question_answering,
    summarization,
    superglue,
    superglue_patterns,
    topics,
    triples,
)
from epigraph.tasks.base import Example, Task
from epigraph.tasks.choice_metrics import LABELS_BETTER_WHEN_HIGHER, score_labels
from epigraph.tasks.metrics import score_texts
from epigraph.tasks.mixture import JOINT, mixture
from epigraph.tasks.own import SUFFIX, own_task
from epigraph.tasks.rows import read_rows
from epigraph.tasks.table_to_text import cards, e2e

Tasks = Mapping[str, Callable[[], Task]]

# By what they are about, one module each.
GROUPS: Mapping[str, Tasks] = MappingProxyType(
    {
        "table to text": MappingProxyType({"cards": cards, "e2e": e2e}),
        "triples": triples.TASKS,
        "summarization": summarization.TASKS,
        "superglue": superglue.TASKS,
        "superglue patterns": superglue_patterns.TASKS,
        "question answering": question_answering.TASKS,
        "paraphrase": paraphrase.TASKS,
        "classification": classification.TASKS,
        "topics": topics.TASKS,
        "probing": probing.TASKS,
    }
)
PROBES: Tasks = GROUPS["probing"]
TASKS: Tasks = MappingProxyType({name: make for tasks in GROUPS.values() for name, make in tasks.items()})


def find(name: str) -> Task:
    """The task of that name; several joined by ``+`` are a mixture, and a path that ends in ``.toml`` is a user's own.

    Raises :class:`TaskNotFound` with the nearest name, and what :func:`~epigraph.tasks.mixture.mixture` and
    :func:`~epigraph.tasks.own.own_task` raise.
    """
    if name in TASKS:
        return TASKS[name]()
    # A plus may be part of a path.
    if name.endswith(SUFFIX) and (JOINT not in name or Path(name).is_file()):
        return own_task(Path(name))
    if JOINT in name:
        return mixture([find(part) for part in name.split(JOINT)])
    near = get_close_matches(name.lower(), TASKS, n=1)
    hint = (
        f"did you mean {near[0]}" if near else f"expected one of {', '.join([*TASKS][:3])}, ... ({len(TASKS)} in all)"
    )
    raise TaskNotFound(f"got no task {name!r}, {hint}; see `epigraph data list`, or for your own file use --data FILE")


def find_named(name: str) -> Task:
    """As :func:`find`, for names that a file brought with it: tasks of the catalogue and mixtures, never a file."""
    if any(part not in TASKS for part in name.split(JOINT)):
        raise TaskNotFound(
            f"the file was trained on {name[:80]!r}, which is no task of the catalogue; say what to ask it with --task "
            "or --data"
        )
    return find(name)


def own_data(train: Path, dev: Path | None, test: Path | None, name: str, labels: tuple[str, ...] = ()) -> Task:
    """A user's own files as a task, all of them read now, so that bad rows are known before any model is loaded.

    Rows are plain in every file or chat in every file. Where ``labels`` are given, every target is one of them, and
    answers are scored by accuracy. Raises what :func:`~epigraph.tasks.rows.read_rows` raises, :class:`BadRows` where
    one file is chat and another is plain, and :class:`BadValue` for labels that no answer could be told apart by.
    """
    check_labels(labels)
    given = {"train": train, "dev": dev, "test": test}
    files = {split: path for split, path in given.items() if path is not None}
    return own_rows({split: read_rows(path, labels) for split, path in files.items()}, files, name, labels)


def own_rows(
    rows: Mapping[str, Sequence[Example]], files: Mapping[str, Path], name: str, labels: tuple[str, ...] = ()
) -> Task:
    """A user's own rows as the task :func:`own_data` makes of them: by split, with the file that they come from.

    Raises :class:`BadRows` where the rows of one split are chat and those of another are plain.
    """
    is_chat = bool(rows["train"][0].turns)
    for split, examples in rows.items():
        if bool(examples[0].turns) != is_chat:
            kinds = ("chat rows", "plain rows") if is_chat else ("plain rows", "chat rows")
            raise BadRows(f"{files[split]}: got {kinds[1]}, expected {kinds[0]} as in {files['train']}")
    task = Task(
        name=name,
        summary=f"your own {'conversations' if is_chat else 'rows'} from {files['train']}",
        instruction="Write the text that belongs to the input.",
        splits={split: partial(list, examples) for split, examples in rows.items()},
        score=score_texts,
        is_chat=is_chat,
        files={split: str(path) for split, path in files.items()},
    )
    return _labelled(task, labels) if labels else task


def _labelled(task: Task, labels: tuple[str, ...]) -> Task:
    return replace(
        task,
        instruction="Choose the label that belongs to the input.",
        score=partial(score_labels, labels=labels),
        headline="accuracy",
        better_when_higher=LABELS_BETTER_WHEN_HIGHER,
        labels=labels,
    )


def check_labels(labels: tuple[str, ...]) -> None:
    """Raise :class:`BadValue` for labels that no answer could be told apart by."""
    for number, label in enumerate(labels):
        if not label or label != label.strip() or label in labels[:number]:
            raise BadValue(
                f"labels: got {label[:60]!r} as number {number}, expected each once and without outer blanks"
            )
    if len(labels) == 1:
        raise BadValue(f"labels: got {labels[0]!r} alone, expected two or more to choose from")


def draw_pairs(examples: Sequence[Example], limit: int | None, seed: int) -> list[Example]:
    """``limit`` (source, reference) pairs of ``examples``, each as an example with that one reference.

    Every pair is as likely as any other, without replacement: an example with 8 references is 8 pairs. The same seed
    draws the same on every machine, and a smaller draw is the beginning of a larger one. None is all pairs in order.
    Raises :class:`TooFewExamples` where there are not ``limit`` pairs, :class:`BadValue` for a limit below 1.
    """
    pairs = [replace(example, references=(reference,)) for example in examples for reference in example.references]
    if limit is None:
        return pairs
    if limit < 1:
        raise BadValue(f"got a limit of {limit} pairs, expected 1 or more")
    if limit > len(pairs):
        raise TooFewExamples(
            f"got a limit of {limit:,} pairs, expected {len(pairs):,} or fewer: {len(examples):,} examples have no more"
        )
    # Sorting by random() and not sample(): Python promises the same numbers across versions for random() alone.
    generator = random.Random(seed)
    keys = [generator.random() for _ in pairs]
    return [pairs[number] for number in sorted(range(len(pairs)), key=keys.__getitem__)[:limit]]


def data_hash(examples: Sequence[Example]) -> str:
    """SHA-256, in hexadecimal, of the examples as canonical JSON, one a line; their order counts."""
    digest = hashlib.sha256()
    for example in examples:
        row = {
            "source": example.source,
            "references": list(example.references),
            "turns": [{"role": turn.role, "content": turn.content} for turn in example.turns],
            **({"further": dict(example.further)} if example.further else {}),
        }
        line = json.dumps(row, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
        digest.update(line.encode("ascii") + b"\n")
    return digest.hexdigest()
