"""Each virtual token replaced by the word that lies nearest to it: what is left of a prompt that words could say.

Knows a prompt and a vocabulary; does not know who trained the prompt. (Lester et al. 2021, section 7.)
Legend: P virtual tokens, C a chunk of the vocabulary, E width of embeddings.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from epigraph.errors import BadValue
from epigraph.frozen.model import FrozenModel
from epigraph.frozen.neighbours import embedded, largest_cosines, vocabulary
from epigraph.virtual import SoftPrompt, VirtualTokens

Distance = Literal["cosine", "euclid"]
DISTANCES: tuple[Distance, ...] = get_args(Distance)
_CHUNK = 4_096


@dataclass(frozen=True, kw_only=True, slots=True)
class NearestWords:
    """A prompt made of words: their ids, the vocabulary's names of them, and ``prompt``, their embeddings."""

    prompt: SoftPrompt
    ids: tuple[int, ...]
    words: tuple[str, ...]
    distance: Distance


def nearest_words(frozen: FrozenModel, tokens: VirtualTokens, *, distance: Distance = "cosine") -> NearestWords:
    """Each virtual token's nearest word of the whole vocabulary, the lower id of equally near ones.

    By ``cosine``, as the paper reads prompts, a word's own length takes the place of the virtual token's; by ``euclid``
    the word is the one whose embedding differs least. Both in float32, in the space of :meth:`FrozenModel.embed`.
    Raises :class:`BadValue` for keys and values, which are no words, and :class:`GeometryMismatch`.
    """
    if distance not in DISTANCES:
        raise BadValue(f"distance is {distance!r}, expected {' or '.join(DISTANCES)}")
    if not isinstance(tokens, SoftPrompt):
        raise BadValue(
            "the virtual tokens are keys and values, expected a soft prompt (prompt-tuning, p-tuning), whose virtual "
            "tokens lie among the vocabulary's words; leave nearest words out"
        )
    tokens.check(frozen.geometry)
    words = vocabulary(frozen)
    with torch.no_grad():
        prompt_PE = tokens.embeddings_PE.detach().to(frozen.device, torch.float32)
        chunks = embedded(frozen, list(words), _CHUNK)
        found_P = (
            largest_cosines(prompt_PE, chunks, 1)[1][:, 0]
            if distance == "cosine"
            else _smallest_distances(prompt_PE, chunks)
        )
        ids = [int(x) for x in found_P]
        prompt = SoftPrompt(embeddings_PE=frozen.embed(ids), placed=tokens.placed)
    return NearestWords(prompt=prompt, ids=tuple(ids), words=tuple(words[i] for i in ids), distance=distance)


def _smallest_distances(prompt_PE: Tensor, chunks: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """``[P]``: the id of the row at the smallest Euclidean distance, the first of equally near ones."""
    best_P = prompt_PE.new_full((len(prompt_PE),), torch.inf)
    ids_P = torch.zeros(len(prompt_PE), dtype=torch.long, device=prompt_PE.device)
    for ids_C, rows_CE in chunks:
        # Not by products of matrices: near a row its distance would be lost in rounding.
        near_P, at_P = torch.cdist(prompt_PE, rows_CE, compute_mode="donot_use_mm_for_euclid_dist").min(1)
        is_nearer_P = near_P < best_P
        best_P = torch.where(is_nearer_P, near_P, best_P)
        ids_P = torch.where(is_nearer_P, ids_C[at_P], ids_P)
    return ids_P
