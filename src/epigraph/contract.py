"""The text contract: how text was turned into token ids in training, so that serving does exactly the same.

Pure data, read from untrusted files: templates are filled by replacement and can reach nothing. It knows no tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

MAX_SLOTS = 65_536
MASK = "[MASK]"

_FIELD = re.compile(r"\{([^{}]*)\}")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_COUNT = re.compile(r"[1-9][0-9]*")
# With the blanks right before it, which belong to nothing.
_PLACE = re.compile(r" *\{[1-9][0-9]*\}")
_CUT = re.compile(r"(\{[0-9]+\}|\[MASK\])")
Text = Annotated[str, Field(max_length=4096)]
Tokens = Annotated[int, Field(ge=1, le=1_000_000)]
Labels = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=256)], ...], Field(max_length=1024)]
Layout = Literal["continuation", "answer", "cloze", "label", "tags"]
Pooling = Literal["first", "mean", "mask"]


class Decoding(BaseModel):
    """The decoding a task is evaluated with unless asked otherwise. Lengths count tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_new_tokens: Tokens = 100
    min_new_tokens: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    num_beams: Annotated[int, Field(ge=1, le=64)] = 1
    length_penalty: Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False)] = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Words:
    """A piece of a template that is text, with the names of fields in braces."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Slots:
    """Where ``count`` virtual tokens stand, the first of them number ``first`` of the prompt."""

    first: int
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Mask:
    """Where the answer stands; ``after_blank``: a blank before it, which is said with the answer."""

    after_blank: bool


Piece = Words | Slots | Mask


class TextContract(BaseModel):
    """How a row of text becomes token ids; docs/templates.md specifies the language of templates.

    ``input_template`` holds field names in braces, numbers in braces where that many virtual tokens stand, and at most
    one ``[MASK]``, where the answer stands; ``target_template`` holds the one field ``target``. Both are filled by
    plain replacement. Source and target are tokenised apart and joined, so the boundary never depends on the words
    around it. ``bos`` and ``eos`` say whether the tokenizer's own tokens stand before the source and after the target,
    ``ends_source`` whether its end token stands behind the source.
    ``layout``: ``continuation`` (a decoder says the target behind the source), ``answer`` (an encoder reads the source,
    a decoder says the target), ``cloze`` (a masked model says the target at ``[MASK]``), ``label`` and ``tags`` (a head
    gives the row, or each of its words, one of ``labels``). ``label_words`` is what labels are called in text, where
    that is not their names; ``pooling`` is what a label head reads: the ``first`` token, the ``mean`` of the text, or
    what stands at the ``mask``, which the templates of other heads do not have.
    A chat contract carries the hash of the chat template instead of templates of its own.
    (Liu et al. 2021, section 3.1; Schick and Schütze 2021 for label words.)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_template: Text = "{source}\n"
    target_template: Text = "{target}"
    layout: Layout = "continuation"
    bos: bool = False
    ends_source: bool = False
    eos: bool = True
    labels: Labels = ()
    label_words: Labels = ()
    pooling: Pooling = "first"
    chat_template_hash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    stop: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=256)], ...], Field(max_length=16)] = ()
    max_source_tokens: Tokens = 512
    max_target_tokens: Tokens = 128
    decoding: Decoding = Decoding()

    @field_validator("input_template", "target_template")
    @classmethod
    def _plain_fields(cls, template: str) -> str:
        bad = [x for x in _FIELD.findall(template) if not (_NAME.fullmatch(x) or _COUNT.fullmatch(x))]
        left = _FIELD.sub("", template)
        if bad or "{" in left or "}" in left:
            raise ValueError(
                f"template {template!r}: fields are names in braces like {{source}}, virtual tokens are numbers "
                "like {3}, nothing else"
            )
        return template

    @field_validator("input_template")
    @classmethod
    def _few_slots_one_mask(cls, template: str) -> str:
        num_slots = sum(int(x) for x in _FIELD.findall(template) if _COUNT.fullmatch(x))
        if num_slots > MAX_SLOTS:
            raise PydanticCustomError(
                "too_large",
                "the template has more than {most} virtual tokens; take some out",
                {"most": MAX_SLOTS},
            )
        if template.count(MASK) > 1:
            raise ValueError(
                f"template {template!r}: {MASK} stands {template.count(MASK)} times, expected at most once"
            )
        return template

    @field_validator("target_template")
    @classmethod
    def _only_the_target(cls, template: str) -> str:
        others = sorted({x for x in _FIELD.findall(template) if x != "target"})
        if others:
            raise ValueError(f"template {template!r}: a target has the one field {{target}}, got {{{others[0]}}}")
        if MASK in template:
            raise ValueError(f"template {template!r}: {MASK} belongs into input_template")
        return template

    @field_validator("labels", "label_words")
    @classmethod
    def _different(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        bare = [x.strip() for x in labels]
        twice = next((x for number, x in enumerate(bare) if not x or x in bare[:number]), None)
        if twice is not None:
            raise ValueError(f"{twice[:80]!r} stands there twice or is blank; labels must differ in more than blanks")
        return labels

    @model_validator(mode="after")
    def _labels_fit(self) -> TextContract:
        if self.label_words and len(self.label_words) != len(self.labels):
            raise ValueError(f"{len(self.label_words)} label_words for {len(self.labels)} labels; give each its own")
        if self.layout in ("label", "tags") and not self.labels:
            raise ValueError(f"layout = {self.layout!r} needs labels")
        if self.pooling != "first" and self.layout != "label":
            raise ValueError(f"pooling = {self.pooling!r} is for layout = 'label', got {self.layout!r}")
        return self

    @model_validator(mode="after")
    def _layout_fits(self) -> TextContract:
        if self.is_chat and (self.layout != "continuation" or self.is_placed or self.has_mask):
            raise ValueError("conversations have the layout 'continuation' and no virtual tokens in a template")
        if self.layout == "cloze" and not self.has_mask:
            raise ValueError(f"layout = 'cloze' needs {MASK} in input_template, where the answer stands")
        if self.layout in ("label", "tags") and self.has_mask and self.pooling != "mask":
            raise ValueError(
                f"layout = {self.layout!r} says no words: take {MASK} out of input_template, or let a label head read "
                "there (pooling = 'mask')"
            )
        if self.pooling == "mask" and not self.has_mask:
            raise ValueError(f"pooling = 'mask' needs {MASK} in input_template, where the head reads")
        if self.layout == "tags" and self.input_template.count("{source}") != 1:
            raise ValueError("layout = 'tags' needs {source}, the words to tag, once in input_template")
        if self.layout == "continuation" and _FIELD.search(self.input_template.partition(MASK)[2]):
            raise ValueError(
                f"layout = 'continuation' reads nothing behind {MASK}: put fields and virtual tokens before it"
            )
        return self

    @property
    def is_chat(self) -> bool:
        """Whether rows are conversations."""
        return self.chat_template_hash is not None

    @property
    def num_slots(self) -> int:
        """How many virtual tokens the input template has places for."""
        return sum(piece.count for piece in pieces_of(self.input_template) if isinstance(piece, Slots))

    @property
    def is_placed(self) -> bool:
        """Whether virtual tokens stand at slots of the template, and not in front of everything."""
        return self.num_slots > 0

    def without_slots(self) -> TextContract:
        """The same contract for a model that carries nothing: the words of the template, and no places in it."""
        return self.model_copy(update={"input_template": _PLACE.sub("", self.input_template)})

    @property
    def has_mask(self) -> bool:
        """Whether the template says where the answer stands."""
        return MASK in self.input_template

    def source_text(self, fields: Mapping[str, str]) -> str:
        """The input template filled, slots and mask left as written; KeyError for a field that the row does not have.

        It is for people: what is filled in may look like a slot. Token ids are made from :func:`pieces_of`.
        """
        return filled(self.input_template, fields)

    def target_text(self, target: str) -> str:
        """The target template filled."""
        return filled(self.target_template, {"target": target})


def filled(template: str, fields: Mapping[str, str]) -> str:
    """``template`` with the field names replaced, in one pass: what is filled in is never looked at again."""

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        return match.group() if _COUNT.fullmatch(name) else fields[name]

    return _FIELD.sub(value, template)


def pieces_of(template: str) -> tuple[Piece, ...]:
    """The pieces of an input template, in order.

    Blanks right before a slot or the mask belong to no piece, and a piece of blanks alone is none. A template without
    slots and mask is one piece as it stands. Blanks are spaces; a line break is text.
    """
    parts = _CUT.split(template)
    made: list[Piece] = []
    first = 0
    for number, part in enumerate(parts):
        if part == MASK:
            made.append(Mask(after_blank=parts[number - 1].endswith(" ")))
        elif number % 2:
            made.append(Slots(first=first, count=int(part[1:-1])))
            first += int(part[1:-1])
        elif part.strip(" ") or (part and len(parts) == 1):
            is_last = number + 1 == len(parts)
            made.append(Words(text=part if is_last else part.rstrip(" ")))
    return tuple(made)
