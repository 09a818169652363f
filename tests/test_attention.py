"""The seam: a row behind its prefix is the same row, whatever stands beside it. Guarantees 1, 2 and 3 on tiny models.

The slow twin is always the plain thing: the row alone, or the model reading real text where the prefix came from.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BartConfig,
    BartForCausalLM,
    BartModel,
    BloomConfig,
    BloomForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from conftest import WINDOWED, random_ids, random_prefix, tiny, tiny_model, tiny_tokenizer
from epigraph.errors import (
    AlreadyBound,
    BadValue,
    BatchMismatch,
    GeometryMismatch,
    LostBinding,
    ReentrantCheckpointing,
    TextTooLong,
    UnsupportedModel,
)
from epigraph.frozen.inputs import pad
from epigraph.frozen.model import FrozenModel
from epigraph.methods.prefix_tuning import PrefixTuning, PrefixTuningConfig
from epigraph.virtual import KVPrefix

LENGTHS = (12, 20, 7, 16)
VIRTUAL = (5, 3, 11, 1)
END = 2


def logits(frozen: FrozenModel, ids: Sequence[int], prefix: KVPrefix | None) -> Tensor:
    """``[T, V]`` of one row on its own."""
    row = torch.tensor([list(ids)])
    with torch.no_grad():
        if prefix is None:
            return frozen.model(input_ids=row).logits[0]
        with frozen.bind(prefix):
            return frozen.model(input_ids=row).logits[0]


def batch_logits(
    frozen: FrozenModel, rows: Sequence[Sequence[int]], prefixes: Sequence[KVPrefix | None], *, left: bool
) -> list[Tensor]:
    """``[T, V]`` of each row, out of one padded batch."""
    ids, mask = pad(rows, 0, left=left)
    with torch.no_grad(), frozen.bind(prefixes):
        out = frozen.model(input_ids=ids, attention_mask=mask).logits
    return [out[i, -len(row) :] if left else out[i, : len(row)] for i, row in enumerate(rows)]


def assert_same(got: Tensor, want: Tensor) -> None:
    """Guarantee 3: closer than 1e-4 of the range."""
    spread = (want.max() - want.min()).item()
    assert (got - want).abs().max().item() < 1e-4 * spread


@pytest.mark.parametrize("left", [True, False], ids=["left-padded", "right-padded"])
def test_alone_equals_together(family: str, attention_name: str, left: bool) -> None:
    frozen = tiny(family, attention_name)
    rows = [random_ids(n, n) for n in LENGTHS] + [random_ids(9, 99)]
    prefixes: list[KVPrefix | None] = [random_prefix(frozen.geometry, p, p) for p in VIRTUAL]
    prefixes.append(None)
    together = batch_logits(frozen, rows, prefixes, left=left)
    for row, prefix, got in zip(rows, prefixes, together, strict=True):
        assert_same(got, logits(frozen, row, prefix))


def test_a_prefix_changes_what_the_model_says(family: str, attention_name: str) -> None:
    """Without this, every equality above would hold for a seam that does nothing."""
    frozen = tiny(family, attention_name)
    row = random_ids(12, 1)
    behind = logits(frozen, row, random_prefix(frozen.geometry, 5, 1))
    assert (behind - logits(frozen, row, None)).abs().max() > 0.1


def test_permuting_users_permutes_outputs(family: str) -> None:
    frozen = tiny(family)
    rows = [random_ids(n, n) for n in LENGTHS]
    prefixes = [random_prefix(frozen.geometry, p, p) for p in VIRTUAL]
    first = batch_logits(frozen, rows, prefixes, left=True)
    order = [2, 0, 3, 1]
    second = batch_logits(frozen, [rows[i] for i in order], [prefixes[i] for i in order], left=True)
    for place, number in enumerate(order):
        assert_same(second[place], first[number])


def test_a_poisoned_neighbour_changes_nothing(family: str) -> None:
    """The wrong user's prefix never reaches a row: a neighbour made of huge numbers leaves it alone."""
    frozen = tiny(family)
    rows = [random_ids(12, 1), random_ids(20, 2)]
    mine = random_prefix(frozen.geometry, 3, 1)
    calm = batch_logits(frozen, rows, [mine, random_prefix(frozen.geometry, 9, 2)], left=True)[0]
    poisoned = batch_logits(frozen, rows, [mine, random_prefix(frozen.geometry, 9, 3, std=50.0)], left=True)[0]
    assert_same(poisoned, calm)
    swapped = batch_logits(frozen, rows, [random_prefix(frozen.geometry, 3, 4), mine], left=True)[0]
    assert (swapped - calm).abs().max() > 0.1


