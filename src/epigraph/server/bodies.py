"""What a client may send for an answer: every field known, checked or refused by name, none passed on unseen.

Pure data; it knows no engine. docs/serving.md has the table of what differs from OpenAI's API.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from epigraph.engine.base import MAX_LOGPROBS, MAX_SEED, Joining
from epigraph.server.limits import MAX_STOP_CHARACTERS, MAX_STOPS

# Below it a temperature divides logits out of the range of numbers.
_LEAST_TEMPERATURE = 0.01

# What would name a prefix, a cache or a prompt past the server's own checks.
_NEVER: Mapping[str, str] = dict.fromkeys(
    (
        "cache_salt",
        "kv_transfer_params",
        "prompt_embeds",
        "prompt_token_ids",
        "lora_request",
        "lora",
        "adapter",
        "adapter_id",
        "tenant",
        "prefix",
        "version",
        "request_id",
    ),
    "is the server's own affair; leave it out, the model's name says all",
)
_REFUSED: Mapping[str, str] = {
    "suffix": "is not offered: no text is filled in between; leave it out",
    "echo": "is not offered: the answer is what is new; leave it out",
    "logit_bias": "is not offered; leave it out",
    "tools": "are not offered; leave them out",
    "tool_choice": "is not offered: there are no tools; leave it out",
    "parallel_tool_calls": "is not offered: there are no tools; leave it out",
    "functions": "are not offered; leave them out",
    "function_call": "is not offered: there are no functions; leave it out",
    "audio": "is not offered: answers are text; leave it out",
    "prediction": "is not offered; leave it out",
    "reasoning_effort": "is not offered; leave it out",
    "verbosity": "is not offered; leave it out",
    "web_search_options": "are not offered; leave them out",
    "moderation": "is not offered; leave it out",
}

Count = Annotated[int, Field(ge=1, le=1_000_000)]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
NumTop = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]


class Checked(BaseModel):
    """A JSON object of known fields, each of its type exactly."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        return _without_refused(given, cls.model_fields) if isinstance(given, dict) else given


class StreamOptions(Checked):
    """``include_obfuscation`` is taken and has no effect."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Asked(Checked):
    """What both kinds of requests have. ``user`` and what stands below it is taken and has no effect."""

    _HAS_TEXT: ClassVar[str] = ""

    model: Annotated[str, Field(min_length=1, max_length=2_048)]
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    n: Annotated[int, Field(ge=1, le=1_024)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    num_beams: Annotated[int, Field(ge=1, le=64)] | None = None
    mean: Joining | None = None
    user: Annotated[str, Field(max_length=1_024)] | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None
    service_tier: Annotated[str, Field(max_length=64)] | None = None
    safety_identifier: Annotated[str, Field(max_length=1_024)] | None = None
    prompt_cache_key: Annotated[str, Field(max_length=1_024)] | None = None

    @field_validator("temperature")
    @classmethod
    def _divisor(cls, value: float | None) -> float | None:
        if value is not None and 0 < value < _LEAST_TEMPERATURE:
            raise PydanticCustomError(
                "temperature", "expected 0, the likeliest token, or at least {least}", {"least": _LEAST_TEMPERATURE}
            )
        return value

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Asked:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError("refused", "stream_options needs stream = true", {"name": "stream_options"})
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """As a tuple, however they were given."""
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with what was used."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class CompletionBody(Asked):
    """POST /v1/completions: sources for the prefix's own template, or one row of the template's ``fields``."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1_024)] | None = None
    fields: dict[str, str] | None = None
    raw: bool | None = None
    logprobs: NumTop | None = None
    best_of: Annotated[int, Field(ge=1, le=1_024)] | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _text_only(cls, value: Any) -> Any:
        if isinstance(value, list) and any(not isinstance(x, str) for x in value):
            raise PydanticCustomError("token_ids", "got token ids or something else in a list, expected texts")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> CompletionBody:
        if (self.prompt is None) == (self.fields is None):
            raise PydanticCustomError("refused", "expected one of prompt and fields", {"name": "prompt"})
        if self.raw and self.fields is not None:
            raise PydanticCustomError("refused", "raw takes a prompt, and fields are a template's", {"name": "raw"})
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise PydanticCustomError("refused", "best_of is not offered unless it is n", {"name": "best_of"})
        return self

    @property
    def texts(self) -> list[str | dict[str, str]]:
        """Each of the texts that are to be answered."""
        if self.prompt is None:
            assert self.fields is not None
            return [self.fields]
        return [self.prompt] if isinstance(self.prompt, str) else list(self.prompt)


class TextPart(Checked):
    """A piece of a turn."""

    type: Literal["text"]
    text: str


class Turn(Checked):
    """One turn of a conversation; other roles and content other than text are refused."""

    role: Literal["system", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1, max_length=1_024)]

    @field_validator("content", mode="before")
    @classmethod
    def _text_only(cls, value: Any) -> Any:
        kinds = [x.get("type") for x in value if isinstance(x, dict)] if isinstance(value, list) else []
        other = next((x for x in kinds if x != "text"), None)
        if other is not None:
            raise PydanticCustomError(
                "content", "got a part of type {got}, expected text alone", {"got": _shown(other)}
            )
        return value

    @property
    def said(self) -> dict[str, str]:
        """As the engine takes it."""
        text = self.content if isinstance(self.content, str) else "".join(x.text for x in self.content)
        return {"role": self.role, "content": text}


class ResponseFormat(Checked):
    """Text, and nothing else."""

    type: Literal["text"]


class ChatBody(Asked):
    """POST /v1/chat/completions, for prefixes that were trained on conversations."""

    messages: Annotated[list[Turn], Field(min_length=1, max_length=4_096)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: NumTop | None = None
    response_format: ResponseFormat | None = None
    modalities: list[Literal["text"]] | None = None

    @model_validator(mode="after")
    def _agreeing(self) -> ChatBody:
        both = {x for x in (self.max_tokens, self.max_completion_tokens) if x is not None}
        if len(both) > 1:
            raise PydanticCustomError("refused", "max_tokens and max_completion_tokens differ", {"name": "max_tokens"})
        if self.top_logprobs is not None and not self.logprobs:
            raise PydanticCustomError("refused", "top_logprobs needs logprobs = true", {"name": "top_logprobs"})
        return self

    @property
    def num_logprobs(self) -> int | None:
        """How many of the likeliest tokens are told, None for no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


def _without_refused(given: dict[Any, Any], known: Mapping[str, Any]) -> dict[Any, Any]:
    """What is left to be checked: a refused name may stand there with null, which says nothing."""
    for name, value in given.items():
        if name in known:
            continue
        reason = _NEVER.get(name) or (_REFUSED.get(name) if value is not None else "")
        if reason:
            raise PydanticCustomError("refused", "{name} {reason}", {"name": name, "reason": reason})
        if name not in _REFUSED:
            raise PydanticCustomError("unknown", "{words}", {"name": _shown(name), "words": _unknown(name, known)})
    return {name: value for name, value in given.items() if name in known}


def _unknown(name: Any, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(str(name)[:64], known, n=1)
    return f"{_shown(name)} is not known" + (f"; did you mean {near[0]}?" if near else "; leave it out")


def _shown(name: Any) -> str:
    return repr(str(name)[:64])
