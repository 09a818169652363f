"""The header of an artifact: its models, limits, canonical form and content hash.

docs/format.md is the specification of all of them. This file opens no file and knows no tensor library.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from epigraph.artifact.messages import explained, shown
from epigraph.contract import TextContract
from epigraph.errors import BadHeader, TooLarge, UnknownVersion
from epigraph.virtual import Geometry, LayerGeometry, PositionKind, Site, Visibility

FORMAT_VERSION = 1
KEY = "epigraph"
MAX_VALUE_CHARS = 1 << 18
MAX_DEPTH = 32
MAX_LAYERS = 1024
MAX_VIRTUAL_TOKENS = 65_536
# More than the other limits come to: 1,024 layers of three values each, and everything else under a thousand.
MAX_FIXED_VALUES = 8_192
ITEM_BYTES: Mapping[str, int] = {"F32": 4, "F16": 2, "BF16": 2}

_OVER_A_LIMIT = {"too_large", "too_long", "string_too_long", "less_than_equal"}


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("holds characters that cannot be printed")
    return text


Name = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_printable)]
Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ExtraName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$", max_length=128)]
Width = Annotated[int, Field(ge=1, le=1 << 20)]
Position = Annotated[int, Field(ge=0, le=1 << 40)]
PositionCount = Annotated[int, Field(ge=1, le=1 << 40)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class LayerPart(_Part):
    """One attention layer, as :class:`epigraph.virtual.LayerGeometry`."""

    num_kv_heads: Width
    head_dim: Width
    window: PositionCount | None


class GeometryPart(_Part):
    """What must match between the artifact and a model, as :class:`epigraph.virtual.Geometry`."""

    # fail_fast: a thousand wrong layers must not become a thousand messages.
    sites: Annotated[
        dict[Site, Annotated[tuple[LayerPart, ...], Field(min_length=1, max_length=MAX_LAYERS, fail_fast=True)]],
        Field(min_length=1),
    ]
    embedding_dim: Width
    position_kind: PositionKind
    max_positions: PositionCount | None

    @model_validator(mode="after")
    def _few_layers(self) -> GeometryPart:
        count = sum(len(layers) for layers in self.sites.values())
        if count > MAX_LAYERS:
            raise PydanticCustomError(
                "too_large", "{count} layers, expected at most {most}", {"count": count, "most": MAX_LAYERS}
            )
        return self

    def geometry(self) -> Geometry:
        """The value that the rest of the package uses."""
        return Geometry(
            sites={
                site: tuple(
                    LayerGeometry(num_kv_heads=x.num_kv_heads, head_dim=x.head_dim, window=x.window) for x in layers
                )
                for site, layers in self.sites.items()
            },
            embedding_dim=self.embedding_dim,
            position_kind=self.position_kind,
            max_positions=self.max_positions,
        )


class BasePart(_Part):
    """The base model: a name for people, a fingerprint of its weights for :meth:`Artifact.check_base`."""

    name: Name
    fingerprint: Fingerprint


class TokenizerPart(_Part):
    """The tokenizer's fingerprint."""

    fingerprint: Fingerprint


class MethodPart(_Part):
    """The method that made the virtual tokens, with its options."""

    name: Name
    config: dict[str, JsonValue]


class ExtraPart(_Part):
    """A named extra tensor."""

    dtype: Literal["F32", "F16", "BF16"]
    shape: Annotated[tuple[Width, ...], Field(max_length=8)]