def test_a_read_text_is_the_text(family: str, attention_name: str) -> None:
    """The keys and values of a text, as a prefix with window visibility, are the text itself, also past the window."""
    frozen = tiny(family, attention_name)
    head, tail = random_ids(6, 1), random_ids(24, 2)
    whole = logits(frozen, head + tail, None)[len(head) :]
    assert_same(logits(frozen, tail, frozen.read(head)), whole)


@pytest.mark.parametrize("visibility", ["always", "window"])
def test_reach(family: str, visibility: str) -> None:
    """Guarantee 2, in one layer of attention: `always` reaches every position, `window` those the model allows."""
    frozen = tiny(family)
    row = random_ids(24, 1)
    num_virtual = 4
    # All values of the prefix differ between the two, keys are equal: a difference shows who saw the values.
    one = random_prefix(frozen.geometry, num_virtual, 1, visibility)  # type: ignore[arg-type]
    other = KVPrefix(
        sites={
            site: tuple(type(x)(keys_PKH=x.keys_PKH, values_PKH=x.values_PKH + 1.0) for x in layers if x)
            for site, layers in one.sites.items()
        },
        text_start=one.text_start,
        visibility=one.visibility,
    )
    moved = _first_layer_change(frozen, row, one, other)
    window = frozen.geometry.sites["decoder.self"][0].window
    for position in range(len(row)):
        seen = window is None or visibility == "always" or position + 1 < window
        assert (moved[position] > 1e-3) == seen, f"position {position}"


def _first_layer_change(frozen: FrozenModel, row: Sequence[int], one: KVPrefix, other: KVPrefix | None) -> Tensor:
    """How much the first attention layer's output moves at each position, ``[T]``."""
    first = next(iter(frozen.slots))
    seen: list[Tensor] = []
    handle = first.register_forward_hook(lambda _m, _a, out: seen.append(out[0].detach()))
    logits(frozen, row, one)
    logits(frozen, row, other)
    handle.remove()
    return (seen[0] - seen[1])[0].abs().amax(-1)


def test_a_layer_without_virtual_tokens_is_untouched(attention_name: str) -> None:
    """A missing layer is no layer of zeros, which would take their share of the softmax; also beside a full prefix."""
    frozen = tiny("llama", attention_name)
    row = random_ids(12, 1)
    full = random_prefix(frozen.geometry, 4, 1)
    layers = full.sites["decoder.self"]
    holed = KVPrefix(sites={"decoder.self": (None, *layers[1:])}, text_start=4)
    assert _first_layer_change(frozen, row, holed, None).max() < 1e-4
    assert _first_layer_change(frozen, row, full, None).max() > 1e-2
    assert (logits(frozen, row, holed) - logits(frozen, row, None)).abs().max() > 0.1
    rows = [row, random_ids(7, 2), random_ids(9, 3)]
    prefixes = [holed, full, random_prefix(frozen.geometry, 6, 2)]
    for one, prefix, got in zip(rows, prefixes, batch_logits(frozen, rows, prefixes, left=True), strict=True):
        assert_same(got, logits(frozen, one, prefix))


def test_window_distance_counts_positions_not_padding() -> None:
    for family in WINDOWED:
        frozen = tiny(family)
        rows = [random_ids(5, 1), random_ids(24, 2)]
        prefixes = [random_prefix(frozen.geometry, p, p, "window") for p in (4, 9)]
        for left in (True, False):
            for row, prefix, got in zip(rows, prefixes, batch_logits(frozen, rows, prefixes, left=left), strict=True):
                assert_same(got, logits(frozen, row, prefix))


def test_mixed_visibilities_in_one_batch() -> None:
    frozen = tiny("gemma3")
    rows = [random_ids(24, 1), random_ids(20, 2)]
    prefixes = [random_prefix(frozen.geometry, 4, 1, "window"), random_prefix(frozen.geometry, 6, 2, "always")]
    for row, prefix, got in zip(rows, prefixes, batch_logits(frozen, rows, prefixes, left=True), strict=True):
        assert_same(got, logits(frozen, row, prefix))


