"""Tensors as bytes and back, in the three dtypes of docs/format.md. Every number that passes here is finite."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from epigraph.artifact.canonical import StoredTensor
from epigraph.artifact.messages import shown
from epigraph.errors import BadTensor

DTYPES: Mapping[str, torch.dtype] = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CHECKED_AT_ONCE = 1 << 18
_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}


def dtype_name(dtype: torch.dtype) -> str:
    """The name of ``dtype`` in a file; raises :class:`BadTensor` for one that no artifact holds."""
    if dtype not in _NAMES:
        raise BadTensor(f"dtype is {dtype}, expected one of {', '.join(str(x) for x in _NAMES)}")
    return _NAMES[dtype]


def to_stored(name: str, tensor: Tensor, dtype: torch.dtype) -> StoredTensor:
    """``tensor`` converted to ``dtype``, as little-endian bytes; raises :class:`BadTensor` where that is not finite."""
    stored_dtype = dtype_name(dtype)
    _check_finite(name, tensor)
    converted = tensor.detach().to("cpu", dtype).contiguous()
    _check_finite(name, converted, f" as {stored_dtype}; save it as torch.float32 or torch.bfloat16")
    data = memoryview(converted.reshape(-1).view(torch.uint8).numpy().data)
    return StoredTensor(dtype=stored_dtype, shape=tuple(tensor.shape), data=data)


def from_stored(name: str, stored: StoredTensor) -> Tensor:
    """The tensor over the same memory; raises :class:`BadTensor` where a number is not finite."""
    tensor = torch.frombuffer(stored.data, dtype=DTYPES[stored.dtype]).reshape(stored.shape)
    _check_finite(name, tensor)
    return tensor


def _check_finite(name: str, tensor: Tensor, advice: str = "") -> None:
    numbers = tensor.detach().reshape(-1)
    # The rounded copy too: a float32 number above the largest bfloat16 would be infinite in the model that uses it.
    for what, dtype in (("", tensor.dtype), (" in bfloat16", torch.bfloat16)):
        # In pieces: a check of a large tensor must not take more memory than the tensor.
        count = sum(int((~torch.isfinite(piece.to(dtype))).sum()) for piece in numbers.split(_CHECKED_AT_ONCE))
        if count:
            raise BadTensor(
                f"tensor {shown(name)} has {count} of {numbers.numel()} numbers that are not finite{what}{advice}"
            )
