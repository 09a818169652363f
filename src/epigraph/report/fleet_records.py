"""What a fleet left in its folder, read back as values: how every user ended, and what they all have in common.

Every record is untrusted text, checked here once. It knows the files and nothing of who wrote them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, ValidationError

from epigraph.errors import BadRows, RecordsNotFound
from epigraph.report.records import Count, MetricName, Record, Summary

FLEET = "fleet.json"
_SUMMARY = "summary.json"


class Done(Record):
    """A user whose artifact is there. A score may be NaN."""

    user: str
    steps: Count
    kept_step: Count
    dev: dict[MetricName, float] = Field(default_factory=dict)
    stopped_early: bool = False
    tokens: Count
    seconds: Annotated[float, Field(ge=0, le=1e10)]
    stored_bytes: Count


class SetAside(Record):
    """A user who has no artifact, and why."""

    user: str
    error: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetRecords:
    """All records of a fleet's folder; users by id. ``example`` is the summary of one who is done, None without any.

    ``recipe`` is what all share, ``num_unfinished`` counts those whose run was begun and has not ended.
    """

    name: str
    recipe: Mapping[str, Any]
    example: Summary | None
    done: Mapping[str, Done]
    set_aside: Mapping[str, SetAside]
    num_unfinished: int


def is_fleet(folder: Path) -> bool:
    """Whether ``folder`` is what `epigraph fleet` writes to."""
    return (folder / FLEET).is_file()


def read_fleet(folder: Path) -> FleetRecords:
    """Everything in ``folder``; raises :class:`RecordsNotFound` for another kind of folder, :class:`BadRows` for a
    record that breaks its form."""
    if not is_fleet(folder):
        raise RecordsNotFound(f"{folder} has no {FLEET}, expected the folder that was given to `epigraph fleet --out`")
    recipe = _read(folder / FLEET)
    if not isinstance(recipe, dict):
        raise BadRows(f"{folder / FLEET}: got {type(recipe).__name__}, expected a JSON object")
    done = dict(_records(folder / "done", Done))
    # Who was set aside by one worker and done by another is done.
    aside = {name: x for name, x in _records(folder / "failed", SetAside) if name not in done}
    running = {x.name.rpartition(".")[0] for x in folder.glob("running/*.*")}
    return FleetRecords(
        name=folder.resolve().name,
        recipe=recipe,
        example=_example(folder, done),
        done=done,
        set_aside=aside,
        num_unfinished=len(running - done.keys() - aside.keys()),
    )


def _example(folder: Path, done: Mapping[str, Done]) -> Summary | None:
    """What the runs of one user says of them all: model, method, sizes, versions, machine."""
    paths = (folder / "users" / name / _SUMMARY for name in done)
    path = next((x for x in paths if x.is_file()), None)
    return None if path is None else _checked(Summary, path)


AnyRecord = TypeVar("AnyRecord", bound=Record)


def _records(folder: Path, kind: type[AnyRecord]) -> Iterator[tuple[str, AnyRecord]]:
    for path in sorted(folder.glob("*.json")):
        # Hidden ones are on their way.
        if not path.name.startswith("."):
            yield path.name.removesuffix(".json"), _checked(kind, path)


def _checked(kind: type[AnyRecord], path: Path) -> AnyRecord:
    try:
        return kind.model_validate(_read(path))
    except ValidationError as wrong:
        fault = wrong.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, fault["loc"])) or "the record"
        raise BadRows(f"{path}: {where}: {fault['msg']}; move it away, or train this user again") from wrong


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as wrong:
        raise BadRows(f"{path}: not JSON ({wrong}); move it away, or train this user again") from wrong
