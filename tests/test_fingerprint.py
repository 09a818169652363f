from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from conftest import tiny_tokenizer
from epigraph.errors import ModelNotFound, UnsupportedModel
from epigraph.frozen.checkpoint import Checkpoint
from epigraph.frozen.fingerprint import fingerprint, fingerprint_state, tokenizer_fingerprint

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 40}


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EPIGRAPH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def tiny_llama(tied: bool = True) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=tied))


def saved(model: PreTrainedModel, folder: Path, **options: object) -> Checkpoint:
    model.save_pretrained(folder, **options)
    return Checkpoint(folder=folder, name=folder.name)


def rewrite(checkpoint: Checkpoint, change: object = None, **metadata: str) -> None:
    """The same tensors in another order, with ``change`` made to them in place."""
    file = checkpoint.folder / "model.safetensors"
    tensors = load_file(file)
    if callable(change):
        change(tensors)
    save_file({name: tensors[name] for name in reversed(tensors)}, file, metadata or None)


def age(checkpoint: Checkpoint, seconds: int = 60) -> None:
    """Let the files look settled, as they are a while after they were written."""
    for file in checkpoint.folder.iterdir():
        then = file.stat().st_mtime_ns - seconds * 10**9
        os.utime(file, ns=(then, then))


def by_the_book(file: Path) -> str:
    """The definition, without threads, chunks or our own reader."""
    total = b"epigraph tensors 1"
    with safe_open(file, "pt") as tensors:
        for name in sorted(tensors.keys()):
            shape, dtype = tensors.get_slice(name).get_shape(), tensors.get_slice(name).get_dtype()
            words = json.dumps([name, dtype, shape], separators=(",", ":")) + "\n"
            raw = tensors.get_tensor(name).reshape(-1).view(torch.uint8).numpy().tobytes()
            total += hashlib.sha256(words.encode() + raw).digest()
    return hashlib.sha256(total).hexdigest()


def test_it_is_what_the_definition_says(tmp_path: Path) -> None:
    checkpoint = saved(tiny_llama(), tmp_path / "a")
    assert fingerprint(checkpoint) == by_the_book(tmp_path / "a" / "model.safetensors")


def test_sharding_order_and_metadata_do_not_count(tmp_path: Path) -> None:
    one, many = saved(tiny_llama(), tmp_path / "one"), saved(tiny_llama(), tmp_path / "many", max_shard_size="4KB")
    assert len(list(many.folder.glob("*.safetensors"))) > 3
    want = fingerprint(one)
    assert fingerprint(many) == want
    rewrite(one, note="other words")
    assert fingerprint(one) == want


def flip(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"].view(torch.uint8)[0] ^= 1


def rename(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.bias"] = tensors.pop("model.norm.weight")


def reshape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"].reshape(4, 4)


def retype(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"].view(torch.int32)


def drop(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.norm.weight"]


def swap(tensors: dict[str, torch.Tensor]) -> None:
    a, b = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.gate_proj.weight"
    tensors[a], tensors[b] = tensors[b], tensors[a]


@pytest.mark.parametrize("change", [flip, rename, reshape, retype, drop, swap])
def test_any_change_of_a_tensor_counts(tmp_path: Path, change: object) -> None:
    checkpoint = saved(tiny_llama(), tmp_path / "a")
    want = fingerprint(checkpoint)
    rewrite(checkpoint, change)
    assert fingerprint(checkpoint) != want


MODELS = {
    "llama, tied": lambda: tiny_llama(True),
    "llama, untied": lambda: tiny_llama(False),
    "llama, bfloat16": lambda: tiny_llama().bfloat16(),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32)),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    ),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_in_memory_equals_on_disk(tmp_path: Path, make: object) -> None:
    model = make()  # type: ignore[operator]
    assert fingerprint_state(model.state_dict()) == fingerprint(saved(model, tmp_path / "a"))


def test_names_that_are_not_stored_can_be_told(tmp_path: Path) -> None:
    model = BertForMaskedLM(BertConfig(**SMALL))
    tied = [name for name in model.state_dict() if name.startswith("cls.predictions.decoder.")]
    assert fingerprint_state(model.state_dict(), tied=tied) == fingerprint(saved(model, tmp_path / "a"))


def test_equal_tensors_that_are_not_shared_count_apart() -> None:
    x = torch.ones(4)
    assert fingerprint_state({"a": x, "b": x}) == fingerprint_state({"b": x})
    assert fingerprint_state({"a": x, "b": x.clone()}) != fingerprint_state({"b": x})
    assert fingerprint_state({"a": x[:2], "b": x[2:]}) != fingerprint_state({"b": x[2:]})
    assert fingerprint_state({"a": x[:0], "b": x[:0]}) != fingerprint_state({"b": x[:0]})


def test_one_training_step_counts() -> None:
    model = tiny_llama()
    before = fingerprint_state(model.state_dict())
    with torch.no_grad():
        model.model.norm.weight[0] += 1e-3
    assert fingerprint_state(model.state_dict()) != before


def test_it_is_remembered_until_a_file_changes(tmp_path: Path, own_home: Path) -> None:
    checkpoint = saved(tiny_llama(), tmp_path / "a")
    fingerprint(checkpoint)
    assert not own_home.exists(), "a file written this moment may change again within the same tick"
    age(checkpoint)
    want = fingerprint(checkpoint)
    cache = json.loads((own_home / "fingerprints.json").read_text())
    (entry,) = cache.values()
    assert entry["fingerprint"] == want
    entry["fingerprint"] = "f" * 64
    (own_home / "fingerprints.json").write_text(json.dumps(cache))
    assert fingerprint(checkpoint) == "f" * 64
    rewrite(checkpoint, flip)
    age(checkpoint)
    assert fingerprint(checkpoint) not in ("f" * 64, want)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"%s": 3}', b'{"%s": {"files": [], "fingerprint": 1}}']
)
def test_a_broken_cache_is_ignored_and_rewritten(tmp_path: Path, own_home: Path, content: bytes) -> None:
    checkpoint = saved(tiny_llama(), tmp_path / "a")
    age(checkpoint)
    own_home.mkdir()
    (own_home / "fingerprints.json").write_bytes(content.replace(b"%s", str(checkpoint.folder).encode()))
    want = fingerprint(checkpoint)
    assert want == by_the_book(tmp_path / "a" / "model.safetensors")
    cache = json.loads((own_home / "fingerprints.json").read_text())
    assert cache[str(checkpoint.folder.resolve())]["fingerprint"] == want
    assert [file.name for file in own_home.iterdir()] == ["fingerprints.json"]


