"""A soft prompt in front of a causal model is some keys and values, exactly: logits and gradients are those of the
embeddings put before the text (the slow twin, the model's own ``inputs_embeds``).
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from conftest import FAMILIES, random_ids, tiny
from epigraph.contract import Decoding
from epigraph.errors import GeometryMismatch
from epigraph.frozen.generate import generate
from epigraph.frozen.model import FrozenModel
from epigraph.virtual import SoftPrompt


def prompt(frozen: FrozenModel, num_virtual_tokens: int = 5, seed: int = 1) -> SoftPrompt:
    generator = torch.Generator().manual_seed(seed)
    scale = frozen.embed(range(20)).pow(2).mean().sqrt()
    shape = (num_virtual_tokens, frozen.geometry.embedding_dim)
    return SoftPrompt(embeddings_PE=(scale * torch.randn(shape, generator=generator)).requires_grad_())


def slow(frozen: FrozenModel, soft: SoftPrompt, ids: list[int]) -> Tensor:
    """Logits of the text behind the embeddings themselves, by the bare model."""
    embeddings = torch.cat([soft.embeddings_PE, frozen.embed(ids)])[None]
    return frozen.model(inputs_embeds=embeddings, use_cache=False).logits[0, soft.num_virtual_tokens :]


@pytest.mark.parametrize("num_virtual_tokens", [1, 5, 20])
def test_lowered_is_embedded(family: str, attention_name: str, num_virtual_tokens: int) -> None:
    frozen = tiny(family, attention_name)
    soft, ids = prompt(frozen, num_virtual_tokens), random_ids(24, 3)
    want = slow(frozen, soft, ids)
    with frozen.bind(soft):
        got = frozen.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    torch.testing.assert_close(got, want, atol=1e-5 * float(want.detach().abs().max()), rtol=1e-5)
    bare = frozen.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    assert float((got - bare).detach().abs().max()) > 1e-2
    (want_grad,) = torch.autograd.grad(want.square().mean(), soft.embeddings_PE)
    (got_grad,) = torch.autograd.grad(got.square().mean(), soft.embeddings_PE)
    torch.testing.assert_close(got_grad, want_grad, atol=1e-4 * float(want_grad.abs().max()), rtol=1e-3)
    assert (want_grad.abs().sum(1) > 0).all()


def test_checkpointed_layers_give_the_same_gradients(family: str) -> None:
    frozen = tiny(family)
    soft, ids = prompt(frozen), random_ids(12, 3)
    grads = []
    for on in (False, True):
        frozen.checkpoint_activations(on)
        with frozen.bind(soft):
            out = frozen.model(input_ids=torch.tensor([ids, ids[::-1]]), use_cache=False).logits.square().mean()
        grads += torch.autograd.grad(out, soft.embeddings_PE)
    assert torch.equal(grads[0], grads[1])


def test_rows_of_one_batch_carry_prompts_prefixes_and_nothing(family: str) -> None:
    frozen = tiny(family)
    one, other = prompt(frozen, 3, 1), prompt(frozen, 7, 2)
    rows = [random_ids(n, n) for n in (5, 9, 7, 6)]
    carried = [one, other, None, frozen.read(random_ids(4, 8))]
    mask = torch.zeros(4, 9, dtype=torch.long)
    ids = torch.zeros_like(mask)
    for number, row in enumerate(rows):
        ids[number, 9 - len(row) :] = torch.tensor(row)
        mask[number, 9 - len(row) :] = 1
    with torch.no_grad(), frozen.bind(carried):
        together = frozen.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    for number, (row, tokens) in enumerate(zip(rows, carried, strict=True)):
        with torch.no_grad(), frozen.bind(tokens):
            alone = frozen.model(input_ids=torch.tensor([row]), use_cache=False).logits[0]
        torch.testing.assert_close(together[number, 9 - len(row) :], alone, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(3, 63), (0, 64), (64,)])
def test_a_prompt_of_another_width_is_refused(shape: tuple[int, ...]) -> None:
    frozen = tiny("llama")
    with (
        pytest.raises(GeometryMismatch, match=r"expected \[1 or more, 64\]"),
        frozen.bind(SoftPrompt(embeddings_PE=torch.zeros(shape))),
    ):
        pass


def test_a_prompt_that_leaves_no_room_is_refused() -> None:
    frozen = tiny("gpt2")
    with pytest.raises(GeometryMismatch, match="text would start at position 96"), frozen.bind(prompt(frozen, 96)):
        pass


def test_reading_a_text_is_lowering_its_embeddings() -> None:
    for family in FAMILIES:
        frozen = tiny(family)
        ids = random_ids(6, 4)
        read = frozen.read(ids)
        assert read.visibility == "window"
        assert read.text_start == 6
        assert not any(x.keys_PKH.requires_grad for _, _, x in read.layers())


def test_decoding_behind_another_models_prompt_is_refused_by_name() -> None:
    frozen = tiny("llama")
    foreign = SoftPrompt(embeddings_PE=torch.zeros(3, 63))
    with pytest.raises(GeometryMismatch, match=r"expected \[1 or more, 64\]"):
        generate(frozen, [random_ids(4, 1)], foreign, Decoding(max_new_tokens=2))
    with pytest.raises(GeometryMismatch, match=r"expected \[1 or more, 64\]"):
        frozen.lower(foreign)
