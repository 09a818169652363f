"""The artifact file: what is saved comes back bit for bit, and whatever else is in the file is refused by name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from attacks.make import ATTACKS, KEYS, Raw, infix, soft
from epigraph import errors
from epigraph.artifact import FILE_NAME, Artifact, find, inspect, load, save
from epigraph.artifact.container import Entry
from epigraph.artifact.header import MAX_VALUE_CHARS
from epigraph.artifact.reader import _read_tensors
from epigraph.contract import Decoding, TextContract
from epigraph.virtual import (
    SITES,
    VISIBILITIES,
    Geometry,
    KVPrefix,
    LayerGeometry,
    LayerKV,
    PositionKind,
    SoftPrompt,
    VirtualTokens,
)
from forked import Forks

FORMAT = Path(__file__).parent.parent / "docs" / "format.md"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def tiny(**changes: Any) -> Artifact:
    """The artifact of the worked example in docs/format.md."""
    layers = (LayerGeometry(num_kv_heads=1, head_dim=2), LayerGeometry(num_kv_heads=1, head_dim=2, window=8))
    stored = LayerKV(keys_PKH=torch.tensor([[[1.0, 2.0]]]), values_PKH=torch.tensor([[[0.5, -0.5]]]))
    artifact = Artifact(
        tokens=KVPrefix(sites={"decoder.self": (stored, None)}, text_start=1),
        geometry=Geometry(sites={"decoder.self": layers}, embedding_dim=4, position_kind="rotary", max_positions=64),
        contract=TextContract(),
        base_name="tiny",
        base_fingerprint="a" * 64,
        tokenizer_fingerprint="b" * 64,
        method="prefix-tuning",
        method_config={"num_virtual_tokens": 1},
        provenance={"seed": 0},
    )
    return dataclasses.replace(artifact, **changes)


def prefix_of(number: float, dtype: torch.dtype = torch.float32) -> KVPrefix:
    """The tiny prefix with one of its values replaced."""
    values = torch.tensor([[[0.5, number]]], dtype=dtype)
    stored = LayerKV(keys_PKH=torch.ones(1, 1, 2, dtype=dtype), values_PKH=values)
    return KVPrefix(sites={"decoder.self": (stored, None)}, text_start=1)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bits(a), _bits(b))


def _bits(x: Tensor) -> Tensor:
    return x.contiguous().reshape(-1).view(torch.uint8)


def assert_same(got: Artifact, want: Artifact, dtype: torch.dtype) -> None:
    """Every field equal, every number the bits of ``want`` in ``dtype``."""
    for field in dataclasses.fields(Artifact):
        if field.name not in ("tokens", "extra"):
            assert getattr(got, field.name) == getattr(want, field.name), field.name
    assert_same_tokens(got.tokens, want.tokens, dtype)
    assert got.extra.keys() == want.extra.keys()
    assert all(same_bits(got.extra[name], x) for name, x in want.extra.items())


def assert_same_tokens(got: VirtualTokens, want: VirtualTokens, dtype: torch.dtype) -> None:
    if isinstance(want, SoftPrompt):
        assert isinstance(got, SoftPrompt)
        assert same_bits(got.embeddings_PE, want.embeddings_PE.to(dtype))
        return
    assert isinstance(got, KVPrefix)
    assert (got.text_start, got.visibility) == (want.text_start, want.visibility)
    ours = {(site, number): layer for site, number, layer in got.layers()}
    theirs = {(site, number): layer for site, number, layer in want.layers()}
    assert ours.keys() == theirs.keys()
    for place, layer in ours.items():
        assert same_bits(layer.keys_PKH, theirs[place].keys_PKH.to(dtype))
        assert same_bits(layer.values_PKH, theirs[place].values_PKH.to(dtype))


# What is saved comes back

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
json_objects = st.dictionaries(st.text(max_size=8), json_values, max_size=3)
hex64 = st.text("0123456789abcdef", min_size=64, max_size=64)
names = st.text(min_size=1, max_size=20).filter(str.isprintable)
windows = st.none() | st.integers(1, 4096)
layer_geometries = st.builds(LayerGeometry, num_kv_heads=st.integers(1, 3), head_dim=st.integers(1, 4), window=windows)
contracts = st.builds(
    TextContract,
    input_template=st.sampled_from(["{source}\n", " {name} | {food}", "x"]),
    bos=st.booleans(),
    chat_template_hash=st.none() | hex64,
    stop=st.lists(st.text(min_size=1, max_size=3), max_size=2).map(tuple),
    decoding=st.builds(Decoding, num_beams=st.integers(1, 8), length_penalty=st.floats(-10, 10)),
)


def _numbers(seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@st.composite
def artifacts(draw: st.DrawFn) -> Artifact:
    shapes = draw(
        st.dictionaries(
            st.sampled_from(SITES), st.lists(layer_geometries, min_size=1, max_size=3).map(tuple), min_size=1
        )
    )
    places = [(site, number) for site, layers in shapes.items() for number in range(len(layers))]
    stored = draw(st.sets(st.sampled_from(places), min_size=1))
    P, seed = draw(st.integers(1, 5)), draw(st.integers(0, 2**32))

    def layer(site: Any, number: int) -> LayerKV | None:
        if (site, number) not in stored:
            return None
        shape = (P, shapes[site][number].num_kv_heads, shapes[site][number].head_dim)
        keys, values = (_numbers(seed + number + i, shape, torch.float32) for i in (0, 100))
        return LayerKV(keys_PKH=keys, values_PKH=values)

    sites = {site: tuple(layer(site, number) for number in range(len(layers))) for site, layers in shapes.items()}
    max_positions = draw(st.none() | st.integers(2, 2048))
    extra_shapes = st.lists(st.integers(1, 3), max_size=3).map(tuple)
    extra = draw(
        st.dictionaries(
            st.from_regex(r"[A-Za-z0-9_]{1,8}(\.[a-z]{1,3})?", fullmatch=True),
            st.builds(_numbers, st.just(seed), extra_shapes, st.sampled_from(DTYPES)),
            max_size=2,
        )
    )
    embedding_dim = draw(st.integers(1, 64))
    prefix = KVPrefix(
        sites=sites,
        text_start=draw(st.integers(0, (max_positions or 2048) - 1)),
        visibility=draw(st.sampled_from(VISIBILITIES if set(shapes) == {"decoder.self"} else VISIBILITIES[:2])),
    )
    fits = max_positions is None or max_positions > P
    soft = SoftPrompt(embeddings_PE=_numbers(seed, (P, embedding_dim), torch.float32))
    return Artifact(
        tokens=draw(st.sampled_from([prefix, soft] if fits else [prefix])),
        geometry=Geometry(
            sites=shapes,
            embedding_dim=embedding_dim,
            position_kind=draw(st.sampled_from(get_args(PositionKind))),
            max_positions=max_positions,
        ),
        contract=draw(contracts),
        base_name=draw(names),
        base_fingerprint=draw(hex64),
        tokenizer_fingerprint=draw(hex64),
        method=draw(names),
        method_config=draw(json_objects),
        provenance=draw(json_objects),
        allowed_bases=draw(st.lists(hex64, max_size=2).map(tuple)),
        extra=extra,
    )


@settings(deadline=None, max_examples=150)
@given(artifact=artifacts(), dtype=st.sampled_from(DTYPES))
def test_every_artifact_comes_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, artifact: Artifact, dtype: torch.dtype
) -> None:
    path = tmp_path_factory.getbasetemp() / "round.safetensors"
    content_hash = save(artifact, path, dtype)
    assert_same(load(path), artifact, dtype)
    assert inspect(path)["content_hash"] == content_hash
    again = tmp_path_factory.getbasetemp() / "again.safetensors"
    assert save(load(path), again, dtype) == content_hash
    assert again.read_bytes() == path.read_bytes()


def test_a_site_without_tensors_comes_back_as_a_row_of_none(tmp_path: Path) -> None:
    layer = LayerGeometry(num_kv_heads=1, head_dim=2)
    geometry = Geometry(
        sites={"decoder.self": (layer, layer), "encoder.self": (layer,)}, embedding_dim=4, position_kind="none"
    )
    save(tiny(geometry=geometry), tmp_path / FILE_NAME)
    assert load(tmp_path / FILE_NAME).tokens.sites["encoder.self"] == (None,)


def test_trained_tensors_are_saved_without_their_graph_and_their_strides(tmp_path: Path) -> None:
    keys = torch.randn(2, 1, 1, requires_grad=True)
    stored = LayerKV(keys_PKH=keys.transpose(0, 2), values_PKH=keys.transpose(0, 2) * 2)
    save(
        tiny(tokens=KVPrefix(sites={"decoder.self": (stored, None)}, text_start=1)), tmp_path / FILE_NAME, torch.float32
    )
    loaded = next(layer for _, _, layer in load(tmp_path / FILE_NAME).tokens.layers())
    assert torch.equal(loaded.keys_PKH, keys.transpose(0, 2))
    assert not loaded.keys_PKH.requires_grad


def test_loaded_tensors_own_their_memory_and_can_be_written(tmp_path: Path) -> None:
    save(tiny(), tmp_path / FILE_NAME)
    first, second = load(tmp_path / FILE_NAME), load(tmp_path / FILE_NAME)
    next(first.tokens.layers())[2].keys_PKH.zero_()
    assert next(second.tokens.layers())[2].keys_PKH[0, 0, 0] == 1


def smollm2_like() -> Artifact:
    """Ten virtual tokens in the geometry of SmolLM2-135M, with as much provenance as a run writes."""
    layers = tuple(LayerGeometry(num_kv_heads=3, head_dim=64) for _ in range(30))
    stored = tuple(LayerKV(keys_PKH=torch.randn(10, 3, 64), values_PKH=torch.randn(10, 3, 64)) for _ in layers)
    return tiny(
        tokens=KVPrefix(sites={"decoder.self": stored}, text_start=10),
        geometry=Geometry(
            sites={"decoder.self": layers}, embedding_dim=576, position_kind="rotary", max_positions=8192
        ),
        provenance={
            "recipe": {f"option_{number}": number * 0.1 for number in range(20)},
            "data": dict.fromkeys(("train", "test"), "c" * 64),
            "versions": {"epigraph": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
            "scores": {"bleu": 60.2},
        },
    )


def test_ten_tokens_of_smollm2_are_under_240_kb(tmp_path: Path) -> None:
    save(smollm2_like(), tmp_path / FILE_NAME)
    assert 230_400 < (tmp_path / FILE_NAME).stat().st_size < 240_000


# The standard library of the format, and the specification


def test_safetensors_reads_what_we_write(tmp_path: Path) -> None:
    extra = {"head": torch.randn(3, 2), "scale": torch.tensor(2.0, dtype=torch.float16)}
    save(tiny(extra=extra), tmp_path / FILE_NAME)
    tensors = load_file(tmp_path / FILE_NAME)
    assert torch.equal(tensors[KEYS], torch.tensor([[[1.0, 2.0]]], dtype=torch.bfloat16))
    assert torch.equal(tensors["extra.head"], extra["head"])
    assert tensors.keys() == {KEYS, "decoder.self.000.values", "extra.head", "extra.scale"}


def test_we_read_what_safetensors_writes(tmp_path: Path) -> None:
    artifact = tiny(extra={"head": torch.randn(3, 2)})
    save(artifact, tmp_path / FILE_NAME)
    with safe_open(tmp_path / FILE_NAME, "pt") as file:
        metadata = file.metadata()
    save_file(load_file(tmp_path / FILE_NAME), tmp_path / "other.safetensors", metadata)
    assert_same(load(tmp_path / "other.safetensors"), artifact, torch.bfloat16)


def test_the_worked_example_of_the_specification_is_what_we_write(tmp_path: Path) -> None:
    content_hash = save(tiny(), tmp_path / FILE_NAME)
    raw = (tmp_path / FILE_NAME).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length].decode()
    line, table, numbers = re.findall(r"```\w*\n(.*?)\n```", FORMAT.read_text(), re.DOTALL)
    assert json.loads(header)["__metadata__"]["epigraph"] == line
    assert header.endswith("," + table.replace("\n", "") + "}" + " " * 4)
    assert raw[8 + length :].hex(" ") == numbers
    assert f"`{raw[:8].hex(' ')}`" in FORMAT.read_text()
    # Section 5 by hand, with nothing of ours.
    texts = [
        line.replace(f'"content_hash":"{content_hash}",', ""),
        '["decoder.self.000.keys","BF16",[1,1,2]]',
        '["decoder.self.000.values","BF16",[1,1,2]]',
    ]
    data = [b"", bytes.fromhex("803f0040"), bytes.fromhex("003f00bf")]
    framed = [len(text).to_bytes(8, "little") + text.encode() + x for text, x in zip(texts, data, strict=True)]
    assert hashlib.sha256(b"".join(framed)).hexdigest() == content_hash


def test_the_specification_names_every_error() -> None:
    text = FORMAT.read_text()
    leaves = [x.__name__ for x in errors.ArtifactError.__subclasses__()]
    assert [name for name in leaves if f"`{name}`" not in text] == []


# Attacks


def test_the_attacks_stand_on_a_sound_file(tmp_path: Path) -> None:
    Raw().write(tmp_path / FILE_NAME)
    artifact = load(tmp_path / FILE_NAME)
    assert isinstance(artifact.tokens, KVPrefix)
    assert artifact.tokens.num_virtual_tokens == 2
    assert artifact.contract == TextContract()
    soft().write(tmp_path / FILE_NAME)
    tokens = load(tmp_path / FILE_NAME).tokens
    assert isinstance(tokens, SoftPrompt)
    assert torch.equal(tokens.embeddings_PE, torch.ones(2, 8))
    assert not tokens.placed
    assert inspect(tmp_path / FILE_NAME)["num_numbers"] == 16
    placed = soft()
    placed.fields["contract"]["input_template"] = "{1}{source}{1}"
    placed.write(tmp_path / FILE_NAME)
    tokens = load(tmp_path / FILE_NAME).tokens
    assert isinstance(tokens, SoftPrompt)
    assert tokens.placed
    infix().write(tmp_path / FILE_NAME)
    tokens = load(tmp_path / FILE_NAME).tokens
    assert isinstance(tokens, KVPrefix)
    assert tokens.embeddings_PE is not None
    assert torch.equal(tokens.embeddings_PE, torch.ones(2, 8))
    assert inspect(tmp_path / FILE_NAME)["num_numbers"] == 28


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_is_refused_by_name_and_at_once(name: str, tmp_path: Path) -> None:
    expected, make = ATTACKS[name]
    path = tmp_path / f"{name}.safetensors"
    make(path)
    before = sorted(os.listdir(tmp_path))
    start = time.process_time()
    with pytest.raises(errors.ArtifactError) as caught:
        load(path)
    assert time.process_time() - start < 1
    assert type(caught.value) is expected, caught.value
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.isprintable()
    assert len(message) < 600 + len(str(path))
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pickle_of_protocol_4", "a pickle"),
        ("zip_archive", "torch.save"),
        ("gguf_model", "GGUF"),
        ("web_page", "web page"),
        ("git_lfs_pointer", "Git LFS"),
        ("plain_model", "a model perhaps"),
        ("peft_adapter", "epigraph import peft"),
        ("symbolic_link", "symbolic link"),
        ("version_2", "upgrade epigraph"),
        ("half_a_layer", "decoder.self.000.keys and decoder.self.000.values"),
        ("shape_transposed", "[3, 1, 2], expected F32 [2, 1, 3]"),
        ("not_a_number", "1 of 6 numbers that are not finite"),
        ("cut_in_the_tensors", "47 bytes of tensors, expected 48; fetch it again"),
        ("number_as_text", "num_virtual_tokens: Input should be a valid integer, got '2'"),
        ("many_wrong_layers", "values beside method.config and provenance, expected at most 8192"),
        ("some_wrong_bases", "also_allowed_bases.0: Input should be a valid string, got 0 (and 7999 more)"),
        ("header_bomb_of_objects", "brackets, braces and commas, expected at most 323584"),
        ("contract_of_another_target", "a target has the one field {target}, got {secret}"),
        ("tensor_name_with_escapes", r"tensor \x1b]0;pwned\x07 is not one that the header knows"),
        ("unix_socket", "cannot be opened"),
        (
            "template_of_more_slots_than_tokens",
            "header: the template has places for 3 virtual tokens, expected 2 or none",
        ),
        ("template_of_slots_for_keys_and_values", "places for 2 virtual tokens, kind kv has such with"),
        ("template_of_many_slots", "contract.input_template: the template has more than 65536 virtual tokens; take"),
        ("text_starts_past_the_positions", "header: text_start 128 is not below max_positions 128"),
    ],
)
def test_a_refusal_says_what_and_what_to_do(name: str, words: str, tmp_path: Path) -> None:
    ATTACKS[name][1](tmp_path / "x.safetensors")
    with pytest.raises(errors.ArtifactError, match=re.escape(words)):
        load(tmp_path / "x.safetensors")


def test_a_server_can_accept_less(tmp_path: Path) -> None:
    save(tiny(), tmp_path / FILE_NAME)
    size = (tmp_path / FILE_NAME).stat().st_size
    load(tmp_path / FILE_NAME, max_bytes=size)
    with pytest.raises(errors.TooLarge, match=f"has {size} bytes, expected at most {size - 1}"):
        load(tmp_path / FILE_NAME, max_bytes=size - 1)


@pytest.mark.parametrize("num_bytes", [7, 9])
def test_a_file_that_changes_while_it_is_read_is_refused(num_bytes: int, tmp_path: Path) -> None:
    # The table was checked against eight bytes; by the time the tensors are read, the file has another length.
    (tmp_path / "data").write_bytes(bytes(num_bytes))
    table = {"a": Entry(dtype="F32", shape=[2], data_offsets=[0, 8])}
    with (tmp_path / "data").open("rb") as file, pytest.raises(errors.Truncated, match="changed while it was read"):
        _read_tensors(file, table)


def test_the_limits_on_counts_exclude_no_file_that_the_others_allow(tmp_path: Path) -> None:
    """As many layers, extra tensors, bases, stops and brackets as there may be, all in one sound file."""
    raw = Raw()
    layer = {"num_kv_heads": 1, "head_dim": 3, "window": 1}
    raw.fields["geometry"]["sites"] = {"decoder.self": [layer] * 1000, "decoder.cross": [layer] * 24}
    places = [("decoder.self", number) for number in range(1000)] + [("decoder.cross", number) for number in range(24)]
    kinds = ("keys", "values")
    raw.tensors = {
        f"{site}.{number:03d}.{kind}": ("BF16", [2, 1, 3], bytes(12)) for site, number in places for kind in kinds
    }
    raw.fields["extra"] = {f"x{number:02d}": {"dtype": "F32", "shape": [1] * 8} for number in range(64)}
    raw.tensors |= {f"extra.x{number:02d}": ("F32", [1] * 8, bytes(4)) for number in range(64)}
    raw.fields["also_allowed_bases"] = [f"{number:064x}" for number in range(64)]
    raw.fields["contract"]["stop"] = ["x"] * 16
    raw.fields["contract"]["labels"] = [str(number) for number in range(1024)]
    raw.fields["contract"]["label_words"] = [f"w{number}" for number in range(1024)]
    left = MAX_VALUE_CHARS - len(raw.text()) - len(',"a":[[]]')
    raw.fields["provenance"]["a"] = [[]] * (left // 3)
    assert MAX_VALUE_CHARS - 4 < len(raw.text()) <= MAX_VALUE_CHARS
    raw.write(tmp_path / FILE_NAME)
    artifact = load(tmp_path / FILE_NAME)
    assert len(list(artifact.tokens.layers())) == 1024
    assert len(artifact.extra) == 64


def test_checking_numbers_takes_little_beside_them(tmp_path: Path) -> None:
    """Numbers are checked in pieces: a tensor of 64 MiB is read into 64 MiB and a little."""
    raw = Raw()
    raw.fields["num_virtual_tokens"] = P = 65_536
    for layer in raw.fields["geometry"]["sites"]["decoder.self"]:
        layer["head_dim"] = 128
    raw.tensors = {name: ("F32", [P, 1, 128], bytes(P * 512)) for name in raw.tensors}
    raw.write(tmp_path / FILE_NAME)
    size = (tmp_path / FILE_NAME).stat().st_size
    del raw
    # VmHWM and not getrusage, which remembers the process that started this one.
    script = (
        "import sys; from epigraph.artifact import load\n"
        "def peak(): return int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
        "load(sys.argv[1]); before = peak(); load(sys.argv[2]); print(peak() - before)"
    )
    save(tiny(), tmp_path / "small")
    words = [sys.executable, "-c", script, str(tmp_path / "small"), str(tmp_path / FILE_NAME)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    assert 0.9 * size < int(done.stdout) * 1024 < 1.25 * size


@pytest.mark.parametrize("place", [3, 1 << 18, (1 << 18) + 1, (1 << 19) - 1])
def test_a_number_that_is_not_finite_is_found_in_any_piece(place: int, tmp_path: Path) -> None:
    values = torch.zeros(1 << 19)
    values[place] = float("nan")
    with pytest.raises(errors.BadTensor, match="has 1 of 524288 numbers that are not finite"):
        save(tiny(extra={"head": values}), tmp_path / FILE_NAME)


@st.composite
def damaged(draw: st.DrawFn, sound: bytes) -> bytes:
    data = bytearray(sound)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["flip", "set", "cut", "cut out", "insert", "copy"])):
            case "flip" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "set" if at < len(data):
                data[at] = draw(st.integers(0, 255))
            case "cut":
                del data[at:]
            case "cut out":
                del data[at : at + draw(st.integers(1, 16))]
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=8) | st.sampled_from([b'"', b"[", b"}", b"0", b" "]))
            case "copy":
                data[at:at] = data[at : at + draw(st.integers(1, 64))]
    return bytes(data)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifact, bytes]:
    path = tmp_path_factory.mktemp("fuzz") / FILE_NAME
    artifact = tiny(extra={"head": torch.randn(2, 2)})
    save(artifact, path)
    return path.with_name("damaged.safetensors"), artifact, path.read_bytes()


@settings(deadline=None, max_examples=600)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_means_the_same(sound: tuple[Path, Artifact, bytes], data: st.DataObject) -> None:
    path, artifact, intact = sound
    path.write_bytes(data.draw(damaged(intact)))
    try:
        loaded = load(path)
    except errors.ArtifactError:
        return
    assert_same(loaded, artifact, torch.bfloat16)


def test_every_single_byte_of_a_small_file_matters(
    sound: tuple[Path, Artifact, bytes],
) -> None:
    path, artifact, intact = sound
    survived = []
    for at in range(len(intact)):
        path.write_bytes(intact[:at] + bytes([intact[at] ^ 0x20]) + intact[at + 1 :])
        try:
            assert_same(load(path), artifact, torch.bfloat16)
        except errors.ArtifactError:
            continue
        survived.append(at)
    assert survived == []


@settings(deadline=None, max_examples=300)
@given(data=st.binary(max_size=200))
def test_random_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "random.safetensors"
    path.write_bytes(data)
    with pytest.raises(errors.ArtifactError):
        load(path)


@settings(deadline=None, max_examples=400)
@given(
    name=st.sampled_from(sorted(Raw().fields)),
    value=st.recursive(json_values, lambda x: st.dictionaries(st.sampled_from(sorted(Raw().fields)), x)),
)
def test_any_json_in_place_of_a_field_is_refused_or_kept(
    tmp_path_factory: pytest.TempPathFactory, name: str, value: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "field.safetensors"
    raw = Raw()
    raw.fields[name] = value
    raw.write(path)
    try:
        kept = inspect(path)[name]
    except errors.ArtifactError:
        return
    # A contract gains the defaults of what it leaves out; nothing else may change.
    assert kept | value == kept if name == "contract" else kept == value


def places_in(value: Any) -> list[tuple[Any, Any]]:
    """Every (object or list, key) in ``value``."""
    keys = value if isinstance(value, dict) else range(len(value))
    inside = [x for key in keys if isinstance(value[key], (dict, list)) for x in places_in(value[key])]
    return [(value, key) for key in keys] + inside


NUM_PLACES = len(places_in(Raw().fields))


@settings(deadline=None, max_examples=250)
@given(
    place=st.integers(0, NUM_PLACES - 1),
    value=st.recursive(json_values | st.integers(-2, 1 << 64), lambda x: st.lists(x, max_size=4)),
)
def test_any_json_anywhere_in_the_header_is_refused_or_kept(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "anywhere.safetensors"
    raw = Raw()
    where, key = places_in(raw.fields)[place]
    where[key] = value
    raw.write(path)
    try:
        found = inspect(path)
    except errors.ArtifactError as error:
        said = str(error)
        assert said.isprintable()
        return
    contract = TextContract.model_validate(raw.fields.pop("contract")).model_dump(mode="json")
    assert {name: found[name] for name in raw.fields} == raw.fields
    assert found["contract"] == contract


row_values = st.sampled_from(
    ["F32", "F64", 0, -1, 1, 24, 48, 1 << 62, 1.5, None, [], [0, 24], [24, 0], [2, 1, 3], [-1] * 3]
)


@settings(deadline=None, max_examples=200)
@given(row=st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "file"]), row_values) | row_values)
def test_any_row_of_the_table_is_refused_or_right(tmp_path_factory: pytest.TempPathFactory, row: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "row.safetensors"
    Raw(table={KEYS: row}).write(path)
    try:
        load(path)
    except errors.ArtifactError as error:
        said = str(error)
        assert said.isprintable()
        return
    assert row == {"dtype": "F32", "shape": [2, 1, 3], "data_offsets": [0, 24]}


# Saving


def snapshot(folder: Path) -> dict[str, bytes]:
    return {x.name: x.read_bytes() for x in folder.iterdir()}


@pytest.mark.parametrize(
    ("number", "from_dtype", "to_dtype", "words"),
    [
        (float("nan"), torch.float32, torch.bfloat16, "1 of 2 numbers that are not finite"),
        (float("inf"), torch.float32, torch.float32, "1 of 2 numbers that are not finite"),
        (70_000.0, torch.float32, torch.float16, "not finite as F16; save it as torch.float32"),
        (3.4e38, torch.float32, torch.float32, "not finite in bfloat16"),
        (1e300, torch.float64, torch.float32, "not finite in bfloat16"),
    ],
)
def test_numbers_that_are_or_become_infinite_are_not_saved(
    number: float, from_dtype: torch.dtype, to_dtype: torch.dtype, words: str, tmp_path: Path
) -> None:
    with pytest.raises(errors.BadTensor, match=words):
        save(tiny(tokens=prefix_of(number, from_dtype)), tmp_path / FILE_NAME, to_dtype)
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"extra": {"head": torch.tensor([float("nan")])}}, errors.BadTensor, "extra.head"),
        ({"extra": {"head": torch.tensor([1])}}, errors.BadTensor, "dtype is torch.int64"),
        ({"extra": {"../head": torch.ones(1)}}, errors.BadHeader, "extra"),
        ({"extra": {"head": torch.ones(0)}}, errors.BadHeader, "extra.head.shape"),
        ({"tokens": KVPrefix(sites={"decoder.self": (None, None)}, text_start=1)}, errors.BadTensor, "no layer"),
        ({"tokens": KVPrefix(sites={"decoder.self": (None,)}, text_start=1)}, errors.GeometryMismatch, "2 layers"),
        ({"base_fingerprint": "a" * 12}, errors.BadHeader, "base.fingerprint"),
        ({"base_name": "x\n"}, errors.BadHeader, "base.name"),
        ({"provenance": {"created": float("nan")}}, errors.BadHeader, "JSON"),
        ({"provenance": {"seeds": {1: 2}}}, errors.BadHeader, "provenance: seeds"),
        ({"provenance": {"sizes": (1, 2)}}, errors.BadHeader, "provenance: sizes"),
        ({"provenance": {"path": Path("x")}}, errors.BadHeader, "provenance: path"),
        ({"provenance": {"text": "\ud800"}}, errors.BadHeader, "surrogates"),
        ({"provenance": {"log": "x" * (1 << 18)}}, errors.TooLarge, "expected at most 262144"),
        ({"allowed_bases": ("c" * 64,) * 65}, errors.TooLarge, "also_allowed_bases"),
    ],
)
def test_what_load_would_refuse_is_not_saved(
    changes: dict[str, Any], error: type[errors.UserError], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        save(tiny(**changes), tmp_path / FILE_NAME)
    assert snapshot(tmp_path) == {}


def test_provenance_that_never_ends_is_not_saved(tmp_path: Path) -> None:
    endless: dict[str, Any] = {}
    endless["again"] = endless
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"a": deep}
    for provenance in (endless, deep):
        with pytest.raises((errors.BadHeader, errors.TooLarge)):
            save(tiny(provenance=provenance), tmp_path / FILE_NAME)
    assert snapshot(tmp_path) == {}


def test_a_dtype_that_no_artifact_holds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.BadTensor, match=r"dtype is torch\.float64, expected one of torch\.float32"):
        save(tiny(), tmp_path / FILE_NAME, torch.float64)


def test_saving_replaces_in_one_step_and_keeps_the_users_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        first = save(tiny(), tmp_path / FILE_NAME)
        second = save(tiny(provenance={"seed": 1}), tmp_path / FILE_NAME)
    finally:
        os.umask(before)
    assert first != second
    assert inspect(tmp_path / FILE_NAME)["content_hash"] == second
    assert os.listdir(tmp_path) == [FILE_NAME]
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o640


def test_saving_over_a_link_replaces_the_link_and_not_its_target(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    (tmp_path / FILE_NAME).symlink_to(tmp_path / "target")
    save(tiny(), tmp_path / FILE_NAME)
    assert (tmp_path / "target").read_text() == "precious"
    assert load(tmp_path / FILE_NAME).base_name == "tiny"


@pytest.mark.parametrize("name", ["no/such/folder.safetensors", ".", "\0", "taken", "x" * 300])
def test_a_path_that_cannot_be_written_is_one_error_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(errors.CannotWrite, match="choose a folder that exists"):
        save(tiny(), tmp_path / name)
    assert os.listdir(tmp_path) == ["taken"]


FULL_DISK = """
import resource, sys, torch
from test_artifact import smollm2_like
from epigraph.artifact import save
from epigraph.errors import CannotWrite