GENERATE = [
    {"do_sample": False},
    {"do_sample": False, "use_cache": False},
    {"do_sample": False, "num_beams": 3},
    {"do_sample": False, "cache_implementation": "static"},
]


@pytest.mark.parametrize("options", GENERATE, ids=["greedy", "no cache", "beams", "static cache"])
def test_generate_alone_equals_together(family: str, options: dict[str, object]) -> None:
    frozen = tiny(family)
    rows = [random_ids(n, n) for n in LENGTHS]
    prefixes = [random_prefix(frozen.geometry, p, p) for p in VIRTUAL]
    alone = [generated(frozen, [row], prefix, options)[0] for row, prefix in zip(rows, prefixes, strict=True)]
    assert generated(frozen, rows, prefixes, options) == alone
    assert alone != [generated(frozen, [row], None, options)[0] for row in rows]


def generated(
    frozen: FrozenModel,
    rows: Sequence[Sequence[int]],
    prefix: KVPrefix | Sequence[KVPrefix | None] | None,
    options: dict[str, object],
) -> list[list[int]]:
    ids, mask = pad(rows, 0, left=True)
    copies = int(str(options.get("num_beams", 1)))
    with torch.no_grad(), frozen.bind([None] * len(rows) if prefix is None else prefix, copies=copies):
        out = frozen.model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=14, min_new_tokens=14, pad_token_id=0, **options
        )
    return out[:, ids.shape[1] :].tolist()


def test_greedy_by_cache_equals_teacher_forcing(family: str, attention_name: str) -> None:
    """The cached decode agrees with whole forwards, token by token."""
    frozen = tiny(family, attention_name)
    prefix, row = random_prefix(frozen.geometry, 5, 1), random_ids(12, 1)
    new = generated(frozen, [row], prefix, {"do_sample": False})[0]
    forced = logits(frozen, row + new, prefix)[len(row) - 1 : -1]
    forced[:, END] = -torch.inf
    assert new == forced.argmax(-1).tolist()


def test_tiny_models_are_decided(family: str) -> None:
    """Token equality means something only where the two best logits are apart."""
    frozen = tiny(family)
    best = logits(frozen, random_ids(24, 1), None).topk(2).values
    assert (best[:, 0] - best[:, 1]).median() > 0.1


