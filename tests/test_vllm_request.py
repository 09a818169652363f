"""What goes to vLLM and comes back, without vLLM: ids as training has them, text as it settles, refusals by name."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from conftest import random_prefix, save_tiny, tiny_tokenizer
from epigraph import artifact
from epigraph.artifact import Artifact
from epigraph.contract import Decoding, TextContract
from epigraph.engine.base import Sampling, Text
from epigraph.engine.claim import PLACEHOLDER, Claim, check_placeholders, from_params, is_salt
from epigraph.engine.contracts import bare_contract, raw_contract
from epigraph.engine.shelf import Shelf
from epigraph.engine.spoken import Spoken
from epigraph.engine.vllm_prefixes import Lowerer, Prefixes
from epigraph.engine.vllm_prompt import Width, alone, around, behind
from epigraph.engine.vllm_request import completion_body, transfer_config
from epigraph.errors import BadClaim, BadValue, CannotServe, GeometryMismatch, PrefixNotFound, WrongBase, WrongTokenizer
from epigraph.frozen.identity import Identity, identify
from epigraph.frozen.inputs import FIRST_SLOT, Codec, chat_template_hash
from epigraph.frozen.model import FrozenModel
from epigraph.tuned import Tuned, encoded
from epigraph.virtual import SoftPrompt, VirtualTokens
from folders import printed, refused

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TOKENIZER = tiny_tokenizer()
TOKENIZER.chat_template = CHAT
TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "a"}]
CONTRACTS: dict[str, tuple[TextContract, Text]] = {
    "template": (TextContract(input_template="Q {source}\nA"), "a tree"),
    "bos": (TextContract(bos=True, ends_source=True), "a tree"),
    "cut": (TextContract(max_source_tokens=9), "a tree, a tree, a tree"),
    "fields": (TextContract(input_template="{title}: {body}"), {"title": "Trees", "body": "They grow."}),
    "placed": (TextContract(input_template="{source} {3} is{2}"), "a tree"),
    "chat": (TextContract(chat_template_hash=chat_template_hash(TOKENIZER)), TURNS),
    "chat, one turn": (TextContract(chat_template_hash=chat_template_hash(TOKENIZER)), "hi"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny(tmp_path_factory.mktemp("model"))
    TOKENIZER.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def frozen(model: Path) -> FrozenModel:
    return FrozenModel.load(str(model))


@pytest.fixture(scope="module")
def base(model: Path) -> Identity:
    return identify(str(model))


def packed(frozen: FrozenModel, tokens: VirtualTokens, contract: TextContract | None = None) -> Artifact:
    return Artifact(
        tokens=tokens,
        geometry=frozen.geometry,
        contract=contract or TextContract(input_template="Q {source}\nA"),
        base_name=frozen.name,
        base_fingerprint=frozen.fingerprint,
        tokenizer_fingerprint=frozen.tokenizer_fingerprint,
        method="prefix-tuning",
        method_config={},
        provenance={},
    )


def soft(frozen: FrozenModel, num_virtual_tokens: int, *, placed: bool = False) -> SoftPrompt:
    shape = (num_virtual_tokens, frozen.geometry.embedding_dim)
    made = frozen.embedding_rms * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return SoftPrompt(embeddings_PE=made, placed=placed)


def put(shelf: Path, name: str, content: Artifact) -> str:
    path = shelf / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    artifact.save(content, path, dtype=torch.float32)
    return name


def a_claim(num_virtual_tokens: int = 3, **changes: Any) -> Claim:
    digest = {"content_hash": "a" * 64, "geometry": "b" * 64}
    return Claim(**{"prefix": "a/b", "num_virtual_tokens": num_virtual_tokens, **digest, **changes})


# From a text to ids


@pytest.mark.parametrize("name", CONTRACTS)
def test_ids_are_those_of_the_local_path(frozen: FrozenModel, name: str) -> None:
    contract, text = CONTRACTS[name]
    tokens = soft(frozen, 5, placed=True) if contract.is_placed else random_prefix(frozen.geometry, 5, 1)
    tuned = Tuned(frozen, packed(frozen, tokens, contract))
    assert encoded(Codec(TOKENIZER, contract), text) == tuned.encode(text)


def test_texts_of_the_wrong_kind_are_told_apart() -> None:
    plain, chat = (Codec(TOKENIZER, CONTRACTS[name][0]) for name in ("template", "chat"))
    with pytest.raises(BadValue, match="trained on plain text, got a conversation"):
        encoded(plain, TURNS)
    with pytest.raises(BadValue, match="trained on conversations, got fields"):
        encoded(chat, {"source": "x"})
    with pytest.raises(BadValue, match="a turn has no 'content'"):
        encoded(chat, [{"role": "user"}])


def test_raw_text_has_no_template_and_keeps_its_start() -> None:
    letters = TOKENIZER("a tree", add_special_tokens=False).input_ids
    for contract, want in ((CONTRACTS["template"][0], letters), (TextContract(bos=True), [1, *letters])):
        assert list(encoded(Codec(TOKENIZER, raw_contract(contract)), "a tree").ids) == want
    assert list(encoded(Codec(TOKENIZER, raw_contract(CONTRACTS["chat"][0])), "a tree").ids) == letters
    cut, long = CONTRACTS["cut"][0], "a tree, a tree, a tree"
    want = TOKENIZER(long, add_special_tokens=False).input_ids
    assert list(encoded(Codec(TOKENIZER, raw_contract(cut)), long).ids) == want
    with pytest.raises(BadValue, match="leave raw out"):
        raw_contract(CONTRACTS["placed"][0])


@pytest.mark.parametrize("both_ways", [False, True])
def test_the_bare_model_reads_a_text_as_its_tokenizer_begins_it(both_ways: bool) -> None:
    tokenizer = tiny_tokenizer(both_ways=both_ways)
    ids = encoded(Codec(tokenizer, bare_contract(tokenizer, "a tree")), "a tree").ids
    want = tokenizer("a tree").input_ids
    assert list(ids) == (want[:-1] if both_ways else want)
    assert (ids[0] == 1) == both_ways


def test_the_bare_model_reads_turns_by_the_chat_template() -> None:
    ids = encoded(Codec(TOKENIZER, bare_contract(TOKENIZER, TURNS)), TURNS).ids
    text = TOKENIZER.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True)
    assert list(ids) == TOKENIZER(text, add_special_tokens=False).input_ids


# From ids to text

STOPS = st.lists(st.text("ab \n", min_size=1, max_size=3), max_size=3, unique=True)


@example("cab", ["ab"], [1] * 24)
@given(st.text("ab \n", max_size=24), STOPS, st.lists(st.integers(1, 5), min_size=24, max_size=24))
def test_text_in_pieces_is_the_text_of_all_ids(text: str, stops: list[str], sizes: list[int]) -> None:
    """Whatever the stop texts are, and although an answer that is settled is not heard to its end."""
    codec = Codec(TOKENIZER, TextContract(stop=tuple(stops)))
    ids = TOKENIZER(text, add_special_tokens=False).input_ids
    assert "".join(in_pieces(Spoken(codec), ids, sizes)) == codec.text(ids)


def in_pieces(spoken: Spoken, ids: Sequence[int], sizes: Sequence[int]) -> list[str]:
    got, start = [], 0
    for size in sizes:
        if start >= len(ids) or spoken.stopped:
            break
        got.append(spoken.add(ids[start : start + size]))
        start += size
    return [*got, spoken.finish()]


def test_text_comes_as_soon_as_it_is_settled() -> None:
    spoken = Spoken(Codec(TOKENIZER, TextContract(stop=("Qx",))))
    got = [spoken.add([token]) for token in TOKENIZER(" ab c\nd\nQx", add_special_tokens=False).input_ids]
    assert got == ["", "a", "b", "", " c", "", "\nd", "", "", ""]
    assert spoken.finish() == ""
    assert spoken.stopped


def test_a_stop_text_that_another_may_yet_cut_into_is_waited_for() -> None:
    """Stop texts count one after the other: 'bc' is none where 'cd' takes its c."""
    codec = Codec(TOKENIZER, TextContract(stop=("cd", "bc")))
    for text, want in (("abcd", "ab"), ("abce", "a")):
        spoken, ids = Spoken(codec), TOKENIZER(text, add_special_tokens=False).input_ids
        given_out = "".join(spoken.add([token]) for token in ids[:3])
        assert (given_out, spoken.stopped) == ("a", False)
        assert given_out + spoken.add(ids[3:]) + spoken.finish() == want == codec.text(ids)
        assert spoken.stopped


def byte_tokenizer(*, bytes_are_tokens: bool) -> Any:
    """Tokens that are bytes: by the letters of a byte-level vocabulary, or by the names that SentencePiece gives."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    if bytes_are_tokens:
        vocabulary = {f"<0x{number:02X}>": number for number in range(256)} | {"a": 256, "</s>": 257, "<unk>": 258}
        made = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
        made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    else:
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        made = Tokenizer(models.BPE({letter: number for number, letter in enumerate([*letters, "</s>"])}, []))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")