artifact = smollm2_like()
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    save(artifact, sys.argv[1])
except CannotWrite as error:
    print(error)
"""


@pytest.mark.parametrize("has_old_file", [False, True])
def test_a_disk_that_fills_up_leaves_the_folder_as_it_was(has_old_file: bool, tmp_path: Path, forks: Forks) -> None:
    path = tmp_path / FILE_NAME
    if has_old_file:
        save(tiny(), path)
    before = snapshot(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    process = forks.start(["-c", FULL_DISK, str(path)], environment=environment)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "was not written: File too large; make room" in out
    assert snapshot(tmp_path) == before


def test_reading_imports_no_transformers(tmp_path: Path) -> None:
    save(tiny(), tmp_path / FILE_NAME)
    script = "import sys; from epigraph.artifact import load; load(sys.argv[1]); print('transformers' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / FILE_NAME)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


def test_reading_takes_no_more_memory_than_the_file(tmp_path: Path) -> None:
    # 64 MiB of address space above what is in use: a header that claims 1 TiB must fail in arithmetic, not in malloc.
    raw = Raw()
    raw.fields["num_virtual_tokens"] = 65_536
    raw.table = {KEYS: {"dtype": "F32", "shape": [65_536, 1, 3], "data_offsets": [0, 1 << 40]}}
    del raw.tensors["decoder.self.000.values"]
    raw.write(tmp_path / FILE_NAME)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    old = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), old[1]))
    try:
        with pytest.raises(errors.Truncated):
            load(tmp_path / FILE_NAME)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, old)


# Finding and looking


def test_find_takes_a_file_or_the_folder_of_a_run(tmp_path: Path) -> None:
    save(tiny(), tmp_path / FILE_NAME)
    assert find(tmp_path) == tmp_path / FILE_NAME
    assert find(str(tmp_path / FILE_NAME)) == tmp_path / FILE_NAME


def test_find_refuses_what_is_neither(tmp_path: Path) -> None:
    with pytest.raises(errors.NotAnArtifact, match=r"a folder without artifact\.safetensors"):
        find(tmp_path)
    with pytest.raises(errors.NotAnArtifact, match="does not exist"):
        find(tmp_path / "none")
    with pytest.raises(errors.NotAnArtifact, match="does not exist or cannot be seen"):
        find("x" * 5000)


def test_a_link_is_found_and_then_refused(tmp_path: Path) -> None:
    save(tiny(), tmp_path / FILE_NAME)
    for target in (FILE_NAME, "nowhere", "link"):
        (tmp_path / "link").symlink_to(tmp_path / target)
        assert find(tmp_path / "link") == tmp_path / "link"
        with pytest.raises(errors.NotAnArtifact, match="symbolic link"):
            load(find(tmp_path / "link"))
        (tmp_path / "link").unlink()


def test_inspect_is_json_and_says_what_is_there(tmp_path: Path) -> None:
    content_hash = save(tiny(), tmp_path / FILE_NAME)
    summary = inspect(tmp_path / FILE_NAME)
    assert json.loads(json.dumps(summary)) == summary
    assert summary["content_hash"] == content_hash
    assert summary["num_bytes"] == (tmp_path / FILE_NAME).stat().st_size
    assert (summary["num_numbers"], summary["num_layers_stored"], summary["dtype"]) == (4, 1, "bfloat16")
    assert summary["base"] == {"name": "tiny", "fingerprint": "a" * 64}


# The right base


def test_the_base_it_was_trained_for_may_use_it() -> None:
    tiny().check_base(tiny().geometry, "a" * 64, "b" * 64)


def test_another_base_is_refused_with_the_one_way_round() -> None:
    with pytest.raises(errors.WrongBase) as caught:
        tiny().check_base(tiny().geometry, "c" * 64, "b" * 64)
    assert str(caught.value) == (
        "the base is cccccccccccc, expected tiny (aaaaaaaaaaaa); use tiny, or pass --allow-base cccccccccccc "
        "if you know that this base is a quantised twin of it"
    )


@pytest.mark.parametrize("allowed", ["c" * 12, "c" * 64])
def test_a_twin_is_admitted_by_its_own_fingerprint(allowed: str) -> None:
    tiny().check_base(tiny().geometry, "c" * 64, "b" * 64, allow_base=allowed)


@pytest.mark.parametrize("allowed", ["", "c" * 11, "d" * 12, "a" * 64, "c" * 63 + "d", "c" * 65, "C" * 12])
def test_nothing_else_admits_a_base(allowed: str) -> None:
    with pytest.raises(errors.WrongBase, match=f"--allow-base '{allowed}' is not this base"):
        tiny().check_base(tiny().geometry, "c" * 64, "b" * 64, allow_base=allowed)


def test_a_base_on_record_is_admitted() -> None:
    artifact = tiny(allowed_bases=("d" * 64,))
    artifact.check_base(artifact.geometry, "d" * 64, "b" * 64)
    with pytest.raises(errors.WrongBase):
        artifact.check_base(artifact.geometry, "e" * 64, "b" * 64)


def test_another_tokenizer_is_refused_also_on_a_twin() -> None:
    with pytest.raises(errors.WrongTokenizer, match="the tokenizer is cccccccccccc, expected bbbbbbbbbbbb"):
        tiny().check_base(tiny().geometry, "c" * 64, "c" * 64, allow_base="c" * 12)


LAYER = LayerGeometry(num_kv_heads=1, head_dim=2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"embedding_dim": 5}, "embedding_dim is 5, expected 4"),
        ({"position_kind": "absolute"}, "position_kind is absolute, expected rotary"),
        ({"max_positions": None}, "max_positions is None, expected 64"),
        ({"sites": {"encoder.self": (LAYER,)}}, "the model has encoder.self, expected decoder.self"),
        ({"sites": {"decoder.self": (LAYER,)}}, "the model has 1 layers at decoder.self, expected 2"),
        ({"sites": {"decoder.self": (LAYER, LAYER)}}, "window None, expected num_kv_heads 1, head_dim 2, window 8"),
    ],
)
def test_another_geometry_is_refused_and_no_flag_admits_it(changes: dict[str, Any], words: str) -> None:
    geometry = dataclasses.replace(tiny().geometry, **changes)
    with pytest.raises(errors.GeometryMismatch, match=words):
        tiny().check_base(geometry, "c" * 64, "b" * 64, allow_base="c" * 64)
