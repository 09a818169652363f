"""A cache that begins with the virtual tokens says what the seam says that puts them in front at every step.

The slow twin is transformers' own cache with the seam's concatenation, in the same block and on the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

from conftest import random_ids, random_prefix, tiny
from epigraph.contract import Decoding
from epigraph.errors import BatchMismatch
from epigraph.frozen import attention
from epigraph.frozen import generate as generating
from epigraph.frozen.attention import Slot
from epigraph.frozen.cache import PrefixedCache, PrefixedLayer, cache_for
from epigraph.frozen.ensemble import generate_ensemble, generate_majority
from epigraph.frozen.generate import generate
from epigraph.frozen.inputs import FIRST_SLOT, pad
from epigraph.frozen.model import FrozenModel
from epigraph.frozen.rows import Carried
from epigraph.virtual import KVPrefix, SoftPrompt, VirtualTokens
from families import tiny_family

ROWS = [random_ids(n, n) for n in (5, 11, 3, 8)]
NEW = 9


@dataclass(frozen=True, kw_only=True)
class Said:
    """The ids of every row and beam, and the logits of every step ``[S, B, V]``."""

    ids: list[list[int]]
    steps: Tensor


def decoded(
    frozen: FrozenModel, carried: Carried, cache: Any, rows: Sequence[Sequence[int]] = ROWS, **options: Any
) -> Said:
    ids, mask = pad(rows, 0, left=frozen.kind == "causal")
    copies = max(options.get("num_beams", 1), options.get("num_return_sequences", 1))
    torch.manual_seed(0)
    with torch.inference_mode(), frozen.bind(carried, copies=copies, sources=[len(row) for row in rows]):
        out = frozen.model.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
            **{"do_sample": False, **options},
        )
    return Said(ids=out.sequences.tolist(), steps=torch.stack(out.logits))


def both(frozen: FrozenModel, carried: Carried, room: int = 32, **options: Any) -> tuple[Said, Said]:
    """By the cache that begins with virtual tokens, and by transformers' own."""
    own = decoded(frozen, carried, cache_for(frozen.model.config, room), **options)
    return own, decoded(frozen, carried, None, **options)