@pytest.mark.parametrize("bytes_are_tokens", [False, True])
@given(st.data())
def test_half_a_character_is_kept_back(bytes_are_tokens: bool, data: st.DataObject) -> None:
    """Also where an answer ends within a character, which can change how the bytes before it read."""
    tokenizer = byte_tokenizer(bytes_are_tokens=bytes_are_tokens)
    text = data.draw(st.text("a\né€🙂", max_size=8))
    ids = tokenizer(text, add_special_tokens=False).input_ids
    ids = ids[: data.draw(st.integers(0, len(ids)))]
    codec = Codec(tokenizer, TextContract())
    assert "".join(in_pieces(Spoken(codec), ids, [1] * len(ids))) == codec.text(ids)


def first_blank_tokenizer() -> Any:
    """As SentencePiece has it: a blank before every word, and none before the first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: number for number, token in enumerate(["</s>", "<unk>", "▁", "▁a", "▁b", "a", "b"])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")


@given(st.lists(st.integers(0, 6), max_size=12), st.lists(st.integers(1, 3), min_size=12, max_size=12))
def test_only_the_first_word_loses_its_blank(ids: list[int], sizes: list[int]) -> None:
    """Also behind special tokens, which read as nothing."""
    codec = Codec(first_blank_tokenizer(), TextContract())
    assert "".join(in_pieces(Spoken(codec), ids, sizes)) == codec.text(ids)


# Requests


def test_the_configuration_names_the_connector_and_fails_requests_alone(tmp_path: Path) -> None:
    made = transfer_config(tmp_path, cache_bytes=5, recheck_seconds=0.5, allow_base="f" * 12)
    assert made == {
        "kv_connector": "PrefixConnector",
        "kv_connector_module_path": "epigraph.engine.vllm_connector",
        "kv_role": "kv_consumer",
        "kv_load_failure_policy": "fail",
        "kv_connector_extra_config": {
            "prefixes": str(tmp_path),
            "cache_bytes": 5,
            "recheck_seconds": 0.5,
            "allow_base": "f" * 12,
        },
    }
    for wrong in ({"cache_bytes": 0}, {"recheck_seconds": -1.0}, {"recheck_seconds": float("nan")}):
        with pytest.raises(BadValue, match=next(iter(wrong))):
            transfer_config(tmp_path, **wrong)  # type: ignore[arg-type]


def test_a_body_is_what_the_connector_takes() -> None:
    claim, key = a_claim(tenant="ann"), b"secret"
    decoding = Decoding(max_new_tokens=7, min_new_tokens=9)
    body = json.loads(json.dumps(completion_body(claim, [5, 6], decoding, key, stop=("\n",), end_token=2)))
    assert body["prompt"] == [PLACEHOLDER] * 3 + [5, 6]
    assert from_params(body["kv_transfer_params"], body["cache_salt"]) == claim
    claim.check_salt(body["cache_salt"], key)
    check_placeholders(claim, body["prompt"])
    assert (body["max_tokens"], body["min_tokens"], body["temperature"], body["stop"]) == (7, 7, 0.0, ["\n"])
    assert (body["stop_token_ids"], body["ignore_eos"]) == ([2], True)
    # Said, though they are nothing: a server fills in what a checkpoint advises.
    assert (body["top_k"], body["min_p"], body["repetition_penalty"]) == (0, 0.0, 1.0)
    assert "seed" not in body
    assert completion_body(claim, [5], decoding, key, sampling=Sampling(temperature=1.0, seed=3))["seed"] == 3
    with pytest.raises(BadValue, match="3 beams"):
        completion_body(claim, [5, 6], Decoding(num_beams=3), key)


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"seed": -1}])
def test_settings_of_sampling_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadValue, match=next(iter(wrong))):
        Sampling(**wrong)


def test_salts_are_apart_for_tenants_contents_and_ways() -> None:
    width = Width(embedding_dim=4, dtype=torch.float32)
    prompt = SoftPrompt(embeddings_PE=torch.ones(1, 4), placed=True)
    ids = [5, FIRST_SLOT]
    many = [a_claim(1), a_claim(1, tenant="ann"), a_claim(1, content_hash="c" * 64)]
    salts = [behind(claim, [5], b"").value["cache_salt"] for claim in many]
    salts += [around(claim, prompt, ids, width, b"").value["cache_salt"] for claim in many]
    salts += [alone([5], tenant, b"").value["cache_salt"] for tenant in ("ann", "bob")]
    assert len(set(salts)) == len(salts)
    # The connector takes a salt of prefixes without a claim for a mistake.
    assert [is_salt(salt) for salt in salts] == [True] * 3 + [False] * 5
    assert "cache_salt" not in alone([5], "", b"").value
    assert around(many[0], prompt, ids, width, b"key").value["cache_salt"] not in salts


def test_slots_become_embeddings_and_words_stay_ids() -> None:
    soft = SoftPrompt(embeddings_PE=torch.arange(8.0).reshape(2, 4), placed=True)
    width = Width(embedding_dim=4, dtype=torch.bfloat16)
    value = around(a_claim(2), soft, [7, FIRST_SLOT + 1, 8, FIRST_SLOT], width, b"").value
    assert value["is_token_ids"] == [True, False, True, False]
    assert value["prompt_token_ids"] == [7, PLACEHOLDER, 8, PLACEHOLDER]
    assert value["prompt_embeds"].dtype == torch.bfloat16
    assert value["prompt_embeds"].tolist() == [[0.0] * 4, [4.0, 5.0, 6.0, 7.0], [0.0] * 4, [0.0, 1.0, 2.0, 3.0]]


@pytest.mark.parametrize(
    ("ids", "width", "error", "why"),
    [
        ([7, FIRST_SLOT], {}, GeometryMismatch, "1 slots for the 2 virtual tokens"),
        ([FIRST_SLOT, FIRST_SLOT], {}, GeometryMismatch, "2 slots for the 2"),
        ([FIRST_SLOT, FIRST_SLOT + 1], {"embedding_dim": 8}, GeometryMismatch, "are 4 wide, the engine takes"),
        ([FIRST_SLOT, FIRST_SLOT + 1], {"dtype": torch.float16}, CannotServe, "beyond the largest of float16"),
        ([FIRST_SLOT, FIRST_SLOT + 1], {"layers_read_ids": True}, CannotServe, "embeddings of token ids"),
    ],
)
def test_what_would_end_the_engine_is_refused_before_it(
    ids: list[int], width: dict[str, Any], error: type[Exception], why: str
) -> None:
    soft = SoftPrompt(embeddings_PE=torch.full((2, 4), 1e5), placed=True)
    with pytest.raises(error, match=why):
        around(a_claim(2), soft, ids, Width(**{"embedding_dim": 4, "dtype": torch.float32, **width}), b"")


# The prefixes in front


def get(prefixes: Prefixes, prefix: str, version: str = "") -> Any:
    return asyncio.run(prefixes.get(prefix, version))


def test_a_known_prefix_is_not_read_again_until_it_changes(
    frozen: FrozenModel, base: Identity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "a/v1", packed(frozen, random_prefix(frozen.geometry, 3, 1)))
    shelf, reads = Shelf(tmp_path), list[str]()
    opened = shelf.open
    monkeypatch.setattr(shelf, "open", lambda *name: reads.append(name[0]) or opened(*name))
    prefixes = Prefixes(shelf, base)
    first, second = get(prefixes, "a", "v1"), get(prefixes, "a", "v1")
    assert first is second
    assert reads == ["a"]
    assert first.claim == shelf.claim("a", "v1")
    put(tmp_path, "a/v1", packed(frozen, random_prefix(frozen.geometry, 4, 2)))
    assert get(prefixes, "a", "v1").claim.num_virtual_tokens == 4
    os.unlink(tmp_path / "a" / "v1.safetensors")
    with pytest.raises(PrefixNotFound, match="no prefix a/v1"):
        get(prefixes, "a", "v1")


def test_what_the_workers_would_refuse_is_refused_in_front(frozen: FrozenModel, base: Identity, tmp_path: Path) -> None:
    good = packed(frozen, random_prefix(frozen.geometry, 3, 1))
    labels = good.contract.model_copy(update={"labels": ("a", "b")})
    refusals: list[tuple[str, Artifact, type[Exception], str]] = [
        ("base", replace(good, base_fingerprint="0" * 64), WrongBase, "the base is"),
        ("tokenizer", replace(good, tokenizer_fingerprint="0" * 64), WrongTokenizer, "the tokenizer is"),
        ("infix", replace(good, tokens=random_prefix(frozen.geometry, 3, 1, "answer")), CannotServe, "an infix"),
        ("moved", replace(good, tokens=replace(good.tokens, text_start=9)), CannotServe, "starts at position 9"),
        ("labels", replace(good, contract=labels), CannotServe, "chosen among 2 labels"),
        ("soft", packed(frozen, soft(frozen, 3)), CannotServe, "epigraph lower ARTIFACT"),
    ]
    prefixes = Prefixes(Shelf(tmp_path), base)
    for name, content, error, why in refusals:
        put(tmp_path, name, content)
        with pytest.raises(error, match=why):
            get(prefixes, name)
    put(tmp_path, "beams", replace(good, contract=good.contract.model_copy(update={"decoding": Decoding(num_beams=4)})))
    assert get(prefixes, "beams").codec.contract.decoding.num_beams == 4, "a request may ask for greedy decoding"


def test_a_base_with_other_weights_is_let_in_by_its_fingerprint(
    frozen: FrozenModel, base: Identity, tmp_path: Path
) -> None:
    put(tmp_path, "a", replace(packed(frozen, random_prefix(frozen.geometry, 3, 1)), base_fingerprint="0" * 64))
    assert get(Prefixes(Shelf(tmp_path), base, allow_base=base.fingerprint[:12]), "a").claim.prefix == "a"


@pytest.mark.parametrize("prefix", ["../a", "/a", "", "a/../../a", ".a", "a\n"])
def test_a_prefix_id_that_leads_out_is_refused_before_any_file_is_looked_for(
    frozen: FrozenModel, base: Identity, tmp_path: Path, prefix: str
) -> None:
    put(tmp_path, "a", packed(frozen, random_prefix(frozen.geometry, 3, 1)))
    (tmp_path / "shelf").mkdir()
    with pytest.raises(BadClaim, match="no prefix id"):
        get(Prefixes(Shelf(tmp_path / "shelf"), base), prefix)


def test_a_prompt_in_front_is_lowered_once_for_all_who_ask(
    frozen: FrozenModel, base: Identity, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "soft", packed(frozen, soft(frozen, 3)))
    lowerer = Lowerer(str(model), tmp_path / "lowered", tmp_path)
    loads: list[str] = []
    load = FrozenModel.load
    monkeypatch.setattr(FrozenModel, "load", lambda name: loads.append(name) or load(name))
    prefixes = Prefixes(Shelf(tmp_path), base, lowerer=lowerer)

    async def several() -> list[Any]:
        hasty = asyncio.create_task(prefixes.get("soft"))
        others = [asyncio.create_task(prefixes.get("soft")) for _ in range(3)]
        await asyncio.sleep(0.05)
        hasty.cancel()
        return await asyncio.gather(*others)

    known = asyncio.run(several())
    original = Shelf(tmp_path).open("soft").content_hash
    assert {x.claim.prefix for x in known} == {f"lowered/{original}"}
    (made,) = (tmp_path / "lowered").iterdir()
    content = artifact.load(made)
    assert content.provenance["lowered_from"] == original
    assert loads == [str(model)]
    made.unlink()
    assert get(prefixes, "soft").claim == known[0].claim, "what was taken away is made again"


def test_lowered_prompts_lie_where_the_engine_serves_from(tmp_path: Path) -> None:
    with pytest.raises(BadValue, match="expected a folder inside"):
        Lowerer("model", tmp_path / "elsewhere", tmp_path / "shelf")


# The command


def test_the_command_prints_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "vllm", "config", "s3://bucket/prefixes", "--recheck-seconds", "5")
    assert json.loads(out) == transfer_config("s3://bucket/prefixes", recheck_seconds=5.0)
    assert out.count("\n") == 1
    assert json.loads(printed(capsys, "vllm", "config", "here")) == transfer_config("here")
    assert "cache_bytes is 0" in refused(capsys, "vllm", "config", "x", "--cache-bytes", "0")


def test_the_command_prints_a_request(
    frozen: FrozenModel,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EPIGRAPH_SALT_KEY", "secret")
    contract = TextContract(input_template="Q {source}\nA", stop=("\n",), decoding=Decoding(num_beams=4))
    content = packed(frozen, random_prefix(frozen.geometry, 3, 1), contract)
    put(tmp_path, "mine/v2", content)
    words = ("vllm", "request", tmp_path, "mine", "a tree", "--version", "v2", "--tenant", "ann", "--model", model)
    assert "4 beams" in refused(capsys, *words)
    body = json.loads(printed(capsys, *words, "--num-beams", "1", "--max-new-tokens", "9"))
    claim = Shelf(tmp_path).claim("mine", "v2", "ann")
    assert from_params(body["kv_transfer_params"], body["cache_salt"]) == claim
    claim.check_salt(body["cache_salt"], b"secret")
    assert body["prompt"] == [0, 0, 0, *Tuned(frozen, content).encode("a tree").ids]
    assert (body["max_tokens"], body["stop"], body["stop_token_ids"]) == (9, ["\n"], [2])


def test_the_command_says_what_is_wrong_in_one_line(
    frozen: FrozenModel, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, "a", packed(frozen, random_prefix(frozen.geometry, 3, 1)))
    put(tmp_path, "placed", packed(frozen, soft(frozen, 5, placed=True), CONTRACTS["placed"][0]))
    put(tmp_path, "foreign", replace(packed(frozen, random_prefix(frozen.geometry, 3, 1)), base_fingerprint="0" * 64))
    assert "no prefix b" in refused(capsys, "vllm", "request", tmp_path, "b", "text")
    assert "no prefix id" in refused(capsys, "vllm", "request", tmp_path, "../a", "text")
    assert "with --model" in refused(capsys, "vllm", "request", tmp_path, "a", "text")
    assert "the base is" in refused(capsys, "vllm", "request", tmp_path, "foreign", "text", "--model", model)
    assert "VLLMEngine" in refused(capsys, "vllm", "request", tmp_path, "placed", "text", "--model", model)
