"""A model that was trained jointly with virtual tokens, as a normal model folder of its own."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from epigraph.frozen.convert import save_folder
from epigraph.frozen.fingerprint import fingerprint
from epigraph.frozen.model import FrozenModel
from epigraph.frozen.resolve import resolve


def save_base(frozen: FrozenModel, folder: Path) -> str:
    """Write the model as it is now, and its tokenizer, to ``folder``, whole or not at all; its fingerprint.

    Anything that loads models loads it; what was there before is replaced.
    """
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        save_folder(frozen.model, frozen.tokenizer, made)
        shutil.rmtree(folder, ignore_errors=True)
        made.replace(folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return fingerprint(resolve(str(folder)))
