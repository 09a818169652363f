"""Reading a prompt: what is some tokens' embeddings is read as those tokens, and the command shows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from conftest import VOCABULARY, random_ids, tiny, tiny_model, tiny_tokenizer
from epigraph import artifact
from epigraph.contract import TextContract
from epigraph.errors import BadValue, GeometryMismatch
from epigraph.frozen.model import FrozenModel
from epigraph.frozen.neighbours import PromptReading, read_prompt
from epigraph.frozen.reading import read_labels
from epigraph.virtual import SoftPrompt, VirtualTokens
from test_cli import SUMS, fails, run, train_words, write_rows

NUM_WORDS = 100  # the tiny tokenizer's; the model has rows for 120


def prompt_of(frozen: FrozenModel, ids: list[int], scale: float = 1.0, noise: float = 0.0) -> SoftPrompt:
    made = frozen.embed(ids).detach().clone()
    shake = torch.randn(made.shape, generator=torch.Generator().manual_seed(3)) * noise * frozen.embedding_rms
    return SoftPrompt(embeddings_PE=made * scale + shake)


def drawn(frozen: FrozenModel, num_virtual_tokens: int) -> SoftPrompt:
    generator = torch.Generator().manual_seed(5)
    return SoftPrompt(
        embeddings_PE=torch.randn(num_virtual_tokens, frozen.geometry.embedding_dim, generator=generator)
        * frozen.embedding_rms
    )


def first_ids(reading: PromptReading) -> list[int]:
    return [token.nearest[0].token_id for token in reading.tokens]


def test_embeddings_of_tokens_are_read_as_those_tokens(family: str) -> None:
    frozen = tiny(family)
    ids = sorted(set(random_ids(12, 1)))
    reading = read_prompt(frozen, prompt_of(frozen, ids))
    assert first_ids(reading) == ids
    assert [token.nearest[0].token for token in reading.tokens] == frozen.tokenizer.convert_ids_to_tokens(ids)
    for token in reading.tokens:
        cosines = [near.cosine for near in token.nearest]
        assert cosines[0] == pytest.approx(1, abs=1e-6)
        assert cosines == sorted(cosines, reverse=True)
        assert len(cosines) == 5
        assert cosines[1] < 0.9
    assert reading.duplicates == ()
    assert not any(token.is_duplicate for token in reading.tokens)


def test_scaled_and_slightly_noised_ones_are_still_found() -> None:
    frozen = tiny("llama")
    ids = sorted(set(random_ids(12, 1)))
    plain = read_prompt(frozen, prompt_of(frozen, ids))
    scaled = read_prompt(frozen, prompt_of(frozen, ids, scale=7.0))
    assert first_ids(scaled) == ids
    for small, large in zip(plain.tokens, scaled.tokens, strict=True):
        assert large.relative_norm == pytest.approx(7 * small.relative_norm, rel=1e-5)
        assert large.nearest[0].cosine == pytest.approx(1, abs=1e-6)
    noised = read_prompt(frozen, prompt_of(frozen, ids, noise=0.3))
    assert first_ids(noised) == ids
    assert all(0.9 < token.nearest[0].cosine < 0.99 for token in noised.tokens)


@pytest.mark.parametrize("chunk_size", [1, 7, 33, 99, 100, 4_096])
def test_chunks_give_what_the_whole_matrix_gives(family: str, chunk_size: int) -> None:
    frozen = tiny(family)
    prompt = drawn(frozen, 9)
    table_VE = frozen.embed(range(NUM_WORDS))
    cosines_PV = normalize(prompt.embeddings_PE, dim=1) @ normalize(table_VE, dim=1).T
    among_PP = normalize(prompt.embeddings_PE, dim=1) @ normalize(prompt.embeddings_PE, dim=1).T
    among_PP = among_PP - 2 * torch.eye(9)
    mean_norm = float(table_VE.norm(dim=1).mean())
    reading = read_prompt(frozen, prompt, num_nearest=6, chunk_size=chunk_size)
    assert reading.mean_norm == pytest.approx(mean_norm, rel=1e-5)
    for number, token in enumerate(reading.tokens):
        want = cosines_PV[number].topk(6)
        assert [near.token_id for near in token.nearest] == want.indices.tolist()
        assert [near.cosine for near in token.nearest] == pytest.approx(want.values.tolist(), abs=1e-6)
        assert token.relative_norm == pytest.approx(float(prompt.embeddings_PE[number].norm()) / mean_norm, rel=1e-5)
        assert token.closest == int(among_PP[number].argmax())
        assert token.closest_cosine == pytest.approx(float(among_PP[number].max()), abs=1e-6)
    pair = reading.closest_pair
    assert pair is not None
    assert pair.closest_cosine == pytest.approx(float(among_PP.max()), abs=1e-6)
    assert {pair.number, pair.closest} == set(divmod(int(among_PP.argmax()), 9))


def test_a_scale_after_the_lookup_changes_nothing() -> None:
    """Gemma multiplies by 8, the root of its width: cosines do not see it, and norms are taken on the same side."""
    ids, table = random_ids(6, 4), tiny("llama").model.get_input_embeddings().weight
    plain, scaled = tiny("llama"), tiny("gemma3")
    scaled.model.get_input_embeddings().weight.copy_(table)
    first, second = (read_prompt(frozen, prompt_of(frozen, ids, noise=0.5)) for frozen in (plain, scaled))
    assert second.mean_norm == pytest.approx(8 * first.mean_norm, rel=1e-5)
    for one, other in zip(first.tokens, second.tokens, strict=True):
        assert [near.token_id for near in one.nearest] == [near.token_id for near in other.nearest]
        assert one.nearest[0].cosine == pytest.approx(other.nearest[0].cosine, abs=1e-6)
        assert one.relative_norm == pytest.approx(other.relative_norm, rel=1e-5)


def test_duplicates_are_flagged() -> None:
    frozen = tiny("llama")
    made = prompt_of(frozen, [20, 30, 20, 40, 20, 30]).embeddings_PE
    made[2] *= 1.5
    reading = read_prompt(frozen, SoftPrompt(embeddings_PE=made))
    assert [(one.token_id, one.numbers) for one in reading.duplicates] == [(20, (0, 2, 4)), (30, (1, 5))]
    assert [token.is_duplicate for token in reading.tokens] == [True, True, True, False, True, True]
    assert reading.tokens[5].closest == 1
    assert reading.tokens[0].closest in (2, 4)
    assert reading.closest_pair is not None
    assert reading.closest_pair.closest_cosine == pytest.approx(1, abs=1e-6)


def test_rows_that_no_token_has_are_no_neighbours() -> None:
    frozen = tiny("llama")
    reading = read_prompt(frozen, prompt_of(frozen, [VOCABULARY - 1, 0, 3]), num_nearest=VOCABULARY)
    assert all(len(token.nearest) == NUM_WORDS for token in reading.tokens)
    assert reading.tokens[0].nearest[0].cosine < 0.9
    assert [token.nearest[0].token for token in reading.tokens[1:]] == ["<pad>", "<unk>"]


def test_equal_tokens_are_named_in_the_order_of_their_ids() -> None:
    frozen = tiny("llama")
    table = frozen.model.get_input_embeddings().weight
    table[[12, 55, 90]] = table[7].clone()
    for chunk_size in (1, 10, 100):
        reading = read_prompt(frozen, prompt_of(frozen, [7, 20]), num_nearest=4, chunk_size=chunk_size)
        assert [near.token_id for near in reading.tokens[0].nearest] == [7, 12, 55, 90]


def test_one_token_has_no_other_and_zeros_have_no_direction() -> None:
    frozen = tiny("llama")
    reading = read_prompt(frozen, SoftPrompt(embeddings_PE=torch.zeros(1, 64)))
    assert reading.closest_pair is None
    assert reading.tokens[0].closest is None
    assert reading.tokens[0].relative_norm == 0
    assert [near.cosine for near in reading.tokens[0].nearest] == [0.0] * 5


def test_what_is_left_of_labels() -> None:
    """The first is still the mean of its tokens, the second lost one of two, the third turned its back."""
    frozen = tiny("llama")
    a, b, c, q = (frozen.embed(frozen.tokenizer(word).input_ids)[0] for word in "abcq")
    made = torch.stack([(a + b) / 2, c - b, -q])
    reading = read_prompt(frozen, SoftPrompt(embeddings_PE=made), num_nearest=2)
    labels = read_labels(frozen, reading, ["ab", "cb", "q"])
    assert [(x.label, x.number) for x in labels] == [("ab", 0), ("cb", 1), ("q", 2)]
    assert [(x.tokens, x.kept) for x in labels] == [(("a", "b"), ("a", "b")), (("c", "b"), ("c",)), (("q",), ())]
    # "b" of the second label is near virtual token 0 still, and "q" nowhere.
    assert [x.found_at for x in labels] == [(0,), (0, 1), ()]
    with pytest.raises(BadValue, match="got 4 labels, expected at most 3, one a virtual token"):
        read_labels(frozen, reading, ["a"] * 4)


def test_bad_input_is_refused() -> None:
    frozen = tiny("llama")
    with pytest.raises(GeometryMismatch, match="expected \\[1 or more, 64\\]"):
        read_prompt(frozen, SoftPrompt(embeddings_PE=torch.zeros(2, 63)))
    for name in ("num_nearest", "chunk_size"):
        with pytest.raises(BadValue, match=f"{name} is 0, expected 1 or more"):
            read_prompt(frozen, drawn(frozen, 2), **{name: 0})


# The command


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def frozen(base: str) -> FrozenModel:
    return FrozenModel.load(base)


def saved(frozen: FrozenModel, path: Path, tokens: VirtualTokens, **provenance: Any) -> str:
    content = artifact.Artifact(
        tokens=tokens,
        geometry=frozen.geometry,
        contract=TextContract(input_template="{source}\n"),
        base_name=frozen.name,
        base_fingerprint=frozen.fingerprint,
        tokenizer_fingerprint=frozen.tokenizer_fingerprint,
        method="prompt-tuning",
        method_config={},
        provenance=provenance,
    )
    artifact.save(content, path)
    return str(path)


def test_from_labels_to_what_is_left_of_them(base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trained for two steps at a tiny rate, so the prompt still is what it started from; in the stored bfloat16."""
    rows, out = write_rows(tmp_path / "sums.jsonl", SUMS), tmp_path / "prompt"
    flags = ["--method", "prompt-tuning", "method.initial=labels", 'method.labels=["7", "(x"]', "--steps", "2"]
    code, _, err = run(capsys, *train_words(base, rows, out), *flags, "--lr", "0.000001")
    assert code == 0, err
    code, printed, err = run(capsys, "inspect", str(out), "--neighbours", "--json")
    assert code == 0, err
    found = json.loads(printed)
    assert found["kind"] == "soft"
    reading = found["neighbours"]
    assert [token["number"] for token in reading["tokens"]] == [0, 1, 2, 3]
    assert reading["tokens"][0]["nearest"][0]["token"] == "7"
    assert reading["tokens"][0]["nearest"][0]["cosine"] == pytest.approx(1, abs=1e-4)
    assert {near["token"] for near in reading["tokens"][1]["nearest"][:2]} == {"(", "x"}
    assert all(token["nearest"][0]["cosine"] > 0.999 for token in reading["tokens"][2:])
    assert reading["labels"] == [
        {"label": "7", "number": 0, "tokens": ["7"], "kept": ["7"], "found_at": [0]},
        {"label": "(x", "number": 1, "tokens": ["(", "x"], "kept": ["(", "x"], "found_at": [1]},
    ]
    first, second = reading["closest_pair"]["numbers"]
    assert reading["tokens"][first]["closest"] == second
    code, printed, _ = run(capsys, "inspect", str(out), "--neighbours")
    assert code == 0
    assert '"7" 1.00' in printed
    assert "still near" in printed
    assert "closest two" in printed


