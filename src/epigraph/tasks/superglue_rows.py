"""The lines of SuperGLUE's files, in the benchmark's own format, and the rows that are in them.

It knows formats and what T5's scripts clean (Raffel et al. 2020); it does not know how rows are written for a model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from epigraph.errors import BadRows
from epigraph.tasks.base import Example
from epigraph.tasks.faults import Fault, missing, shown
from epigraph.tasks.lines import json_lines, read_whole, report
from epigraph.tasks.superglue_metrics import COPA_LABELS, TRUTH_VALUES


def _not_empty(value: Any) -> Any:
    if not (value.strip() if isinstance(value, str) else value):
        raise ValueError("text that is not empty" if isinstance(value, str) else "one or more")
    return value


Text = Annotated[str, AfterValidator(_not_empty)]
Place = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """An example, the text that decides whether it is held out, and whether it may be learnt from."""

    example: Example
    held_out_by: str
    is_lesson: bool = True


class Part(BaseModel):
    """A piece of a line of a file; fields that are not named here are dropped."""

    model_config = ConfigDict(frozen=True, strict=True)


class Line(Part, ABC):
    """A line of a set's file, in the benchmark's own format."""

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """The line's rows: one, or one for each answer or query in it."""


class BoolQ(Line):
    """A question to a passage (Clark et al. 2019)."""

    passage: Text
    question: Text
    label: bool

    def rows(self) -> Iterator[Row]:
        """One question, held out by its passage."""
        row = Example(source=self.passage, references=(str(self.label),), further={"question": self.question})
        yield Row(example=row, held_out_by=self.passage)


class Inference(Line):
    """Whether a premise says a hypothesis."""

    premise: Text
    hypothesis: Text
    label: str

    def rows(self) -> Iterator[Row]:
        """One pair, held out by its premise."""
        row = Example(source=self.premise, references=(self.label,), further={"hypothesis": self.hypothesis})
        yield Row(example=row, held_out_by=self.premise)


class CB(Inference):
    """A row of the CommitmentBank (de Marneffe et al. 2019)."""

    label: Literal["entailment", "contradiction", "neutral"]


class RTE(Inference):
    """A row of the textual entailment challenges (Dagan et al. 2006 and later)."""

    label: Literal["entailment", "not_entailment"]


class COPA(Line):
    """Which of two is the cause or the effect of a premise (Roemmele et al. 2011)."""

    premise: Text
    choice1: Text
    choice2: Text
    question: Literal["cause", "effect"]
    label: Literal[0, 1]

    def rows(self) -> Iterator[Row]:
        """One choice, held out by its premise."""
        further = {"choice1": self.choice1, "choice2": self.choice2, "question": self.question}
        row = Example(source=self.premise, references=(COPA_LABELS[self.label],), further=further)
        yield Row(example=row, held_out_by=self.premise)


class WiC(Line):
    """Whether a word means the same in two sentences (Pilehvar & Camacho-Collados 2019)."""

    word: Text
    sentence1: Text
    sentence2: Text
    label: bool

    def rows(self) -> Iterator[Row]:
        """One pair, held out by its word: a sentence stands in several pairs, nearly always of the same word."""
        further = {"sentence2": self.sentence2, "word": self.word}
        row = Example(source=self.sentence1, references=(str(self.label),), further=further)
        yield Row(example=row, held_out_by=self.word)


class Spans(Part):
    """What a pronoun may stand for, and the pronoun, with their places in words."""

    span1_text: Text
    span1_index: Place
    span2_text: Text
    span2_index: Place


class WSC(Line):
    """Whether a pronoun stands for a phrase (Levesque et al. 2012)."""

    text: Text
    target: Spans
    label: bool

    @model_validator(mode="after")
    def _has_its_pronoun(self) -> Self:
        _marked(self.text, self.target.span2_text, self.target.span2_index)
        return self

    def rows(self) -> Iterator[Row]:
        """One pronoun, held out by its text. What a pronoun does not stand for is no lesson: it would be said."""
        spans = self.target
        row = Example(
            source=_marked(self.text, spans.span2_text, spans.span2_index),
            references=(_as_in_text(spans.span1_text, self.text, spans.span1_index),),
            further={"pronoun": spans.span2_text, "label": str(self.label)},
        )
        yield Row(example=row, held_out_by=self.text, is_lesson=self.label)


class Answer(Part):
    """An answer that someone may give; a few of them are empty in the official files."""

    text: str
    label: Literal[0, 1]


class Question(Part):
    """A question with its possible answers; ``idx`` is its number in the file."""

    idx: int
    question: Text
    answers: Annotated[tuple[Answer, ...], Field(strict=False), AfterValidator(_not_empty)]


