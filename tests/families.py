"""Every family of model and every method on it: the one source of the table in docs/families.md and of the tests.

A cell is True, or the error that refuses it with words of its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

from conftest import IDS, MAKERS, VOCABULARY, WIDTHS, WINDOWED, grown, tiny_tokenizer
from epigraph.errors import BadValue, EpigraphError, GeometryMismatch, SharedLayers
from epigraph.frozen.model import FrozenModel

T5 = {"d_model": 64, "d_kv": 24, "d_ff": 96, "num_layers": 3, "num_heads": 4}
BART = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "max_position_embeddings": 96,
}
ENCODER = {**IDS, **WIDTHS, "max_position_embeddings": 96}

OTHERS: dict[str, Callable[[], PreTrainedModel]] = {
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY,
            **T5,
            decoder_start_token_id=0,
            eos_token_id=2,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        )
    ),
    "bart": lambda: BartForConditionalGeneration(
        BartConfig(**IDS, **BART, decoder_start_token_id=2, forced_eos_token_id=None)
    ),
    "bert": lambda: BertForMaskedLM(BertConfig(**ENCODER)),
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**{**ENCODER, "max_position_embeddings": 98})),
    "albert": lambda: AlbertForMaskedLM(AlbertConfig(**ENCODER, embedding_size=32)),
    "electra": lambda: ElectraForMaskedLM(ElectraConfig(**ENCODER, embedding_size=32)),
    "bert without a language-modelling head": lambda: BertModel(BertConfig(**ENCODER)),
    "electra discriminator": lambda: ElectraModel(ElectraConfig(**ENCODER, embedding_size=32)),
}
KINDS: Mapping[str, str] = {
    **dict.fromkeys(MAKERS, "causal"),
    **dict.fromkeys(("t5", "bart"), "encoder-decoder"),
    **dict.fromkeys(("bert", "roberta", "albert", "electra"), "masked"),
    **dict.fromkeys(("bert without a language-modelling head", "electra discriminator"), "encoder"),
}
SHOWN = {
    "llama": "Llama",
    "gpt2": "GPT-2",
    "qwen3": "Qwen",
    "gemma3": "Gemma",
    "mistral": "Mistral",
    "opt": "OPT",
    "gpt-neox": "GPT-NeoX",
    "t5": "T5 1.1, LM-adapted, Flan",
    "bart": "BART",
    "bert": "BERT",
    "roberta": "RoBERTa",
    "albert": "ALBERT",
    "electra": "ELECTRA",
    "electra discriminator": "ELECTRA discriminator",
    "bert without a language-modelling head": "BERT without its head (MiniLM)",
}
LABEL = {"layout": "label", "input_template": "{source}"}
TAGS = {"layout": "tags", "input_template": "{source}"}
PLACES = {"input_template": "{2}a {source} {3} is [MASK] ."}
# What a column of the table trains: the tables [method] and [text] of its recipe.
PREFIX = {"name": "prefix-tuning", "num_virtual_tokens": 4}
PROMPT = {"name": "prompt-tuning", "num_virtual_tokens": 5}
METHODS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "prefix, raw": (PREFIX, {}),
    "prefix, MLP": ({**PREFIX, "parameterization": "mlp", "mlp_width": 16}, {}),
    "prefix, code's MLP": ({**PREFIX, "parameterization": "mlp-code", "mlp_width": 16}, {}),
    "prefix, encoder.self": ({**PREFIX, "sites": ["encoder.self"]}, {}),
    "prefix, decoder.self": ({**PREFIX, "sites": ["decoder.self"]}, {}),
    "prefix, decoder.cross": ({**PREFIX, "sites": ["decoder.cross"]}, {}),
    "infix": ({**PREFIX, "place": "infix"}, {}),
    "infix, code's": ({**PREFIX, "place": "infix-code"}, {}),
    "prompt, raw": (PROMPT, {}),
    "prompt, residual": ({**PROMPT, "parameterization": "residual", "mlp_width": 16}, {}),
    "prompt, MLP (embedding-only)": ({**PROMPT, "parameterization": "mlp", "mlp_width": 16}, {}),
    "P-tuning, LSTM": ({"name": "p-tuning"}, PLACES),
    "P-tuning, MLP": ({"name": "p-tuning", "parameterization": "mlp"}, PLACES),
    "P-tuning, raw": ({"name": "p-tuning", "parameterization": "raw"}, PLACES),
    "prefix with a label head": (PREFIX, LABEL),
    "prefix with a tagging head": (PREFIX, TAGS),
    "prompt with a label head": (PROMPT, {**LABEL, "pooling": "mean"}),
}
FAMILIES = tuple(KINDS)
SITES = {
    "causal": ("decoder.self",),
    "encoder-decoder": ("decoder.cross", "decoder.self", "encoder.self"),
    "masked": ("encoder.self",),
    "encoder": ("encoder.self",),
}
Cell = tuple[type[EpigraphError], str] | bool


def cell(family: str, method: str) -> Cell:
    """Whether a method trains on a family, or what refuses it."""
    kind, (table, text) = KINDS[family], METHODS[method]
    is_prefix = table["name"] == "prefix-tuning"
    sites = table.get("sites", ())
    refusals: list[tuple[bool, tuple[type[EpigraphError], str]]] = [
        ("layout" in text and kind in ("causal", "encoder-decoder"), (BadValue, "can be asked by")),
        ("layout" not in text and kind == "encoder", (BadValue, "has no language-modelling head")),
        (is_prefix and family == "albert", (SharedLayers, "share one attention module")),
        (not set(sites) <= set(SITES[kind]), (GeometryMismatch, "the model has no ")),
        (str(table.get("place")).startswith("infix") and kind != "causal", (BadValue, "has an encoder")),
        (table.get("place") == "infix-code" and family in WINDOWED, (GeometryMismatch, "with a window forget it")),
    ]
    return next((reason for holds, reason in refusals if holds), True)


def cells() -> Iterator[tuple[str, str]]:
    yield from ((family, method) for family in FAMILIES for method in METHODS)


def tiny_family(family: str, attention_name: str = "sdpa") -> FrozenModel:
    """A random model of the family, grown so that its answers are decided, with a tokenizer of one token a letter."""
    make = {**MAKERS, **OTHERS}[family]
    torch.manual_seed(0)
    model = grown(make().eval(), 8.0 if family == "bart" else 5.0)
    tokenizer = tiny_tokenizer() if KINDS[family] == "causal" else tiny_tokenizer(both_ways=True)
    return FrozenModel(model, tokenizer, name=f"tiny-{family}", attention_name=attention_name)


def markdown() -> str:
    """The table of docs/families.md: methods down, families across by kind; a refusal is a number below the table."""
    reasons: list[str] = []
    lines = [f"| | {' | '.join(SHOWN[x] for x in FAMILIES)} |", f"|---|{'---|' * len(FAMILIES)}"]
    for method in METHODS:
        marks = []
        for family in FAMILIES:
            found = cell(family, method)
            if found is True:
                marks.append("yes")
                continue
            assert not isinstance(found, bool)
            reason = WHY[found[1]]
            if reason not in reasons:
                reasons.append(reason)
            marks.append(f"no ({reasons.index(reason) + 1})")
        lines.append(f"| {method} | {' | '.join(marks)} |")
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, start=1)]
    return "\n".join([*lines, "", *notes])


WHY = {
    "can be asked by": "`BadValue`: a head stands on an encoder of its own; a decoder says the label's word.",
    "has no language-modelling head": "`BadValue`: an encoder without a language-modelling head says no words.",
    "share one attention module": "`SharedLayers`: one attention module serves all layers, none has keys of its own.",
    "has an encoder": "`BadValue`: an infix stands between source and answer of one text.",
    "with a window forget it": "`GeometryMismatch`: its layers with a window forget what the model read there.",
    "the model has no ": "`GeometryMismatch`: the model has no such site.",
}

if __name__ == "__main__":
    print(markdown())
