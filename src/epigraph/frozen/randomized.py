"""The control of a probe: a model of the same shape with random weights, made once and kept.

What virtual tokens draw from it they brought themselves (Zhong et al. 2021). Knows checkpoints; does not know tasks.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from filelock import FileLock

from epigraph.files import folder_in_whole

if TYPE_CHECKING:
    from epigraph.frozen.checkpoint import Checkpoint

SCHEME = "random:"


def randomized(found: Checkpoint, home: Path) -> Path:
    """The folder below ``home`` of ``found``'s shape and tokenizer with the weights that training would begin with.

    The same weights for the same torch and transformers: its family's own initialisation, under a seed out of the
    base's fingerprint. Made at the first call. Raises :class:`UnsupportedModel`.
    """
    from epigraph.frozen.convert import save_folder
    from epigraph.frozen.fingerprint import fingerprint
    from epigraph.frozen.loading import load, quiet

    # Another base of the same name is another control.
    mark = hashlib.sha256(fingerprint(found).encode()).hexdigest()[:12]
    folder = home / "random" / f"{found.folder.name}-{mark}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if not folder.is_dir():
            model, tokenizer = load(found, torch.float32)
            state = torch.get_rng_state()
            try:
                # Not a number that somebody else would take, who then has the same weights.
                torch.manual_seed(int(mark, 16))
                made = type(model)(model.config)
            finally:
                torch.set_rng_state(state)
            with quiet(), folder_in_whole(folder) as half:
                save_folder(made, tokenizer, half)
    return folder
