"""A user's own task as one TOML file: which columns, which words, which metrics, and where its rows are.

The file and its rows are untrusted. It knows texts and metrics by name; no model, and no other task.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from epigraph.errors import BadValue, RecipeError, UnknownKey
from epigraph.tasks import choice_metrics, metrics, qa_metrics, rouge
from epigraph.tasks.base import Example, Loader, Scorer, Scores, Task
from epigraph.tasks.columns import Columns, read_file, read_hub
from epigraph.tasks.faults import quoted, shown

SUFFIX = ".toml"

_TEXTS = ("bleu", "chrf", "exact_match", "mean_length_words")
_LABELS = (*choice_metrics.LABELS_BETTER_WHEN_HIGHER, "illegal_share")
_SCORERS: Mapping[str, Scorer] = MappingProxyType(
    {
        **dict.fromkeys(_TEXTS, metrics.score_texts),
        **dict.fromkeys(rouge.BETTER_WHEN_HIGHER, rouge.score_rouge),
        **dict.fromkeys(qa_metrics.QA_BETTER_WHEN_HIGHER, qa_metrics.score_squad),
    }
)
# Every metric that a file may name, and those of which more is not better.
METRICS = (*_SCORERS, *_LABELS)
_NOT_HIGHER = ("mean_length_words", "illegal_share")

_FIELD = re.compile(r"\{([^{}]*)\}")
_COUNT = re.compile(r"[1-9][0-9]*")

Text = Annotated[str, Field(min_length=1, max_length=4096)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
FieldName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Count = Annotated[int, Field(ge=1, le=1_000_000)]


class Part(BaseModel):
    """A table of the file: unknown keys are errors, and nothing is taken for something else."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class HubPart(Part):
    """``[hub]``: rows of the Hugging Face hub; ``splits`` maps our splits to the hub's."""

    id: Text
    config: Text | None = None
    splits: Annotated[dict[Name, Text], Field(min_length=1)]


class Spec(Part):
    """The keys of the file; docs/data.md says what each is for."""

    name: Name | None = None
    summary: Text | None = None
    instruction: Text = "Write the text that belongs to the input."
    source: Text = "source"
    target: Text | None = None
    references: Text | None = None
    further: dict[FieldName, Text] = {}
    input_template: Text = "{source}\n"
    target_template: Text = "{target}"
    metrics: list[Text] = []
    headline: Text | None = None
    labels: list[Text] = []
    label_words: list[Text] = []
    max_source_tokens: Count = 512
    max_target_tokens: Count = 128
    files: dict[Name, Text] = {}
    hub: HubPart | None = None

    @property
    def columns(self) -> Columns:
        """Which column is what."""
        return Columns(
            source=self.source,
            answer=self.references or self.target or "target",
            further=self.further,
            is_list=self.references is not None,
            labels=tuple(self.labels),
        )

    @property
    def chosen(self) -> tuple[str, ...]:
        """The metrics asked for; where none are, those of labels or of texts."""
        return tuple(self.metrics) or (_LABELS if self.labels else _TEXTS)

    @model_validator(mode="after")
    def _one_of_two(self) -> Spec:
        if self.target is not None and self.references is not None:
            raise ValueError("got target and references, expected the column of a text or that of a list; drop one")
        if bool(self.files) == (self.hub is not None):
            got = "both" if self.files else "neither"
            raise ValueError(f"got {got} of [files] and [hub], expected one of them: where the rows are")
        if self.references is not None and self.labels:
            raise ValueError("got labels and references, expected the column of the one label; name it in target")
        if self.columns.answer in (self.source, *self.further.values()):
            raise ValueError(
                f"got the column {quoted(self.columns.answer)} as input and as answer, expected two columns"
            )
        return self

    @model_validator(mode="after")
    def _labels_differ(self) -> Spec:
        if self.label_words and len(self.label_words) != len(self.labels):
            raise ValueError(f"label_words: got {len(self.label_words)}, expected {len(self.labels)}: one a label")
        if len(self.labels) == 1 or len({x.strip() for x in self.labels}) != len(self.labels):
            raise ValueError(
                f"labels: got {quoted(', '.join(self.labels))}, expected two or more, each once, to choose from"
            )
        return self

    @model_validator(mode="after")
    def _templates_fit(self) -> Spec:
        check_template("input_template", self.input_template, ("source", *self.further))
        check_template("target_template", self.target_template, ("target",))
        return self

    @model_validator(mode="after")
    def _metrics_fit(self) -> Spec:
        for name in self.metrics:
            if name not in METRICS:
                raise ValueError(f"metrics: got {quoted(name)}, {nearest(name, METRICS)}")
            if name in _LABELS and not self.labels:
                raise ValueError(f"metrics: got {quoted(name)}, which counts labels; give labels, or take exact_match")
        if self.headline is not None and self.headline not in self.chosen:
            got = quoted(self.headline)
            raise ValueError(f"headline: got {got}, expected one of this task's metrics: {', '.join(self.chosen)}")
        return self


