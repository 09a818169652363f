"""The safetensors layout: a length, a JSON header, a table of tensors, their bytes. It knows no virtual tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, BinaryIO

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from epigraph.artifact.canonical import parse_json
from epigraph.artifact.header import KEY, MAX_VALUE_CHARS
from epigraph.artifact.messages import explained, shown
from epigraph.errors import BadHeader, NotAnArtifact, TooLarge, Truncated

MAX_HEADER_BYTES = 4 << 20
MAX_TENSORS = 4096
# What the other limits come to: a row of the table has at most 15 of these characters, the epigraph header any number.
MARKS = "{[,"
MAX_MARKS = MAX_VALUE_CHARS + 15 * MAX_TENSORS

_MAGIC = (
    (b"PK\x03\x04", "a zip archive, as torch.save writes it with a pickle inside"),
    (b"\x80\x02", "a pickle"),
    (b"\x80\x03", "a pickle"),
    (b"\x80\x04", "a pickle"),
    (b"\x80\x05", "a pickle"),
    (b"GGUF", "a GGUF model"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file that it stands for"),
    (b"<", "a web page"),
    (b"{", "JSON text"),
)

_Count = Annotated[int, Field(ge=0, lt=1 << 63)]


class Entry(BaseModel):
    """One row of the table; offsets count from the first byte after the header."""

    model_config = ConfigDict(extra="forbid", strict=True)

    dtype: str
    shape: Annotated[list[_Count], Field(max_length=8)]
    data_offsets: Annotated[list[_Count], Field(min_length=2, max_length=2)]


_TABLE = TypeAdapter(dict[str, Entry])


def read_table(file: BinaryIO, size: int) -> tuple[dict[str, Entry], str]:
    """The tensor table and the value of the metadata key."""
    text = _read_safetensors_header(file, size)
    # Counted before anything is parsed: four million empty objects would take seconds and hundreds of megabytes.
    marks = sum(text.count(mark) for mark in MARKS)
    if marks > MAX_MARKS:
        raise TooLarge(f"the safetensors header has {marks} brackets, braces and commas, expected at most {MAX_MARKS}")
    outer = parse_json(text, "the safetensors header")
    metadata = outer.pop("__metadata__", None)
    if not isinstance(metadata, dict) or KEY not in metadata:
        raise NotAnArtifact(f"is {_safetensors_kind(outer)}, without the metadata key {KEY!r}")
    if set(metadata) != {KEY} or not isinstance(metadata[KEY], str):
        raise BadHeader(f"the metadata is not one string under the key {KEY!r} and nothing else")
    if len(outer) > MAX_TENSORS:
        raise TooLarge(f"has {len(outer)} tensors, expected at most {MAX_TENSORS}")
    try:
        return _TABLE.validate_python(outer), metadata[KEY]
    except ValidationError as error:
        raise BadHeader(f"tensor table: {explained(error.errors(include_url=False)[0])}") from None


def _read_safetensors_header(file: BinaryIO, size: int) -> str:
    head = file.read(9)
    length = int.from_bytes(head[:8], "little")
    if head[8:] != b"{" or length > MAX_HEADER_BYTES:
        # Only now: a sound header of 640 bytes begins with the two bytes of a pickle.
        beginning = head + file.read(32)
        kind = next((kind for magic, kind in _MAGIC if beginning.startswith(magic)), None)
        if kind is not None:
            raise NotAnArtifact(f"seems to be {kind}")
        if len(head) < 9:
            raise Truncated(f"has {size} bytes, expected a header and tensors")
        if head[8:] != b"{":
            raise NotAnArtifact("is not a safetensors file")
        raise TooLarge(f"the header has {length} bytes, expected at most {MAX_HEADER_BYTES}")
    if length < 2:
        raise BadHeader(f"the header has {length} bytes, expected a JSON object")
    if length > size - 8:
        raise Truncated(f"has {size} bytes, expected {8 + length} for the header alone")
    raw = head[8:] + file.read(length - 1)
    if len(raw) != length:
        raise Truncated(f"the header has {len(raw)} bytes, expected {length}")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise BadHeader(f"the header is not UTF-8 ({error.reason} at byte {error.start})") from error


def _safetensors_kind(table: Mapping[str, Any]) -> str:
    if any(name.startswith(("base_model.", "prompt_embeddings")) for name in table):
        return f"a PEFT adapter of {len(table)} tensors (epigraph import peft reads its folder)"
    return f"a safetensors file of {len(table)} tensors, a model perhaps"


def laid_out(table: Mapping[str, Entry], num_bytes: int) -> list[str]:
    """The names in the order of their bytes, which must fill the rest of the file exactly and only once."""
    names = sorted(table, key=lambda name: table[name].data_offsets)
    end = 0
    for name in names:
        begin, next_end = table[name].data_offsets
        if begin != end or next_end < begin:
            raise BadHeader(
                f"tensor {shown(name)} stands at bytes {begin} to {next_end}, expected it to begin at {end}"
            )
        end = next_end
    if end != num_bytes:
        raise Truncated(f"has {num_bytes} bytes of tensors, expected {end}")
    return names
