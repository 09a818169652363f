"""The recipe's method with its first values: what the model has to say about a method is asked here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from epigraph import artifact
from epigraph.contract import TextContract
from epigraph.errors import BadValue, GeometryMismatch
from epigraph.frozen.classes import first_class_vectors, width_at_mask
from epigraph.frozen.inputs import frequent_ids
from epigraph.frozen.model import FrozenModel
from epigraph.methods import initial
from epigraph.methods.base import Classifier, Method
from epigraph.methods.p_tuning import PTuning, PTuningConfig
from epigraph.methods.prefix_tuning import PrefixTuning, PrefixTuningConfig
from epigraph.methods.prompt_tuning import PromptTuning, PromptTuningConfig
from epigraph.train.prepare import Prepared
from epigraph.train.recipe import VirtualPart
from epigraph.virtual import KVPrefix, SoftPrompt, VirtualTokens


def make_method(ready: Prepared) -> Method:
    """The recipe's method with its first values, and what is trained beside it; the seed decides every random one."""
    torch.manual_seed(ready.recipe.training.seed)
    baseline, contract, frozen = ready.recipe.baseline, ready.codec.contract, ready.frozen
    with torch.no_grad():
        method = _virtual_tokens(ready) if baseline is None else baseline.make(ready)
    if contract.layout in ("label", "tags") and (baseline is None or baseline.trains):
        method.head = head_for(frozen, contract)
    if ready.recipe.training.base_lr is not None:
        method.base = frozen.model.requires_grad_(True)
    return method


def head_for(frozen: FrozenModel, contract: TextContract) -> Classifier:
    """A new head for what the contract reads and chooses among."""
    if contract.pooling == "mask":
        return Classifier(width_at_mask(frozen), len(contract.labels), "mask", first_class_vectors(frozen, contract))
    reads = "tags" if contract.layout == "tags" else contract.pooling
    return Classifier(frozen.model.config.hidden_size, len(contract.labels), reads)


def _virtual_tokens(ready: Prepared) -> Method:
    config, frozen = ready.recipe.method, ready.frozen
    assert isinstance(config, VirtualPart), "a baseline makes its own"
    if isinstance(config, PrefixTuningConfig):
        geometry = frozen.geometry.only(frozen.geometry.sites if config.sites is None else config.sites)
        if config.is_infix and not geometry.is_causal:
            raise BadValue(
                f"method.place is {config.place!r}, which needs a decoder of its own, and {frozen.name} has an encoder"
            )
        made = PrefixTuning(config, frozen.geometry, _first_prefix(ready, config), _first_read(ready, config))
        made().check(frozen.geometry)
        return made
    contract, seed = ready.codec.contract, ready.recipe.training.seed
    num_tokens = contract.num_slots or config.num_virtual_tokens or 0
    first_PE = first_embeddings(frozen, config, num_tokens, seed=seed, instruction=ready.task.instruction)
    if isinstance(config, PTuningConfig):
        return PTuning(config, first_PE, frozen.embedding_rms)
    return PromptTuning(config, first_PE, frozen.embedding_rms, placed=contract.is_placed)


def _first_read(ready: Prepared, config: PrefixTuningConfig) -> Tensor | None:
    if config.place != "infix-code":
        return None
    ids = _ids(ready.frozen, config.initial_text or ready.task.instruction)
    return ready.frozen.embed(initial.repeated(ids, config.num_virtual_tokens))


def _first_prefix(ready: Prepared, config: PrefixTuningConfig) -> KVPrefix | None:
    frozen, geometry, num_tokens = ready.frozen, ready.frozen.geometry, config.num_virtual_tokens
    match config.start:
        case None:
            return None
        case "random":
            generator = torch.Generator().manual_seed(ready.recipe.training.seed)
            return initial.random_normal(geometry, num_tokens, std=config.initial_std, generator=generator)
        case "zero":
            return initial.zero(geometry, num_tokens)
        case "artifact":
            return initial.from_prefix(frozen.lower(_stored(frozen, config.initial_path)), geometry, num_tokens)
        case "document":
            return initial.from_document(frozen.read, _document_ids(frozen, config.initial_path), num_tokens)
        case _:
            text = config.initial_text or ready.task.instruction
            return initial.from_text(frozen.read, _ids(frozen, text), num_tokens)


def first_embeddings(
    frozen: FrozenModel, config: PromptTuningConfig | PTuningConfig, num_tokens: int, *, seed: int, instruction: str
) -> Tensor:
    """``[P, E]``: where a soft prompt starts, the same for the same model, config and seed; zeros behind a network.

    ``instruction`` is read where the config names no text of its own.
    """
    generator, width = torch.Generator().manual_seed(seed), frozen.geometry.embedding_dim
    match config.start:
        case None:
            return torch.zeros(num_tokens, width)
        case "uniform":
            limit = config.uniform_range or frozen.embedding_rms
            return initial.uniform(width, num_tokens, limit=limit, generator=generator)
        case "vocabulary" | "labels":
            frequent = frequent_ids(frozen.tokenizer, config.vocabulary_size)
            labels = [_ids(frozen, label) for label in config.labels] if config.initial == "labels" else []
            return initial.from_labels(frozen.embed, labels, frequent, num_tokens, generator=generator)
        case "artifact":
            found = _stored(frozen, config.initial_path)
            if not isinstance(found, SoftPrompt):
                raise GeometryMismatch(
                    f"{config.initial_path} holds keys and values, expected embeddings to start from; "
                    "name an artifact of prompt-tuning or p-tuning"
                )
            return initial.from_prompt(found, frozen.geometry, num_tokens)
        case "document":
            return frozen.embed(initial.beginning(_document_ids(frozen, config.initial_path), num_tokens))
        case _:
            return frozen.embed(initial.repeated(_ids(frozen, config.initial_text or instruction), num_tokens))


def _stored(frozen: FrozenModel, path: str | None) -> VirtualTokens:
    there = artifact.load(artifact.find(Path(str(path))))
    there.check_base(frozen.geometry, frozen.fingerprint, frozen.tokenizer_fingerprint)
    return there.tokens


def _document_ids(frozen: FrozenModel, path: str | None) -> Sequence[int]:
    try:
        return _ids(frozen, Path(str(path)).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as wrong:
        raise BadValue(f"method.initial_path: cannot read {path}: {wrong}") from None


def _ids(frozen: FrozenModel, text: str) -> Sequence[int]:
    ids: list[int] = frozen.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return ids
