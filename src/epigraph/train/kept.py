"""What a baseline's run leaves: ``baseline.safetensors``, the trained tensors and what is needed to ask with them.

A safetensors file with one metadata value of JSON (docs/baselines.md). Its errors are those of artifacts.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from epigraph.artifact.canonical import canonical, parse_json
from epigraph.artifact.header import BasePart, MethodPart, TokenizerPart
from epigraph.artifact.messages import explained, reason, shown
from epigraph.contract import TextContract
from epigraph.errors import (
    ArtifactError,
    BadHeader,
    BadTensor,
    CannotWrite,
    NotAnArtifact,
    TooLarge,
    Truncated,
    UnknownVersion,
)
from epigraph.files import write_whole

FILE_NAME = "baseline.safetensors"
FORMAT: Final = "epigraph-baseline/1"
KEY = "epigraph_baseline"
MAX_FILE_BYTES = 1 << 38
MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 1 << 16

# As safetensors begins a file with metadata.
_BEGINNING = f'{{"__metadata__":{{"{KEY}":'.encode()

_Strict = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Header(BaseModel):
    model_config = _Strict

    format: Literal["epigraph-baseline/1"] = FORMAT
    method: MethodPart
    contract: TextContract
    base: BasePart
    tokenizer: TokenizerPart
    fields: Annotated[dict[str, str], Field(max_length=64)]
    provenance: dict[str, JsonValue]


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """A trained baseline. ``tensors`` are ``weights.<name>`` and a head's ``head.weight`` and ``head.bias``.

    ``fields`` are constant texts of every row. ``method_config`` is the ``[method]`` table without its name.
    """

    method: str
    method_config: Mapping[str, Any]
    contract: TextContract
    base_name: str
    base_fingerprint: str
    tokenizer_fingerprint: str
    provenance: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    fields: Mapping[str, str] = field(default_factory=dict)


def save(kept: Kept, path: Path) -> str:
    """Write ``kept`` to ``path``, whole or not at all; returns the SHA-256 of the file.

    Raises :class:`BadTensor` for a number that is not finite, :class:`BadHeader`, and :class:`CannotWrite`.
    """
    try:
        for name, x in kept.tensors.items():
            _check_finite(name, x)
        value = canonical(_plain(kept))
        _header(value)
    except ArtifactError as error:
        raise type(error)(f"{shown(path, 500)} was not written: {error}") from error
    tensors = {name: x.detach().to("cpu").contiguous() for name, x in kept.tensors.items()}
    data = safetensors.torch.save(tensors, {KEY: value})
    try:
        write_whole(path, [data])
    except OSError as error:
        raise CannotWrite(
            f"{shown(path, 500)} was not written: {reason(error)}; make room, or choose a folder that you may write"
        ) from error
    return hashlib.sha256(data).hexdigest()


def load(path: str | os.PathLike[str], *, with_tensors: bool = True) -> Kept:
    """The baseline in the file ``path``, its tensors on the CPU in the dtypes that were stored, or left where they are.

    Raises :class:`NotAnArtifact`, :class:`Truncated`, :class:`TooLarge`, :class:`UnknownVersion`, :class:`BadHeader`,
    :class:`BadTensor`.
    """
    try:
        _check_size(Path(path))
        return _read(Path(path), with_tensors)
    except ArtifactError as error:
        raise type(error)(f"{shown(path, 500)}: {error}; fetch it again, or train it again") from error


def find(path: Path) -> Path | None:
    """The baseline's file that ``path`` means, itself or the one in a folder; None where there is none.

    Of a file the first bytes are read.
    """
    # os.path, not pathlib: its questions have no errors, whatever the name is and whoever owns the folder.
    if os.path.isdir(path):
        return path / FILE_NAME if os.path.isfile(path / FILE_NAME) else None
    try:
        with open(path, "rb") if os.path.isfile(path) else io.BytesIO() as file:
            return path if file.read(8 + len(_BEGINNING))[8:] == _BEGINNING else None
    except OSError:
        return None


def _read(path: Path, with_tensors: bool) -> Kept:
    try:
        with safe_open(path, "pt") as opened:
            names, metadata = list(opened.keys()), opened.metadata() or {}
            if KEY not in metadata:
                raise NotAnArtifact(f"is no baseline: it has no metadata key {KEY!r}")
            header = _header(metadata[KEY])
            if len(names) > MAX_TENSORS:
                raise TooLarge(f"has {len(names)} tensors, expected at most {MAX_TENSORS}")
            tensors = {name: opened.get_tensor(name) for name in names if with_tensors}
    except (OSError, SafetensorError) as error:
        kind = Truncated if "incomplete metadata" in str(error) else NotAnArtifact
        raise kind(f"cannot be read as a safetensors file ({shown(error, 200)})") from error
    for name, x in tensors.items():
        _check_finite(name, x)
    return Kept(
        method=header.method.name,
        method_config=header.method.config,
        contract=header.contract,
        base_name=header.base.name,
        base_fingerprint=header.base.fingerprint,
        tokenizer_fingerprint=header.tokenizer.fingerprint,
        provenance=header.provenance,
        tensors=tensors,
        fields=header.fields,
    )


def _check_size(path: Path) -> None:
    """Before anything of the file is taken into memory."""
    if not os.path.isfile(path):
        raise NotAnArtifact("is not there, or is no file")
    try:
        with path.open("rb") as file:
            size, length = os.fstat(file.fileno()).st_size, int.from_bytes(file.read(8), "little")
    except (OSError, ValueError) as error:
        raise NotAnArtifact(f"cannot be opened ({reason(error)})") from error
    if size > MAX_FILE_BYTES:
        raise TooLarge(f"has {size} bytes, expected at most {MAX_FILE_BYTES}")
    if MAX_HEADER_BYTES < length <= size:
        raise TooLarge(f"its header has {length} bytes, expected at most {MAX_HEADER_BYTES}")


def _header(text: str) -> _Header:
    fields = parse_json(text, f"the {KEY} header")
    said = fields.get("format") if isinstance(fields, dict) else None
    if said != FORMAT:
        raise UnknownVersion(f"format is {shown(said)!r}, expected {FORMAT!r}; upgrade epigraph, or train it again")
    try:
        return _Header.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise BadHeader(f"header: {explained(error.errors(include_url=False)[0])}") from None


def _plain(kept: Kept) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "method": {"name": kept.method, "config": dict(kept.method_config)},
        "contract": kept.contract.model_dump(mode="json"),
        "base": {"name": kept.base_name, "fingerprint": kept.base_fingerprint},
        "tokenizer": {"fingerprint": kept.tokenizer_fingerprint},
        "fields": dict(kept.fields),
        "provenance": dict(kept.provenance),
    }


def _check_finite(name: str, x: Tensor) -> None:
    if not x.is_floating_point():
        raise BadTensor(f"tensor {shown(name)} is {x.dtype}, expected floating-point numbers")
    count = int((~torch.isfinite(x)).sum())
    if count:
        raise BadTensor(f"tensor {shown(name)} has {count} of {x.numel()} numbers that are not finite")
