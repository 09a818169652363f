"""From what a user calls a model to the files on this machine: a known name, a folder, a GGUF file or a hub id.

It finds and never loads; which families can be used is asked later.
"""

from __future__ import annotations

import re
from pathlib import Path

from epigraph.errors import ModelNotFound, UnsupportedModel
from epigraph.frozen.catalogue import MODELS, nearest
from epigraph.frozen.checkpoint import INDEX, WEIGHTS, Checkpoint, weight_files
from epigraph.frozen.fetch import folder_of, is_fetched
from epigraph.frozen.randomized import SCHEME, randomized
from epigraph.home import home

__all__ = ["Checkpoint", "resolve"]

# Weights that are pickles, which run whatever their author put into them when they are opened.
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_HUB_ID = re.compile(r"(?P<repository>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[\w./-]+))?")
_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
_GGUF_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


def resolve(name: str) -> Checkpoint:
    """Find the model ``name`` on disk, or get it from the hub if it is a hub id.

    ``random:NAME`` is a model of the same shape with random weights, the control of a probe. Raises
    :class:`ModelNotFound` for what is not there and :class:`UnsupportedModel` for weights that are no safetensors.
    """
    if name.startswith(SCHEME):
        return Checkpoint(folder=randomized(resolve(name.removeprefix(SCHEME)), home()), name=name)
    if name in MODELS:
        if not is_fetched(MODELS[name], home()):
            raise ModelNotFound(f"model {name} is not here yet; run: epigraph models fetch {name}")
        return Checkpoint(folder=folder_of(MODELS[name], home()), name=name)
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        return _gguf(path, name)
    if name and path.is_dir():
        return _folder(path, name)
    if path.is_file():
        raise UnsupportedModel(f"{name} is a file, expected a model folder or a .gguf file")
    looks_local = name.startswith((".", "~")) or path.is_absolute()
    match = None if looks_local else _HUB_ID.fullmatch(name)
    if match is None:
        raise ModelNotFound(_missing(name))
    return _folder(_from_hub(name, match["repository"], match["revision"]), name)


def public_name(name: str) -> str:
    """What a model is called in files that travel: a folder or file loses the path to it."""
    if name.startswith(SCHEME):
        return f"{SCHEME}{public_name(name.removeprefix(SCHEME))}"
    path = Path(name).expanduser()
    return path.resolve().name if path.exists() else name


def _gguf(path: Path, name: str) -> Checkpoint:
    if not path.is_file():
        raise ModelNotFound(f"no file {name}")
    if _GGUF_PART.search(path.name):
        raise UnsupportedModel(f"{name} is one part of several; join the parts into one .gguf file first")
    return Checkpoint(folder=path.parent, gguf_file=path.name, name=name)


def _folder(path: Path, name: str) -> Checkpoint:
    if not (path / "config.json").is_file():
        raise ModelNotFound(f"{name} is no model folder: it has no config.json")
    checkpoint = Checkpoint(folder=path, name=name)
    if not (path / WEIGHTS).is_file() and not (path / INDEX).is_file():
        pickles = sorted(file.name for file in path.iterdir() if file.suffix in _PICKLES)
        found = f"only {pickles[0]}, a pickle, which can run code when opened" if pickles else "none"
        raise UnsupportedModel(f"{name} has no safetensors weights ({found}); save them as {WEIGHTS} first")
    weight_files(checkpoint)
    return checkpoint


def _from_hub(name: str, repository: str, revision: str | None) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        # Only the top folder: other formats of the same weights often lie below it.
        folder = huggingface_hub.snapshot_download(
            repository, revision=revision, allow_patterns=_HUB_FILES, ignore_patterns=["*/*"]
        )
    except GatedRepoError:
        raise ModelNotFound(
            f"{name} is gated: accept its licence on the hub, then log in with `hf auth login`"
        ) from None
    except RevisionNotFoundError:
        raise ModelNotFound(f"{repository} is on the hub, but has no revision {revision!r}") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise ModelNotFound(_missing(name, "; the hub has no such model, or it is private")) from None
    except OSError:
        # Every way of not reaching the hub is one: no network, a refusal, offline mode without a copy.
        raise ModelNotFound(_missing(name, "; the hub was not reached and there is no copy of it here")) from None
    return Path(folder)


def _missing(name: str, why: str = "") -> str:
    guess = nearest(name)
    hint = f"did you mean {guess}?" if guess else f"expected {', '.join(MODELS)}, a folder, a .gguf file or owner/name"
    return f"no model {name!r}{why}; {hint}"