def test_sampling_runs_and_follows_the_seed() -> None:
    frozen = tiny("llama")
    prefix = random_prefix(frozen.geometry, 5, 1)

    def sample(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        return generated(frozen, [random_ids(9, 1)], prefix, {"do_sample": True, "temperature": 2.0})

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def gradients(frozen: FrozenModel, method: PrefixTuning, rows: Sequence[Sequence[int]]) -> tuple[float, list[Tensor]]:
    method.zero_grad()
    ids, mask = pad(rows, 0, left=False)
    with frozen.bind(method()):
        loss = frozen.model(input_ids=ids, attention_mask=mask, labels=ids, use_cache=False).loss
    loss.backward()
    return loss.item(), [x.grad.clone() for x in method.parameters() if x.grad is not None]


@pytest.mark.parametrize("parameterization", ["raw", "mlp"])
def test_checkpointing_gives_identical_gradients(family: str, attention_name: str, parameterization: str) -> None:
    """peers.md B3 and B7: the recomputed layers see the prefix, and dropout stays off."""
    frozen = tiny(family, attention_name)
    torch.manual_seed(1)
    config = PrefixTuningConfig(num_virtual_tokens=5, parameterization=parameterization, mlp_width=16, initial="random")  # type: ignore[arg-type]
    method = PrefixTuning(
        config.model_copy(update={"fit_steps": 3}), frozen.geometry, random_prefix(frozen.geometry, 5, 1)
    )
    rows = [random_ids(12, 1), random_ids(8, 2)]
    loss, plain = gradients(frozen, method, rows)
    frozen.checkpoint_activations()
    calls = _count_calls(frozen)
    checkpointed_loss, checkpointed = gradients(frozen, method, rows)
    assert calls[0] == 2 * len(frozen.slots), "the layers did not run again in the backward pass"
    assert loss == checkpointed_loss
    for one, other in zip(plain, checkpointed, strict=True):
        assert torch.equal(one, other)
    assert max(x.abs().max().item() for x in plain) > 1e-4


def _count_calls(frozen: FrozenModel) -> list[int]:
    calls = [0]
    for module in frozen.slots:

        def count(*_: object) -> None:
            calls[0] += 1

        module.register_forward_pre_hook(count)
    return calls


def test_backward_in_another_thread_and_after_the_block() -> None:
    frozen = tiny("llama")
    frozen.checkpoint_activations()
    method = PrefixTuning(
        PrefixTuningConfig(num_virtual_tokens=5), frozen.geometry, random_prefix(frozen.geometry, 5, 1)
    )
    rows = [random_ids(12, 1)]
    _, want = gradients(frozen, method, rows)
    method.zero_grad()
    ids = torch.tensor(rows)
    with frozen.bind(method()):
        loss = frozen.model(input_ids=ids, labels=ids, use_cache=False).loss
    with frozen.bind(random_prefix(frozen.geometry, 7, 9)):
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()
    got = [x.grad for x in method.parameters()]
    assert torch.equal(got[0], want[0])  # type: ignore[arg-type]


def test_reentrant_checkpointing_is_refused_by_name() -> None:
    frozen = tiny("llama")
    method = PrefixTuning(
        PrefixTuningConfig(num_virtual_tokens=5), frozen.geometry, random_prefix(frozen.geometry, 5, 1)
    )
    frozen.checkpoint_activations()
    for layer in frozen.layers:
        layer._gradient_checkpointing_func = torch.utils.checkpoint.checkpoint
    with pytest.raises(ReentrantCheckpointing, match="use_reentrant=True"):
        gradients(frozen, method, [random_ids(12, 1)])


def test_gradient_agrees_with_finite_differences() -> None:
    frozen = tiny("gemma3")
    frozen.model.double()
    prefix = random_prefix(frozen.geometry, 3, 1).to(torch.float64)
    method = PrefixTuning(PrefixTuningConfig(num_virtual_tokens=3), frozen.geometry, prefix).double()
    ids = torch.tensor([random_ids(10, 1)])

    def loss() -> Tensor:
        with frozen.bind(method()):
            return torch.logsumexp(frozen.model(input_ids=ids, use_cache=False).logits, -1).sum()

    (gradient,) = torch.autograd.grad(loss(), list(method.parameters()))
    direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    losses = []
    for step in (1e-3, -1e-3):
        with torch.no_grad():
            next(method.parameters()).add_(step * direction)
        losses.append(loss().item())
        with torch.no_grad():
            next(method.parameters()).sub_(step * direction)
    assert (losses[0] - losses[1]) / 2e-3 == pytest.approx((gradient * direction).sum().item(), rel=1e-2)


def test_autocast_bf16(family: str) -> None:
    """bf16 autocast stays within a few times the bare model's own bf16 error."""
    frozen = tiny(family)
    row, prefix = random_ids(12, 1), random_prefix(frozen.geometry, 5, 1)
    exact, bare = logits(frozen, row, prefix), logits(frozen, row, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, bare_rounded = logits(frozen, row, prefix), logits(frozen, row, None)
    assert (rounded - exact).abs().max() < 4 * (bare_rounded - bare).abs().max()


def test_frozen(family: str) -> None:
    """Guarantee 1: a step of training leaves every tensor of the base as it was, without gradients."""
    frozen = tiny(family)
    before = {name: x.clone() for name, x in frozen.model.state_dict().items()}
    fingerprint = frozen.fingerprint
    method = PrefixTuning(
        PrefixTuningConfig(num_virtual_tokens=5), frozen.geometry, random_prefix(frozen.geometry, 5, 1)
    )
    optimizer = torch.optim.AdamW(method.parameters(), lr=0.1)
    _, (gradient,) = gradients(frozen, method, [random_ids(12, 1)])
    assert gradient.abs().max() > 0
    start = next(method.parameters()).clone()
    optimizer.step()
    assert not torch.equal(start, next(method.parameters()))
    for name, x in frozen.model.state_dict().items():
        assert torch.equal(x, before[name]), name
    assert all(x.grad is None and not x.requires_grad for x in frozen.model.parameters())
    assert not frozen.model.training
    assert FrozenModel.__dict__["fingerprint"].func(frozen) == fingerprint


def test_two_models_do_not_disturb_each_other() -> None:
    one, other = tiny("llama"), tiny("gpt2")
    row = random_ids(12, 1)
    mine, theirs = random_prefix(one.geometry, 5, 1), random_prefix(other.geometry, 3, 2)
    want_mine, want_theirs = logits(one, row, mine), logits(other, row, theirs)
    bare = logits(other, row, None)
    ids = torch.tensor([row])
    with torch.no_grad(), one.bind(mine):
        assert torch.equal(other.model(input_ids=ids).logits[0], bare)
        with other.bind(theirs):
            assert torch.equal(one.model(input_ids=ids).logits[0], want_mine)
            assert torch.equal(other.model(input_ids=ids).logits[0], want_theirs)


def test_an_exception_leaves_nothing_bound() -> None:
    frozen = tiny("llama")
    row = random_ids(12, 1)
    bare = logits(frozen, row, None)
    with pytest.raises(IndexError), frozen.bind(random_prefix(frozen.geometry, 5, 1)):
        frozen.model(input_ids=torch.tensor([[VOCABULARY_TOO_HIGH]]))
    assert torch.equal(logits(frozen, row, None), bare)
    with frozen.bind(random_prefix(frozen.geometry, 5, 1)):
        pass


VOCABULARY_TOO_HIGH = 10_000


def test_prefixes_can_be_added_and_taken_away() -> None:
    """Nothing of a prefix stays in the model: the bare model is bit-identical afterwards."""
    frozen = tiny("gemma3")
    row = random_ids(12, 1)
    bare = logits(frozen, row, None)
    for seed in range(3):
        logits(frozen, row, random_prefix(frozen.geometry, 5, seed))
    assert torch.equal(logits(frozen, row, None), bare)


def test_wrong_number_of_rows_raises() -> None:
    frozen = tiny("llama")
    prefixes = [random_prefix(frozen.geometry, 5, 1), random_prefix(frozen.geometry, 5, 2)]
    ids = torch.tensor([random_ids(6, 1)] * 4)
    with pytest.raises(BatchMismatch, match="bound for 2 rows, the batch has 4"), frozen.bind(prefixes):
        frozen.model(input_ids=ids)


def test_binding_twice_raises() -> None:
    frozen = tiny("llama")
    prefix = random_prefix(frozen.geometry, 5, 1)
    with frozen.bind(prefix), pytest.raises(AlreadyBound), frozen.bind(prefix):
        pass


def test_wrapping_twice_raises() -> None:
    frozen = tiny("llama")
    with pytest.raises(AlreadyBound):
        FrozenModel(frozen.model, tiny_tokenizer())


def test_another_models_prefix_raises() -> None:
    one, other = tiny("llama"), tiny("qwen3")
    with pytest.raises(GeometryMismatch, match=r"expected \[5, 2, 32\]"), other.bind(random_prefix(one.geometry, 5, 1)):
        pass


def test_calling_a_part_of_the_model_raises() -> None:
    """A prefix that could not follow is an error, never silently the bare model."""
    frozen = tiny("llama")
    with frozen.bind(random_prefix(frozen.geometry, 5, 1)), pytest.raises(LostBinding):
        frozen.model.model(input_ids=torch.tensor([random_ids(6, 1)]))


def test_positions_run_out_by_name() -> None:
    frozen = tiny("gpt2")
    with pytest.raises(TextTooLong, match="96 positions"), frozen.bind(random_prefix(frozen.geometry, 90, 1)):
        frozen.model(input_ids=torch.tensor([random_ids(12, 1)]))


def unsupported() -> dict[str, tuple[Callable[[], PreTrainedModel], str]]:
    small = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    wide = {**small, "intermediate_size": 16}
    mla = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4}
    layers = {f"{part}_layers": 1 for part in ("encoder", "decoder")}
    heads = {f"{part}_attention_heads": 2 for part in ("encoder", "decoder")}
    bart = {"vocab_size": 32, "d_model": 16, **layers, **heads, "pad_token_id": 0}
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    return {
        "encoder-decoder without a head": (
            lambda: BartModel(BartConfig(**bart)),
            "no language-modelling head",
        ),
        "no registered attention": (
            lambda: BloomForCausalLM(BloomConfig(vocab_size=32, hidden_size=16, n_head=2)),
            "Bloom",
        ),
        "recurrent": (
            lambda: MambaForCausalLM(MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1)),
            "Mamba",
        ),
        "length-dependent rotation": (
            lambda: LlamaForCausalLM(LlamaConfig(**wide, rope_parameters=rope)),
            "length of the",
        ),
        "keys wider than values": (
            lambda: DeepseekV3ForCausalLM(DeepseekV3Config(**wide, **mla, n_routed_experts=4, first_k_dense_replace=1)),
            "wide",
        ),
        "no positions": (
            lambda: BartForCausalLM(BartConfig(**bart)),
            "takes no position_ids",
        ),
        "no text": (
            lambda: WhisperForConditionalGeneration(WhisperConfig(**bart, num_mel_bins=8)),
            "it reads no token ids",
        ),
        "no head": (lambda: LlamaModel(LlamaConfig(**wide)), "no language-modelling head"),
    }


