"""Packed rows against their slow twin, padded ones: the same logits and gradients, and no work for padding."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from conftest import ATTENTIONS, WINDOW, random_ids, random_prefix, tiny, tiny_model, tiny_tokenizer
from epigraph.frozen.answers import answer_logits
from epigraph.frozen.batch import Batch, collate
from epigraph.frozen.inputs import Encoded, pad
from epigraph.frozen.model import FrozenModel
from epigraph.frozen.packing import packing_of
from epigraph.frozen.rows import Carried
from epigraph.virtual import KVPrefix, VirtualTokens

# Longer than a window, shorter than it, and of one token before the answer.
LENGTHS = (13, 5, 3 * WINDOW, 8, 21)


def batch(lengths: tuple[int, ...] = LENGTHS) -> Batch:
    rows = []
    for number, length in enumerate(lengths):
        scored = tuple(place >= max(1, length // 2) for place in range(length))
        rows.append(Encoded(ids=tuple(random_ids(length, number)), scored=scored))
    return collate(rows, 0)


@contextmanager
def widths_seen(frozen: FrozenModel) -> Iterator[list[int]]:
    """How many places each layer's linear maps computed, padding among them."""
    seen: list[int] = []

    def look(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0].shape[:-1].numel())

    layers = [x for x in frozen.model.modules() if type(x).__name__ in ("Linear", "Conv1D")]
    handles = [x.register_forward_pre_hook(look) for x in layers if x is not frozen.model.get_output_embeddings()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def padded(frozen: FrozenModel, rows: Batch, tokens: Carried) -> Tensor:
    frozen.packs = False
    logits, _ = answer_logits(frozen, rows, tokens)
    frozen.packs = True
    return logits


def grown(prefix: VirtualTokens) -> list[Tensor]:
    """The prefix's numbers as leaves of a graph."""
    assert isinstance(prefix, KVPrefix)
    return [x.requires_grad_() for _, _, layer in prefix.layers() for x in (layer.keys_PKH, layer.values_PKH)]


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("carried", ["one", "none", "each its own", "in windows"])
def test_packed_is_padded(family: str, attention: str, carried: str) -> None:
    frozen, rows = tiny(family, attention), batch()
    long, short = (random_prefix(frozen.geometry, count, count) for count in (5, 2))
    near = random_prefix(frozen.geometry, 5, 5, "window")
    tokens: Carried = {"one": long, "none": None, "each its own": [long, short, None, long, near], "in windows": near}[
        carried
    ]
    leaves = grown(long) + grown(short) + grown(near)
    assert frozen.packs
    grads = []
    for is_packed in (True, False):
        frozen.packs = is_packed
        with widths_seen(frozen) as seen:
            logits, targets = answer_logits(frozen, rows, tokens)
        assert set(seen) == {sum(LENGTHS) if is_packed else len(LENGTHS) * max(LENGTHS)}
        if carried != "none":
            loss = nn.functional.cross_entropy(logits, targets)
            grads.append((logits.detach(), torch.autograd.grad(loss, leaves, allow_unused=True)))
        else:
            grads.append((logits.detach(), ()))
    (packed_logits, packed_grads), (padded_logits, padded_grads) = grads
    assert float((packed_logits - padded_logits).abs().max()) <= 1e-5 * float(padded_logits.abs().max())
    for ours, theirs in zip(packed_grads, padded_grads, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_no_row_sees_another(family: str) -> None:
    """Another neighbour, other lengths: the logits of a row stay."""
    frozen = tiny(family)
    prefix = random_prefix(frozen.geometry, 5, 1)
    row = Encoded(ids=tuple(random_ids(11, 1)), scored=(False,) * 5 + (True,) * 6)
    alone, _ = answer_logits(frozen, collate([row], 0), prefix)
    for length in (4, 17):
        other = Encoded(ids=tuple(random_ids(length, 2)), scored=(False,) + (True,) * (length - 1))
        together, _ = answer_logits(frozen, collate([other, row], 0), prefix)
        assert float((together[-6:] - alone).abs().max()) <= 1e-4 * float(alone.abs().max())


def test_recomputed_layers_are_packed_too() -> None:
    frozen, rows = tiny("llama"), batch()
    prefix = random_prefix(frozen.geometry, 5, 1)
    leaves, found = grown(prefix), []
    for again in (False, True):
        frozen.checkpoint_activations(again)
        logits, targets = answer_logits(frozen, rows, prefix)
        found.append(torch.autograd.grad(nn.functional.cross_entropy(logits, targets), leaves))
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


def test_a_layer_that_mixes_neighbours_is_not_packed() -> None:
    """A convolution over the text would see across rows: found by trying, so its batches stay padded, and right."""
    model = tiny_model("llama")
    first = model.model.layers[0]
    first.register_forward_hook(lambda _m, _a, out: out + 0.5 * nn.functional.pad(out, (0, 0, 1, 0))[:, :-1])
    frozen = FrozenModel(model, tiny_tokenizer(), name="mixing")
    assert not frozen.packs
    rows = batch()
    with widths_seen(frozen) as seen:
        logits, _ = answer_logits(frozen, rows, None)
    assert set(seen) == {len(LENGTHS) * max(LENGTHS)}
    alone, _ = answer_logits(frozen, batch(LENGTHS[:1]), None)
    assert torch.allclose(logits[: len(alone)], alone, atol=1e-4)


def test_a_model_that_breaks_on_packed_rows_is_not_packed() -> None:
    model = tiny_model("llama")

    def refuse(_m: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        if kwargs["attention_mask"] is not None and kwargs["attention_mask"].numel() == 1:
            raise ValueError("a mask of one number")

    model.model.layers[0].register_forward_pre_hook(refuse, with_kwargs=True)
    assert not FrozenModel(model, tiny_tokenizer(), name="strict").packs


def test_trying_asks_for_all_logits_even_while_some_are_scored() -> None:
    frozen, rows = tiny("llama"), batch()
    assert "packs" not in vars(frozen)
    logits, targets = answer_logits(frozen, rows, None)
    assert vars(frozen)["packs"] is True
    assert logits.shape[0] == len(targets)


def test_what_cannot_be_packed() -> None:
    ids, mask = pad([random_ids(5, 1), random_ids(8, 2)], 0, left=False)
    given = {"input_ids": ids, "attention_mask": mask, "use_cache": False, "past_key_values": None}
    assert packing_of(given) is not None
    assert packing_of({**given, "attention_mask": torch.ones_like(mask)}) is not None
    assert packing_of({**given, "attention_mask": mask.flip(1)}) is None, "padded on the left"
    assert packing_of({**given, "attention_mask": None}) is None
    assert packing_of({**given, "labels": ids}) is None, "labels would have to be packed as well"
    assert packing_of({**given, "past_key_values": object()}) is None, "a cache has rows"
    for value in (True, None):
        assert packing_of({**given, "use_cache": value}) is None, "a cache would be made, of one row"
    # A row of nothing, and one with a hole.
    for wrong in ([0] * 8, [1, 0, 1, 0, 0, 0, 0, 0]):
        assert packing_of({**given, "attention_mask": torch.tensor([wrong, [1] * 8])}) is None


def test_only_what_is_scored_is_packed() -> None:
    """All logits were asked for: they keep the shape of the batch."""
    frozen, rows = tiny("llama"), batch()
    with frozen.bind(None):
        out = frozen.model(input_ids=rows.ids_BT, attention_mask=rows.mask_BT)
    assert out.logits.shape[:2] == rows.ids_BT.shape


def test_what_one_thread_scores_another_does_not() -> None:
    frozen, rows = tiny("llama"), batch()
    shapes = []

    def whole() -> None:
        with frozen.bind(None), torch.no_grad():
            shapes.append(frozen.model(input_ids=rows.ids_BT, attention_mask=rows.mask_BT).logits.shape)

    with frozen.scored(rows.scored_BT):
        thread = threading.Thread(target=whole)
        thread.start()
        thread.join()
    assert shapes[0][:2] == rows.ids_BT.shape


def test_two_models_are_scored_apart() -> None:
    inner, outer, rows = tiny("llama"), tiny("gpt2"), batch()
    given = {"input_ids": rows.ids_BT, "attention_mask": rows.mask_BT}
    with outer.scored(rows.scored_BT), inner.bind(None), outer.bind(None), torch.no_grad():
        assert inner.model(**given).logits.shape[:2] == rows.ids_BT.shape
        with inner.scored(rows.scored_BT[:, :1].expand_as(rows.scored_BT)):
            assert outer.model(**given).logits.shape[1] == int(rows.scored_BT.sum())