def test_a_home_that_cannot_be_written_changes_nothing(tmp_path: Path, own_home: Path) -> None:
    checkpoint = saved(tiny_llama(), tmp_path / "a")
    age(checkpoint)
    own_home.write_text("a file where the folder would be")
    assert fingerprint(checkpoint) == by_the_book(tmp_path / "a" / "model.safetensors")


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    checkpoint = saved(tiny_llama(), tmp_path / "a")
    file = checkpoint.folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UnsupportedModel, match=r"model\.safetensors is not a whole safetensors file .*; get it again"):
        fingerprint(checkpoint)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    checkpoint = saved(tiny_llama(), tmp_path / "a", max_shard_size="4KB")
    shard = sorted(checkpoint.folder.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelNotFound, match=shard.name):
        fingerprint(checkpoint)


HEADERS = st.one_of(
    st.binary(max_size=64),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
        lambda x: (
            st.lists(x, max_size=3)
            | st.dictionaries(st.sampled_from(["a", "dtype", "shape", "data_offsets", "__metadata__"]), x, max_size=4)
        ),
        max_leaves=12,
    ).map(lambda value: json.dumps(value).encode()),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=HEADERS, body=st.binary(max_size=16), off=st.integers(-2, 2))
def test_any_header_is_read_or_refused(tmp_path: Path, header: bytes, body: bytes, off: int) -> None:
    content = struct.pack("<Q", max(0, len(header) + off)) + header + body
    (tmp_path / "model.safetensors").write_bytes(content)
    try:
        value = fingerprint(Checkpoint(folder=tmp_path, name="x"))
    except UnsupportedModel:
        return
    assert len(value) == 64


def gguf_file(file: Path, tensors: dict[str, np.ndarray], name: str) -> Checkpoint:
    from gguf import GGUFWriter

    writer = GGUFWriter(file, "llama")
    writer.add_name(name)
    for tensor, value in tensors.items():
        writer.add_tensor(tensor, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Checkpoint(folder=file.parent, gguf_file=file.name, name=file.name)


def test_gguf_files_are_hashed_by_their_tensors(tmp_path: Path) -> None:
    tensors = {"a": np.arange(64, dtype=np.float32).reshape(2, 32), "b": np.ones(32, dtype=np.float16)}
    want = fingerprint(gguf_file(tmp_path / "one.gguf", tensors, "one"))
    assert fingerprint(gguf_file(tmp_path / "two.gguf", dict(reversed(tensors.items())), "another name")) == want
    tensors["a"][1, 3] += 1
    assert fingerprint(gguf_file(tmp_path / "three.gguf", tensors, "one")) != want


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 64, b"PK" * 50])
def test_a_broken_gguf_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(UnsupportedModel, match="not a whole GGUF file"):
        fingerprint(Checkpoint(folder=tmp_path, gguf_file="x.gguf", name="x"))


def test_reading_takes_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    saved(tiny_llama(), tmp_path / "a")
    code = (
        "import sys; from pathlib import Path; from epigraph.frozen.fingerprint import fingerprint\n"
        "from epigraph.frozen.checkpoint import Checkpoint\n"
        "fingerprint(Checkpoint(folder=Path(sys.argv[1]), name='a'))\n"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=True)


def test_a_tokenizer_keeps_its_fingerprint_when_saved(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "a")
    again = AutoTokenizer.from_pretrained(tmp_path / "a")
    again.save_pretrained(tmp_path / "b")
    want = tokenizer_fingerprint(tokenizer)
    assert tokenizer_fingerprint(again) == want
    assert tokenizer_fingerprint(AutoTokenizer.from_pretrained(tmp_path / "b")) == want


def test_what_a_tokenizer_does_counts() -> None:
    from tokenizers import normalizers, processors

    want = tokenizer_fingerprint(tiny_tokenizer())
    more, special, lower, begins = (tiny_tokenizer() for _ in range(4))
    more.add_tokens(["London"])
    special.eos_token = "<unk>"
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    begins.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    others = {tokenizer_fingerprint(x) for x in (more, special, lower, begins)}
    assert len(others | {want}) == 5


def test_asking_leaves_the_tokenizer_as_it_was() -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(tokenizer)
    tokenizer.chat_template = "{{ messages }}"
    assert tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(tiny_tokenizer())
