"""Writes an artifact file: all of it or nothing. It checks with the reader's rules what it is about to write."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue, TypeAdapter, ValidationError
from torch import Tensor

from epigraph.artifact.canonical import ITEM_BYTES, StoredTensor, canonical, content_hash
from epigraph.artifact.header import FORMAT_VERSION, KEY, SOFT, extra_name, parse_header, tensor_names
from epigraph.artifact.messages import explained, reason, shown
from epigraph.artifact.tensors import to_stored
from epigraph.artifact.value import Artifact
from epigraph.errors import ArtifactError, BadHeader, BadTensor, CannotWrite, GeometryMismatch
from epigraph.files import write_whole
from epigraph.virtual import KVPrefix, SoftPrompt, VirtualTokens

_ALIGNMENT = 8
_JSON_OBJECT = TypeAdapter(dict[str, JsonValue])


def save(artifact: Artifact, path: str | os.PathLike[str], dtype: torch.dtype = torch.bfloat16) -> str:
    """Write ``artifact`` to ``path`` with its keys and values as ``dtype``; return its content hash.

    A file at ``path`` is replaced in one step; on any error it is left as it was, and nothing new stays behind.
    Extra tensors keep their dtype.

    Raises :class:`GeometryMismatch` where the prefix does not fit its geometry, :class:`BadTensor` for numbers that
    are not finite, also once converted, :class:`BadHeader` or :class:`TooLarge` for what docs/format.md does not
    allow, and :class:`CannotWrite` where the disk does not take the file.
    """
    target = Path(path)
    artifact.tokens.check(artifact.geometry)
    _check_places(artifact)
    try:
        tensors = _tensors(artifact, dtype)
        fields = _fields(artifact, tensors)
        fields["content_hash"] = content_hash(fields, tensors)
        value = canonical(fields)
        parse_header(value)
        _write(target, _layout(value, tensors))
    except ArtifactError as error:
        raise type(error)(f"{shown(target, 500)} was not written: {error}") from error
    return str(fields["content_hash"])


def _check_places(artifact: Artifact) -> None:
    """Virtual tokens stand where the template says: read back, a prompt is placed exactly if that has places."""
    placed = artifact.tokens.placed
    if placed != artifact.contract.is_placed:
        where = "at places of a template that has none" if placed else "in front of a template that has places for them"
        raise GeometryMismatch(f"the virtual tokens stand {where}; make them with the contract they were trained with")


def _tensors(artifact: Artifact, dtype: torch.dtype) -> dict[str, StoredTensor]:
    tensors = {name: to_stored(name, x, dtype) for name, x in _named(artifact.tokens)}
    if not artifact.tokens.num_virtual_tokens:
        raise BadTensor("no layer has keys and values, expected at least one")
    return tensors | {extra_name(name): to_stored(extra_name(name), x, x.dtype) for name, x in artifact.extra.items()}


def _named(tokens: VirtualTokens) -> Iterator[tuple[str, Tensor]]:
    if isinstance(tokens, SoftPrompt):
        yield SOFT, tokens.embeddings_PE
        return
    if tokens.embeddings_PE is not None:
        yield SOFT, tokens.embeddings_PE
    for site, number, layer in tokens.layers():
        yield from zip(tensor_names(site, number), (layer.keys_PKH, layer.values_PKH), strict=True)


def _fields(artifact: Artifact, tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    """Everything of the header but its content hash."""
    tokens = artifact.tokens
    kind: dict[str, Any] = {"kind": "soft"}
    if isinstance(tokens, KVPrefix):
        kind = {"kind": "kv", "text_start": tokens.text_start, "visibility": tokens.visibility}
    return {
        "format_version": FORMAT_VERSION,
        **kind,
        "geometry": _geometry_fields(artifact),
        "num_virtual_tokens": tokens.num_virtual_tokens,
        "base": {"name": artifact.base_name, "fingerprint": artifact.base_fingerprint},
        "tokenizer": {"fingerprint": artifact.tokenizer_fingerprint},
        "contract": artifact.contract.model_dump(mode="json"),
        "method": {"name": artifact.method, "config": _plain(artifact.method_config, "method_config")},
        "provenance": _plain(artifact.provenance, "provenance"),
        "also_allowed_bases": list(artifact.allowed_bases),
        "extra": {
            name: {"dtype": tensors[extra_name(name)].dtype, "shape": list(x.shape)}
            for name, x in artifact.extra.items()
        },
    }


def _geometry_fields(artifact: Artifact) -> dict[str, Any]:
    geometry = artifact.geometry
    return {
        "sites": {
            site: [{"num_kv_heads": x.num_kv_heads, "head_dim": x.head_dim, "window": x.window} for x in layers]
            for site, layers in geometry.sites.items()
        },
        "embedding_dim": geometry.embedding_dim,
        "position_kind": geometry.position_kind,
        "max_positions": geometry.max_positions,
    }


def _plain(value: Mapping[str, Any], what: str) -> dict[str, Any]:
    """``value`` as it is, once nothing in it would change by being written: no integer keys, no tuples."""
    try:
        return _JSON_OBJECT.validate_python(dict(value))
    except ValidationError as error:
        found = explained(error.errors(include_url=False)[0])
        raise BadHeader(
            f"{what}: {found}; expected dicts with string keys, lists, strings, numbers, booleans, None"
        ) from None


def _layout(value: str, tensors: Mapping[str, StoredTensor]) -> list[bytes | bytearray | memoryview]:
    """The file in pieces: the length, the safetensors header, the tensors with the wider numbers first."""
    names = sorted(tensors, key=lambda name: (-ITEM_BYTES[tensors[name].dtype], name))
    table: dict[str, Any] = {"__metadata__": {KEY: value}}
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].num_bytes
        table[name] = {"dtype": tensors[name].dtype, "shape": list(tensors[name].shape), "data_offsets": [begin, end]}
    header = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _ALIGNMENT)
    return [len(header).to_bytes(8, "little"), header, *(tensors[name].data for name in names)]


def _write(target: Path, pieces: list[bytes | bytearray | memoryview]) -> None:
    try:
        write_whole(target, pieces)
    except (OSError, ValueError) as error:
        raise CannotWrite(
            f"{reason(error)}; make room, or choose a folder that exists and that you may write"
        ) from error
