"""Who a base model and a tokenizer are: 64 hex digits over what they hold, however it was saved.

Tensors are hashed by name, dtype, shape and bytes, so sharding, the order of headers and metadata do not count; another
dtype is another model. Reading from disk takes no torch. Values are SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epigraph.errors import UnsupportedModel
from epigraph.frozen.checkpoint import Checkpoint, weight_files
from epigraph.home import home

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

# hashlib lets go of the interpreter lock, so two threads hash two tensors at once.
_NUM_THREADS = 2
_CHUNK = 1 << 20
_HEADER_LIMIT = 100_000_000
_HEX = re.compile(r"[0-9a-f]{64}")
# A file touched this lately could change again without its time moving, so its fingerprint is not kept.
_SETTLED_NS = 2_000_000_000

# The names that safetensors writes for torch's dtypes.
_DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}

_PROBES = (
    "Hello, world! It's 3.14 o'clock, isn't it?",
    " leading space, trailing space ",
    "two  spaces 12\n\n34 lines\n\n\n\ttabs\r\n",
    "naïve café, 漢字かな, привет, שלום, 🙂👩‍👩‍👧",
    "def f(x_1): return {'a': x_1 ** 2}  # code",
    "name : The Vaults | Type : pub | price : more than £30",
    "UPPER lower MiXeD 1234567890 ½ ﬁ e\u0301",
    "",
)

_Chunks = Callable[[], Iterable["bytes | memoryview"]]
_Entry = tuple[str, str, Sequence[int], _Chunks]


def fingerprint(checkpoint: Checkpoint) -> str:
    """64 hex digits over the checkpoint's tensors on disk; remembered until one of its files changes.

    Raises :class:`UnsupportedModel` if a weight file is not whole.
    """
    files = weight_files(checkpoint)
    identity = [_identity(file) for file in files]
    key = str((checkpoint.folder / (checkpoint.gguf_file or "")).resolve())
    known = _read_cache().get(key)
    if isinstance(known, dict) and known.get("files") == identity and _HEX.fullmatch(str(known.get("fingerprint"))):
        return str(known["fingerprint"])
    value = _combine(_gguf_entries(files[0]) if checkpoint.gguf_file else _safetensors_entries(files))
    settled = time.time_ns() - max(file.stat().st_mtime_ns for file in files) > _SETTLED_NS
    if settled and [_identity(file) for file in files] == identity:
        # A home that cannot be written to costs time at the next call, never the answer.
        with suppress(OSError):
            _write_cache({**_read_cache(), key: {"files": identity, "fingerprint": value}})
    return value


def fingerprint_state(tensors: Mapping[str, Tensor], *, tied: Collection[str] = ()) -> str:
    """The fingerprint that a model with these tensors has once it is saved in these dtypes.

    Names that share one tensor count once, under the name that is stored. ``tied`` holds the names that are not; where
    it does not settle it, the last in sorted order counts, which is the input embedding in the causal and the
    encoder-decoder families (``lm_head.weight`` sorts before ``model.embed_tokens.weight``).
    """
    shared: dict[tuple[Any, ...], list[str]] = {}
    for name, x in tensors.items():
        place = (str(x.device), x.untyped_storage().data_ptr(), x.storage_offset(), tuple(x.shape), x.stride(), x.dtype)
        shared.setdefault(place if x.numel() else (name,), []).append(name)
    stored = [max(names, key=lambda name: (name not in tied, name)) for names in shared.values()]
    return _combine(_state_entry(name, tensors[name]) for name in stored)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """64 hex digits over the vocabulary, the special tokens and the ids of fixed probe texts.

    Equal behaviour gives an equal fingerprint, however the tokenizer was saved; the chat template is not part of it.
    """
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    ids = [tokenizer.encode(text, add_special_tokens=add) for text in _PROBES for add in (False, True)]
    what = ["epigraph tokenizer 1", sorted(tokenizer.get_vocab().items()), sorted(special.items()), ids]
    return hashlib.sha256(_canonical(what)).hexdigest()


def _combine(entries: Iterable[_Entry]) -> str:
    by_name = {entry[0]: entry for entry in entries}
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        digests = dict(zip(by_name, pool.map(_digest, by_name.values()), strict=True))
    return hashlib.sha256(b"epigraph tensors 1" + b"".join(digests[name] for name in sorted(digests))).hexdigest()


def _digest(entry: _Entry) -> bytes:
    name, dtype, shape, chunks = entry
    digest = hashlib.sha256(_canonical([name, dtype, [int(x) for x in shape]]))
    for chunk in chunks():
        digest.update(chunk)
    return digest.digest()


def _canonical(value: Any) -> bytes:
    # The newline ends the words, so that none of a tensor's bytes can pass for a part of its name.
    return json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"


def _state_entry(name: str, x: Tensor) -> _Entry:
    import torch

    def chunks() -> Iterator[memoryview]:
        yield x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data

    return name, _DTYPES[str(x.dtype).removeprefix("torch.")], x.shape, chunks


def _gguf_entries(file: Path) -> Iterator[_Entry]:
    import numpy as np
    from gguf import GGUFReader

    try:
        tensors = GGUFReader(file).tensors
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise UnsupportedModel(f"{file} is not a whole GGUF file ({error}); get it again") from error
    for tensor in tensors:
        raw = np.ascontiguousarray(tensor.data).reshape(-1).view(np.uint8).data
        yield tensor.name, tensor.tensor_type.name, tensor.shape.tolist(), partial(_once, raw)


def _once(raw: memoryview) -> tuple[memoryview]:
    return (raw,)


def _safetensors_entries(files: Iterable[Path]) -> Iterator[_Entry]:
    seen: set[str] = set()
    for file in files:
        try:
            entries = _header(file)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UnsupportedModel(f"{file} is not a whole safetensors file ({error}); get it again") from error
        for name, dtype, shape, begin, end in entries:
            if name in seen:
                raise UnsupportedModel(f"{file} repeats tensor {name!r} of another file; get the model again")
            seen.add(name)
            yield name, dtype, shape, partial(_read, file, begin, end)


def _header(file: Path) -> list[tuple[str, str, list[int], int, int]]:
    """(name, dtype, shape, first byte, byte after the last) of every tensor, checked against the file's size."""
    num_bytes = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 0 < length <= min(_HEADER_LIMIT, num_bytes - 8):
            raise ValueError(f"a header of {length:,} bytes in a file of {num_bytes:,}")
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    entries, start = [], 8 + length
    for name, tensor in header.items():
        begin, end = (start + _count(x) for x in tensor["data_offsets"])
        shape = [_count(x) for x in tensor["shape"]]
        if not start <= begin <= end <= num_bytes or (begin == end) != (prod(shape) == 0):
            raise ValueError(f"tensor {name!r} lies outside the file's {num_bytes:,} bytes")
        entries.append((name, str(tensor["dtype"]), shape, begin, end))
    return entries


def _count(x: Any) -> int:
    if not isinstance(x, int) or isinstance(x, bool) or x < 0:
        raise ValueError(f"{x!r} where a count belongs")
    return x


def _read(file: Path, begin: int, end: int) -> Iterator[bytes]:
    # Read in pieces, not mapped: a file cut short meanwhile is an error here and a killed process there.
    with file.open("rb") as stream:
        stream.seek(begin)
        while begin < end:
            chunk = stream.read(min(_CHUNK, end - begin))
            if not chunk:
                raise UnsupportedModel(f"{file} became shorter while it was read; get it again")
            begin += len(chunk)
            yield chunk


def _identity(file: Path) -> list[str | int]:
    stat = file.stat()
    return [file.name, stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _cache_file() -> Path:
    return home() / "fingerprints.json"


def _read_cache() -> dict[str, Any]:
    try:
        cache = json.loads(_cache_file().read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return cache if isinstance(cache, dict) else {}


def _write_cache(cache: Mapping[str, Any]) -> None:
    file = _cache_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".fingerprints-", dir=file.parent)
    try:
        with os.fdopen(handle, "w") as stream:
            json.dump(cache, stream, indent=1)
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