def assert_same(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape
    assert (got - want).abs().max().item() <= 1e-5 * float(want.max() - want.min())


def assert_alike(frozen: FrozenModel, carried: Carried, room: int = 32, **options: Any) -> None:
    """And not because nothing was carried: the bare model says something else."""
    own, slow = both(frozen, carried, room, **options)
    assert own.ids == slow.ids
    assert_same(own.steps, slow.steps)
    bare = decoded(frozen, [None] * len(ROWS), None, **options)
    assert (own.steps[0] - bare.steps[0]).abs().max() > 0.1


def soft(frozen: FrozenModel, num_virtual_tokens: int) -> SoftPrompt:
    shape = (num_virtual_tokens, frozen.geometry.embedding_dim)
    made = torch.randn(shape, generator=torch.Generator().manual_seed(num_virtual_tokens))
    return SoftPrompt(embeddings_PE=2 * frozen.embedding_rms * made)


def mixed(frozen: FrozenModel) -> list[VirtualTokens | None]:
    """One a row: of unequal lengths and visibilities, a soft prompt that is lowered, and none."""
    geometry = frozen.geometry
    return [random_prefix(geometry, 4, 1), None, soft(frozen, 6), random_prefix(geometry, 2, 2, "window")]


def carried_as(kind: str, frozen: FrozenModel) -> Carried:
    match kind:
        case "one":
            return random_prefix(frozen.geometry, 5, 1)
        case "window":
            return random_prefix(frozen.geometry, 5, 1, "window")
        case "lowered":
            return soft(frozen, 5)
        case _:
            return mixed(frozen)


@pytest.fixture
def concatenated(monkeypatch: pytest.MonkeyPatch) -> list[Slot]:
    """The layers in which the seam put virtual tokens in front, in the order of its calls."""
    seen: list[Slot] = []
    in_front = attention._in_front

    def counted(run: Any, rows: Any, slot: Slot, *more: Any) -> Any:
        seen.append(slot)
        return in_front(run, rows, slot, *more)

    monkeypatch.setattr(attention, "_in_front", counted)
    return seen


@pytest.mark.parametrize("kind", ["one", "window", "lowered", "mixed"])
def test_every_step_is_the_seams(family: str, attention_name: str, kind: str) -> None:
    frozen = tiny(family, attention_name)
    assert_alike(frozen, carried_as(kind, frozen))


@pytest.mark.parametrize("kind", ["one", "mixed"])
def test_beams_go_on_behind_their_own_prefixes(family: str, attention_name: str, kind: str) -> None:
    frozen = tiny(family, attention_name)
    assert_alike(frozen, carried_as(kind, frozen), num_beams=3)


def test_samples_and_several_answers_a_text(family: str) -> None:
    frozen = tiny(family)
    assert_alike(frozen, mixed(frozen), do_sample=True, temperature=2.0, num_return_sequences=2)


def test_the_bare_model_decodes_in_place(family: str) -> None:
    """Nothing is carried, or nothing beside a row that carries something."""
    frozen = tiny(family)
    for carried in (None, [None] * len(ROWS)):
        own, slow = both(frozen, carried)
        assert own.ids == slow.ids
        assert_same(own.steps, slow.steps)


def test_a_layer_without_virtual_tokens_has_none_in_its_cache(attention_name: str) -> None:
    """Beside rows that have them there, and where no row has any."""
    frozen = tiny("llama", attention_name)
    full = random_prefix(frozen.geometry, 4, 1)
    holed = replace(full, sites={"decoder.self": (None, *full.sites["decoder.self"][1:])})
    assert_alike(frozen, [holed, full, None, random_prefix(frozen.geometry, 6, 2)])
    assert_alike(frozen, holed)


def test_zeros_are_virtual_tokens() -> None:
    """Keys of zeros take their share of the softmax, and are no text."""
    frozen = tiny("llama")
    zeros = random_prefix(frozen.geometry, 5, 1).map(torch.zeros_like)
    assert_alike(frozen, zeros)
    cache = cache_for(frozen.model.config, 32)
    decoded(frozen, zeros, cache)
    assert cache.get_seq_length() == max(map(len, ROWS)) + NEW - 1
    assert [x.keys.shape[2] for x in cache.layers] == [5 + cache.get_seq_length()] * 3


def test_room_grows_when_it_is_used_up() -> None:
    frozen = tiny("llama")
    assert_alike(frozen, mixed(frozen), room=1)
    assert_alike(frozen, mixed(frozen), room=1, num_beams=3)


def test_steps_write_where_they_are(family: str) -> None:
    """With room for all, no tensor of a layer is made anew, not even under beams."""
    frozen = tiny(family)
    cache = cache_for(frozen.model.config, 32)
    layers = [x for x in cache.layers if isinstance(x, PrefixedLayer)]
    places: list[list[int]] = []
    frozen.model.register_forward_hook(lambda *_: places.append([x.keys.data_ptr() for x in layers]))
    decoded(frozen, mixed(frozen), cache, num_beams=3)
    assert places == [places[0]] * NEW


class _Cats(TorchDispatchMode):
    """Counts tensors ``[B, K, C, H]`` with more than one column that are put together of others."""

    def __init__(self, head_dims: set[int]) -> None:
        super().__init__()
        self.head_dims = head_dims
        self.num_found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.cat.default and out.ndim == 4 and out.shape[2] > 1:
            self.num_found += out.shape[3] in self.head_dims
        return out


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_nothing_is_put_in_front_where_the_cache_holds_it(
    family: str, options: dict[str, int], concatenated: list[Slot]
) -> None:
    """Neither by the seam nor by the cache, at no step; layers with a window go on as before."""
    frozen = tiny(family)
    windowed = [x for x in frozen.slots.values() if x.window is not None]
    ids, mask = pad(ROWS, 0, left=True)
    head_dims = {x.head_dim for x in frozen.geometry.sites["decoder.self"]}
    decoded(frozen, mixed(frozen), cache_for(frozen.model.config, 32), **options)
    assert concatenated == windowed * NEW
    concatenated.clear()
    decoded(frozen, mixed(frozen), None, **options)
    assert len(concatenated) == NEW * len(frozen.slots)
    for cache, per_step in ((cache_for(frozen.model.config, 32), len(windowed)), (DynamicCache(), len(frozen.slots))):
        with torch.inference_mode(), frozen.bind(mixed(frozen)):
            frozen.model(input_ids=ids, attention_mask=mask, past_key_values=cache)
            longer = torch.cat([mask, mask[:, :1]], dim=1)
            with _Cats(head_dims) as cats:
                frozen.model(input_ids=ids[:, -1:], attention_mask=longer, past_key_values=cache)
        # Keys and values, of the text and with virtual tokens in front.
        assert cats.num_found == 4 * per_step


def next_logits(frozen: FrozenModel, cache: Any, ids: list[list[int]], mask: Tensor) -> Tensor:
    logits: Tensor = frozen.model(input_ids=torch.tensor(ids), attention_mask=mask, past_key_values=cache).logits
    return logits


def test_any_order_of_rows_leaves_virtual_tokens_where_they_are_bound(family: str) -> None:
    """Other texts come behind a row's prefix, never another row's prefix."""
    frozen = tiny(family)
    rows = [row[:5] for row in ROWS[:2]] + [random_ids(5, 9), random_ids(5, 10)]
    order = torch.tensor([2, 0, 0, 1])
    got = []
    for cache in (cache_for(frozen.model.config, 16), DynamicCache(config=frozen.model.config)):
        with torch.inference_mode(), frozen.bind(mixed(frozen)):
            before = next_logits(frozen, cache, rows, torch.ones(4, 5))
            cache.reorder_cache(order)
            after = next_logits(frozen, cache, [[7]] * 4, torch.ones(4, 6))
            cache.reorder_cache(order)
            got.append(torch.cat([before[:, -1:], after, next_logits(frozen, cache, [[9]] * 4, torch.ones(4, 7))]))
    assert_same(*got)


@pytest.mark.parametrize("alteration", ["crop", "select", "repeat"])
def test_what_else_transformers_does_to_a_cache(alteration: str) -> None:
    frozen = tiny("llama")
    rows = [random_ids(6, 1), random_ids(6, 2), random_ids(6, 3)]
    change, num_rows, length = {
        "crop": (lambda cache: cache.crop(-2), 3, 4),
        "select": (lambda cache: cache.batch_select_indices(torch.tensor([2, 0])), 2, 6),
        "repeat": (lambda cache: cache.batch_repeat_interleave(2), 6, 6),
    }[alteration]
    got = []
    for cache in (cache_for(frozen.model.config, 8), DynamicCache()):
        with torch.inference_mode(), frozen.bind(random_prefix(frozen.geometry, 5, 1)):
            next_logits(frozen, cache, rows, torch.ones(3, 6))
            change(cache)
            assert cache.get_seq_length() == length
            for more in (1, 2):
                new = next_logits(frozen, cache, [[20 + more, 30]] * num_rows, torch.ones(num_rows, length + 2 * more))
                got.append(new)
    assert_same(torch.cat(got[:2]), torch.cat(got[2:]))


def test_a_cache_that_is_reset_begins_again_with_its_virtual_tokens() -> None:
    frozen = tiny("llama")
    rows, own = [row[:3] for row in ROWS], cache_for(frozen.model.config, 8)
    with torch.inference_mode(), frozen.bind(mixed(frozen)):
        next_logits(frozen, own, [row[::-1] for row in rows], torch.ones(4, 3))
        own.reset()
        assert own.get_seq_length() == 0
        got, want = (next_logits(frozen, x, rows, torch.ones(4, 3)) for x in (own, DynamicCache()))
    assert_same(got, want)


def test_a_cache_serves_one_bind() -> None:
    frozen = tiny("llama")
    prefix, ids = random_prefix(frozen.geometry, 5, 1), torch.tensor([ROWS[0]])
    cache = cache_for(frozen.model.config, 16)
    with torch.no_grad():
        with pytest.raises(BatchMismatch, match=r"is used outside of any; make a new cache for each bind\(\)"):
            frozen.model(input_ids=ids, past_key_values=cache)
        with frozen.bind(prefix):
            frozen.model(input_ids=ids, past_key_values=cache)
        for other in (random_prefix(frozen.geometry, 5, 2), None, [None]):
            with pytest.raises(BatchMismatch, match=r"of one bind\(\) and is used in another"), frozen.bind(other):
                frozen.model(input_ids=ids[:, :1], past_key_values=cache)
        with pytest.raises(BatchMismatch, match="used outside of any"):
            frozen.model(input_ids=ids[:, :1], past_key_values=cache)
    assert cache.get_seq_length() == len(ROWS[0]), "a refused forward has written"


def test_rows_that_are_not_the_bound_ones_are_refused() -> None:
    frozen = tiny("llama")
    cache = cache_for(frozen.model.config, 16)
    with torch.no_grad(), frozen.bind(mixed(frozen)):
        frozen.model(input_ids=torch.tensor([row[:3] for row in ROWS]), past_key_values=cache)
        with pytest.raises(BatchMismatch, match="bound for 4 rows"):
            cache.batch_select_indices(torch.tensor([0, 1, 2]))


GREEDY = Decoding(max_new_tokens=NEW, min_new_tokens=NEW)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_generate_decodes_so_and_can_be_told_not_to(family: str, num_beams: int, concatenated: list[Slot]) -> None:
    frozen = tiny(family)
    decoding = replace_beams(num_beams)
    num_windowed = sum(x.window is not None for x in frozen.slots.values())
    own = generate(frozen, ROWS, mixed(frozen), decoding)
    assert len(concatenated) == num_windowed * NEW
    assert own == generate(frozen, ROWS, mixed(frozen), decoding, cache_implementation="dynamic")
    assert len(concatenated) == (num_windowed + len(frozen.slots)) * NEW
    assert own == generate(frozen, ROWS, mixed(frozen), decoding, use_cache=False)
    assert own == generate(frozen, ROWS, mixed(frozen), decoding, batch_size=3)


def replace_beams(num_beams: int) -> Decoding:
    return GREEDY.model_copy(update={"num_beams": num_beams})


def test_a_users_own_generate_goes_on_as_before(family: str, concatenated: list[Slot]) -> None:
    frozen = tiny(family)
    prefix = random_prefix(frozen.geometry, 5, 1)
    said = decoded(frozen, prefix, None)
    assert len(concatenated) == NEW * len(frozen.slots)
    own = generate(frozen, ROWS, prefix, GREEDY)
    assert own == [ids[-NEW:] for ids in said.ids]


def test_ensembles(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = tiny(family)
    members = [random_prefix(frozen.geometry, 4, 1), soft(frozen, 6), random_prefix(frozen.geometry, 2, 2)]

    def answers() -> list[list[list[int]]]:
        return [
            generate_ensemble(frozen, ROWS, members, GREEDY, batch_size=6),
            generate_majority(frozen, ROWS, members, replace_beams(2), str),
        ]

    own = answers()
    monkeypatch.setattr(generating, "cache_for", lambda *_: None)
    assert own == answers()


def test_an_infix_that_the_model_reads_is_added_to_by_the_seam(concatenated: list[Slot]) -> None:
    """It replaces columns of the text in the sight of some tokens: no cache begins with it, nor with its neighbours."""
    frozen = tiny("llama")
    read = replace(
        random_prefix(frozen.geometry, 2, 1), visibility="answer", embeddings_PE=soft(frozen, 2).embeddings_PE
    )
    rows = [[*ROWS[0], FIRST_SLOT, FIRST_SLOT + 1], ROWS[1]]
    carried = [read, random_prefix(frozen.geometry, 3, 2)]
    own = generate(frozen, rows, carried, GREEDY)
    assert own == generate(frozen, rows, carried, GREEDY, cache_implementation="dynamic")
    assert len(concatenated) == 2 * NEW * len(frozen.slots)
    unread = replace(read, embeddings_PE=None)
    concatenated.clear()
    own = generate(frozen, ROWS[:2], [unread, None], GREEDY)
    assert not concatenated
    assert own == generate(frozen, ROWS[:2], [unread, None], GREEDY, cache_implementation="dynamic")


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("kind", ["one", "mixed"])
def test_a_decoder_beside_an_encoder_holds_both_its_sites(kind: str, num_beams: int, concatenated: list[Slot]) -> None:
    frozen = tiny_family("bart")
    prefixes: list[KVPrefix | None] = [random_prefix(frozen.geometry, n, n) for n in (3, 6, 2)] + [None]
    carried: Carried = prefixes[0] if kind == "one" else prefixes
    assert_alike(frozen, carried, num_beams=num_beams)
    concatenated.clear()
    own = generate(frozen, ROWS, carried, replace_beams(num_beams))
    assert {x.site for x in concatenated} == {"encoder.self"}
    assert own == generate(frozen, ROWS, carried, replace_beams(num_beams), cache_implementation="dynamic")


def test_a_relative_bias_keeps_transformers_cache(concatenated: list[Slot]) -> None:
    """T5 would count virtual columns as distance."""
    frozen = tiny_family("t5")
    generate(frozen, ROWS, random_prefix(frozen.geometry, 3, 1), GREEDY)
    assert {x.site for x in concatenated} == {"encoder.self", "decoder.self", "decoder.cross"}


def test_room_is_made_for_the_text_and_no_more() -> None:
    frozen = tiny("llama")
    cache = cache_for(frozen.model.config, max(map(len, ROWS)) + NEW)
    assert isinstance(cache, PrefixedCache)
    decoded(frozen, random_prefix(frozen.geometry, 5, 1), cache)
    room = [x._stored[0].shape[2] for x in cache.layers if isinstance(x, PrefixedLayer)]
    assert room == [5 + max(map(len, ROWS)) + NEW] * 3
