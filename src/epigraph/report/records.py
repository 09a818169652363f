"""What a training run left on disk, read back as values. It knows the files and nothing of who wrote them.

Every record is untrusted text: it is checked here once, so that the page never meets a missing or misshapen number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from epigraph.errors import BadRows, RecordsNotFound

# Printable ASCII: metric names are drawn by matplotlib, whose bundled font has no other letters for certain.
MetricName = Annotated[str, Field(pattern=r"^[ -~]{1,64}$")]
Count = Annotated[int, Field(ge=0, le=10**18)]
Size = Annotated[int, Field(gt=0, le=10**18)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
# A mean of weights: rounding may carry it over 1.
Share = Annotated[float, Field(ge=0, le=1.001, allow_inf_nan=False)]
SiteName = Literal["decoder.self", "decoder.cross", "encoder.self"]

NAME_ORDER = ("before", "after")
MAX_LISTED = 10


class Record(BaseModel):
    """One record. Keys that the report does not show are let pass, so a newer trainer keeps its reports."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Step(Record):
    """One optimiser step. A loss may be NaN: a run that failed deserves its curve most."""

    step: Count
    loss: float


class Development(Record):
    """Scores on the development split after ``step``; ``loss`` among them is drawn with the training loss."""

    step: Count
    dev: Annotated[dict[MetricName, float], Field(min_length=1)]


class ExampleRecord(Record):
    """One test row and what the model wrote for it."""

    source: str
    references: tuple[str, ...] = ()
    prediction: str


class Evaluation(Record):
    """One system scored on one split; ``intervals`` are (low, high), ``variants`` say what exactly was
    computed, ``missing`` why a metric was not."""

    name: str
    split: str = "test"
    scores: dict[MetricName, Finite]
    intervals: dict[MetricName, tuple[Finite, Finite]] = {}
    variants: dict[str, str] = {}
    missing: dict[str, str] = {}
    num_examples: Count
    decoding: dict[str, Any] = {}
    examples: tuple[ExampleRecord, ...] = ()


class Summary(Record):
    """The run as a whole. Bytes are file sizes, ``seconds`` is wall time."""

    model: str
    model_parameters: Size
    model_bytes: Size
    artifact_bytes: Size
    num_virtual_tokens: Count
    trained_numbers: Count
    stored_numbers: Count
    task: str
    method: str
    seconds: Annotated[float, Field(ge=0, le=1e10)]
    machine: dict[str, Any] = {}
    versions: dict[str, Any] = {}
    seed: int
    kept_step: Count | None = None
    content_hash: str | None = None


class SiteMass(Record):
    """Shares of the text's attention at one site: ``virtual`` by layer and virtual token, ``text`` by layer."""

    virtual: Annotated[tuple[tuple[Share, ...], ...], Field(min_length=1, max_length=1_024)]
    text: tuple[Share, ...]

    @model_validator(mode="after")
    def _rectangular(self) -> SiteMass:
        widths = {len(shares) for shares in self.virtual}
        if len(self.virtual) != len(self.text) or len(widths) != 1 or 0 in widths:
            raise ValueError("virtual and text must have the same layers, each with as many virtual tokens")
        return self


class MassRecord(Record):
    """What ``epigraph inspect --mass --picture`` leaves beside its picture. ``content_hash`` is the artifact's."""

    content_hash: str
    base: str
    texts: str
    num_texts: Count
    num_tokens: Count
    sites: Annotated[dict[SiteName, SiteMass], Field(min_length=1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """All records of one training folder; a piece that is not there is None or empty."""

    name: str
    summary: Summary | None
    steps: tuple[Step, ...]
    development: tuple[Development, ...]
    recipe: Mapping[str, Any] | None
    evaluations: tuple[Evaluation, ...]
    mass: MassRecord | None = None


AnyRecord = TypeVar("AnyRecord", bound=Record)


def read_run(folder: Path) -> Run:
    """Everything in ``folder``; raises :class:`RecordsNotFound` where nothing was trained, :class:`BadRows` for a
    record that breaks its form."""
    if not (folder / "steps.jsonl").is_file() and not (folder / "summary.json").is_file():
        raise RecordsNotFound(
            f"{folder} holds neither steps.jsonl nor summary.json, expected the output folder of a training run; "
            "name the folder that was given to `epigraph train --out`"
        )
    steps, development = _read_steps(folder / "steps.jsonl")
    recipe = _read_json(folder / "recipe.json")
    if recipe is not None and not isinstance(recipe, dict):
        raise BadRows(f"{folder / 'recipe.json'}: got {type(recipe).__name__}, expected a JSON object")
    return Run(
        name=folder.resolve().name,
        summary=_read_record(Summary, folder / "summary.json"),
        steps=steps,
        development=development,
        recipe=recipe,
        evaluations=_read_evaluations(folder / "evaluations"),
        mass=read_mass(folder / "mass.json"),
    )


def read_mass(path: Path) -> MassRecord | None:
    """The record of a mass at ``path``, None where there is no file; raises :class:`BadRows` for anything else."""
    return _read_record(MassRecord, path)


def _read_steps(path: Path) -> tuple[tuple[Step, ...], tuple[Development, ...]]:
    steps: list[Step] = []
    development: list[Development] = []
    bad: list[str] = []
    lines = _read_text(path).split("\n") if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if isinstance(row, dict) and "dev" in row:
                development.append(Development.model_validate(row))
            else:
                steps.append(Step.model_validate(row))
        except ValidationError as error:
            bad.append(f"line {number}: {_first_fault(error)}")
        except ValueError as error:
            # A run that was killed, or is still writing, leaves half a line at the end: that is no fault of the file.
            if number < len(lines):
                bad.append(f"line {number}: not JSON ({error})")
    if bad:
        more = f"; and {len(bad) - MAX_LISTED} more" if len(bad) > MAX_LISTED else ""
        raise BadRows(f"{path}: {'; '.join(bad[:MAX_LISTED])}{more}; expected one step or development object a line")
    return tuple(steps), tuple(development)


def _read_evaluations(folder: Path) -> tuple[Evaluation, ...]:
    read = [_read_record(Evaluation, path) for path in sorted(folder.glob("*.json"))]
    return tuple(sorted((x for x in read if x is not None), key=lambda x: (x.split, *_name_order(x.name))))


def _name_order(name: str) -> tuple[int, str]:
    return (NAME_ORDER.index(name) if name in NAME_ORDER else len(NAME_ORDER), name)


def _read_record(kind: type[AnyRecord], path: Path) -> AnyRecord | None:
    value = _read_json(path)
    if value is None:
        return None
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise BadRows(f"{path}: {_first_fault(error)}; write the record again, or move it away") from error


def _read_json(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise BadRows(f"{path}: not JSON ({error}); write the record again, or move it away") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadRows(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); write the record again") from error


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(x) for x in fault["loc"]) or "the record"
    got = "" if fault["type"] == "missing" else f", got {repr(fault['input'])[:60]}"
    return f"{where}: {fault['msg']}{got}"
