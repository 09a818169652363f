"""A model as files: a folder or a GGUF file, and which of its files hold tensors. It opens none of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from epigraph.errors import ModelNotFound, UnsupportedModel

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A model on disk: ``folder`` as transformers takes it, and the GGUF file in it if it is one."""

    folder: Path
    gguf_file: str | None = None
    name: str


def weight_files(checkpoint: Checkpoint) -> tuple[Path, ...]:
    """The files that hold the checkpoint's tensors. Raises :class:`ModelNotFound` if a shard is missing."""
    folder = checkpoint.folder
    if checkpoint.gguf_file:
        return (folder / checkpoint.gguf_file,)
    if (folder / WEIGHTS).is_file():
        return (folder / WEIGHTS,)
    try:
        shards = sorted(set(json.loads((folder / INDEX).read_bytes())["weight_map"].values()))
        files = tuple(folder / Path(shard).name for shard in shards)
    except FileNotFoundError:
        raise ModelNotFound(f"{folder} has no {WEIGHTS} and no {INDEX}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnsupportedModel(f"{folder / INDEX} is broken ({error}); get the model again") from error
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise ModelNotFound(f"{folder} lacks {', '.join(missing) or 'weights'}, named in {INDEX}; get the model again")
    return files
