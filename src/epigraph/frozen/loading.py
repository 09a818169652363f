"""A checkpoint on disk into a transformers model and tokenizer, without transformers' bars and chatter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from epigraph.errors import BadValue, UnsupportedModel
from epigraph.frozen.checkpoint import Checkpoint
from epigraph.frozen.convert import load_gguf

_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id")


def load(found: Checkpoint, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer of a checkpoint, as what it was saved as: with the head that its weights are for.

    Raises :class:`UnsupportedModel` where there is none.
    """
    try:
        with quiet():
            if found.gguf_file:
                return load_gguf(found.folder / found.gguf_file, dtype)
            # Code that comes with a checkpoint is not run, whatever transformers' default is one day.
            tokenizer = AutoTokenizer.from_pretrained(found.folder, trust_remote_code=False)
            config = AutoConfig.from_pretrained(found.folder, trust_remote_code=False)
            model = _auto_class(config).from_pretrained(found.folder, dtype=dtype, trust_remote_code=False)
            _forget_decoding(model)
            return model, tokenizer
    except (OSError, ValueError, KeyError, RuntimeError) as wrong:
        first = (str(wrong).strip() or type(wrong).__name__).splitlines()[0]
        raise UnsupportedModel(f"{found.name} could not be loaded as a language model: {first}") from wrong


def _forget_decoding(model: PreTrainedModel) -> None:
    """What the authors would decode with (a penalty of repetition, say) is not what a task's contract says.

    transformers fills it in wherever nobody says otherwise. What remains are the tokens that texts begin and end with.
    """
    if getattr(model, "generation_config", None) is not None:
        kept = {name: getattr(model.generation_config, name, None) for name in _TOKENS}
        model.generation_config = GenerationConfig(**kept)


def _auto_class(config: PreTrainedConfig) -> Any:
    """Which head a checkpoint has: a head that it was not saved with would be random numbers."""
    saved_as = (config.architectures or [""])[0]
    if config.is_encoder_decoder:
        return AutoModelForSeq2SeqLM
    # BERT's and ALBERT's pre-training checkpoints have a language-modelling head; ELECTRA's have another one.
    if saved_as.endswith("ForMaskedLM") or saved_as in ("BertForPreTraining", "AlbertForPreTraining"):
        return AutoModelForMaskedLM
    is_encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    return AutoModel if is_encoder and not saved_as.endswith(("ForCausalLM", "LMHeadModel")) else AutoModelForCausalLM


def usable_device(name: str | torch.device) -> torch.device:
    """The device of that name; raises :class:`BadValue` for one that torch does not know or cannot reach here."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as wrong:
        why = (str(wrong).strip() or type(wrong).__name__).splitlines()[0]
        raise BadValue(f"device is {str(name)!r}, which torch cannot use here: {why}; try cpu") from wrong
    return device


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 itself. A CPU that does not takes up to a hundred times as long in it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    # A part of torch that is not promised: without it, the answer that is never slow.
    told: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(told.get("avx512_bf16") or told.get("amx_bf16") or told.get("bf16"))


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars or warnings of transformers inside; as they were afterwards."""
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
