"""Every method on every family, by one table: what trains is right, and what cannot is refused by name.

Guarantees 1 to 4 and 8. The slow twin is the row alone; batches have rows of several lengths, users and paddings.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from conftest import random_prefix
from epigraph import artifact
from epigraph.artifact import Artifact
from epigraph.contract import Decoding
from epigraph.errors import (
    BadValue,
    BatchMismatch,
    CannotLower,
    EpigraphError,
    GeometryMismatch,
    LostBinding,
    SharedLayers,
)
from epigraph.frozen.answers import answer_logits
from epigraph.frozen.ask import ask
from epigraph.frozen.batch import collate
from epigraph.frozen.inputs import FIRST_SLOT, Codec, Encoded, pad
from epigraph.frozen.model import FrozenModel
from epigraph.methods.base import Method
from epigraph.tasks.base import Example, Task
from epigraph.tasks.metrics import score_texts
from epigraph.train.build import make_method
from epigraph.train.contract import contract_for
from epigraph.train.evaluate import fields, lesson, question
from epigraph.train.loss import head_of
from epigraph.train.prepare import Prepared
from epigraph.train.recipe_file import check_recipe
from epigraph.tuned import Tuned
from epigraph.virtual import KVPrefix, SoftPrompt, VirtualTokens
from families import FAMILIES, KINDS, METHODS, SITES, cell, cells, markdown, tiny_family

SOURCES = ("red fox", "a hen", "the old grey wolf", "owl")
YES = [pair for pair in cells() if cell(*pair) is True]
RECOMPUTED = ("prefix, raw", "prefix with a label head", "P-tuning, raw")
NO = [pair for pair in cells() if cell(*pair) is not True]


@lru_cache(maxsize=4)
def family_of(family: str, attention_name: str = "sdpa") -> FrozenModel:
    return tiny_family(family, attention_name)


def prepared(
    family: str,
    method: str,
    *,
    attention_name: str = "sdpa",
    seed: int = 0,
    text: Mapping[str, object] | None = None,
    **changes: object,
) -> Prepared:
    """What a run needs, on a tiny model, without a file; targets fit the layout."""
    table, usual = METHODS[method]
    text = usual if text is None else text
    if KINDS[family] == "masked" and not text:
        text = {"input_template": "{source} is [MASK]."}
    frozen = family_of(family, attention_name)
    recipe = check_recipe(
        {
            "data": {"train": "rows.jsonl"},
            "method": {**table, **changes},
            "text": dict(text),
            "training": {"seed": seed, "precision": "fp32"},
        }
    )
    heads = {"label": ("A", "B"), "tags": ("A", "B", "C")}
    labels = heads.get(str(text.get("layout")), ())
    task = Task(
        name="animals", summary="", instruction="Say what the animal is.", splits={}, score=score_texts, labels=labels
    )
    contract = contract_for(recipe, task, frozen)
    codec = Codec(frozen.tokenizer, contract)
    said = {"label": ["A", "B", "A", "B"], "tags": ["A B", "B A", "A B C A", "C"]}
    targets = said.get(contract.layout, ["cat", "do", "bird", "e"])
    examples = [Example(source=x, references=(y,)) for x, y in zip(SOURCES, targets, strict=True)]
    rows = tuple(lesson(codec, example) for example in examples)
    return Prepared(
        recipe=recipe,
        frozen=frozen,
        task=replace(task, splits={"test": lambda: examples}),
        codec=codec,
        rows=rows,
        dev_rows=(),
        examples=(),
        dev_examples=(),
        data_hashes={},
        steps=1,
        precision="fp32",
    )


def trained(ready: Prepared) -> Method:
    """The method after a nudge, so that what starts at zero is not zero."""
    method = make_method(ready)
    generator = torch.Generator().manual_seed(7 + ready.recipe.training.seed)
    with torch.no_grad():
        for x in method.parameters():
            x.add_(0.3 * x.abs().mean().clamp(min=0.3) * torch.randn(x.shape, generator=generator))
    return method.eval()


def logits(ready: Prepared, method: Method | None, rows: Sequence[Encoded], tokens: object = "own") -> list[Tensor]:
    """``[S, V]`` of each row, all in one batch, behind the method's virtual tokens or ``tokens``, one a row."""
    batch = collate(rows, 0)
    carried = method.fold() if method is not None and tokens == "own" else tokens
    head = None if method is None else head_of(method)
    with torch.no_grad():
        out, right = answer_logits(ready.frozen, batch, carried, head)  # type: ignore[arg-type]
    assert len(out) == len(right)
    counts = [len(row.answer) if row.answer else sum(row.scored[1:]) for row in rows]
    return list(out.split(counts))


