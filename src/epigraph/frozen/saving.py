"""A model that was trained jointly with virtual tokens, as a normal model folder of its own."""

from __future__ import annotations

from pathlib import Path

from epigraph.files import folder_in_whole
from epigraph.frozen.convert import save_folder
from epigraph.frozen.fingerprint import fingerprint
from epigraph.frozen.loading import quiet
from epigraph.frozen.model import FrozenModel
from epigraph.frozen.resolve import resolve


def save_base(frozen: FrozenModel, folder: Path) -> str:
    """Write the model as it is now, and its tokenizer, to ``folder``, whole or not at all; its fingerprint.

    Anything that loads models loads it; what was there before is replaced. ``frozen`` is known by it from here on.
    """
    with quiet(), folder_in_whole(folder) as made:
        save_folder(frozen.model, frozen.tokenizer, made)
    frozen.fingerprint = fingerprint(resolve(str(folder)))
    return frozen.fingerprint
