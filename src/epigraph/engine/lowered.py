"""Soft prompts as files of keys and values, which engines without the seam serve; made once, exact or refused.

Knows artifacts and the frozen model; it knows no engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from epigraph.artifact import Artifact
from epigraph.contract import Slots, pieces_of
from epigraph.errors import CannotLower
from epigraph.frozen.model import FrozenModel
from epigraph.virtual import SoftPrompt

LOWERED_FROM = "lowered_from"


def lower_artifact(
    content: Artifact, frozen: FrozenModel, content_hash: str, allow_base: str | None = None
) -> Artifact:
    """``content`` with keys and values (float32, visibility ``window``) in the place of its soft prompt.

    Everything else stays; provenance says that it was ``lowered_from`` ``content_hash``. The geometry is that of the
    artifact. Raises :class:`CannotLower` for what are keys and values already, or what none can stand for exactly, and
    :class:`WrongBase`, :class:`WrongTokenizer` or :class:`GeometryMismatch` for another model's artifact.
    """
    content.check_base(frozen.geometry, frozen.fingerprint, frozen.tokenizer_fingerprint, allow_base=allow_base)
    content = in_front(content)
    refuse_lowered(content)
    assert isinstance(content.tokens, SoftPrompt)
    with torch.no_grad():
        tokens = frozen.lower(content.tokens).frozen_copy()
    provenance: Mapping[str, Any] = {**content.provenance, LOWERED_FROM: content_hash}
    return replace(content, tokens=tokens.to("cpu"), provenance=provenance)


def in_front(content: Artifact) -> Artifact:
    """An artifact whose template has all its places before everything else, as one that stands in front of the text.

    P-tuning's may be so. It is the same function of the text; any other artifact comes back as it is.
    """
    contract = content.contract
    if not isinstance(content.tokens, SoftPrompt) or not content.tokens.placed or contract.bos:
        return content
    is_slot = [isinstance(piece, Slots) for piece in pieces_of(contract.input_template)]
    if is_slot != sorted(is_slot, reverse=True):
        return content
    return replace(content, tokens=replace(content.tokens, placed=False), contract=contract.without_slots())


def refuse_lowered(content: Artifact) -> None:
    """Raise :class:`CannotLower` for what is no soft prompt in front: known before any model is loaded."""
    if not isinstance(content.tokens, SoftPrompt):
        raise CannotLower("the artifact holds keys and values already, expected a soft prompt; use it as it is")
    if content.tokens.placed:
        raise CannotLower(
            "the virtual tokens stand in the text's template, so that they change with the text before them; "
            "VLLMEngine takes them as they are, as embeddings"
        )