def assert_same(got: Tensor, want: Tensor, tolerance: float = 1e-4) -> None:
    # Two classes may be all but equal: then it is their size that a difference is measured by.
    scale = max(float(want.max() - want.min()), float(want.abs().max()))
    assert (got - want).abs().max().item() <= tolerance * scale


@pytest.mark.parametrize(("family", "method"), NO)
def test_what_cannot_be_trained_is_refused_by_name(family: str, method: str) -> None:
    found = cell(family, method)
    assert not isinstance(found, bool)
    kind, words = found
    with pytest.raises(kind, match=words) as caught:
        make_method(prepared(family, method))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("family", "method"), YES)
def test_a_step_changes_the_method_and_nothing_else(family: str, method: str) -> None:
    """Guarantee 1, and no dead weights: every virtual token moves the loss."""
    ready = prepared(family, method)
    frozen, made = ready.frozen, make_method(ready)
    before = {name: x.clone() for name, x in frozen.model.state_dict().items()}
    tokens = made()
    assert isinstance(tokens, KVPrefix | SoftPrompt)
    live = (
        [x for _, _, layer in tokens.layers() for x in (layer.keys_PKH, layer.values_PKH)]
        if isinstance(tokens, KVPrefix)
        else [tokens.embeddings_PE]
    )
    live += [tokens.embeddings_PE] if isinstance(tokens, KVPrefix) and tokens.embeddings_PE is not None else []
    for x in live:
        x.retain_grad()
    out, right = answer_logits(frozen, collate(ready.rows, 0), tokens, head_of(made))
    torch.nn.functional.cross_entropy(out, right).backward()
    for x in live:
        assert x.grad is not None
        # A value always counts; the first virtual token's key does not where it is the only one.
        assert (x.grad.flatten(1).abs().sum(1) > 0).all(), "a stored row of virtual tokens changes nothing"
    torch.optim.SGD(made.parameters(), lr=0.1).step()
    for name, x in frozen.model.state_dict().items():
        assert torch.equal(x, before[name]), name
    assert all(x.grad is None and not x.requires_grad for x in frozen.model.parameters())


@pytest.mark.parametrize("attention_name", ["sdpa", "eager"])
@pytest.mark.parametrize(("family", "method"), YES)
def test_alone_is_together(family: str, method: str, attention_name: str) -> None:
    """Guarantee 3: another user beside a row, and the padding that comes with it, change nothing of it."""
    ready = prepared(family, method, attention_name=attention_name)
    one, other = trained(ready), trained(prepared(family, method, attention_name=attention_name, seed=1))
    mine, theirs = one.fold(), other.fold()
    if KINDS[family] != "encoder" and one.head is None and not ready.codec.contract.is_placed:
        carried: list[VirtualTokens | None] = [mine, theirs, None, mine]
    else:
        carried = [mine, theirs, theirs, mine]
    together = logits(ready, one, ready.rows, carried)
    for row, tokens, got in zip(ready.rows, carried, together, strict=True):
        (want,) = logits(ready, one, [row], tokens)
        assert_same(got, want)
    permuted = logits(ready, one, ready.rows[::-1], carried[::-1])
    for got, want in zip(permuted[::-1], together, strict=True):
        assert_same(got, want)
    # The virtual tokens matter, or all of this would hold for a seam that does nothing.
    swapped = logits(ready, one, ready.rows, [theirs if x is mine else mine for x in carried])
    assert all(float((x - y).abs().max()) > 1e-3 for x, y in zip(swapped, together, strict=True))


