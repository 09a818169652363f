"""Files in and out, tokenizers, the noise transformers makes, and what its Trainer asks of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from facts import SMALL, fact, ids, tiny

LOADING = "frozen/loading.py"
WORDS = ["<pad>", "<s>", "</s>", "<unk>", *"abcdefgh"]
GGUF_WORDS = [*WORDS, "Ġ", "ab", "cd"]


def tokenizer() -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*WORDS, " "])}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made.decoder = decoders.Fuse()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


@fact(
    "a tokenizer called with add_special_tokens=False gives the ids of a text alone, and knows its special tokens",
    used_in="frozen/inputs.py and frozen/filling.py",
    purpose="make the same ids in training and serving",
)
def test_text_to_ids() -> None:
    made = tokenizer()
    assert made("bad fed", add_special_tokens=False, verbose=False).input_ids == [5, 4, 7, 12, 9, 8, 7]
    assert (made.pad_token_id, made.bos_token_id, made.eos_token_id) == (0, 1, 2)
    assert made.decode([1, 5, 4, 7, 2], skip_special_tokens=True) == "bad"


@fact(
    "a chat template is a string in chat_template, rendered with and without what asks for an answer",
    used_in="frozen/inputs.py",
    purpose="tokenise conversations turn by turn",
)
def test_chat_template() -> None:
    made = tokenizer()
    assert made.chat_template is None
    made.chat_template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    made.chat_template += "{% if add_generation_prompt %}<assistant>{% endif %}"
    turns = [{"role": "user", "content": "a"}]
    asked = made.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert asked == "<user>a<assistant>"
    assert made.apply_chat_template(turns, tokenize=False, add_generation_prompt=False) == "<user>a"


@fact(
    "a tokenizer tells its vocabulary, its special tokens and its ids for a text",
    used_in="frozen/fingerprint.py and frozen/identity.py",
    purpose="know a tokenizer again",
)
def test_what_a_tokenizer_tells(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    made = tokenizer()
    made.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for one in (made, again):
        assert one.get_vocab()["h"] == 11
        names = {name: str(token) for name, token in one.special_tokens_map.items()}
        assert names == {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        assert one.encode("ab", add_special_tokens=False) == [4, 5]


@fact(
    "save_pretrained writes config.json and safetensors, which from_pretrained reads in the dtype asked for",
    used_in=LOADING,
    purpose="load base models",
)
def test_saved_and_loaded(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = tiny("llama")
    model.save_pretrained(tmp_path)
    assert {"config.json", "model.safetensors"} <= {file.name for file in tmp_path.iterdir()}
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for name, x in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], x.to(torch.bfloat16)), name


@fact(
    "a folder that is no model raises OSError, ValueError, KeyError or RuntimeError",
    used_in=LOADING,
    purpose="say in one line what is wrong with it",
)
def test_no_model_raises(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    (tmp_path / "config.json").write_text('{"model_type": "no-such-type"}')
    with pytest.raises((OSError, ValueError, KeyError, RuntimeError)):
        AutoModelForCausalLM.from_pretrained(tmp_path)


@fact(
    "all_tied_weights_keys has the names that are not saved because another name has the same tensor",
    used_in="frozen/model.py",
    purpose="fingerprint a model in memory as it is on disk",
)
def test_tied_weights(tmp_path: Path) -> None:
    from safetensors import safe_open

    for family in ("gpt2", "gemma3_text"):
        model = tiny(family)
        model.save_pretrained(tmp_path / family)
        with safe_open(tmp_path / family / "model.safetensors", "pt") as stored:
            assert set(model.all_tied_weights_keys) == set(model.state_dict()) - set(stored.keys())
        assert set(model.all_tied_weights_keys) == {"lm_head.weight"}
    assert not tiny("llama", tie_word_embeddings=False).all_tied_weights_keys


@fact(
    "transformers.utils.logging turns bars and warnings off and on, and says how they are",
    used_in=LOADING,
    purpose="load without noise and leave things as they were",
)
def test_noise_can_be_turned_off() -> None:
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    try:
        logging.disable_progress_bar()
        assert not logging.is_progress_bar_enabled()
        if bars:
            # Where the environment forbids bars, turning them on warns, and epigraph does not.
            logging.enable_progress_bar()
            assert logging.is_progress_bar_enabled()
        logging.set_verbosity(20)
        assert logging.get_verbosity() == 20
        logging.set_verbosity_error()
        assert logging.get_verbosity() == 40
    finally:
        logging.set_verbosity(level)


def gguf_file(file: Path) -> np.ndarray[Any, Any]:
    """A Llama of one layer with a tokenizer in one file; its embeddings ``[V, D]``."""
    from gguf import GGUFWriter, TokenType

    width, words = 32, len(GGUF_WORDS)
    writer = GGUFWriter(file, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(width)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(words)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(GGUF_WORDS)
    writer.add_token_types([TokenType.CONTROL] * 4 + [TokenType.NORMAL] * (words - 4))
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    draw = np.random.default_rng(0)
    shapes = {"token_embd": (words, width), "output_norm": (width,), "output": (words, width)}
    shapes |= {f"blk.0.{x}": (width, width) for x in ("attn_q", "attn_output", "ffn_gate", "ffn_up", "ffn_down")}
    shapes |= {f"blk.0.{x}": (width // 2, width) for x in ("attn_k", "attn_v")}
    shapes |= {f"blk.0.{x}": (width,) for x in ("attn_norm", "ffn_norm")}
    tensors = {f"{name}.weight": draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for name, x in tensors.items():
        writer.add_tensor(name, x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors["token_embd.weight"]


@fact(
    "from_pretrained(gguf_file=) unpacks every weight of a GGUF file to the dtype asked for",
    used_in="frozen/convert.py",
    purpose="read GGUF models",
)
def test_gguf_weights(tmp_path: Path) -> None:
    import transformers

    want = torch.tensor(gguf_file(tmp_path / "tiny.gguf"))
    dense = getattr(transformers, "GgufConfig", None)
    options = {"quantization_config": dense(dequantize=True)} if dense else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="tiny.gguf", dtype=torch.float32, **options
    )
    assert torch.equal(model.get_input_embeddings().weight.detach(), want)
    assert {x.dtype for x in model.parameters()} == {torch.float32}
    assert (model.config.num_hidden_layers, model.config.num_key_value_heads) == (1, 2)


@fact(
    "a tokenizer out of a GGUF file has a backend whose decoder and splitting can be set, and settable special tokens",
    used_in="frozen/convert.py",
    purpose="mend what transformers gets wrong there",
)
def test_gguf_tokenizer(tmp_path: Path) -> None:
    from tokenizers import decoders, pre_tokenizers
    from transformers import AutoTokenizer

    gguf_file(tmp_path / "tiny.gguf")
    made = AutoTokenizer.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    made.backend_tokenizer.decoder = decoders.ByteLevel()
    made.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    made.eos_token = made.convert_ids_to_tokens(2)
    assert made.eos_token_id == 2
    assert made("ab a", add_special_tokens=False, verbose=False).input_ids == [13, 12, 4]
    assert made.decode([13, 12, 4]) == "ab a"


@fact(
    "a model made on no device takes another's tensors by load_state_dict(assign=True) and tie_weights, and needs only "
    "its buffers besides",
    used_in="frozen/convert.py",
    purpose="save a model that came packed",
)
def test_a_fresh_model_takes_tensors() -> None:
    from transformers import AutoModelForCausalLM

    for family in ("llama", "gemma3_text"):
        model = tiny(family)
        with torch.device("meta"):
            fresh = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
        fresh.load_state_dict(model.state_dict(), strict=True, assign=True)
        fresh.tie_weights()
        for name, module in model.named_modules():
            fresh.get_submodule(name)._buffers.update(module._buffers)
        assert {x.device.type for x in (*fresh.parameters(), *fresh.buffers())} == {"cpu"}
        with torch.no_grad():
            assert torch.equal(fresh.eval()(input_ids=ids(1, 5)).logits, model(input_ids=ids(1, 5)).logits)


@fact(
    "Trainer turns checkpointing on by activation_checkpointing_enable or gradient_checkpointing_enable of the model",
    used_in="train/module.py",
    purpose="keep prefixes under a Trainer's checkpointing",
)
def test_trainer_asks_the_model(tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    class Asked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(SMALL["hidden_size"]))
            self.asked = 0

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": (self.weight * x).sum()}

        def activation_checkpointing_enable(self, *_: Any, **__: Any) -> None:
            self.asked += 1

        gradient_checkpointing_enable = activation_checkpointing_enable

    names = ("activation_checkpointing", "gradient_checkpointing")
    flag = next(name for name in names if name in TrainingArguments.__dataclass_fields__)
    quiet = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False}
    arguments = TrainingArguments(output_dir=str(tmp_path), max_steps=1, save_strategy="no", **{flag: True}, **quiet)
    model = Asked()
    rows = [{"x": torch.ones(SMALL["hidden_size"])}] * 8
    Trainer(model, arguments, train_dataset=rows).train()
    assert model.asked == 1
