"""What lies near a soft prompt: for each virtual token the vocabulary's nearest, by cosine (Lester et al. 2021, 7).

Knows embeddings and a vocabulary; what to make of them is said in reading.py. Legend: C a chunk of the vocabulary or of
the prompt, R nearest kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from epigraph.errors import BadValue
from epigraph.frozen.model import FrozenModel
from epigraph.virtual import SoftPrompt

# Cosines held at a time, 16 MB of them: a long prompt takes smaller chunks.
_MAX_COSINES = 2**22


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbour:
    """A token of the vocabulary; ``token`` is its entry there, unescaped. ``cosine`` is from -1 to 1."""

    token_id: int
    token: str
    cosine: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenReading:
    """One virtual token, counted from 0, among the vocabulary and the other virtual tokens.

    ``relative_norm`` is its norm over the mean norm of the vocabulary's embeddings. ``is_duplicate``: another virtual
    token has the same nearest token. ``closest`` is the virtual token with the largest cosine to this one, None where
    there is no other.
    """

    number: int
    nearest: tuple[Neighbour, ...]
    relative_norm: float
    is_duplicate: bool
    closest: int | None
    closest_cosine: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Duplicate:
    """A token that is the nearest of two or more virtual tokens, and which."""

    token_id: int
    token: str
    numbers: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptReading:
    """A soft prompt, token by token; ``mean_norm`` is that of the vocabulary's embeddings."""

    tokens: tuple[TokenReading, ...]
    duplicates: tuple[Duplicate, ...]
    mean_norm: float

    @property
    def closest_pair(self) -> TokenReading | None:
        """The first of the two virtual tokens with the largest cosine between them; None where there is one token."""
        paired = [token for token in self.tokens if token.closest_cosine is not None]
        return max(paired, key=lambda token: token.closest_cosine or 0.0, default=None)


def read_prompt(
    frozen: FrozenModel, prompt: SoftPrompt, *, num_nearest: int = 5, chunk_size: int = 4_096
) -> PromptReading:
    """The ``num_nearest`` tokens of the vocabulary for each virtual token, largest cosine first, then the lower id.

    Cosines and norms are taken in the space of :meth:`FrozenModel.embed`, in float32, at most ``chunk_size`` tokens at
    a time. The vocabulary is every id that the tokenizer has a token for, special and unused ones too; a model's rows
    beyond it are no tokens. A virtual token of zeros has cosine 0 with everything.
    Raises :class:`GeometryMismatch` and, for numbers below 1, :class:`BadValue`.
    """
    for name, value in (("num_nearest", num_nearest), ("chunk_size", chunk_size)):
        if value < 1:
            raise BadValue(f"{name} is {value}, expected 1 or more")
    prompt.check(frozen.geometry)
    words = vocabulary(frozen)
    with torch.no_grad():
        prompt_PE = prompt.embeddings_PE.detach().to(frozen.device, torch.float32)
        step = max(1, min(chunk_size, _MAX_COSINES // len(prompt_PE)))
        cosines_PR, ids_PR = largest_cosines(prompt_PE, embedded(frozen, list(words), step), num_nearest)
        mean_norm = sum(float(x.norm(dim=1).sum()) for _, x in embedded(frozen, list(words), step)) / len(words)
        norms = (prompt_PE.norm(dim=1) / mean_norm).tolist()
        closest = _closest(prompt_PE, step)
    nearest = [
        tuple(Neighbour(token_id=i, token=words[i], cosine=c) for i, c in zip(ids, cosines, strict=True))
        for ids, cosines in zip(ids_PR.tolist(), cosines_PR.tolist(), strict=True)
    ]
    duplicates = _duplicates(nearest)
    return PromptReading(
        tokens=_tokens(nearest, norms, closest, duplicates), duplicates=duplicates, mean_norm=mean_norm
    )


def vocabulary(frozen: FrozenModel) -> Mapping[int, str]:
    """Every token of the tokenizer that has an embedding, by id, in order: special and unused ones too."""
    num_rows = frozen.model.get_input_embeddings().weight.shape[0]
    return {i: word for word, i in sorted(frozen.tokenizer.get_vocab().items(), key=lambda x: x[1]) if i < num_rows}


def embedded(frozen: FrozenModel, ids: Sequence[int], step: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Chunks of ids ``[C]`` and their embeddings ``[C, E]``, float32."""
    for start in range(0, len(ids), step):
        some = ids[start : start + step]
        yield torch.tensor(some, device=frozen.device), frozen.embed(some).float()


def largest_cosines(
    queries_PE: Tensor, chunks: Iterable[tuple[Tensor, Tensor]], num_nearest: int, *, leave_out_self: bool = False
) -> tuple[Tensor, Tensor]:
    """The largest cosines ``[P, R]`` and the ids they belong to, over all chunks of ids ``[C]`` and rows ``[C, E]``.

    Largest first, then the earlier one; with ``leave_out_self`` query j is not compared with id j.
    """
    directions_PE = normalize(queries_PE, dim=1)
    own_P1 = torch.arange(len(queries_PE), device=queries_PE.device)[:, None]
    best_PR = queries_PE.new_empty((len(queries_PE), 0))
    ids_PR = own_P1[:, :0]
    for ids_C, rows_CE in chunks:
        cosines_PC = (directions_PE @ normalize(rows_CE, dim=1).T).clamp(-1, 1)
        if leave_out_self:
            cosines_PC = cosines_PC.masked_fill(ids_C == own_P1, -torch.inf)
        all_cosines = torch.cat([best_PR, cosines_PC], 1)
        all_ids = torch.cat([ids_PR, ids_C.expand(len(queries_PE), -1)], 1)
        # Stable, where topk is not: which of two equal tokens is named must not depend on the chunks.
        order = all_cosines.sort(dim=1, descending=True, stable=True).indices[:, :num_nearest]
        best_PR, ids_PR = all_cosines.gather(1, order), all_ids.gather(1, order)
    return best_PR, ids_PR


def _closest(prompt_PE: Tensor, step: int) -> list[tuple[int | None, float | None]]:
    """For each virtual token the other one with the largest cosine, and that cosine."""
    if len(prompt_PE) == 1:
        return [(None, None)]
    chunks = zip(torch.arange(len(prompt_PE), device=prompt_PE.device).split(step), prompt_PE.split(step), strict=True)
    cosines_P1, numbers_P1 = largest_cosines(prompt_PE, chunks, 1, leave_out_self=True)
    return list(zip(numbers_P1[:, 0].tolist(), cosines_P1[:, 0].tolist(), strict=True))


def _tokens(
    nearest: Sequence[tuple[Neighbour, ...]],
    norms: Sequence[float],
    closest: Sequence[tuple[int | None, float | None]],
    duplicates: Sequence[Duplicate],
) -> tuple[TokenReading, ...]:
    doubled = {number for one in duplicates for number in one.numbers}
    return tuple(
        TokenReading(
            number=number,
            nearest=found,
            relative_norm=norms[number],
            is_duplicate=number in doubled,
            closest=closest[number][0],
            closest_cosine=closest[number][1],
        )
        for number, found in enumerate(nearest)
    )


def _duplicates(nearest: Sequence[tuple[Neighbour, ...]]) -> tuple[Duplicate, ...]:
    numbers: defaultdict[tuple[int, str], list[int]] = defaultdict(list)
    for number, (first, *_) in enumerate(nearest):
        numbers[first.token_id, first.token].append(number)
    return tuple(
        Duplicate(token_id=token_id, token=token, numbers=tuple(where))
        for (token_id, token), where in numbers.items()
        if len(where) > 1
    )