@pytest.mark.parametrize(("family", "method"), YES)
def test_folded_saved_and_loaded_is_trained(family: str, method: str, tmp_path: Path) -> None:
    """Guarantees 4 and 8: the file gives the logits of the live method; another model's is refused by name."""
    ready = prepared(family, method)
    made = trained(ready)
    with torch.no_grad():
        live, _ = answer_logits(ready.frozen, collate(ready.rows, 0), made(), head_of(made))
    content = as_artifact(ready, made)
    artifact.save(content, tmp_path / "a.safetensors", torch.float32)
    tuned = Tuned(ready.frozen, artifact.load(tmp_path / "a.safetensors"))
    with torch.no_grad():
        loaded, _ = answer_logits(ready.frozen, collate(ready.rows, 0), tuned.prefix, tuned.head)
    assert_same(loaded, live, 1e-5)
    foreign = "gpt2" if family != "gpt2" else "bart"
    with pytest.raises(EpigraphError) as caught:
        Tuned(family_of(foreign), content)
    assert "\n" not in str(caught.value)


def as_artifact(ready: Prepared, made: Method) -> Artifact:
    tokens = made.fold()
    return Artifact(
        tokens=tokens,
        geometry=ready.frozen.geometry,
        contract=ready.codec.contract,
        base_name=ready.frozen.name,
        base_fingerprint=ready.frozen.fingerprint,
        tokenizer_fingerprint=ready.frozen.tokenizer_fingerprint,
        method=ready.recipe.method.name,
        method_config={},
        provenance={},
        extra={} if made.head is None else {f"head.{name}": x.detach() for name, x in made.head.named_parameters()},
    )


@pytest.mark.parametrize(("family", "method"), YES)
def test_answers_alone_are_answers_together(family: str, method: str) -> None:
    """What a user gets, whatever the layout: decoded, ranked or classified."""
    ready = prepared(family, method)
    made = trained(ready)
    tokens, head = made.fold(), head_of(made)
    examples = ready.task.load("test")
    decoding = Decoding(max_new_tokens=6, min_new_tokens=6)

    def told(some: Sequence[Example], choices: Sequence[str] = ()) -> list[str]:
        asked = [question(ready.codec, x) for x in some]
        return ask(
            ready.frozen, ready.codec, asked, [fields(x) for x in some], tokens,
            head=head, candidates=choices, decoding=decoding, batch_size=3,
        ).texts  # fmt: skip

    assert told(examples) == [told([x])[0] for x in examples]
    if ready.codec.contract.layout == "cloze":
        among = ("cat", "do", "e")
        assert told(examples, among) == [told([x], among)[0] for x in examples]
        # With one mask, the likeliest token is the model's own first choice there.
        said = [ready.codec.source(fields(x)) for x in examples]
        asked = [replace(x, answer=(0,)) for x in said]
        tops = [int(out[0].argmax()) for out in logits(ready, made, asked)]
        assert told(examples) == [ready.codec.text([top]) for top in tops]