def own_task(path: Path) -> Task:
    """The task that the TOML file ``path`` describes; paths in it count from its folder.

    Files of rows are read now, so that bad rows are known before any model is loaded; those of a hub when they are
    asked for. Raises :class:`UnknownKey` with the nearest key, :class:`BadValue`, :class:`BadRows` with all bad rows
    of a file, :class:`DataNotFound` and :class:`UnknownFormat`.
    """
    spec = read_spec(path)
    files = {split: path.parent / Path(file).expanduser() for split, file in spec.files.items()}
    splits: dict[str, Loader] = {split: partial(list, read_file(file, spec.columns)) for split, file in files.items()}
    if spec.hub is not None:
        load = partial(read_hub, spec.hub.id, spec.hub.config, columns=spec.columns)
        splits = {split: partial(load, theirs) for split, theirs in spec.hub.splits.items()}
    return Task(
        name=spec.name or path.stem,
        summary=spec.summary or f"your own task from {path}",
        instruction=spec.instruction,
        splits=splits,
        score=partial(_score, names=spec.chosen, labels=tuple(spec.labels)),
        headline=spec.headline or spec.chosen[0],
        better_when_higher=tuple(x for x in spec.chosen if x not in _NOT_HIGHER),
        input_template=spec.input_template,
        target_template=spec.target_template,
        max_source_tokens=spec.max_source_tokens,
        max_target_tokens=spec.max_target_tokens,
        labels=tuple(spec.labels),
        label_words=tuple(spec.label_words),
        files={split: str(file) for split, file in files.items()},
    )


def read_spec(path: Path) -> Spec:
    """The keys of ``path``, checked; raises :class:`UnknownKey` and :class:`BadValue`, each in one line."""
    try:
        written = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as wrong:
        why = (isinstance(wrong, OSError) and wrong.strerror) or wrong
        raise BadValue(f"{path}: got {why}, expected a task as a TOML file; docs/data.md has an example") from None
    try:
        return Spec.model_validate(written)
    except ValidationError as wrong:
        raise _one_line(path, wrong.errors()[0]) from None


def _one_line(path: Path, mistake: Mapping[str, Any]) -> RecipeError:
    *tables, key = (str(x) for x in mistake["loc"] or ("",))
    dotted = ".".join([*tables, key])
    if mistake["type"] == "extra_forbidden":
        known = (HubPart if tables else Spec).model_fields
        return UnknownKey(f"{path}: unknown key {quoted(dotted)}; {nearest(key, known)}")
    if mistake["type"] == "missing":
        return BadValue(f"{path}: {dotted}: got nothing, expected a value; set it")
    message = str(mistake["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    if mistake["type"] == "value_error":
        return BadValue(f"{path}: {message}")
    return BadValue(f"{path}: {dotted}: got {shown(mistake['input'])}, expected {message[:1].lower()}{message[1:]}")


def nearest(name: str, known: Iterable[str]) -> str:
    """``did you mean X`` where a name that is known is near, else all of them."""
    near = get_close_matches(name.lower(), [*known], n=1)
    return f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"


def check_template(key: str, template: str, known: Sequence[str]) -> None:
    """Raise ValueError unless ``template`` has the first of ``known`` in braces, and no other field than these.

    Numbers in braces are places for virtual tokens, which an input template may have.
    """
    asked = _FIELD.findall(template)
    bad = [x for x in asked if x not in known and not (key == "input_template" and _COUNT.fullmatch(x))]
    if bad or {"{", "}"} & {*_FIELD.sub("", template)}:
        got = quoted(f"{{{bad[0]}}}") if bad else "a brace without its other"
        raise ValueError(f"{key}: got {got}, expected {', '.join(f'{{{x}}}' for x in known)}; name columns in further")
    if known[0] not in asked:
        raise ValueError(f"{key}: got {quoted(template)}, expected {{{known[0]}}} in it")


# Scoring


def _score(
    predictions: Sequence[str],
    examples: Sequence[Example],
    only: Collection[str] | None = None,
    *,
    names: Sequence[str],
    labels: tuple[str, ...],
) -> Scores:
    """Each of ``names`` by the scorer that has it, all as one."""
    by_label = partial(choice_metrics.score_labels, labels=labels)
    some: dict[Scorer, list[str]] = {}
    for name in names:
        if only is None or name in only:
            some.setdefault(_SCORERS.get(name, by_label), []).append(name)
    found = [scorer(predictions, examples, wanted) for scorer, wanted in some.items()]
    return metrics.together(found, names, len(predictions))
