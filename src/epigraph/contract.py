"""The text contract: how text was turned into token ids in training, so that serving does exactly the same.

Pure data, read from untrusted files: templates are filled by replacement and can reach nothing. It knows no tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

_FIELD = re.compile(r"\{([^{}]*)\}")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
Text = Annotated[str, Field(max_length=4096)]
Tokens = Annotated[int, Field(ge=1, le=1_000_000)]


class Decoding(BaseModel):
    """The decoding a task is evaluated with unless asked otherwise. Lengths count tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_new_tokens: Tokens = 100
    min_new_tokens: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    num_beams: Annotated[int, Field(ge=1, le=64)] = 1
    length_penalty: Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False)] = 1.0


class TextContract(BaseModel):
    """How a row of text becomes token ids.

    ``input_template`` holds field names in braces, ``target_template`` the one field ``target``; both are filled by
    plain replacement. Source and target are tokenised apart and joined, so the boundary never depends on the words
    around it. ``bos`` and ``eos`` say whether the tokenizer's own tokens stand before the source and after the target.
    A chat contract carries the hash of the chat template instead of templates of its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_template: Text = "{source}\n"
    target_template: Text = "{target}"
    bos: bool = False
    eos: bool = True
    chat_template_hash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    stop: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=256)], ...], Field(max_length=16)] = ()
    max_source_tokens: Tokens = 512
    max_target_tokens: Tokens = 128
    decoding: Decoding = Decoding()

    @field_validator("input_template", "target_template")
    @classmethod
    def _plain_fields(cls, template: str) -> str:
        bad = [x for x in _FIELD.findall(template) if not _NAME.fullmatch(x)]
        left = _FIELD.sub("", template)
        if bad or "{" in left or "}" in left:
            raise ValueError(f"template {template!r}: fields are names in braces like {{source}}, nothing else")
        return template

    @field_validator("target_template")
    @classmethod
    def _only_the_target(cls, template: str) -> str:
        others = sorted({x for x in _FIELD.findall(template) if x != "target"})
        if others:
            raise ValueError(f"template {template!r}: a target has the one field {{target}}, got {{{others[0]}}}")
        return template

    @property
    def is_chat(self) -> bool:
        """Whether rows are conversations."""
        return self.chat_template_hash is not None

    def source_text(self, fields: Mapping[str, str]) -> str:
        """The input template filled; raises KeyError for a field that the row does not have."""
        return _FIELD.sub(lambda match: fields[match.group(1)], self.input_template)

    def target_text(self, target: str) -> str:
        """The target template filled."""
        return _FIELD.sub(lambda _: target, self.target_template)
