"""Reads an artifact file that anyone may have written. It trusts no byte before it is checked and runs nothing."""

from __future__ import annotations

import errno
import math
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from epigraph.artifact.canonical import ITEM_BYTES, StoredTensor, content_hash
from epigraph.artifact.container import Entry, laid_out, read_table
from epigraph.artifact.header import SOFT, Header, extra_name, parse_header, tensor_names
from epigraph.artifact.messages import reason, shown
from epigraph.artifact.tensors import from_stored
from epigraph.artifact.value import Artifact
from epigraph.errors import ArtifactError, BadHeader, BadTensor, ContentMismatch, NotAnArtifact, TooLarge, Truncated
from epigraph.virtual import KVPrefix, LayerKV, Site, SoftPrompt, VirtualTokens

MAX_FILE_BYTES = 4 << 30

_FETCH = "fetch it again, or train it again"
_ADVICE: Mapping[type[ArtifactError], str] = {
    NotAnArtifact: "give the artifact.safetensors that epigraph train wrote",
    TooLarge: "a file like this is broken or hostile, so do not use it",
    Truncated: _FETCH,
    BadHeader: _FETCH,
    BadTensor: _FETCH,
    ContentMismatch: _FETCH,
}


def load(path: str | os.PathLike[str], *, max_bytes: int = MAX_FILE_BYTES) -> Artifact:
    """The artifact in the file ``path``, its tensors in the dtype and with the bits that were stored.

    A site of the geometry for which nothing is stored comes back as a row of None. The file is read once, into no
    more memory than its size; ``max_bytes`` lowers the size that is accepted.

    Raises :class:`NotAnArtifact`, :class:`Truncated`, :class:`BadHeader`, :class:`TooLarge`, :class:`UnknownVersion`,
    :class:`BadTensor` or :class:`ContentMismatch`; nothing else comes out, whatever is in the file.
    """
    return read(path, max_bytes=max_bytes)[0]


def read(path: str | os.PathLike[str], *, max_bytes: int = MAX_FILE_BYTES) -> tuple[Artifact, Header, int]:
    """As :func:`load`, with the header, which also knows the content hash, and the size of the file in bytes."""
    try:
        with _opened(Path(path)) as file:
            return _read(file, max_bytes)
    except ArtifactError as error:
        advice = _ADVICE.get(type(error))
        raise type(error)(f"{shown(path, 500)}: {error}" + (f"; {advice}" if advice else "")) from error


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        # O_NONBLOCK: a named pipe must not make us wait for its writer before we see that it is a pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        is_link = isinstance(error, OSError) and error.errno in (errno.ELOOP, errno.EMLINK)
        why = "is a symbolic link, expected the file itself" if is_link else f"cannot be opened ({reason(error)})"
        raise NotAnArtifact(why) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotAnArtifact("is a folder, a pipe or a device, expected a file")
    # A file of some file systems may answer "not now" too, which is no answer to a reader.
    os.set_blocking(descriptor, True)
    with os.fdopen(descriptor, "rb") as file:
        try:
            yield file
        except OSError as error:
            raise NotAnArtifact(f"cannot be read ({reason(error)})") from error


def _read(file: BinaryIO, max_bytes: int) -> tuple[Artifact, Header, int]:
    size = os.fstat(file.fileno()).st_size
    table, value = read_table(file, size)
    if size > max_bytes:
        raise TooLarge(f"has {size} bytes, expected at most {max_bytes}")
    header, fields = parse_header(value)
    names = laid_out(table, size - file.tell())
    _check_groups(header, table)
    _check_shapes(header, table)
    tensors = _read_tensors(file, {name: table[name] for name in names})
    found = content_hash(fields, tensors)
    if found != header.content_hash:
        raise ContentMismatch(f"the content hash is {found[:12]}, expected {header.content_hash[:12]}")
    return _artifact(header, {name: from_stored(name, x) for name, x in tensors.items()}), header, size


