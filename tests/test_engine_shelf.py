"""Claims, salts, the shelf of artifacts, what can be served at all, and a worker's part of it."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from conftest import random_prefix, tiny
from epigraph import artifact
from epigraph.artifact import Artifact
from epigraph.contract import Decoding, TextContract
from epigraph.engine.claim import (
    KEY,
    PLACEHOLDER,
    Claim,
    check_placeholders,
    from_params,
    is_salt,
    to_params,
)
from epigraph.engine.pages import Load, Pages
from epigraph.engine.residents import Base, Residents, Share, shared_out
from epigraph.engine.servable import refuse_unservable, refuse_unservable_contract
from epigraph.engine.shelf import Shelf
from epigraph.errors import (
    BadClaim,
    CannotServe,
    ContentMismatch,
    GeometryMismatch,
    NotAnArtifact,
    PrefixNotFound,
    SaltMismatch,
)
from epigraph.virtual import Geometry, KVPrefix, LayerGeometry, LayerKV, SoftPrompt, geometry_digest

GEOMETRY = Geometry(
    sites={"decoder.self": (LayerGeometry(num_kv_heads=4, head_dim=8),) * 3}, embedding_dim=16, position_kind="rotary"
)
WINDOWED = replace(GEOMETRY, sites={"decoder.self": (LayerGeometry(num_kv_heads=4, head_dim=8, window=4),) * 3})
BASE = Base(fingerprint="b" * 64, tokenizer_fingerprint="c" * 64)


def content(num_virtual_tokens: int = 5, seed: int = 0, **other: Any) -> Artifact:
    given = {
        "tokens": random_prefix(GEOMETRY, num_virtual_tokens, seed),
        "geometry": GEOMETRY,
        "contract": TextContract(),
        "base_name": "some-model",
        "base_fingerprint": BASE.fingerprint,
        "tokenizer_fingerprint": BASE.tokenizer_fingerprint,
        "method": "prefix-tuning",
        "method_config": {},
        "provenance": {},
    } | other
    return Artifact(**given)


def put(folder: Path, name: str, made: Artifact | None = None) -> Path:
    path = folder / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    artifact.save(made or content(), path, dtype=torch.float32)
    return path


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    put(tmp_path, "cards")
    return Shelf(tmp_path)


# Claims


def claim(**other: Any) -> Claim:
    given = {"prefix": "cards", "num_virtual_tokens": 5, "content_hash": "1" * 64, "geometry": "2" * 64} | other
    return Claim(**given)


@pytest.mark.parametrize(
    "other",
    [
        {"prefix": "card"},
        {"version": "2"},
        {"tenant": "ann"},
        {"num_virtual_tokens": 6},
        {"content_hash": "3" * 64},
        {"geometry": "3" * 64},
        {"prefix": "cards/2", "version": ""},
    ],
)
def test_every_part_of_a_claim_and_the_key_change_its_salt(other: dict[str, Any]) -> None:
    assert claim().salt(b"k") == claim().salt(b"k")
    assert claim(**other).salt(b"k") != claim().salt(b"k")
    assert claim().salt(b"k") != claim().salt(b"")
    assert is_salt(claim().salt(b""))
    with pytest.raises(SaltMismatch) as wrong:
        claim(**other).check_salt(claim().salt(b"k"), b"k")
    assert claim().salt(b"k") not in str(wrong.value)
    assert claim(**other).salt(b"k") not in str(wrong.value)


def test_parts_cannot_run_into_each_other() -> None:
    assert claim(prefix="a", version="b", tenant="c").salt(b"") != claim(prefix="a", version="", tenant="bc").salt(b"")


def test_a_claim_goes_through_a_request_and_back() -> None:
    asked = claim(tenant="ann", version="7")
    assert from_params(to_params(asked), asked.salt(b"")) == asked
    assert from_params(None, None) is None
    assert from_params({}, "a salt of somebody else's") is None


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"epigraf": {}}, "'epigraf', expected 'epigraph' alone"),
        ({KEY: claim().model_dump(), "do_remote_prefill": True}, "expected 'epigraph' alone"),
        ({KEY: {"prefix": "cards"}}, "num_virtual_tokens: Field required"),
        ({KEY: claim().model_dump() | {"perfix": 1}}, "perfix: Extra inputs are not permitted"),
        ({KEY: claim().model_dump() | {"num_virtual_tokens": "5"}}, "num_virtual_tokens: Input should be a valid int"),
        ({KEY: claim().model_dump() | {"num_virtual_tokens": 0}}, "greater than or equal to 1"),
        ({KEY: claim().model_dump() | {"num_virtual_tokens": 10**9}}, "less than or equal to 65536"),
        ({KEY: "cards"}, "epigraph: Input should be"),
    ],
)
def test_what_is_not_quite_a_claim_never_passes_for_the_bare_model(params: dict[str, Any], says: str) -> None:
    with pytest.raises(BadClaim) as wrong:
        from_params(params, None)
    assert says in str(wrong.value)


def test_a_salt_of_ours_without_a_claim_is_refused() -> None:
    with pytest.raises(BadClaim, match="names no prefix"):
        from_params(None, claim().salt(b""))


@pytest.mark.parametrize("prefix", ["", "../x", "a/../b", "/etc/x", "a//b", ".hidden", "a/.b", "a b", "a\n", "ä", "a/"])
def test_an_id_that_could_lead_out_of_the_shelf_is_no_id(prefix: str, shelf: Shelf) -> None:
    with pytest.raises(ValueError, match="prefix"):
        claim(prefix=prefix)
    for ask in (shelf.claim, shelf.open, shelf.stamp):
        with pytest.raises(BadClaim, match="no prefix id"):
            ask(prefix)


@pytest.mark.parametrize(
    "ids", [[], [PLACEHOLDER] * 5, [PLACEHOLDER] * 4 + [7, 8], [7] * 9, [PLACEHOLDER, 7, *[PLACEHOLDER] * 5]]
)
def test_a_text_without_its_placeholders_is_refused(ids: list[int]) -> None:
    with pytest.raises(BadClaim, match="5 placeholders"):
        check_placeholders(claim(), ids)


def test_placeholders_in_the_users_own_text_are_text() -> None:
    check_placeholders(claim(), [PLACEHOLDER] * 5 + [PLACEHOLDER] * 3)
    with pytest.raises(BadClaim, match="embeddings"):
        check_placeholders(claim(), None)


# The shelf


def test_a_claim_is_of_what_lies_there_and_opens_it(shelf: Shelf) -> None:
    asked = shelf.claim("cards", tenant="ann")
    assert asked.num_virtual_tokens == 5
    assert asked.geometry == geometry_digest(GEOMETRY)
    opened = shelf.open_claimed(asked).tokens
    assert isinstance(opened, KVPrefix)
    made = content().tokens
    assert isinstance(made, KVPrefix)
    pairs = zip(opened.layers(), made.layers(), strict=True)
    assert all(torch.equal(got.keys_PKH, want.keys_PKH) for (_, _, got), (_, _, want) in pairs)


def test_versions_and_folders_of_runs(tmp_path: Path) -> None:
    put(tmp_path, "ann/cards/3", content(7))
    put(tmp_path, "ann/letters/artifact", content(9))
    found = Shelf(tmp_path)
    assert found.claim("ann/cards", "3").num_virtual_tokens == 7
    assert found.claim("ann/cards/3").num_virtual_tokens == 7
    assert found.claim("ann/letters").num_virtual_tokens == 9
    with pytest.raises(PrefixNotFound, match="no prefix ann/cards at"):
        found.claim("ann/cards")


def test_what_was_replaced_deleted_or_misdescribed_is_not_opened(tmp_path: Path, shelf: Shelf) -> None:
    asked = shelf.claim("cards")
    with pytest.raises(BadClaim, match="5 virtual tokens, the request says 6"):
        shelf.open_claimed(asked.model_copy(update={"num_virtual_tokens": 6}))
    with pytest.raises(GeometryMismatch, match="another geometry"):
        shelf.open_claimed(asked.model_copy(update={"geometry": "0" * 64}))
    put(tmp_path, "cards", content(seed=1))
    with pytest.raises(ContentMismatch, match="it was replaced"):
        shelf.open_claimed(asked)
    (tmp_path / "cards.safetensors").unlink()
    with pytest.raises(PrefixNotFound, match="no prefix cards"):
        shelf.open_claimed(asked)
    with pytest.raises(PrefixNotFound):
        shelf.stamp("cards")


def test_a_stamp_changes_with_the_file_even_at_one_size(tmp_path: Path, shelf: Shelf) -> None:
    before = shelf.stamp("cards")
    assert shelf.stamp("cards") == before
    put(tmp_path, "cards", content(seed=1))
    assert shelf.stamp("cards") != before


def test_a_link_out_of_the_shelf_is_not_followed(tmp_path: Path) -> None:
    outside = put(tmp_path / "outside", "secret")
    (tmp_path / "shelf").mkdir()
    (tmp_path / "shelf" / "cards.safetensors").symlink_to(outside)
    with pytest.raises(NotAnArtifact, match="symbolic link"):
        Shelf(tmp_path / "shelf").open("cards")


def test_an_object_store_serves_the_same(tmp_path: Path, shelf: Shelf) -> None:
    files = fsspec.filesystem("memory")
    files.mkdirs("/served", exist_ok=True)
    try:
        files.pipe_file("/served/cards.safetensors", (tmp_path / "cards.safetensors").read_bytes())
        remote = Shelf("memory://served")
        assert remote.claim("cards") == shelf.claim("cards")
        before = remote.stamp("cards")
        time.sleep(0.01)
        files.pipe_file("/served/cards.safetensors", put(tmp_path, "cards", content(seed=1)).read_bytes())
        assert remote.stamp("cards") != before
        files.pipe_file("/served/cards.safetensors", b"\x80\x04pickle")
        with pytest.raises(NotAnArtifact):
            remote.open("cards")
        files.rm("/served/cards.safetensors")
        with pytest.raises(PrefixNotFound):
            remote.stamp("cards")
    finally:
        files.rm("/served", recursive=True)


def test_an_address_that_nothing_reads() -> None:
    with pytest.raises(PrefixNotFound, match="give a folder or an fsspec address"):
        Shelf("nonsense://bucket/x")


# What can be served


def test_what_paged_keys_and_values_cannot_be_is_refused_by_name() -> None:
    prefix = random_prefix(GEOMETRY, 4, 0)
    refuse_unservable(prefix, GEOMETRY)
    refuse_unservable(replace(prefix, visibility="window"), WINDOWED)
    hollow = replace(prefix, sites={"decoder.self": (*prefix.sites["decoder.self"][:2], None)})
    embeddings = torch.zeros(4, 16)
    both_ways = replace(GEOMETRY, sites={"encoder.self": GEOMETRY.sites["decoder.self"]})
    for tokens, geometry, says in (
        (prefix, WINDOWED, "visibility is 'always'"),
        (replace(prefix, visibility="answer"), GEOMETRY, "infix"),
        (replace(prefix, text_start=0), GEOMETRY, "text starts at position 0, the engine starts it at 4"),
        (hollow, GEOMETRY, "layer 2 has no keys and values"),
        (SoftPrompt(embeddings_PE=embeddings), GEOMETRY, "epigraph lower"),
        (SoftPrompt(embeddings_PE=embeddings, placed=True), GEOMETRY, "as embeddings"),
        (prefix, both_ways, "not a decoder of its own"),
    ):
        with pytest.raises(CannotServe) as wrong:
            refuse_unservable(tokens, geometry)
        assert says in str(wrong.value)


def test_contracts_that_are_not_a_text_that_goes_on() -> None:
    refuse_unservable_contract(TextContract())
    for contract, says in (
        (TextContract(labels=("yes", "no")), "2 labels"),
        (TextContract(layout="answer"), "layout is 'answer'"),
        (TextContract(decoding=Decoding(num_beams=5)), "5 beams"),
    ):
        with pytest.raises(CannotServe) as wrong:
            refuse_unservable_contract(contract)
        assert says in str(wrong.value)


# A worker's part


def parts(size: int, num_heads: int, made: Artifact) -> list[dict[int, torch.Tensor]]:
    layers = dict.fromkeys(range(3), (num_heads, 8))
    return [
        dict(shared_out(made, Share(layers=layers, num_layers=3, rank=rank, size=size), torch.float32))
        for rank in range(size)
    ]


@pytest.mark.parametrize(("size", "num_heads"), [(1, 4), (2, 2), (4, 1)])
def test_heads_are_dealt_out_by_rank_and_together_they_are_all(size: int, num_heads: int) -> None:
    made = content()
    assert isinstance(made.tokens, KVPrefix)
    dealt = parts(size, num_heads, made)
    for _, number, layer in made.tokens.layers():
        keys, values = torch.cat([part[number] for part in dealt], dim=2)
        assert torch.equal(keys, layer.keys_PKH)
        assert torch.equal(values, layer.values_PKH)


def test_where_heads_are_fewer_than_workers_neighbours_hold_the_same_one() -> None:
    made = content()
    dealt = parts(8, 1, made)
    assert isinstance(made.tokens, KVPrefix)
    for _, number, layer in made.tokens.layers():
        for rank, part in enumerate(dealt):
            assert torch.equal(part[number][0], layer.keys_PKH[:, rank // 2 : rank // 2 + 1])


def test_a_pipelines_stage_has_its_own_layers_alone() -> None:
    made = content()
    held = shared_out(made, Share(layers={1: (4, 8), 2: (4, 8)}, num_layers=3), torch.float32)
    assert set(held) == {1, 2}
    assert isinstance(made.tokens, KVPrefix)
    layer = made.tokens.sites["decoder.self"][2]
    assert isinstance(layer, LayerKV)
    assert torch.equal(held[2][1], layer.values_PKH)


@pytest.mark.parametrize(
    ("share", "says"),
    [
        (Share(layers={0: (2, 8)}, num_layers=3), "4 key-value heads of 8, the engine's has 2 of 8"),
        (Share(layers={0: (4, 16)}, num_layers=3), "the engine's has 4 of 16"),
        (Share(layers={0: (4, 8)}, num_layers=4), "3 layers, the engine's model 4"),
        (Share(layers={0: (1, 8)}, num_layers=3, size=3), "on each of 3 workers"),
    ],
)
def test_a_model_of_another_shape_is_refused(share: Share, says: str) -> None:
    with pytest.raises(GeometryMismatch) as wrong:
        shared_out(content(), share, torch.float32)
    assert says in str(wrong.value)


def test_numbers_beyond_the_dtype_are_refused_and_not_made_infinite() -> None:
    made = content(tokens=random_prefix(GEOMETRY, 5, 0).map(lambda x: x * 1e5))
    share = Share(layers={0: (4, 8)}, num_layers=3)
    shared_out(made, share, torch.bfloat16)
    with pytest.raises(CannotServe, match="beyond the largest of float16"):
        shared_out(made, share, torch.float16)


def settled(residents: Residents) -> dict[Claim, tuple[int, str]]:
    found: dict[Claim, tuple[int, str]] = {}
    until = time.monotonic() + 20
    while not found and time.monotonic() < until:
        found = residents.verdicts()
    return found


def test_a_worker_reads_once_and_looks_again_at_the_stamp(tmp_path: Path, shelf: Shelf) -> None:
    residents = Residents(shelf, Share(layers={0: (4, 8)}, num_layers=3), torch.float32)
    asked = shelf.claim("cards")
    residents.order(asked, BASE)
    assert settled(residents) == {asked: (1, "")}
    first = residents.held(asked)
    assert residents.num_bytes() == 2 * 5 * 4 * 8 * 4
    residents.order(asked, BASE)
    assert settled(residents) == {asked: (1, "")}
    assert residents.held(asked) is first, "an unchanged file is not read again"
    shutil.copy(tmp_path / "cards.safetensors", tmp_path / "copy")
    (tmp_path / "copy").rename(tmp_path / "cards.safetensors")
    residents.order(asked, BASE)
    assert settled(residents) == {asked: (1, "")}
    assert residents.held(asked) is not first, "a file that was put there anew is read anew"
    (tmp_path / "cards.safetensors").write_bytes(b"nonsense")
    residents.order(asked, BASE)
    ((count, wrong),) = settled(residents).values()
    assert count == 1
    assert "cards.safetensors" in wrong
    assert residents.held(asked), "until the desk says so: a step that was planned before may need it"
    residents.drop(asked)
    assert residents.num_bytes() == 0
    residents.close()


def test_a_prefix_of_another_base_or_tokenizer_is_refused(shelf: Shelf) -> None:
    residents = Residents(shelf, Share(layers={0: (4, 8)}, num_layers=3), torch.float32)
    asked = shelf.claim("cards")
    for base, says in (
        (replace(BASE, fingerprint="d" * 64), "the base is dddddddddddd"),
        (replace(BASE, tokenizer_fingerprint="d" * 64), "the tokenizer is dddddddddddd"),
    ):
        residents.order(asked, base)
        ((_, wrong),) = settled(residents).values()
        assert says in wrong
    residents.order(asked, replace(BASE, fingerprint="d" * 64, allow_base="d" * 12))
    assert settled(residents) == {asked: (1, "")}
    residents.close()


# Blocks


def test_tokens_fall_into_the_blocks_of_their_text_from_the_first_missing_one_on() -> None:
    key = claim(num_virtual_tokens=7)
    pages = Pages([4, 2])
    loads = [
        Load(key=key, first=4, blocks=((9, 3, 5), (1, 0, 8, 6))),
        Load(key=key, first=0, blocks=((2, 7), (4,) * 4)),
    ]
    held = [torch.arange(7.0).reshape(1, 7, 1, 1).expand(2, 7, 1, 1) + 10 * number for number in range(2)]
    keys, values, slots = pages.places(loads, 0).of(held)
    assert slots.tolist() == [12, 13, 14, 8, 9, 10, 11, 28, 29, 30]
    assert keys.flatten().tolist() == [4, 5, 6, 10, 11, 12, 13, 14, 15, 16]
    assert torch.equal(keys, values)
    # In the second group a window has passed tokens 2 and 3, which have no block; the load begins at 4 all the same.
    keys, _, slots = pages.places([replace(loads[0], first=0)], 1).of(held[:1])
    assert slots.tolist() == [2, 3, 16, 17, 12]
    assert keys.flatten().tolist() == [0, 1, 4, 5, 6]


def test_geometries_of_real_models_differ_in_their_digests() -> None:
    digests = {geometry_digest(tiny(family).geometry) for family in ("llama", "gpt2", "gemma3", "mistral")}
    assert len(digests) == 4
