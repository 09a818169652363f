"""Baselines that train weights: what each changes, and what not; how it starts, how large it is, what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import random_ids
from epigraph.errors import BadValue, EpigraphError, UnsupportedModel
from epigraph.frozen import grafts
from epigraph.frozen.model import FrozenModel
from epigraph.methods.base import Method
from epigraph.methods.weights import Weights
from epigraph.train.baselines import BASELINES
from epigraph.train.build import make_method
from epigraph.train.loop import train
from epigraph.train.parts import TrainingPart
from epigraph.train.prepare import Prepared, prepare
from epigraph.train.recipe import DEFAULT_LR
from epigraph.train.recipe_file import check_recipe
from families import FAMILIES, KINDS, tiny_family
from folders import save_family, write_rows

SUMS = [{"source": f"{a}+{b}", "target": str(a + b)} for a in range(4) for b in range(4)]
SIZES = [{"source": f"{a}+{b}", "target": "even" if (a + b) % 2 == 0 else "odd"} for a in range(4) for b in range(4)]
LABELS = {"labels": ["even", "odd"]}
# What "top" with two of three layers is, by the beginnings of names.
TOP = {
    "llama": ("model.layers.1.", "model.layers.2.", "model.norm.", "lm_head."),
    "gpt2": ("transformer.h.1.", "transformer.h.2.", "transformer.ln_f.", "transformer.wte."),
    "t5": ("decoder.block.1.", "decoder.block.2.", "decoder.final_layer_norm.", "shared."),
    "bert": ("bert.encoder.layer.1.", "bert.encoder.layer.2.", "cls.", "bert.embeddings.word_embeddings."),
}
GRAFTED = ("adapter", "lora")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {family: save_family(family, folder / family) for family in ("llama", "gpt2", "bert")}


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "sums.jsonl", SUMS)


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "sizes.jsonl", SIZES)


def ready_for(
    model: Path,
    rows: Path,
    method: dict[str, Any],
    text: dict[str, Any] | None = None,
    dev: Path | None = None,
    **training: Any,
) -> Prepared:
    given = {"batch_size": 4, "steps": 3, "precision": "fp32", **training}
    data = {"train": str(rows), "dev": str(rows if dev is None else dev)}
    tables = {"model": str(model), "data": data, "training": given, "method": method}
    tables["text"] = {"max_target_tokens": 8, **(text or {})}
    return prepare(check_recipe(tables))


def trained(ready: Prepared, method: Method, lr: float = 1e-2, **plan: Any) -> None:
    plan = {"batch_size": 4, **plan}
    train(ready.frozen, method, ready.rows, TrainingPart(**plan), steps=3, lr=lr)


def state(frozen: FrozenModel) -> dict[str, Tensor]:
    """Parameters and buffers by the names that they have without PEFT's."""
    model = frozen.model
    both = [*model.named_parameters(), *model.named_buffers()]
    return {name.replace(".base_layer", ""): x.detach().clone() for name, x in both if ".lora_" not in name}


def logits(frozen: FrozenModel) -> Tensor:
    ids = torch.tensor([random_ids(9, 1), random_ids(9, 2)])
    decoder = {"decoder_input_ids": ids[:, :4]} if frozen.kind == "encoder-decoder" else {}
    with torch.no_grad():
        out = frozen.model(input_ids=ids, **decoder)
    return out.last_hidden_state if frozen.kind == "encoder" else out.logits


# What changes


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("name", ["full", "top", "adapter", "lora", "untouched"])
def test_it_changes_what_it_says_and_no_other_tensor(
    family: str, name: str, models: dict[str, Path], sums: Path
) -> None:
    ready = ready_for(models[family], sums, {"name": name})
    before = state(ready.frozen)
    method = make_method(ready)
    first = {key: x.detach().clone() for key, x in method.named_parameters()}
    if name != "untouched":
        trained(ready, method)
    now = state(ready.frozen)
    assert now.keys() == before.keys()
    assert not any(x.training for x in ready.frozen.model.modules())
    changed = {key for key, x in before.items() if not torch.equal(x, now[key])}
    expected = {"full": ("",), "top": TOP[family]}.get(name, ())
    parameters = {key.replace(".base_layer", "") for key, _ in ready.frozen.model.named_parameters()}
    assert changed == {key for key in before if key in parameters and key.startswith(expected or ("none",))}
    assert not [key for key, x in method.named_parameters() if torch.equal(x, first[key])], "trained, and did not move"
    assert bool(first) == (name != "untouched")


