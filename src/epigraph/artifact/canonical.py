"""The one text of a header and the one hash of a content, as docs/format.md has them. It opens no file."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from epigraph.artifact.messages import shown
from epigraph.errors import BadHeader, TooLarge

MAX_DEPTH = 32
ITEM_BYTES: Mapping[str, int] = {"F32": 4, "F16": 2, "BF16": 2}


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


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise BadHeader(f"the key {shown(name)!r} is given twice, expected once")
        fields[name] = value
    return fields


def levels(value: Any) -> Iterator[list[Any]]:
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
    for depth, _ in enumerate(levels(value), start=1):
        if depth > MAX_DEPTH:
            raise TooLarge(f"{what} is nested deeper than {MAX_DEPTH} levels")