class Questions(Part):
    """A paragraph and the questions to it."""

    text: Text
    questions: Annotated[tuple[Question, ...], Field(strict=False)]


class MultiRC(Line):
    """A paragraph with questions, any number of whose answers are right (Khashabi et al. 2018)."""

    passage: Questions

    def rows(self) -> Iterator[Row]:
        """An answer each, the answers to a question in one group, all held out by the paragraph."""
        paragraph = _without_markup(self.passage.text)
        for question in self.passage.questions:
            for answer in question.answers:
                asked = {"question": _without_markup(question.question), "answer": _without_markup(answer.text)}
                label, group = TRUTH_VALUES[answer.label], str(question.idx)
                row = Example(source=paragraph, references=(label,), further=asked, group=group)
                yield Row(example=row, held_out_by=self.passage.text)


class Span(Part):
    """Where an entity stands, by characters, the last one included."""

    start: Place
    end: Place


class Entities(Part):
    """A news article and the entities in it."""

    text: Text
    entities: Annotated[tuple[Span, ...], Field(strict=False), AfterValidator(_not_empty)]


class Filling(Part):
    """An entity that fills the query's gap."""

    text: Text


class Query(Part):
    """A sentence with a gap, and what may fill it."""

    query: Text
    answers: Annotated[tuple[Filling, ...], Field(strict=False), AfterValidator(_not_empty)]


class ReCoRD(Line):
    """A news article with queries, each a sentence that an entity was taken out of (Zhang et al. 2018)."""

    passage: Entities
    qas: Annotated[tuple[Query, ...], Field(strict=False)]

    def rows(self) -> Iterator[Row]:
        """A query each, its answers as references, all held out by the article."""
        text, article = self.passage.text, _without_highlights(self.passage.text)
        entities = sorted({text[x.start : x.end + 1] for x in self.passage.entities})
        for query in self.qas:
            further = {"query": query.query, "entities": ", ".join(entities), "choices": "\n".join(entities)}
            answers = tuple(sorted({x.text for x in query.answers}))
            yield Row(example=Example(source=article, references=answers, further=further), held_out_by=text)


def read_lines(path: Path, kind: type[Line]) -> list[Row]:
    """The rows of all lines of a file; raises :class:`DataNotFound`, and :class:`BadRows` with all bad lines."""
    expected = f"an object with {', '.join(kind.model_fields)}"
    rows, faults = list[Row](), list[tuple[int, Fault]]()
    for line, value in json_lines(read_whole(path, zipped=True), expected):
        try:
            if isinstance(value, Fault):
                faults.append((line, value))
            else:
                rows += kind.model_validate(value).rows()
        except ValidationError as wrong:
            faults += [(line, _fault(x, expected)) for x in wrong.errors()]
    if faults:
        raise BadRows(report(path, faults))
    if not rows:
        raise BadRows(f"no rows in {path}: got an empty file, expected one row a line: {expected}")
    return rows


def _fault(error: Mapping[str, Any], expected: str) -> Fault:
    name = ".".join(map(str, error["loc"]))
    if error["type"] == "missing":
        return missing(name, "a value")
    says = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    where = f"field {name}" if name else "row"
    return Fault(where=where, got=shown(error["input"]), expected=expected if error["type"] == "model_type" else says)


def _without_markup(text: str) -> str:
    return text.replace("<br>", " ").replace("<b>", "").replace("</b>", "")


def _without_highlights(text: str) -> str:
    """The article in one piece: a bullet point begins a sentence, and what stands before it gets a full stop."""
    head, *points = text.split("\n@highlight\n")
    for point in points:
        head += f" {point}" if head.endswith((".", "?", "!", '"', "'")) else f". {point}"
    return head


def _marked(text: str, pronoun: str, place: int) -> str:
    """The words of ``text``, the pronoun between asterisks; a few official places are one word off."""
    words = text.split()
    for number in (place, place + 1, place - 1):
        if 0 <= number < len(words) and words[number] == pronoun:
            return " ".join([*words[:number], f"*{pronoun}*", *words[number + 1 :]])
    if place < len(words) and words[place].startswith(pronoun):
        return " ".join([*words[:place], f"*{pronoun}*", words[place][len(pronoun) :], *words[place + 1 :]])
    raise ValueError(f"{pronoun[:40]!r} as word {place} of the text")


def _as_in_text(phrase: str, text: str, place: int) -> str:
    """The phrase with the case of its first letter, and the blanks, that it has in the text."""
    there = text.split()[place : place + 1]
    if phrase in text or not there:
        return phrase
    first = phrase[0].lower() if there[0][0].islower() else phrase[0].upper()
    return f"{first}{phrase[1:]}".rstrip(".").replace("\n", " ")