def test_tokens_that_would_act_are_shown_and_do_not(
    base: str, frozen: FrozenModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = [frozen.tokenizer.convert_tokens_to_ids(x) for x in ("\n", "[", "</s>", "[")]
    path = saved(frozen, tmp_path / "x.safetensors", prompt_of(frozen, ids))
    code, printed, err = run(capsys, "inspect", path, "--neighbours", "--model", base)
    assert code == 0, err
    assert all(shown in printed for shown in ('"\\n" 1.00', '"[" 1.00', '"</s>" 1.00'))
    assert "Duplicates" in printed
    assert "Labels" not in printed
    code, printed, _ = run(capsys, "inspect", path, "--neighbours", "--model", base, "--json")
    (double,) = json.loads(printed)["neighbours"]["duplicates"]
    assert (double["token"], double["numbers"]) == ("[", [1, 3])


@pytest.mark.parametrize(
    "recipe",
    [
        "labels",
        {"method": "labels"},
        {"method": {"initial": "labels"}},
        {"method": {"initial": "labels", "labels": [1, 2]}},
        {"method": {"initial": "labels", "labels": ["a", "b", "c"]}},
        {"method": {"initial": "labels", "labels": ["a"], "parameterization": "mlp"}},
        {"method": {"initial": "text", "labels": ["a"]}},
    ],
    ids=["text", "method-text", "none", "numbers", "too-many", "mlp", "another-start"],
)
def test_a_provenance_without_labels_that_can_be_true_shows_none(
    base: str, frozen: FrozenModel, tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: Any
) -> None:
    path = saved(frozen, tmp_path / "x.safetensors", prompt_of(frozen, [40, 50]), recipe=recipe)
    code, printed, err = run(capsys, "inspect", path, "--neighbours", "--model", base, "--json")
    assert code == 0, err
    assert json.loads(printed)["neighbours"]["labels"] == []


def test_keys_and_values_have_no_neighbours(
    frozen: FrozenModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(frozen, tmp_path / "x.safetensors", frozen.read([40, 50]))
    line = fails(capsys, "inspect", path, "--neighbours", "--model", "no-such-model")
    assert line == (
        "epigraph: --neighbours: the artifact holds keys and values (kind 'kv'), expected a soft prompt (kind 'soft'), "
        "whose virtual tokens lie among the vocabulary's; leave --neighbours out"
    )


def test_a_base_that_is_not_there_or_not_asked_for(
    base: str, frozen: FrozenModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(frozen, tmp_path / "x.safetensors", prompt_of(frozen, [40, 50]))
    assert "no-such-model" in fails(capsys, "inspect", path, "--neighbours", "--model", "no-such-model")
    assert "say where it is with --model" in fails(capsys, "inspect", path, "--neighbours")
    for flag in ("--model", "--allow-base"):
        line = fails(capsys, "inspect", path, flag, base)
        assert line.startswith(f"epigraph: got {flag} ")
        assert line.endswith("add --neighbours or --mass")