class Header(_Part):
    """The value of the metadata key ``epigraph``."""

    format_version: Literal[1]
    kind: Literal["kv"]
    geometry: GeometryPart
    text_start: Position
    visibility: Visibility
    num_virtual_tokens: Annotated[int, Field(ge=1, le=MAX_VIRTUAL_TOKENS)]
    base: BasePart
    tokenizer: TokenizerPart
    contract: TextContract
    method: MethodPart
    provenance: dict[str, JsonValue]
    also_allowed_bases: Annotated[tuple[Fingerprint, ...], Field(max_length=64)]
    extra: Annotated[dict[ExtraName, ExtraPart], Field(max_length=64)]
    content_hash: Fingerprint

    @model_validator(mode="after")
    def _text_fits(self) -> Header:
        most = self.geometry.max_positions
        if most is not None and self.text_start >= most:
            raise ValueError(f"text_start {self.text_start} is not below max_positions {most}")
        return self

    def layer_shapes(self) -> dict[tuple[Site, int], tuple[int, int, int]]:
        """For each (site, layer number) the shape ``[P, K, H]`` of its keys and of its values."""
        return {
            (site, number): (self.num_virtual_tokens, layer.num_kv_heads, layer.head_dim)
            for site, layers in self.geometry.sites.items()
            for number, layer in enumerate(layers)
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """A tensor as it stands in the file: little-endian numbers in row-major order."""

    dtype: str
    shape: tuple[int, ...]
    data: bytearray | memoryview

    @property
    def num_bytes(self) -> int:
        """What ``dtype`` and ``shape`` come to, whatever ``data`` holds."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def tensor_names(site: Site, layer: int) -> tuple[str, str]:
    """The names under which a layer's keys and values are stored."""
    return f"{site}.{layer:03d}.keys", f"{site}.{layer:03d}.values"


def extra_name(name: str) -> str:
    """The name under which the extra tensor ``name`` is stored."""
    return f"extra.{name}"


def canonical(fields: Mapping[str, Any]) -> str:
    """The one way to write ``fields``; raises :class:`BadHeader` for what JSON or UTF-8 cannot hold."""
    try:
        text = json.dumps(fields, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
        text.encode()
    except (TypeError, ValueError) as error:
        raise BadHeader(f"the header holds what JSON cannot: {shown(error)}") from error
    return text


def content_hash(fields: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> str:
    """SHA-256 over the header without its ``content_hash`` and over every tensor, as docs/format.md frames them."""
    digest = hashlib.sha256()

    def framed(text: str) -> None:
        raw = text.encode()
        digest.update(len(raw).to_bytes(8, "little") + raw)

    framed(canonical({name: value for name, value in fields.items() if name != "content_hash"}))
    for name, tensor in sorted(tensors.items()):
        framed(json.dumps([name, tensor.dtype, list(tensor.shape)], separators=(",", ":")))
        digest.update(tensor.data)
    return digest.hexdigest()


def parse_json(text: str, what: str) -> Any:
    """The value of ``text``; a key given twice or deep nesting is refused."""
    try:
        value = json.loads(text, object_pairs_hook=_no_duplicates)
    except RecursionError:
        raise TooLarge(f"{what} is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise BadHeader(f"{what} is not JSON: {shown(error)}") from error
    _check_depth(value, what)
    return value


def parse_header(text: str) -> tuple[Header, dict[str, Any]]:
    """The header in ``text``, checked, and its plain fields, which :func:`content_hash` takes.

    Raises :class:`BadHeader`, :class:`TooLarge` or :class:`UnknownVersion`.
    """
    if len(text) > MAX_VALUE_CHARS:
        raise TooLarge(f"the {KEY} header has {len(text)} characters, expected at most {MAX_VALUE_CHARS}")
    fields = parse_json(text, f"the {KEY} header")
    if not isinstance(fields, dict):
        raise BadHeader(f"the {KEY} header is a {type(fields).__name__}, expected a JSON object")
    _check_version(fields.get("format_version"))
    if canonical(fields) != text:
        raise BadHeader(f"the {KEY} header is not in canonical form (sorted keys, no spaces)")
    _check_fixed_values(fields)
    try:
        return Header.model_validate_json(text, strict=True), fields
    except ValidationError as error:
        raise _in_one_line(error.errors(include_url=False)) from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise BadHeader(f"the key {shown(name)!r} is given twice, expected once")
        fields[name] = value
    return fields


def _levels(value: Any) -> Iterator[list[Any]]:
    """The objects and lists in ``value``, level by level from the outside."""
    level = [value] if isinstance(value, (dict, list)) else []
    while level:
        yield level
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]


def _check_depth(value: Any, what: str) -> None:
    for depth, _ in enumerate(_levels(value), start=1):
        if depth > MAX_DEPTH:
            raise TooLarge(f"{what} is nested deeper than {MAX_DEPTH} levels")


def _check_fixed_values(fields: Mapping[str, Any]) -> None:
    # Each wrong value becomes an error with a copy of it: a hundred thousand would take a hundred megabytes.
    method = fields.get("method")
    fixed = {**fields, "provenance": None, "method": {**method, "config": None} if isinstance(method, dict) else method}
    count = sum(len(x) for level in _levels(fixed) for x in level)
    if count > MAX_FIXED_VALUES:
        raise TooLarge(
            f"the {KEY} header has {count} values beside method.config and provenance, "
            f"expected at most {MAX_FIXED_VALUES}"
        )


def _check_version(version: object) -> None:
    if type(version) is not int or version < 1:
        raise BadHeader(f"format_version is {shown(version)!r}, expected {FORMAT_VERSION}")
    if version > FORMAT_VERSION:
        raise UnknownVersion(
            f"format version {shown(version)}, this epigraph reads up to {FORMAT_VERSION}; upgrade epigraph to read it"
        )


def _in_one_line(errors: list[ErrorDetails]) -> BadHeader | TooLarge:
    first = next((x for x in errors if x["type"] in _OVER_A_LIMIT), errors[0])
    kind = TooLarge if first["type"] in _OVER_A_LIMIT else BadHeader
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return kind(f"header: {explained(first)}{more}")
