"""Who a model is without loading its weights: its checkpoint's fingerprint, its tokenizer and that's fingerprint."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from epigraph.errors import UnsupportedModel
from epigraph.frozen.checkpoint import Checkpoint
from epigraph.frozen.fingerprint import fingerprint, tokenizer_fingerprint
from epigraph.frozen.loading import quiet
from epigraph.frozen.resolve import resolve


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What an artifact is checked against, and what turns text into ids. Fingerprints are 64 hex digits."""

    checkpoint: Checkpoint
    fingerprint: str
    tokenizer: PreTrainedTokenizerBase
    tokenizer_fingerprint: str


def identify(model: str, tokenizer: str | None = None) -> Identity:
    """The model of that name, folder or hub id, with its own tokenizer or the one at ``tokenizer``.

    Raises :class:`ModelNotFound` or :class:`UnsupportedModel`.
    """
    checkpoint = resolve(model)
    where = checkpoint.folder if tokenizer in (None, model) else resolve(str(tokenizer)).folder
    try:
        with quiet():
            loaded = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as wrong:
        raise UnsupportedModel(f"{model} has no tokenizer that can be loaded: {wrong}") from wrong
    return Identity(
        checkpoint=checkpoint,
        fingerprint=fingerprint(checkpoint),
        tokenizer=loaded,
        tokenizer_fingerprint=tokenizer_fingerprint(loaded),
    )
