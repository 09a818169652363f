"""The recipe's method with its first values: what the model has to say about a method is asked here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Generator, Tensor

from epigraph import artifact
from epigraph.errors import BadValue, GeometryMismatch
from epigraph.frozen.inputs import frequent_ids
from epigraph.methods import initial
from epigraph.methods.base import Method
from epigraph.methods.prefix_tuning import PrefixTuning, PrefixTuningConfig
from epigraph.methods.prompt_tuning import PromptTuning, PromptTuningConfig
from epigraph.train.prepare import Prepared
from epigraph.virtual import KVPrefix, SoftPrompt, VirtualTokens


def make_method(ready: Prepared) -> Method:
    """The recipe's method with its first values; the seed decides every random one."""
    config = ready.recipe.method
    torch.manual_seed(ready.recipe.training.seed)
    with torch.no_grad():
        if isinstance(config, PromptTuningConfig):
            return PromptTuning(config, _first_embeddings(ready, config), ready.frozen.embedding_rms)
        return PrefixTuning(config, ready.frozen.geometry, _first_prefix(ready, config))


def _first_prefix(ready: Prepared, config: PrefixTuningConfig) -> KVPrefix | None:
    frozen, geometry, num_tokens = ready.frozen, ready.frozen.geometry, config.num_virtual_tokens
    match config.start:
        case None:
            return None
        case "random":
            return initial.random_normal(geometry, num_tokens, std=config.initial_std, generator=_generator(ready))
        case "zero":
            return initial.zero(geometry, num_tokens)
        case "artifact":
            return initial.from_prefix(frozen.lower(_stored(ready)), geometry, num_tokens)
        case "document":
            return initial.from_document(frozen.read, _document_ids(ready), num_tokens)
        case _:
            return initial.from_text(frozen.read, _text_ids(ready), num_tokens)


def _first_embeddings(ready: Prepared, config: PromptTuningConfig) -> Tensor:
    frozen, num_tokens, generator = ready.frozen, config.num_virtual_tokens, _generator(ready)
    width = frozen.geometry.embedding_dim
    match config.start:
        case None:
            return torch.zeros(num_tokens, width)
        case "uniform":
            limit = config.uniform_range or frozen.embedding_rms
            return initial.uniform(width, num_tokens, limit=limit, generator=generator)
        case "vocabulary" | "labels":
            frequent = frequent_ids(frozen.tokenizer, config.vocabulary_size)
            labels = [_ids(ready, label) for label in config.labels] if config.initial == "labels" else []
            return initial.from_labels(frozen.embed, labels, frequent, num_tokens, generator=generator)
        case "artifact":
            found = _stored(ready)
            if not isinstance(found, SoftPrompt):
                raise GeometryMismatch(
                    f"{config.initial_path} holds keys and values, prompt-tuning starts from embeddings; "
                    "name an artifact of prompt-tuning"
                )
            return initial.from_prompt(found, frozen.geometry, num_tokens)
        case "document":
            return frozen.embed(initial.beginning(_document_ids(ready), num_tokens))
        case _:
            return frozen.embed(initial.repeated(_text_ids(ready), num_tokens))


def _generator(ready: Prepared) -> Generator:
    return torch.Generator().manual_seed(ready.recipe.training.seed)


def _stored(ready: Prepared) -> VirtualTokens:
    there = artifact.load(artifact.find(Path(str(ready.recipe.method.initial_path))))
    there.check_base(ready.frozen.geometry, ready.frozen.fingerprint, ready.frozen.tokenizer_fingerprint)
    return there.tokens


def _text_ids(ready: Prepared) -> Sequence[int]:
    return _ids(ready, ready.recipe.method.initial_text or ready.task.instruction)


def _document_ids(ready: Prepared) -> Sequence[int]:
    path = Path(str(ready.recipe.method.initial_path))
    try:
        return _ids(ready, path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as wrong:
        raise BadValue(f"method.initial_path: cannot read {path}: {wrong}") from None


def _ids(ready: Prepared, text: str) -> Sequence[int]:
    ids: list[int] = ready.frozen.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return ids