@pytest.mark.parametrize("family", TOP)
def test_the_top_is_the_last_blocks_their_norm_and_the_head(family: str) -> None:
    frozen = tiny_family(family)
    live = grafts.top_weights(frozen, 2)
    assert set(live) == {name for name, _ in frozen.model.named_parameters() if name.startswith(TOP[family])}
    head = frozen.model.get_output_embeddings()
    assert head is not None
    assert any(x is head.weight for x in live.values())


def test_a_probe_trains_the_head_alone_at_its_own_rate(models: dict[str, Path], sizes: Path, tmp_path: Path) -> None:
    """Adam's first step moves each number by the learning rate, which is not the one of heads beside virtual tokens."""
    from epigraph.train.run import run

    ready = ready_for(
        models["bert"], sizes, {"name": "linear-probe"}, LABELS, steps=1, lr=0.03, head_lr=0.5, schedule="constant"
    )
    before, method = state(ready.frozen), make_method(ready)
    assert method.head is not None
    first = method.head.weight.detach().clone()
    run(ready, method, tmp_path / "out")
    assert float((method.head.weight - first).abs().max()) == pytest.approx(0.03, rel=1e-3)
    assert {name for name, _ in method.named_parameters()} == {"head.weight", "head.bias"}
    assert all(torch.equal(x, before[name]) for name, x in state(ready.frozen).items())


def test_full_tuning_of_an_encoder_has_a_head_beside_it(models: dict[str, Path], sizes: Path) -> None:
    ready = ready_for(models["bert"], sizes, {"name": "full"}, LABELS)
    method, before = make_method(ready), state(ready.frozen)
    assert method.head is not None
    trained(ready, method)
    assert not torch.equal(
        state(ready.frozen)["bert.encoder.layer.0.output.dense.weight"],
        before["bert.encoder.layer.0.output.dense.weight"],
    )
    assert method.num_trained == ready.frozen.num_parameters + sum(x.numel() for x in method.head.parameters())


def test_full_tuning_at_no_rate_to_speak_of_is_the_untouched_model(models: dict[str, Path], sums: Path) -> None:
    ready = ready_for(models["llama"], sums, {"name": "full"})
    before = logits(ready.frozen)
    trained(ready, make_method(ready), lr=1e-30)
    assert torch.equal(logits(ready.frozen), before)


@pytest.mark.parametrize("name", GRAFTED)
def test_recomputed_activations_give_the_same_training(name: str, models: dict[str, Path], sums: Path) -> None:
    after = []
    for checkpointed in (False, True):
        ready = ready_for(models["llama"], sums, {"name": name})
        method = make_method(ready)
        trained(ready, method, checkpoint_activations=checkpointed)
        after.append([x.detach().clone() for x in method.parameters()])
    assert all(torch.equal(x, y) for x, y in zip(*after, strict=True))


# How it starts


@pytest.mark.parametrize("name", GRAFTED)
@pytest.mark.parametrize("family", [x for x in FAMILIES if x != "albert"])
def test_grafts_start_as_the_untouched_model(name: str, family: str) -> None:
    """Exactly; once they have numbers of their own, every family's forward goes through them."""
    frozen = tiny_family(family)
    before, numbers = logits(frozen), frozen.num_parameters
    config = BASELINES[name].config.model_validate({"name": name})
    method = BASELINES[name].reopen(frozen, config)
    assert torch.equal(logits(frozen), before)
    assert frozen.num_parameters == numbers, "what is put in does not count as the model's"
    with torch.no_grad():
        for x in method.parameters():
            x.add_(0.1)
    assert not torch.equal(logits(frozen), before)


