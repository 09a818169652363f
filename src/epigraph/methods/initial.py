"""First values of virtual tokens: keys and values as a prefix, or embeddings ``[P, E]``. None knows who trains them.

Where real ones are wanted, the caller hands in a reader (token ids in, their keys and values out) or an embedder (token
ids in, their embeddings out). Visibility is not theirs to say: the method that trains the values decides it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Generator, Tensor

from epigraph.errors import BadValue, GeometryMismatch
from epigraph.methods.base import unflatten
from epigraph.virtual import Geometry, KVPrefix, SoftPrompt, VirtualTokens

Reader = Callable[[Sequence[int]], KVPrefix]
Embedder = Callable[[Sequence[int]], Tensor]
EmbeddingInitial = Literal["text", "document", "vocabulary", "labels", "uniform", "artifact"]


class FirstEmbeddings(BaseModel):
    """Where trained embeddings start, the same for every method that trains some.

    ``initial``: ``text`` (the embeddings of ``initial_text``, by default the task's instruction, repeated or cut),
    ``document`` (of the first tokens of the file ``initial_path``), ``vocabulary`` (of different tokens drawn from the
    ``vocabulary_size`` most frequent), ``labels`` (of ``labels``, the mean over a label's tokens; the rest drawn from
    the vocabulary), ``uniform`` (uniform in [-r, r], r being ``uniform_range``, for T5 embeddings; ``uniform_range``
    none: r is the root mean square of the model's embeddings), or ``artifact`` (another prompt, as in SPoT, Vu et al.
    2022). (Lester et al. 2021, section 3.2.)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    initial: EmbeddingInitial = "text"
    initial_text: str | None = None
    initial_path: str | None = None
    labels: tuple[str, ...] = ()
    vocabulary_size: Annotated[int, Field(ge=1)] = 5_000
    uniform_range: Annotated[float, Field(gt=0, le=100)] | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.initial in ("document", "artifact") and self.initial_path is None:
            raise ValueError(f"initial = {self.initial!r} needs initial_path")
        if self.initial == "labels" and not self.labels:
            raise ValueError("initial = 'labels' needs labels")
        return self


def random_normal(geometry: Geometry, num_virtual_tokens: int, *, std: float, generator: Generator) -> KVPrefix:
    """Every number drawn from a normal distribution with mean 0 and the stated ``std``.

    The papers leave "random" underspecified: the text of Prefix-Tuning says uniform(0, 1), its code draws
    normal(0, 1); both are far from the scale of real keys and values. (Li & Liang 2021, section 7.4 and A.3.)
    """
    flat = torch.randn(num_virtual_tokens, geometry.numbers_per_token(), generator=generator) * std
    return unflatten(flat, geometry, text_start=geometry.text_start(num_virtual_tokens), visibility="always")


def zero(geometry: Geometry, num_virtual_tokens: int) -> KVPrefix:
    """All zeros. Not a no-op: a zero key still takes its share of the softmax, so attention is damped."""
    flat = torch.zeros(num_virtual_tokens, geometry.numbers_per_token())
    return unflatten(flat, geometry, text_start=geometry.text_start(num_virtual_tokens), visibility="always")


def from_text(read: Reader, ids: Sequence[int], num_virtual_tokens: int) -> KVPrefix:
    """The exact keys and values of a text, repeated or cut to ``num_virtual_tokens`` token ids.

    (Li & Liang 2021, section 7.4: real words beat random values in low data.)
    """
    return read(repeated(ids, num_virtual_tokens))


def from_document(read: Reader, ids: Sequence[int], num_virtual_tokens: int) -> KVPrefix:
    """The exact keys and values of the first ``num_virtual_tokens`` tokens of a document."""
    return read(beginning(ids, num_virtual_tokens))


def from_prefix(prefix: KVPrefix, geometry: Geometry, num_virtual_tokens: int) -> KVPrefix:
    """Another prefix's values; it must have the same number of virtual tokens and fit the same model."""
    _check_same_length(prefix, num_virtual_tokens)
    prefix.check(geometry)
    return prefix


def repeated(ids: Sequence[int], num_virtual_tokens: int) -> list[int]:
    """The ids of a text, repeated or cut to as many as there are virtual tokens; raises :class:`BadValue` for none."""
    if not ids:
        raise BadValue("the text to initialise from has no tokens; give it words")
    return [ids[i % len(ids)] for i in range(num_virtual_tokens)]


def beginning(ids: Sequence[int], num_virtual_tokens: int) -> Sequence[int]:
    """The first ids of a document; raises :class:`BadValue` where it has fewer than there are virtual tokens."""
    if len(ids) < num_virtual_tokens:
        raise BadValue(
            f"the document has {len(ids)} tokens, {num_virtual_tokens} virtual tokens need as many; "
            "give a longer document or initialise from a text, which is repeated"
        )
    return ids[:num_virtual_tokens]


def uniform(embedding_dim: int, num_virtual_tokens: int, *, limit: float, generator: Generator) -> Tensor:
    """``[P, E]``: every number drawn uniformly from [-limit, limit]. (Lester et al. 2021, section 3.2: 0.5, on T5.)"""
    return (2 * torch.rand(num_virtual_tokens, embedding_dim, generator=generator) - 1) * limit


def from_vocabulary(
    embed: Embedder, frequent: Sequence[int], num_virtual_tokens: int, *, generator: Generator
) -> Tensor:
    """``[P, E]``: the embeddings of different tokens drawn from the ``frequent`` ones.

    Without replacement, as in the authors' code. (Lester et al. 2021, section 3.2: the 5,000 most frequent.)
    """
    if num_virtual_tokens > len(frequent):
        raise BadValue(
            f"{num_virtual_tokens} virtual tokens cannot be drawn from {len(frequent)} tokens without repeating; "
            "raise method.vocabulary_size"
        )
    drawn = torch.randperm(len(frequent), generator=generator)[:num_virtual_tokens].tolist()
    return embed([frequent[number] for number in drawn])


def from_labels(
    embed: Embedder,
    labels: Sequence[Sequence[int]],
    frequent: Sequence[int],
    num_virtual_tokens: int,
    *,
    generator: Generator,
) -> Tensor:
    """``[P, E]``: for each label the mean of its tokens' embeddings, then tokens drawn from the ``frequent`` ones.

    (Lester et al. 2021, section 3.2.) Raises :class:`BadValue` for more labels than virtual tokens.
    """
    if len(labels) > num_virtual_tokens:
        raise BadValue(f"{len(labels)} labels to start from, expected at most {num_virtual_tokens} (virtual tokens)")
    rows = [embed(ids).mean(0, keepdim=True) for ids in labels]
    rest = num_virtual_tokens - len(rows)
    return torch.cat([*rows, *([from_vocabulary(embed, frequent, rest, generator=generator)] if rest else [])])


def from_prompt(prompt: SoftPrompt, geometry: Geometry, num_virtual_tokens: int) -> Tensor:
    """``[P, E]``: another prompt's values; as many virtual tokens, for the same model. (SPoT, Vu et al. 2022.)"""
    _check_same_length(prompt, num_virtual_tokens)
    prompt.check(geometry)
    return prompt.embeddings_PE


def _check_same_length(tokens: VirtualTokens, num_virtual_tokens: int) -> None:
    if tokens.num_virtual_tokens != num_virtual_tokens:
        raise GeometryMismatch(
            f"the artifact to start from has {tokens.num_virtual_tokens} virtual tokens, "
            f"num_virtual_tokens is {num_virtual_tokens}; they must be equal"
        )