@pytest.mark.parametrize("kind", list(unsupported()))
def test_models_that_cannot_take_a_prefix_say_why(kind: str) -> None:
    make, words = unsupported()[kind]
    with pytest.raises(UnsupportedModel, match=words) as caught:
        FrozenModel(make(), tiny_tokenizer())
    assert "\n" not in str(caught.value)


def test_a_thread_without_a_binding_is_not_silently_bare() -> None:
    """A thread started inside a block does not inherit it: its forward raises instead of answering as the base."""
    frozen = tiny("llama")
    row, prefix = random_ids(6, 1), random_prefix(frozen.geometry, 5, 1)
    bare = logits(frozen, row, None)
    caught: list[Exception] = []
    answers: list[Tensor] = []

    def plain() -> None:
        try:
            frozen.model(input_ids=torch.tensor([row]))
        except LostBinding as lost:
            caught.append(lost)

    def on_purpose() -> None:
        with torch.no_grad(), frozen.bind(None):
            answers.append(frozen.model(input_ids=torch.tensor([row])).logits[0])

    with frozen.bind(prefix):
        for work in (plain, on_purpose):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
    assert len(caught) == 1
    assert_same(answers[0], bare)
    assert torch.equal(logits(frozen, row, None), bare)


def test_scored_positions_have_the_models_own_logits(family: str) -> None:
    frozen = tiny(family)
    ids, mask = pad([random_ids(12, 1), random_ids(8, 2)], 0, left=False)
    wanted = torch.zeros_like(mask, dtype=torch.bool)
    wanted[0, 3:7] = wanted[1, 5] = True
    prefix = random_prefix(frozen.geometry, 5, 1)
    with torch.no_grad(), frozen.bind(prefix):
        whole = frozen.model(input_ids=ids, attention_mask=mask).logits
        with frozen.scored(wanted):
            part = frozen.model(input_ids=ids, attention_mask=mask).logits
    assert part.shape[:2] == (1, 5)
    assert_same(part[0], whole[wanted])


def test_prefix_values_match_a_seeded_cache() -> None:
    """The seam against the peers' way, where that one is right: full attention, equal lengths, no window."""
    from transformers import DynamicCache

    bare = tiny_model("llama")
    frozen = tiny("llama")
    prefix, row = random_prefix(frozen.geometry, 5, 1), random_ids(12, 1)
    cache = DynamicCache()
    for _, number, layer in prefix.layers():
        cache.update(layer.keys_PKH.transpose(0, 1)[None], layer.values_PKH.transpose(0, 1)[None], number)
    with torch.no_grad():
        seeded = bare(input_ids=torch.tensor([row]), past_key_values=cache).logits[0]
    assert_same(logits(frozen, row, prefix), seeded)


@pytest.mark.parametrize("wrong", ["runs/mine", 5, ["runs/mine"]])
def test_what_is_no_prefix_is_named(wrong: Any) -> None:
    with pytest.raises(BadValue, match=r"bind\(\) was given a (str|int), expected"), tiny("llama").bind(wrong):
        pass


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_here_is_said(device: str) -> None:
    with pytest.raises(BadValue, match=rf"device is '{device}', which torch cannot use here: .*; try cpu"):
        FrozenModel.load("no/matter", device=device)
