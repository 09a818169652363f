"""Tiny random models of every supported family, and the real ones where they have been fetched."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from epigraph.frozen.model import FrozenModel
from epigraph.methods import initial
from epigraph.virtual import Geometry, KVPrefix, Visibility
from forked import Forks

VOCABULARY = 120
WINDOW = 8
IDS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WIDTHS = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
DROPOUT = {"attention_dropout": 0.1}

MAKERS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**IDS, **WIDTHS, **DROPOUT, num_key_value_heads=2)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**IDS, n_embd=64, n_layer=3, n_head=4, n_positions=96)),
    "qwen3": lambda: Qwen3ForCausalLM(
        Qwen3Config(**IDS, **WIDTHS, **DROPOUT, num_key_value_heads=2, head_dim=32),
    ),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(
            **IDS,
            **WIDTHS,
            num_key_value_heads=1,
            head_dim=32,
            sliding_window=WINDOW,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        )
    ),
    "mistral": lambda: MistralForCausalLM(
        MistralConfig(**IDS, **WIDTHS, **DROPOUT, num_key_value_heads=2, sliding_window=WINDOW)
    ),
    # Its input embeddings are narrower than its layers, as in OPT-350m.
    "opt": lambda: OPTForCausalLM(
        OPTConfig(
            **IDS,
            hidden_size=64,
            ffn_dim=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=96,
            word_embed_proj_dim=32,
        )
    ),
    "gpt-neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**IDS, **WIDTHS, max_position_embeddings=96)),
}
FAMILIES = tuple(MAKERS)
WINDOWED = ("gemma3", "mistral")
ATTENTIONS = ("sdpa", "eager")


def tiny_model(family: str) -> PreTrainedModel:
    """A random model whose answers are decided: its two best logits are apart (median gap over 0.1)."""
    torch.manual_seed(0)
    # OPT's narrow embeddings give small logits.
    return grown(MAKERS[family]().eval(), 12.0 if family == "opt" else 5.0)


def grown(model: PreTrainedModel, times: float) -> PreTrainedModel:
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "norm" not in name:
                weight.mul_(times)
    return model


def tiny(family: str, attention: str = "sdpa") -> FrozenModel:
    return FrozenModel(tiny_model(family), tiny_tokenizer(), name=f"tiny-{family}", attention_name=attention)


def tiny_tokenizer(*, both_ways: bool = False) -> PreTrainedTokenizerFast:
    """One token a printable character, so that any text has ids in the tiny vocabulary.

    ``both_ways``: as encoders have it, with a mask and a sentinel, and a start and an end token put around every text.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    characters = ["\n", *(chr(i) for i in range(32, 127))]
    vocabulary = {token: number for number, token in enumerate([*special, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    if both_ways:
        tokenizer.add_special_tokens(["<mask>", "<extra_id_0>"])
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
        names = {"mask_token": "<mask>", "cls_token": "<s>", "sep_token": "</s>"}
        names |= {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def save_tiny(folder: Path) -> Path:
    """The tiny Llama and its tokenizer as a model folder, for what loads models by name."""
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def random_prefix(
    geometry: Geometry, num_virtual_tokens: int, seed: int, visibility: Visibility = "always", std: float = 1.0
) -> KVPrefix:
    made = initial.random_normal(geometry, num_virtual_tokens, std=std, generator=torch.Generator().manual_seed(seed))
    return KVPrefix(sites=made.sites, text_start=made.text_start, visibility=visibility)


def random_ids(num_tokens: int, seed: int) -> list[int]:
    return torch.randint(4, VOCABULARY - 20, (num_tokens,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=ATTENTIONS)
def attention_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def benchmark(name: str) -> ModuleType:
    """``benchmarks/<name>.py`` as a module."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Sums are added in an order that the number of threads decides, and the processes of some tests have one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def epigraph_data() -> Path:
    folder = os.environ.get("EPIGRAPH_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("EPIGRAPH_DATA is not set to a folder of datasets")
    return Path(folder)


def fetched(name: str) -> str:
    """The known model ``name``, or a skip that says how to get it."""
    from epigraph.home import home

    if not (home() / "models" / name).is_dir():
        pytest.skip(f"{name} is not fetched; run `epigraph models fetch {name}`")
    return name


@pytest.fixture(scope="session")
def smollm2() -> FrozenModel:
    return FrozenModel.load(fetched("smollm2-135m"))


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Python in processes of its own, without the seconds that torch and transformers take."""
    # Not pytest's folder: the path of a socket has at most a hundred letters.
    with tempfile.TemporaryDirectory() as folder:
        server = Forks(Path(folder))
        yield server
        server.close()
