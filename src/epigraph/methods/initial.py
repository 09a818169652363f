"""First values of virtual tokens. Every initialiser returns a prefix; none of them knows who will train it.

Where real keys and values are wanted, the caller hands in a reader: token ids in, their keys and values out.
Visibility is not theirs to say: the method that trains the values decides it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Generator

from epigraph.errors import BadValue, GeometryMismatch
from epigraph.methods.base import unflatten
from epigraph.virtual import Geometry, KVPrefix

Reader = Callable[[Sequence[int]], KVPrefix]


def random_normal(geometry: Geometry, num_virtual_tokens: int, *, std: float, generator: Generator) -> KVPrefix:
    """Every number drawn from a normal distribution with mean 0 and the stated ``std``.

    The papers leave "random" underspecified: the text of Prefix-Tuning says uniform(0, 1), its code draws
    normal(0, 1); both are far from the scale of real keys and values. (Li & Liang 2021, section 7.4 and A.3.)
    """
    flat = torch.randn(num_virtual_tokens, geometry.numbers_per_token(), generator=generator) * std
    return unflatten(flat, geometry, text_start=num_virtual_tokens, visibility="always")


def zero(geometry: Geometry, num_virtual_tokens: int) -> KVPrefix:
    """All zeros. Not a no-op: a zero key still takes its share of the softmax, so attention is damped."""
    flat = torch.zeros(num_virtual_tokens, geometry.numbers_per_token())
    return unflatten(flat, geometry, text_start=num_virtual_tokens, visibility="always")


def from_text(read: Reader, ids: Sequence[int], num_virtual_tokens: int) -> KVPrefix:
    """The exact keys and values of a text, repeated or cut to ``num_virtual_tokens`` token ids.

    (Li & Liang 2021, section 7.4: real words beat random values in low data.)
    """
    if not ids:
        raise BadValue("the text to initialise from has no tokens; give it words")
    repeated = [ids[i % len(ids)] for i in range(num_virtual_tokens)]
    return read(repeated)


def from_document(read: Reader, ids: Sequence[int], num_virtual_tokens: int) -> KVPrefix:
    """The exact keys and values of the first ``num_virtual_tokens`` tokens of a document."""
    if len(ids) < num_virtual_tokens:
        raise BadValue(
            f"the document has {len(ids)} tokens, {num_virtual_tokens} virtual tokens need as many; "
            "give a longer document or initialise from a text, which is repeated"
        )
    return read(ids[:num_virtual_tokens])


def from_prefix(prefix: KVPrefix, geometry: Geometry, num_virtual_tokens: int) -> KVPrefix:
    """Another prefix's values; it must have the same number of virtual tokens and fit the same model."""
    if prefix.num_virtual_tokens != num_virtual_tokens:
        raise GeometryMismatch(
            f"the artifact to start from has {prefix.num_virtual_tokens} virtual tokens, "
            f"num_virtual_tokens is {num_virtual_tokens}; they must be equal"
        )
    prefix.check(geometry)
    return prefix
