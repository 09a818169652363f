"""Names: what epigraph imports from transformers, and the config attributes by which it refuses models."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest
import torch
from torch import nn

from facts import FAMILIES, attended, fact, ids, tiny

SOURCE = Path(__file__).parents[2] / "src" / "epigraph"


def imported() -> list[tuple[str, str, str]]:
    """(file of epigraph, module of transformers, name) of every import, found in the source itself."""
    found = []
    for file in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "transformers":
                found += [(str(file.relative_to(SOURCE)), str(node.module), alias.name) for alias in node.names]
    return found


@pytest.mark.parametrize(("file", "source", "name"), imported())
@fact("{source} has {name}", used_in="{file}", purpose="be imported at all")
def test_imported_name(file: str, source: str, name: str) -> None:
    module = importlib.import_module(source)
    try:
        getattr(module, name)
    except AttributeError:
        importlib.import_module(f"{source}.{name}")


def test_the_source_was_read() -> None:
    assert ("frozen/attention.py", "transformers.masking_utils", "ALL_MASK_ATTENTION_FUNCTIONS") in imported()
    assert ("frozen/loading.py", "transformers.utils", "logging") in imported()


@pytest.mark.parametrize("family", FAMILIES)
@fact(
    "a config counts its layers in get_text_config().num_hidden_layers and says how it attends, and its name",
    used_in="frozen/geometry.py and frozen/model.py",
    purpose="see that every layer came by the seam",
)
def test_layers_are_counted(family: str) -> None:
    model = tiny(family)
    assert model.config.get_text_config().num_hidden_layers == 2
    assert model.config._attn_implementation == "sdpa"
    assert isinstance(model.config.name_or_path, str)


@fact(
    "rope_parameters names the rotation in rope_type, in one table or in one a layer type",
    used_in="frozen/geometry.py",
    purpose="refuse rotations that depend on the length of the text",
)
def test_rotations_are_named() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    assert tiny("llama", rope_parameters=rope).config.rope_parameters["rope_type"] == "dynamic"
    assert tiny("llama").config.rope_parameters["rope_type"] == "default"
    tables = tiny("gemma3_text").config.rope_parameters
    assert {table["rope_type"] for table in tables.values()} == {"default"}


# (model type, config attribute, the value by which epigraph refuses, options)
REFUSED = [
    ("t5", "is_encoder_decoder", True, {}),
    ("gpt2", "add_cross_attention", True, {"add_cross_attention": True}),
    ("gemma3n_text", "num_kv_shared_layers", 15, {}),
]


@pytest.mark.parametrize(("kind", "attribute", "value", "options"), REFUSED, ids=[x[0] for x in REFUSED])
@fact("the config of {kind} has {attribute}", used_in="frozen/geometry.py", purpose="refuse the model by name")
def test_refused_by_attribute(kind: str, attribute: str, value: object, options: dict[str, object]) -> None:
    from transformers import AutoConfig

    assert getattr(AutoConfig.for_model(kind, **options).get_text_config(), attribute) == value


@fact("Llama 4 says chunked_attention in layer_types", used_in="frozen/geometry.py", purpose="refuse it by name")
def test_chunks_are_named() -> None:
    from transformers import AutoConfig

    assert "chunked_attention" in AutoConfig.for_model("llama4_text").layer_types


@fact(
    "a model that cannot attend by sdpa raises ValueError when it is told to",
    used_in="frozen/attention.py",
    purpose="refuse it by name",
)
def test_sdpa_is_refused_where_it_cannot_be() -> None:
    model = tiny("gpt_oss", "eager", num_local_experts=2, num_experts_per_tok=1)
    with pytest.raises(ValueError, match=r"sdpa|scaled_dot_product_attention"):
        model.set_attn_implementation("sdpa")


@fact(
    "Gemma 2 tells attention the cap on its scores as softcap, others tell none",
    used_in="frozen/geometry.py",
    purpose="refuse sdpa for it, which leaves the cap out",
)
def test_caps_are_told() -> None:
    capped = tiny("gemma2", "eager", attn_logit_softcapping=0.5)
    assert [call.options["softcap"] for call in attended(capped, "eager", input_ids=ids(1, 4))] == [0.5, 0.5]
    for family in FAMILIES:
        calls = attended(tiny(family), input_ids=ids(1, 4))
        assert all(call.options.get("softcap") is None for call in calls), family


@pytest.mark.parametrize("family", [x for x in FAMILIES if x != "gpt2"])
@fact(
    "the rotary modules of {family} have RotaryEmbedding in their class name",
    used_in="frozen/geometry.py",
    purpose="tell rotary positions from a table",
)
def test_rotary_modules_are_named(family: str) -> None:
    assert any("RotaryEmbedding" in type(module).__name__ for module in tiny(family).modules())


@fact(
    "GPT-2 looks its positions up in an nn.Embedding of max_position_embeddings rows",
    used_in="frozen/geometry.py",
    purpose="know where positions run out",
)
def test_position_table() -> None:
    model = tiny("gpt2")
    assert model.config.max_position_embeddings == 48
    tables = [x for x in model.modules() if isinstance(x, nn.Embedding) and x is not model.get_input_embeddings()]
    assert [table.num_embeddings for table in tables] == [48]


@fact(
    "Trainer takes batches from get_train_dataloader(), in an order that train_sampling_strategy names, and steps one "
    "by training_step(model, inputs), which divides by current_gradient_accumulation_steps",
    used_in="bench/sides.py and bench/peers.py",
    purpose="time what transformers' users do",
)
def test_trainer_is_stepped(tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    model, tokens = tiny("llama"), ids(4, 5)
    rows = [{"input_ids": row.tolist()} for row in tokens]
    options = {"per_device_train_batch_size": 2, "report_to": [], "use_cpu": True, "remove_unused_columns": False}
    for order in ("random", "group_by_length"):
        arguments = TrainingArguments(output_dir=str(tmp_path), train_sampling_strategy=order, **options)
        trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=together)
        trainer.current_gradient_accumulation_steps = 2
        batches = list(trainer.get_train_dataloader())
        assert [x["input_ids"].shape for x in batches] == [(2, 5), (2, 5)]
        loss = trainer.training_step(model, batches[0])
        assert float(loss) == pytest.approx(model(**batches[0]).loss.item() / 2, rel=1e-4)
        assert model.lm_head.weight.grad is not None


@fact(
    "a LlamaConfig makes a random LlamaForCausalLM, which save_pretrained writes beside a PreTrainedTokenizerFast as a "
    "folder that the Auto classes load",
    used_in="bench/fleet_tiny.py",
    purpose="have a model that is all but free",
)
def test_a_config_is_a_model(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from epigraph.bench.fleet_tiny import CONFIG, write_model

    write_model(tmp_path)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert model.config.hidden_size == CONFIG["hidden_size"]
    assert tokenizer.decode(tokenizer("a, b").input_ids) == "a, b"


def together(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    tokens = torch.tensor([row["input_ids"] for row in rows])
    return {"input_ids": tokens, "labels": tokens}
