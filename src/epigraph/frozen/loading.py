"""A checkpoint on disk into a transformers model and tokenizer, without transformers' bars and chatter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from epigraph.errors import BadValue, UnsupportedModel
from epigraph.frozen.convert import load_gguf
from epigraph.frozen.resolve import Checkpoint


def load_causal(found: Checkpoint, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The causal model and tokenizer of a checkpoint; raises :class:`UnsupportedModel` where there is none."""
    try:
        with quiet():
            if found.gguf_file:
                return load_gguf(found.folder / found.gguf_file, dtype)
            # Code that comes with a checkpoint is not run, whatever transformers' default is one day.
            tokenizer = AutoTokenizer.from_pretrained(found.folder, trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(found.folder, dtype=dtype, trust_remote_code=False)
            return model, tokenizer
    except (OSError, ValueError, KeyError, RuntimeError) as wrong:
        first = (str(wrong).strip() or type(wrong).__name__).splitlines()[0]
        raise UnsupportedModel(f"{found.name} could not be loaded as a causal language model: {first}") from wrong


def usable_device(name: str | torch.device) -> torch.device:
    """The device of that name; raises :class:`BadValue` for one that torch does not know or cannot reach here."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as wrong:
        why = (str(wrong).strip() or type(wrong).__name__).splitlines()[0]
        raise BadValue(f"device is {str(name)!r}, which torch cannot use here: {why}; try cpu") from wrong
    return device


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