def _check_groups(header: Header, table: Mapping[str, Entry]) -> None:
    groups = header.groups()
    half = next((x for x in groups if 0 < sum(name in table for name in x) < len(x)), None)
    if half is not None:
        raise BadTensor(f"only one of {' and '.join(half)} is here, expected both or neither")
    if (SOFT,) in groups and SOFT not in table:
        raise BadTensor(f"{SOFT} is missing")
    stored = [name for group in groups for name in group if name in table]
    if header.kind == "kv" and not set(stored) - {SOFT}:
        raise BadTensor("no layer has keys and values, expected at least one")
    dtypes = sorted({table[name].dtype for name in stored})
    if len(dtypes) != 1 or dtypes[0] not in ITEM_BYTES:
        raise BadTensor(f"virtual tokens are {shown(', '.join(dtypes))}, expected one of {', '.join(ITEM_BYTES)}")
    extras = {extra_name(name) for name in header.extra}
    wrong = sorted((extras - set(table)) | (set(table) - extras - set(stored)))
    if wrong:
        is_missing = wrong[0] in extras
        raise BadTensor(f"tensor {shown(wrong[0])} is {'missing' if is_missing else 'not one that the header knows'}")


def _check_shapes(header: Header, table: Mapping[str, Entry]) -> None:
    want: dict[str, tuple[str | None, tuple[int, ...]]] = {
        name: (None, shape) for group, shape in header.groups().items() for name in group
    }
    want |= {extra_name(name): (x.dtype, x.shape) for name, x in header.extra.items()}
    for name, entry in table.items():
        dtype, shape = want[name]
        if entry.dtype != (dtype or entry.dtype) or tuple(entry.shape) != shape:
            expected = f"{dtype or entry.dtype} {list(shape)}"
            raise BadTensor(f"tensor {name} is {shown(entry.dtype)} {entry.shape}, expected {expected}")
        begin, end = entry.data_offsets
        expected_bytes = math.prod(shape) * ITEM_BYTES[entry.dtype]
        if end - begin != expected_bytes:
            raise BadTensor(f"tensor {name} has {end - begin} bytes, expected {expected_bytes}")


def _read_tensors(file: BinaryIO, entries: Mapping[str, Entry]) -> dict[str, StoredTensor]:
    """The bytes of ``entries``, which stand in the order of the file; a file that changed meanwhile is refused."""
    tensors = {}
    for name, entry in entries.items():
        begin, end = entry.data_offsets
        data = bytearray(end - begin)
        got = file.readinto(data)  # type: ignore[attr-defined]
        if got != len(data):
            raise Truncated(f"tensor {name} has {got} bytes, expected {len(data)}; the file changed while it was read")
        tensors[name] = StoredTensor(dtype=entry.dtype, shape=tuple(entry.shape), data=data)
    if file.read(1):
        raise Truncated("goes on after its tensors; the file changed while it was read")
    return tensors


def _virtual_tokens(header: Header, tensors: Mapping[str, Tensor]) -> VirtualTokens:
    if header.text_start is None or header.visibility is None:
        return SoftPrompt(embeddings_PE=tensors[SOFT], placed=header.contract.is_placed)
    sites: dict[Site, list[LayerKV | None]] = {}
    for site, layers in header.geometry.sites.items():
        pairs = [[tensors.get(name) for name in tensor_names(site, number)] for number in range(len(layers))]
        sites[site] = [None if k is None or v is None else LayerKV(keys_PKH=k, values_PKH=v) for k, v in pairs]
    return KVPrefix(
        sites={site: tuple(layers) for site, layers in sites.items()},
        text_start=header.text_start,
        visibility=header.visibility,
        embeddings_PE=tensors.get(SOFT),
    )


def _artifact(header: Header, tensors: Mapping[str, Tensor]) -> Artifact:
    return Artifact(
        tokens=_virtual_tokens(header, tensors),
        geometry=header.geometry.geometry(),
        contract=header.contract,
        base_name=header.base.name,
        base_fingerprint=header.base.fingerprint,
        tokenizer_fingerprint=header.tokenizer.fingerprint,
        method=header.method.name,
        method_config=header.method.config,
        provenance=header.provenance,
        allowed_bases=header.also_allowed_bases,
        extra={name: tensors[extra_name(name)] for name in header.extra},
    )
