"""A model that was trained jointly with virtual tokens, as a normal model folder of its own."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

from epigraph.frozen.convert import save_folder
from epigraph.frozen.fingerprint import fingerprint
from epigraph.frozen.loading import quiet
from epigraph.frozen.model import FrozenModel
from epigraph.frozen.resolve import resolve


def save_base(frozen: FrozenModel, folder: Path) -> str:
    """Write the model as it is now, and its tokenizer, to ``folder``, whole or not at all; its fingerprint.

    Anything that loads models loads it; what was there before is replaced. ``frozen`` is known by it from here on.
    """
    # Not by tempfile, so that the folder gets the permissions the user's umask gives.
    made = folder.with_name(f".{folder.name}-{secrets.token_hex(8)}")
    try:
        made.mkdir()
        with quiet():
            save_folder(frozen.model, frozen.tokenizer, made)
        shutil.rmtree(folder, ignore_errors=True)
        made.replace(folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    frozen.fingerprint = fingerprint(resolve(str(folder)))
    return frozen.fingerprint
