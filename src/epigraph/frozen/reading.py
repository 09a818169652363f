"""What a soft prompt's neighbours say: clusters, equals, what is left of labels and of first values (Lester et al. 7).

Knows a prompt, its neighbours and the vocabulary; does not know who trained it or how. Legend: C a chunk of draws, R
tokens that belong together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import cosine_similarity, normalize

from epigraph.errors import BadValue, GeometryMismatch
from epigraph.frozen.model import FrozenModel
from epigraph.frozen.neighbours import PromptReading, embedded, largest_cosines, vocabulary
from epigraph.virtual import SoftPrompt

# Of what chance gives, this share is less tight than the bar.
QUANTILE = 0.95
_CHUNK = 2_048
_DRAWS_AT_A_TIME = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Clusters:
    """How tight each virtual token's nearest tokens are: the mean cosine over all pairs of them, from -1 to 1.

    ``random_bar`` is the 95 % quantile of the same number for ``num_draws`` sets of as many different tokens drawn
    from the vocabulary. Tokens that lie near one point lie near each other, whatever the point, so ``direction_bar``
    is the same quantile for the nearest tokens of ``num_draws`` directions drawn at random. All are None where there
    are fewer than two tokens to compare.
    """

    tightness: tuple[float | None, ...]
    random_bar: float | None
    direction_bar: float | None
    num_draws: int
    seed: int

    def above(self, bar: float | None) -> tuple[int, ...]:
        """The virtual tokens whose nearest tokens are tighter than ``bar``; none where there is no bar."""
        if bar is None:
            return ()
        return tuple(number for number, value in enumerate(self.tightness) if value is not None and value > bar)


@dataclass(frozen=True, kw_only=True, slots=True)
class Equals:
    """Pairs of virtual tokens whose cosine is over ``limit``: how many, and the first of them with their cosines."""

    num_pairs: int
    first: tuple[tuple[int, int, float], ...]
    limit: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Moved:
    """Virtual token ``number`` beside what it started from: their cosine, and the distance between them.

    A distance of 1 is a change of every number by the root mean square of the model's embeddings: L2 over
    sqrt(E) times :attr:`FrozenModel.embedding_rms`.
    """

    number: int
    cosine: float
    distance: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelReading:
    """A label that virtual token ``number`` started from: its tokens, those still among the nearest of that virtual
    token (``kept``), and every virtual token that has one of them among its nearest (``found_at``)."""

    label: str
    number: int
    tokens: tuple[str, ...]
    kept: tuple[str, ...]
    found_at: tuple[int, ...]


def read_clusters(frozen: FrozenModel, reading: PromptReading, *, num_draws: int = 500, seed: int = 0) -> Clusters:
    """Whether the nearest tokens of each virtual token form a cluster. (Lester et al. 2021, section 7.)

    The paper looks and finds clusters of words that are spelt or meant alike; this counts, with no eye on spelling.
    ``seed`` decides what chance draws. Raises :class:`BadValue` for ``num_draws`` below 1.
    """
    if num_draws < 1:
        raise BadValue(f"num_draws is {num_draws}, expected 1 or more")
    size = len(reading.tokens[0].nearest)
    if size < 2:
        nothing = (None,) * len(reading.tokens)
        return Clusters(tightness=nothing, random_bar=None, direction_bar=None, num_draws=num_draws, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    ids = list(vocabulary(frozen))
    with torch.no_grad():
        own = [[near.token_id for near in token.nearest] for token in reading.tokens]
        random = [[ids[i] for i in torch.randperm(len(ids), generator=generator)[:size]] for _ in range(num_draws)]
        directions = _near_directions(frozen, ids, size, num_draws, generator)
        return Clusters(
            tightness=tuple(_tightness(frozen, own)),
            random_bar=_bar(_tightness(frozen, random)),
            direction_bar=_bar(_tightness(frozen, directions)),
            num_draws=num_draws,
            seed=seed,
        )


def read_equals(prompt: SoftPrompt, *, limit: float = 0.99, num_first: int = 100) -> Equals:
    """The pairs of virtual tokens that are nearly one: cosine over ``limit``, the first ``num_first`` by name."""
    directions_PE = normalize(prompt.embeddings_PE.detach().float(), dim=1)
    num_pairs, first = 0, list[tuple[int, int, float]]()
    for start, rows_CE in zip(range(0, len(directions_PE), _CHUNK), directions_PE.split(_CHUNK), strict=True):
        cosines_CP = (rows_CE @ directions_PE.T).clamp(-1, 1)
        # Above the diagonal only: each pair once, and none with itself.
        places = (cosines_CP.triu(start + 1) > limit).nonzero()
        num_pairs += len(places)
        for row, column in places[: num_first - len(first)].tolist():
            first.append((start + row, column, float(cosines_CP[row, column])))
    return Equals(num_pairs=num_pairs, first=tuple(first), limit=limit)


def read_moved(frozen: FrozenModel, prompt: SoftPrompt, first_PE: Tensor) -> tuple[Moved, ...]:
    """How far each virtual token is from its first value, ``first_PE [P, E]``.

    Raises :class:`GeometryMismatch` for first values of another shape.
    """
    now_PE = prompt.embeddings_PE.detach().float().cpu()
    if first_PE.shape != now_PE.shape:
        raise GeometryMismatch(
            f"first values are {list(first_PE.shape)}, expected {list(now_PE.shape)} as the prompt has; "
            "give those that it was trained from"
        )
    first_PE = first_PE.detach().float().cpu()
    distances = ((now_PE - first_PE).norm(dim=1) / (now_PE.shape[1] ** 0.5 * frozen.embedding_rms)).tolist()
    cosines = cosine_similarity(now_PE, first_PE, dim=1).clamp(-1, 1).tolist()
    return tuple(
        Moved(number=number, cosine=cosine, distance=distance)
        for number, (cosine, distance) in enumerate(zip(cosines, distances, strict=True))
    )


def read_labels(frozen: FrozenModel, reading: PromptReading, labels: Sequence[str]) -> tuple[LabelReading, ...]:
    """What is left of each label: near the virtual token that started from it, and near any. Label j belongs to
    virtual token j. (Lester et al. 2021, section 7.)

    Raises :class:`BadValue` for more labels than virtual tokens.
    """
    if len(labels) > len(reading.tokens):
        raise BadValue(f"got {len(labels)} labels, expected at most {len(reading.tokens)}, one a virtual token")
    near = [{neighbour.token_id for neighbour in token.nearest} for token in reading.tokens]
    found = []
    for number, label in enumerate(labels):
        ids = frozen.tokenizer(label, add_special_tokens=False, verbose=False).input_ids
        found.append(
            LabelReading(
                label=label,
                number=number,
                tokens=_words(frozen, ids),
                kept=_words(frozen, [i for i in ids if i in near[number]]),
                found_at=tuple(place for place, some in enumerate(near) if some & set(ids)),
            )
        )
    return tuple(found)


def _words(frozen: FrozenModel, ids: Sequence[int]) -> tuple[str, ...]:
    return tuple(map(str, frozen.tokenizer.convert_ids_to_tokens(list(ids))))


def _tightness(frozen: FrozenModel, groups: Sequence[Sequence[int]]) -> Iterator[float]:
    """The mean cosine over the pairs of each group of token ids; all groups are of one size, two or more."""
    size = len(groups[0])
    for start in range(0, len(groups), _DRAWS_AT_A_TIME):
        some = groups[start : start + _DRAWS_AT_A_TIME]
        rows_CE = frozen.embed([i for group in some for i in group]).float()
        directions_CRE = normalize(rows_CE, dim=1).unflatten(0, (len(some), size))
        cosines_CRR = directions_CRE @ directions_CRE.mT
        among_C = cosines_CRR.sum((1, 2)) - cosines_CRR.diagonal(dim1=1, dim2=2).sum(1)
        yield from (among_C / (size * (size - 1))).clamp(-1, 1).tolist()


def _near_directions(
    frozen: FrozenModel, ids: Sequence[int], size: int, num_draws: int, generator: Generator
) -> list[list[int]]:
    """The nearest tokens of directions drawn evenly from the sphere."""
    drawn_CE = torch.randn(num_draws, frozen.geometry.embedding_dim, generator=generator).to(frozen.device)
    found: list[list[int]] = largest_cosines(drawn_CE, embedded(frozen, ids, _CHUNK), size)[1].tolist()
    return found


def _bar(values: Iterator[float]) -> float:
    return float(torch.tensor(list(values)).quantile(QUANTILE))
