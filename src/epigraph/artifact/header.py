"""The header of an artifact: its models, its limits, and which tensors belong to it.

docs/format.md is the specification of all of them. This file opens no file and knows no tensor library.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from epigraph.artifact.canonical import canonical, levels, parse_json
from epigraph.artifact.messages import explained, shown
from epigraph.contract import TextContract
from epigraph.errors import BadHeader, TooLarge, UnknownVersion
from epigraph.virtual import Geometry, LayerGeometry, PositionKind, Site, Visibility

FORMAT_VERSION = 1
KEY = "epigraph"
MAX_VALUE_CHARS = 1 << 18
MAX_LAYERS = 1024
MAX_VIRTUAL_TOKENS = 65_536
# More than the other limits come to: 1,024 layers of three values each, 2,048 labels and their words, and everything
# else under a thousand.
MAX_FIXED_VALUES = 8_192
SOFT = "soft.embeddings"

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
    sites: dict[Site, Annotated[tuple[LayerPart, ...], Field(min_length=1, max_length=MAX_LAYERS, fail_fast=True)]]
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
    kind: Literal["kv", "soft"]
    geometry: GeometryPart
    text_start: Position | None = None
    visibility: Visibility | None = None
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
    def _fits_its_kind(self) -> Header:
        given = {"text_start", "visibility"} & self.model_fields_set
        if self.kind == "soft" and given:
            raise ValueError(f"{min(given)} is not a key of kind soft")
        if self.kind == "kv" and (self.text_start is None or self.visibility is None):
            raise ValueError("kind kv needs text_start and visibility")
        # Layers that share one attention module have no site of their own, and take embeddings only.
        if self.kind == "kv" and not self.geometry.sites:
            raise ValueError("kind kv needs a site in geometry.sites")
        most = self.geometry.max_positions
        if most is not None and self.text_begins >= most:
            raise ValueError(f"text_start {self.text_begins} is not below max_positions {most}")
        return self

    @model_validator(mode="after")
    def _fits_its_template(self) -> Header:
        num_slots = self.contract.num_slots
        if num_slots and self.kind == "kv" and self.visibility != "answer":
            raise ValueError(
                f"the template has places for {num_slots} virtual tokens, kind kv has such with visibility 'answer'"
            )
        if num_slots not in (0, self.num_virtual_tokens):
            raise ValueError(
                f"the template has places for {num_slots} virtual tokens, expected {self.num_virtual_tokens} or none"
            )
        return self

    @property
    def text_begins(self) -> int:
        """The position of the first text token."""
        return self.num_virtual_tokens if self.text_start is None else self.text_start

    def groups(self) -> dict[tuple[str, ...], tuple[int, ...]]:
        """Names of tensors that stand in the file together or not at all, with the shape of each."""
        if self.kind == "soft":
            return {(SOFT,): (self.num_virtual_tokens, self.geometry.embedding_dim)}
        read = {(SOFT,): (self.num_virtual_tokens, self.geometry.embedding_dim)} if self.contract.is_placed else {}
        return read | {
            tensor_names(site, number): (self.num_virtual_tokens, layer.num_kv_heads, layer.head_dim)
            for site, layers in self.geometry.sites.items()
            for number, layer in enumerate(layers)
        }


def tensor_names(site: Site, layer: int) -> tuple[str, str]:
    """The names under which a layer's keys and values are stored."""
    return f"{site}.{layer:03d}.keys", f"{site}.{layer:03d}.values"


def extra_name(name: str) -> str:
    """The name under which the extra tensor ``name`` is stored."""
    return f"extra.{name}"


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


def _check_fixed_values(fields: Mapping[str, Any]) -> None:
    # Each wrong value becomes an error with a copy of it: a hundred thousand would take a hundred megabytes.
    method = fields.get("method")
    fixed = {**fields, "provenance": None, "method": {**method, "config": None} if isinstance(method, dict) else method}
    count = sum(len(x) for level in levels(fixed) for x in level)
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