@pytest.mark.parametrize("name", GRAFTED)
def test_grafts_are_float32_in_a_bf16_model(name: str, models: dict[str, Path], sums: Path) -> None:
    ready = ready_for(models["llama"], sums, {"name": name}, precision="bf16")
    before = logits(ready.frozen)
    method = make_method(ready)
    after = logits(ready.frozen)
    assert before.dtype == after.dtype == torch.bfloat16
    assert torch.equal(after, before)
    assert {x.dtype for x in method.parameters()} == {torch.float32}
    trained(ready, method)
    assert not torch.equal(logits(ready.frozen), before)


def test_a_run_of_lora_repeats_and_another_seed_does_not(models: dict[str, Path], sums: Path) -> None:
    made = [make_method(ready_for(models["llama"], sums, {"name": "lora"}, seed=seed)) for seed in (1, 1, 2)]
    one, same, other = ([x.detach() for x in method.parameters()] for method in made)
    assert all(torch.equal(x, y) for x, y in zip(one, same, strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


# How large it is


@pytest.mark.parametrize("share", [0.3, 0.03])
def test_adapters_have_nearest_to_the_share_that_was_asked(share: float, models: dict[str, Path], sums: Path) -> None:
    ready = ready_for(models["gpt2"], sums, {"name": "adapter", "share": share})
    method, whole = make_method(ready), ready.frozen.num_parameters
    one_more = grafts.adapter_numbers(ready.frozen, 2) - grafts.adapter_numbers(ready.frozen, 1)
    assert abs(method.num_trained - share * whole) <= one_more / 2
    assert method.num_trained == method.num_stored


def test_a_share_too_small_for_this_model_is_the_least_there_is(models: dict[str, Path], sums: Path) -> None:
    ready = ready_for(models["gpt2"], sums, {"name": "adapter", "share": 0.001})
    assert make_method(ready).num_trained == grafts.adapter_numbers(ready.frozen, 1)
    ready = ready_for(models["gpt2"], sums, {"name": "adapter", "bottleneck": 7})
    # Three layers of width 64: two maps with their biases, and a norm.
    assert make_method(ready).num_trained == 3 * (2 * 64 * 7 + 7 + 64 + 2 * 64)


def test_lora_has_nearest_to_the_numbers_that_were_asked(models: dict[str, Path], sums: Path) -> None:
    # Three layers; queries from 64 to 64, values from 64 to 32.
    per_rank = 3 * (64 + 64 + 64 + 32)
    for asked, rank in ((1, 1), (per_rank * 5 + 9, 5), (per_rank * 6 - 9, 6)):
        method = make_method(ready_for(models["llama"], sums, {"name": "lora", "num_numbers": asked}))
        assert method.num_trained == rank * per_rank
    wide = {"name": "lora", "rank": 2, "targets": ["down_proj"]}
    assert make_method(ready_for(models["llama"], sums, wide)).num_trained == 3 * 2 * (128 + 64)


@pytest.mark.parametrize("alpha", [None, 3])
def test_loras_scale_is_alpha_over_rank(alpha: int | None) -> None:
    """By hand on the model's own map: ``W x + alpha / rank B A x``."""
    frozen = tiny_family("llama")
    plain = frozen.model.model.layers[0].self_attn.q_proj
    config = BASELINES["lora"].config.model_validate({"name": "lora", "rank": 4, "alpha": alpha})
    method = BASELINES["lora"].reopen(frozen, config)
    assert isinstance(method, Weights)
    with torch.no_grad():
        for x in method.parameters():
            x.normal_(std=0.1)
    name = "model.layers.0.self_attn.q_proj.lora_{}.default.weight"
    a, b = (method.named[name.format(x)] for x in "AB")
    x = torch.randn(5, 64)
    wanted = x @ plain.weight.T + (alpha or 8) / 4 * (x @ a.T @ b.T)
    torch.testing.assert_close(frozen.model.model.layers[0].self_attn.q_proj(x), wanted, rtol=1e-4, atol=1e-4)


def test_an_adapter_is_what_the_paper_says() -> None:
    adapter = grafts.Adapter(6, 2)
    with torch.no_grad():
        for x in adapter.parameters():
            x.normal_()
    states = torch.randn(3, 6)
    normed = (states - states.mean(-1, keepdim=True)) / (states.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    inner = torch.relu((normed * adapter.norm.weight + adapter.norm.bias) @ adapter.down.weight.T + adapter.down.bias)
    torch.testing.assert_close(adapter(states), states + inner @ adapter.up.weight.T + adapter.up.bias)


def test_weights_are_known_by_the_names_that_they_have_in_the_model() -> None:
    frozen = tiny_family("gpt2")
    method = Weights(grafts.all_weights(frozen))
    live = dict(frozen.model.named_parameters())
    assert method.named.keys() == live.keys()
    assert all(method.named[name] is x for name, x in live.items())


def test_blocks_are_those_of_both_stacks() -> None:
    assert len(grafts.blocks(tiny_family("t5"))) == 6
    assert len(grafts.blocks(tiny_family("bart"))) == 5
    assert all(len(grafts.blocks(tiny_family(x))) == 3 for x in FAMILIES if KINDS[x] == "causal")
    with pytest.raises(UnsupportedModel, match="no layers that can be told apart; train all of it: method full"):
        grafts.blocks(tiny_family("albert"))


# Recipes and refusals


def test_every_baseline_that_takes_steps_has_a_learning_rate() -> None:
    for name, baseline in BASELINES.items():
        recipe = check_recipe({"data": {"task": "cards"}, "method": {"name": name}})
        assert (recipe.lr > 0) == baseline.trains
        assert (recipe.steps_for(100) > 0) == baseline.trains
        assert baseline.trains == (name in DEFAULT_LR)


@pytest.mark.parametrize(
    ("method", "more", "message"),
    [
        ({"name": "full"}, {"precision": "bf16"}, "method full trains the model's own weights, which bf16 is too coa"),
        ({"name": "top"}, {"base_lr": 1e-4}, "base_lr trains the model beside virtual tokens, and method top has none"),
        ({"name": "lora"}, {"shard_base": True}, "shard_base is for virtual tokens on a frozen base, got method lora"),
        ({"name": "top", "num_layers": 4}, {}, "method.num_layers is 4, tiny-llama has 3 layers; ask for fewer"),
        (
            {"name": "lora", "targets": ["q_prj"]},
            {},
            "method.targets: got 'q_prj', tiny-llama has the linear maps down",
        ),
        ({"name": "lora", "rank": 0}, {}, "method.rank: got 0, expected: greater than or equal to 1"),
        ({"name": "adapter", "shares": 0.1}, {}, "unknown key method.shares; did you mean method.share?"),
        ({"name": "linear-probe"}, {}, "in layout 'continuation' the model says the answer itself; give an encoder"),
        ({"name": "lorra"}, {}, "method.name: got \"lorra\", expected: 'prefix-tuning' or "),
    ],
)
def test_what_does_not_go_together_is_one_line(
    method: dict[str, Any], more: dict[str, Any], message: str, models: dict[str, Path], sums: Path
) -> None:
    with pytest.raises(EpigraphError) as caught:
        make_method(ready_for(models["llama"], sums, method, **more))
    assert "\n" not in str(caught.value)
    assert message.replace("tiny-llama", "llama") in str(caught.value)


def test_a_head_that_nobody_trains_does_not_answer(models: dict[str, Path], sizes: Path) -> None:
    ready = ready_for(models["bert"], sizes, {"name": "untouched"}, LABELS)
    with pytest.raises(BadValue, match="method untouched trains none; use method linear-probe"):
        make_method(ready)


def test_places_for_virtual_tokens_are_refused(models: dict[str, Path], sums: Path) -> None:
    with pytest.raises(BadValue, match="places for 3 virtual tokens, and method lora makes none; take the places out"):
        ready_for(models["llama"], sums, {"name": "lora"}, {"input_template": "{3}{source}\n"})


def test_without_peft_lora_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grafts, "find_spec", lambda name: None)
    config = BASELINES["lora"].config.model_validate({"name": "lora"})
    with pytest.raises(BadValue, match=r"pip install 'epigraph\[lora\]'"):
        BASELINES["lora"].reopen(tiny_family("llama"), config)


def test_weights_are_loaded_in_float32_where_they_are_trained(
    models: dict[str, Path], sums: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    for name, precision in (("full", "fp32"), ("top", "fp32"), ("adapter", "bf16"), ("untouched", "bf16")):
        assert ready_for(models["llama"], sums, {"name": name}, precision="auto").precision == precision