@pytest.mark.parametrize("family", [x for x in FAMILIES if KINDS[x] == "encoder-decoder"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_a_decoder_says_what_teacher_forcing_says(family: str, options: dict[str, int]) -> None:
    """Every step of generate() carries all three sites, the encoder once before beams are laid out."""
    ready = prepared(family, "prefix, raw")
    made = trained(ready)
    decoding = Decoding(max_new_tokens=7, min_new_tokens=7, **options)
    rows = [fields(x) for x in ready.task.load("test")]
    asked = [ready.codec.source(x) for x in rows]
    from epigraph.frozen.generate import generate

    new = generate(ready.frozen, [x.ids for x in asked], made.fold(), decoding)
    assert new == [generate(ready.frozen, [x.ids], made.fold(), decoding)[0] for x in asked]
    assert new != generate(ready.frozen, [x.ids for x in asked], None, decoding)
    if not options:
        forced = [replace(row, answer=tuple(ids)) for row, ids in zip(asked, new, strict=True)]
        for ids, out in zip(new, logits(ready, made, forced), strict=True):
            out[:, ready.frozen.tokenizer.eos_token_id] = -torch.inf
            assert out.argmax(-1).tolist() == ids


@pytest.mark.parametrize("family", [x for x in FAMILIES if "encoder.self" in SITES[KINDS[x]] and x != "albert"])
def test_an_encoder_prefix_changes_the_encoder(family: str) -> None:
    frozen = family_of(family)
    prefix = random_prefix(frozen.geometry.only(("encoder.self",)), 4, 1)
    ids = torch.tensor([[1, 20, 30, 40, 50, 2]])
    encoder = frozen.model.get_encoder() if KINDS[family] == "encoder-decoder" else frozen.model.base_model
    with torch.no_grad():
        bare = encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        with frozen.bind(prefix):
            behind = encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    assert ((bare - behind).abs().amax(-1) > 1e-3).all(), "a position of the encoder does not see the prefix"


@pytest.mark.parametrize("family", [x for x in FAMILIES if KINDS[x] == "encoder-decoder"])
@pytest.mark.parametrize("site", SITES["encoder-decoder"])
def test_each_site_reaches_every_decoder_position(family: str, site: str) -> None:
    """Guarantee 2. A decoder that sees a site only through another one would not move at its first position."""
    ready = prepared(family, f"prefix, {site}")
    bare = logits(ready, None, ready.rows, None)
    behind = logits(ready, trained(ready), ready.rows)
    for x, y in zip(bare, behind, strict=True):
        assert ((x - y).abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize("family", [x for x in FAMILIES if KINDS[x] != "causal"])
def test_recomputed_layers_give_the_same_gradients(family: str) -> None:
    """Their dropout stays off, wherever a family keeps its rate, and comes back as it was."""
    ready = prepared(family, next(method for method in RECOMPUTED if (family, method) in YES))
    frozen = ready.frozen
    states = [dict(vars(layer)) for layer in frozen.layers]
    found = []
    for on in (False, True):
        frozen.checkpoint_activations(on)
        method = trained(ready)
        out, right = answer_logits(frozen, collate(ready.rows, 0), method(), head_of(method))
        torch.nn.functional.cross_entropy(out, right).backward()
        found.append((out, [x.grad for x in method.parameters() if x.grad is not None]))
    frozen.checkpoint_activations(False)
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1]
    assert all(torch.equal(x, y) for x, y in zip(found[0][1], found[1][1], strict=True))
    rates = [{name: rate for name, rate in own.items() if "dropout" in name} for own in states]
    assert [{name: vars(x)[name] for name in own} for x, own in zip(frozen.layers, rates, strict=True)] == rates


@pytest.mark.parametrize("family", [x for x in FAMILIES if KINDS[x] in ("masked", "encoder")])
def test_left_padding_of_an_encoder_changes_nothing(family: str) -> None:
    """Positions are passed, so that a row is the same row on either side of its padding."""
    frozen = family_of(family)
    tokens: VirtualTokens
    if frozen.geometry.sites:
        tokens = random_prefix(frozen.geometry, 4, 1)
    else:
        tokens = SoftPrompt(embeddings_PE=torch.randn(2, frozen.geometry.embedding_dim), placed=True)
    slots = [(1 << 30) + i for i in range(tokens.num_virtual_tokens)] if isinstance(tokens, SoftPrompt) else []
    rows = [[1, *slots, 20, 30, 2], [1, *slots, 40, 50, 60, 70, 2]]
    states = []
    for left in (True, False):
        ids, mask = pad(rows, 0, left=left)
        with torch.no_grad(), frozen.bind(tokens):
            states.append(frozen.hidden(ids, mask)[mask.bool()])
    torch.testing.assert_close(states[0], states[1], atol=1e-4, rtol=1e-4)


def test_left_padding_of_bart_is_refused() -> None:
    frozen = family_of("bart")
    ids, mask = pad([[5, 6], [7, 8, 9]], 0, left=True)
    with pytest.raises(BatchMismatch, match="pad on the right"), frozen.bind(random_prefix(frozen.geometry, 3, 1)):
        frozen.model(input_ids=ids, attention_mask=mask, decoder_input_ids=torch.tensor([[2], [2]]))


def test_t5_takes_padding_on_either_side() -> None:
    frozen = family_of("t5")
    out = []
    for left in (True, False):
        ids, mask = pad([[5, 6], [7, 8, 9]], 0, left=left)
        with torch.no_grad(), frozen.bind(random_prefix(frozen.geometry, 3, 1)):
            out.append(
                frozen.model(input_ids=ids, attention_mask=mask, decoder_input_ids=torch.tensor([[0], [0]])).logits
            )
    assert_same(out[0], out[1])


@pytest.mark.parametrize("length", [3, 7])
def test_a_source_as_long_as_its_prefix_is_read(length: int) -> None:
    """peers.md B9: with as many source tokens as virtual ones, cross-attention must still read the source."""
    frozen = family_of("t5")
    prefix = random_prefix(frozen.geometry, length, 1)
    out = []
    for first in (20, 60):
        ids = torch.tensor([[first, *range(30, 29 + length)]])
        with torch.no_grad(), frozen.bind(prefix):
            out.append(frozen.model(input_ids=ids, decoder_input_ids=torch.tensor([[0]])).logits)
    assert float((out[0] - out[1]).abs().max()) > 1e-3


# Lowering: each condition under which it is not exact refuses by name.


def test_a_placed_prompt_is_not_lowered() -> None:
    frozen = family_of("llama")
    with pytest.raises(CannotLower, match="stand in the text's template"):
        frozen.lower(SoftPrompt(embeddings_PE=torch.randn(3, 64), placed=True))


@pytest.mark.parametrize("family", [x for x in FAMILIES if KINDS[x] != "causal"])
def test_a_prompt_before_an_encoder_is_not_lowered(family: str) -> None:
    frozen = family_of(family)
    soft = SoftPrompt(embeddings_PE=torch.randn(3, frozen.geometry.embedding_dim))
    with pytest.raises(CannotLower, match="reads both ways"):
        frozen.lower(soft)


@pytest.mark.parametrize("placed", [False, True])
def test_a_model_with_embeddings_in_every_layer_takes_no_prompt(placed: bool) -> None:
    frozen = tiny_family("llama")
    frozen.model.config.hidden_size_per_layer_input = 8
    with pytest.raises(CannotLower, match="virtual tokens have no ids"):
        frozen.carried(SoftPrompt(embeddings_PE=torch.randn(3, 64), placed=placed))


# Slots: a text without the places its virtual tokens need, or with places and nothing to fill them, never runs.


@pytest.mark.parametrize("family", ["llama", "t5", "roberta"])
@pytest.mark.parametrize("slots", [0, 2, 4], ids=["none", "too few", "too many"])
def test_another_number_of_places_is_refused(family: str, slots: int) -> None:
    frozen = family_of(family)
    soft = SoftPrompt(embeddings_PE=torch.randn(3, frozen.geometry.embedding_dim), placed=True)
    ids = torch.tensor([[1, *((1 << 30) + i for i in range(slots)), 20, 2]])
    more = {"decoder_input_ids": torch.tensor([[0]])} if family == "t5" else {}
    with pytest.raises(BatchMismatch, match=rf"{slots} slots for virtual tokens and carries 3"), frozen.bind(soft):
        frozen.model(input_ids=ids, **more)


def test_places_without_virtual_tokens_are_refused() -> None:
    frozen = family_of("llama")
    ids = torch.tensor([[1, 1 << 30, 20]])
    with pytest.raises(LostBinding, match="slots for virtual tokens"):
        frozen.model(input_ids=ids)
    with pytest.raises(LostBinding, match="slots for virtual tokens"), frozen.bind(None):
        frozen.model(input_ids=ids)


def test_placed_in_front_is_lowered_in_front() -> None:
    """Two ways to one function: slots before everything, and the same prompt as keys and values."""
    frozen = family_of("llama")
    embeddings = frozen.embed([9, 8, 7]) + 0.1
    text = [20, 30, 40]
    with torch.no_grad(), frozen.bind(SoftPrompt(embeddings_PE=embeddings, placed=True)):
        placed = frozen.model(input_ids=torch.tensor([[*((1 << 30) + i for i in range(3)), *text]])).logits[0, 3:]
    with torch.no_grad(), frozen.bind(SoftPrompt(embeddings_PE=embeddings)):
        lowered = frozen.model(input_ids=torch.tensor([text])).logits[0]
    assert_same(lowered, placed, 1e-5)


def test_shared_layers_say_so() -> None:
    with pytest.raises(SharedLayers, match="share one attention module"):
        family_of("albert").read([5, 6])


def test_an_infix_is_unseen_by_the_source_and_seen_by_the_answer() -> None:
    """Section 7.3: x is computed as if the infix were not there; the token that says the answer's first sees it."""
    frozen = family_of("llama")
    prefix = replace(random_prefix(frozen.geometry, 4, 1), visibility="answer")
    ids = torch.tensor([[20, 30, 40, 50, 60]])
    positions = torch.arange(4, 9)[None]
    with torch.no_grad():
        bare = frozen.model(input_ids=ids, position_ids=positions).logits[0]
        with frozen.bind(prefix, sources=[3]):
            behind = frozen.model(input_ids=ids).logits[0]
    moved = (bare - behind).abs().amax(-1) > 1e-3
    assert moved.tolist() == [False, False, True, True, True]
    with pytest.raises(BatchMismatch, match="nothing says where the sources end"), frozen.bind(prefix):
        frozen.model(input_ids=ids)


@pytest.mark.parametrize("attention_name", ["sdpa", "eager"])
def test_the_authors_infix_is_read_and_then_added_to(attention_name: str) -> None:
    """Their way, in two passes: what the model makes of x and the infix, the trained part added, then the rest."""
    ready = prepared("llama", "infix, code's", attention_name=attention_name)
    tokens = trained(ready).fold()
    assert isinstance(tokens, KVPrefix)
    assert tokens.embeddings_PE is not None
    frozen, num = ready.frozen, tokens.num_virtual_tokens
    row = ready.rows[2]
    behind = 1 + max(at for at, token in enumerate(row.ids) if token >= FIRST_SLOT)
    text = torch.tensor([token for token in row.ids if token < FIRST_SLOT])
    asked, rest = text[: behind - num], text[behind - num :]
    cache = DynamicCache()
    with torch.no_grad():
        read = torch.cat([frozen.model.get_input_embeddings()(asked), tokens.embeddings_PE])[None]
        frozen.model(inputs_embeds=read, past_key_values=cache)
        for own, (_, _, layer) in zip(cache.layers, tokens.layers(), strict=True):
            own.keys[:, :, -num:] += layer.keys_PKH.transpose(0, 1)
            own.values[:, :, -num:] += layer.values_PKH.transpose(0, 1)
        want = frozen.model(input_ids=rest[None], past_key_values=cache).logits[0]
    (got,) = logits(ready, None, [row], tokens)
    assert_same(got, want[-len(got) - 1 : -1], 1e-5)


def test_an_infix_that_the_model_reads_wants_its_places() -> None:
    """As many slots as virtual tokens, behind the source and with text behind them."""
    ready = prepared("llama", "infix, code's")
    tokens = trained(ready).fold()
    assert ready.codec.contract.input_template == "{source}{4}\n"
    with pytest.raises(BatchMismatch, match="0 slots for virtual tokens and carries 4"), ready.frozen.bind(tokens):
        ready.frozen.model(input_ids=torch.tensor([[5, 6, 7]]))
    for template in ("{source}{4}", "{4}{source}\n", "{2}{source}{2}\n", "{source}{3}\n"):
        with pytest.raises(BadValue, match=r"one place for the infix|make them equal"):
            prepared("llama", "infix, code's", text={"input_template": template})
    plain = replace(tokens, visibility="always")
    with pytest.raises(GeometryMismatch, match="expected 'answer'"), ready.frozen.bind(plain):
        pass


def test_steps_from_a_cache_that_nothing_was_read_into_are_refused() -> None:
    ready = prepared("llama", "infix, code's")
    tokens, cache = trained(ready).fold(), DynamicCache()
    with torch.no_grad():
        ready.frozen.model(input_ids=torch.tensor([[5, 6, 7]]), past_key_values=cache)
        with pytest.raises(BatchMismatch, match="read the text in the same bind"):  # noqa: SIM117
            with ready.frozen.bind(tokens, sources=[3]):
                ready.frozen.model(input_ids=torch.tensor([[8]]), past_key_values=cache)


@pytest.mark.parametrize("method", ["infix", "infix, code's"])
def test_an_infix_decodes_as_it_was_trained(method: str) -> None:
    from epigraph.frozen.generate import generate

    ready = prepared("llama", method)
    tokens = trained(ready).fold()
    asked = [ready.codec.source(fields(x)) for x in ready.task.load("test")]
    new = generate(ready.frozen, [x.ids for x in asked], tokens, Decoding(max_new_tokens=6, min_new_tokens=6))
    for row, ids in zip(asked, new, strict=True):
        whole = Encoded(ids=(*row.ids, *ids), scored=(*row.scored, *[True] * len(ids)))
        (out,) = logits(ready, None, [whole], tokens)
        out[:, ready.frozen.tokenizer.eos_token_id] = -torch.inf
        assert out.argmax(-1).tolist() == ids


def test_labels_on_a_decoder_are_the_likeliest_words() -> None:
    """Ranked by the probability of the whole word, of however many tokens: the slow twin adds them up by hand."""
    ready = prepared("llama", "prefix, raw")
    tokens = trained(ready).fold()
    examples = ready.task.load("test")
    words = ("cat", "dog", "no")
    asked = [question(ready.codec, x) for x in examples], [fields(x) for x in examples]
    got = ask(ready.frozen, ready.codec, *asked, tokens, candidates=words)
    # The same words in another order and number for every row, as its own candidates.
    own = [words[number % 2 :] for number in range(len(examples))]
    mine = ask(ready.frozen, ready.codec, *asked, tokens, own=own, batch_size=3)
    for number, (example, answer) in enumerate(zip(examples, got.texts, strict=True)):
        source = ready.codec.source(fields(example)).ids
        sums = []
        for word in words:
            ids = [*source, *ready.codec.candidate(word)]
            with torch.no_grad(), ready.frozen.bind(tokens):
                said = ready.frozen.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            sums.append(sum(float(said[i - 1, ids[i]]) for i in range(len(source), len(ids))))
        assert answer == words[sums.index(max(sums))]
        some = sums[number % 2 :]
        assert mine.texts[number] == own[number][some.index(max(some))]
        torch.testing.assert_close(got.log_chances[number], torch.tensor(sums).log_softmax(0), atol=1e-4, rtol=0)
        torch.testing.assert_close(mine.log_chances[number], torch.tensor(some).log_softmax(0), atol=1e-4, rtol=0)


def test_the_table_in_the_docs_is_this_one() -> None:
    page = (Path(__file__).parents[1] / "docs" / "families.md").read_text()
    assert markdown() in page, "run tests/families.py and paste what it prints into docs/families.md"


def test_labels_for_a_decoder_as_a_head_are_refused() -> None:
    with pytest.raises(BadValue, match="continuation"):
        prepared("llama", "prefix with a label head")


def test_no_module_of_the_table_is_left_out() -> None:
    assert set(FAMILIES) == set(importlib.import_module("families").SHOWN)
