"""Several sweeps as one: where each works, what the next ones cost by what the first did, and the relations of LAMA.

It knows specs and folders; what one sweep does is run.py's.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epigraph.errors import BadValue
from epigraph.sweep.compare import Advantage, advantage, mean_interval
from epigraph.sweep.folder import SPEC, SweepFolder
from epigraph.sweep.inputs import shown_name
from epigraph.sweep.pace import Cost, Pace, costs, paces, paces_by
from epigraph.sweep.plan import Cell, Record
from epigraph.sweep.run import Sweep
from epigraph.sweep.spec import Spec, read_spec
from epigraph.sweep.table import Results, Row, Table, model_of, partners
from epigraph.tasks.base import Scores
from epigraph.tasks.bootstrap import Summed
from epigraph.tasks.catalogue import PROBES
from epigraph.tasks.probing import lama_groups

METRICS = ("p_at_1_micro", "p_at_1_macro")
Run = tuple[Record, Scores]


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One of several sweeps: its ``spec``, from the file ``path``, of one ``task`` of that file where it has several.

    ``folder`` is where it works.
    """

    spec: Spec
    path: Path
    task: str | None
    folder: Path


def members_of(paths: Sequence[Path], out: Path) -> list[Member]:
    """The sweeps of spec files and folders of such: one works in ``out``, each of several below, in one of its name.

    One of several tasks works in a folder of the task's name below. Raises :class:`BadValue` for a folder without specs
    and for two specs of one name, and what :func:`~epigraph.sweep.spec.read_spec` raises.
    """
    files = [file for path in paths for file in _files(path)]
    specs = [(file, read_spec(file)) for file in files]
    for number, (file, spec) in enumerate(specs):
        if any(spec.name == other.name for _, other in specs[:number]):
            raise BadValue(f"{file}: got the name {spec.name!r}, which another of these specs has; run them apart")
    return [
        member for file, spec in specs for member in _members(spec, file, out if len(specs) == 1 else out / spec.name)
    ]


def all_costs(sweeps: Sequence[tuple[Path, Sweep]], only: Collection[str] = ()) -> list[list[Cost]]:
    """What is left to do in each of several sweeps, each with the file of its spec.

    Pilots are run for the first task of a file alone and stand for its others, by the length of their rows.
    """
    first: dict[Path, tuple[dict[str, Pace], float]] = {}
    found = []
    for path, sweep in sweeps:
        plan, folder, length = sweep.plan, sweep.folder, sweep.inputs.length
        if path not in first:
            systems = tuple(x for x in plan.spec.systems if not only or x in only)
            first[path] = paces(plan, folder, sweep.device, systems), length
        known, of_first = first[path]
        found.append(costs(plan, sweep.inputs, sweep.found(), paces_by(plan, folder, known, length / of_first)))
    return found


def folders_in(folder: Path) -> list[Path]:
    """The folders of sweeps in ``folder``, itself alone where it is one; raises :class:`RecordsNotFound` for none."""
    found = list(_folders(folder))
    if not found:
        SweepFolder(folder).check()
    return found


def together(sweeps: Mapping[str, Results], against: str | None = None) -> list[Table]:
    """Micro and macro P@1 over the relations of LAMA that these sweeps are about, by task: system by system.

    Runs of the same pairs, draw and seed belong together. A system has a row once all its runs on all relations are
    there. No tables where the sweeps are about something else, or not about the same systems.
    """
    if len(sweeps) < 2 or not set(sweeps) <= set(PROBES) or not _are_alike([x.plan.spec for x in sweeps.values()]):
        return []
    results = list(sweeps.values())
    cells = zip(*(x.plan.cells for x in results), strict=True)
    runs = {(x[0].system, x[0].limit): (x[0], _joined(list(sweeps), results, x)) for x in cells}
    plan = results[0].plan
    title = f"{len(sweeps)} relations of LAMA, {shown_name(plan.spec.evaluate[0], plan.spec).partition(', ')[2]}"
    others = [run for cell, some in runs.values() if cell.system == against for run in some]
    found = []
    for metric in METRICS:
        rows = [_row(cell, results, some, metric, others) for cell, some in runs.values() if some]
        variants = [some[0][1].variants[metric] for _, some in runs.values() if some]
        if rows:
            table = Table(evaluation=title, metric=metric, variant=variants[0], against=against, rows=tuple(rows))
            found.append(table)
    return found


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(path.rglob("*.toml"), key=_by_number)
    if not found:
        raise BadValue(f"{path} holds no .toml file; give the path of a spec, or of a folder of specs")
    return found


