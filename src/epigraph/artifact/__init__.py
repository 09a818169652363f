"""The artifact: one .safetensors file with trained virtual tokens, specified in docs/format.md.

It knows no model and no method, and reading one runs nothing that the file brings along.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from epigraph.artifact.messages import shown
from epigraph.artifact.reader import MAX_FILE_BYTES, load, read
from epigraph.artifact.value import Artifact
from epigraph.artifact.writer import save
from epigraph.errors import NotAnArtifact
from epigraph.virtual import SoftPrompt

__all__ = ["FILE_NAME", "MAX_FILE_BYTES", "Artifact", "find", "inspect", "load", "read", "save"]

FILE_NAME = "artifact.safetensors"


def find(path: str | os.PathLike[str]) -> Path:
    """The artifact file that ``path`` means: itself, or the one in a folder that training wrote.

    Raises :class:`NotAnArtifact` where there is neither. The file is not opened.
    """
    given = Path(path)
    inside = given / FILE_NAME
    # os.path, not pathlib: its questions have no errors, whatever the name is and whoever owns the folder.
    if os.path.isdir(given):
        if os.path.isfile(inside):
            return inside
        raise NotAnArtifact(f"{shown(given, 500)} is a folder without {FILE_NAME}; give a file or a training output")
    if os.path.lexists(given):
        return given
    raise NotAnArtifact(
        f"{shown(given, 500)} does not exist or cannot be seen, expected an artifact file or a folder that holds one"
    )


def inspect(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What the artifact at ``path`` is, as plain JSON values for people and programs; it is read and checked in full.

    Raises what :func:`load` raises.
    """
    artifact, header, num_bytes = read(path)
    tokens = artifact.tokens
    numbers = [tokens.embeddings_PE] if isinstance(tokens, SoftPrompt) else [x.keys_PKH for _, _, x in tokens.layers()]
    return header.model_dump(mode="json") | {
        "file": str(path),
        "num_bytes": num_bytes,
        "num_numbers": tokens.num_numbers,
        "num_layers_stored": 0 if isinstance(tokens, SoftPrompt) else len(numbers),
        "dtype": str(numbers[0].dtype).removeprefix("torch."),
    }
