"""Files out of a package become a normal model folder: safetensors, config, tokenizer.

It knows formats; it does not know where files come from. ``python -m epigraph.frozen.convert KIND SOURCE FOLDER`` does
it in a process of its own, so that the memory it takes and the noise it makes end with it; the last line it prints is
the tokenizer's fingerprint.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import decoders, pre_tokenizers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from epigraph.errors import UnsupportedModel
from epigraph.frozen.fingerprint import tokenizer_fingerprint


def convert_gguf(source: Path, folder: Path) -> None:
    """Unpack the causal model in the GGUF file ``source`` to bfloat16 in ``folder``.

    bfloat16 loses nothing that matters: the source holds 4 to 8 bits a weight, and its norms were bfloat16 once.
    """
    model, tokenizer = load_gguf(source, torch.bfloat16)
    config = model.config
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    tokenizer.model_max_length = config.max_position_embeddings
    save_folder(model, tokenizer, folder)


def load_gguf(source: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The causal model in the GGUF file ``source``, every weight unpacked to ``dtype``, and its tokenizer.

    Raises :class:`UnsupportedModel` for an architecture that transformers cannot read from GGUF.
    """
    # transformers before GgufConfig always unpacked; since, it may keep the blocks packed unless told otherwise.
    dense = getattr(transformers, "GgufConfig", None)
    options: dict[str, Any] = {"quantization_config": dense(dequantize=True)} if dense else {}
    try:
        packed = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=dtype, **options)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise UnsupportedModel(f"{source.name} cannot be read: {reason}; use a safetensors folder") from error
    config = packed.config
    for attribute in ("quantization_config", "_model_name_or_path"):
        config.__dict__.pop(attribute, None)
    # A model that was ever quantised refuses to be saved. A fresh one takes its tensors, all of them or it raises.
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.load_state_dict(packed.state_dict(), strict=True, assign=True)
    model.tie_weights()
    # No state dict holds the rotation's frequencies and the like, which the fresh model has on no device yet.
    for name, module in packed.named_modules():
        model.get_submodule(name)._buffers.update(module._buffers)
    return model, gguf_tokenizer(source)


def gguf_tokenizer(source: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a GGUF file, with the special tokens the file names and the splitting it asks for."""
    from gguf import GGUFReader

    file = GGUFReader(source)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)

    def said(name: str) -> Any:
        field = file.get_field(f"tokenizer.ggml.{name}")
        return None if field is None else field.contents()

    if said("model") == "gpt2":
        # transformers 5.16 puts other families' special tokens and decoder here.
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
            number = said(f"{key}_token_id")
            if number is not None:
                setattr(tokenizer, f"{name}_token", tokenizer.convert_ids_to_tokens(int(number)))
        tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    if said("pre") == "smollm":
        # transformers takes GPT-2's splitting here; this one sets every digit apart first, which moves the space or
        # newline before a number into another token.
        digits = pre_tokenizers.Digits(individual_digits=True)
        words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    return tokenizer


def convert_encoder(source: Path, folder: Path) -> None:
    """Copy the encoder whose files lie beside ``source`` to ``folder`` in float32, without what its config lacks."""
    model = AutoModel.from_pretrained(source.parent, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source.parent)
    # The published file pads and cuts every text to 128 tokens, which is the caller's choice to make.
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    for option in ("max_length", "stride", "truncation_strategy", "pad_to_multiple_of"):
        tokenizer.init_kwargs.pop(option, None)
    tokenizer.model_max_length = model.config.max_position_embeddings
    save_folder(model, tokenizer, folder)


def save_folder(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """A model and its tokenizer as a folder that anything loads, all files with the same rights."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # Weights come out readable by their owner only, the rest as the umask says: a shared folder needs all alike.
    mode = (folder / "config.json").stat().st_mode
    for weights in folder.glob("*.safetensors"):
        weights.chmod(mode)


CONVERTERS = {"gguf": convert_gguf, "encoder": convert_encoder}

if __name__ == "__main__":
    CONVERTERS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
    print(tokenizer_fingerprint(AutoTokenizer.from_pretrained(sys.argv[3])))