def _members(spec: Spec, path: Path, folder: Path) -> Iterator[Member]:
    if not spec.tasks:
        yield Member(spec=spec, path=path, task=None, folder=folder)
    for task in spec.tasks:
        yield Member(spec=spec.of_task(task), path=path, task=task, folder=folder / task)


def _folders(folder: Path) -> Iterator[Path]:
    if (folder / SPEC).is_file():
        yield folder
    elif folder.is_dir():
        for inner in sorted((x for x in folder.iterdir() if x.is_dir()), key=_by_number):
            yield from _folders(inner)


def _by_number(path: Path) -> list[tuple[int, str]]:
    """In the order of the alphabet, but P19 before P103."""
    return [(int(x), "") if x.isdigit() else (0, x) for x in re.split(r"(\d+)", str(path))]


def _are_alike(specs: Sequence[Spec]) -> bool:
    return all(
        (list(x.systems), x.limits, x.draws, x.seeds, x.evaluate)
        == (list(specs[0].systems), specs[0].limits, specs[0].draws, specs[0].seeds, specs[0].evaluate)
        and len(x.evaluate) == 1
        and not x.ensembles
        for x in specs
    )


def _joined(names: Sequence[str], results: Sequence[Results], cells: Sequence[Cell]) -> list[Run]:
    """The runs of one system, each on all relations; none until all are there."""
    by_sweep = [result.finished(cell) for result, cell in zip(results, cells, strict=True)]
    if len({len(x) for x in by_sweep}) != 1:
        return []
    return [_run(names, results, records) for records in zip(*by_sweep, strict=True)]


def _run(names: Sequence[str], results: Sequence[Results], records: Sequence[Record]) -> Run:
    apart = {
        name: result.scored_again(record, 0, "p_at_1")
        for name, result, record in zip(names, results, records, strict=True)
    }
    first: dict[str, Any] = {**records[0], "key": None, "lr": None, "dev": None}
    for name in ("trained_numbers", "stored_numbers", "stored_bytes", "train_seconds", "evaluate_seconds"):
        first[name] = sum(record[name] or 0 for record in records)
    return first, lama_groups(apart)


def _row(cell: Cell, results: Sequence[Results], runs: Sequence[Run], metric: str, others: Sequence[Run]) -> Row:
    values = [scores.values[metric] for _, scores in runs]
    mean, half = mean_interval(values)
    plan, find = results[0].plan, results[0].find
    return Row(
        system=cell.system,
        model=model_of(cell, plan),
        limit=cell.limit if plan.spec.limits else None,
        num_planned=len(plan.finals(cell, plan.chosen(cell, find) or {})),
        mean=mean,
        half=half,
        best=None,
        values=tuple(values),
        intervals=tuple(scores.intervals[metric] for _, scores in runs),
        runs=tuple(record for record, _ in runs),
        illegal_share=None,
        advantage=None if others and others[0][0]["system"] == cell.system else _advantage(runs, metric, others),
        is_at_end=False,
    )


def _advantage(runs: Sequence[Run], metric: str, others: Sequence[Run]) -> Advantage | None:
    scores = {id(record): x for record, x in others}
    pairs = [(own, scores[id(x)]) for record, own in runs for x in partners(record, [other for other, _ in others])]
    summed: list[tuple[Summed, Summed]] = [(a.summed[metric], b.summed[metric]) for a, b in pairs]
    return advantage([(a.values[metric], b.values[metric]) for a, b in pairs], summed)
