"""Each virtual token replaced by its nearest word: by hand, and through the command, where the record says which."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from conftest import FAMILIES, random_prefix, tiny
from epigraph.errors import BadValue, GeometryMismatch
from epigraph.frozen.nearest_words import nearest_words
from epigraph.tuned import Tuned
from epigraph.virtual import SoftPrompt
from folders import call, printed, refused, save_family, write_rows

NUM_WORDS = 100  # the tiny tokenizer's; the model has rows for 120


def drawn(width: int, num_virtual_tokens: int, scale: float) -> SoftPrompt:
    generator = torch.Generator().manual_seed(5)
    return SoftPrompt(embeddings_PE=torch.randn(num_virtual_tokens, width, generator=generator) * scale)


@pytest.mark.parametrize("family", FAMILIES)
def test_both_distances_are_those_of_the_whole_matrix(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = tiny(family)
    # Words of several lengths, of which cosines know nothing.
    frozen.model.get_input_embeddings().weight[30:60] *= 2
    prompt = drawn(frozen.geometry.embedding_dim, 24, frozen.embedding_rms)
    table_VE = frozen.embed(range(NUM_WORDS))
    rows_PE = prompt.embeddings_PE
    wanted = {
        "cosine": (normalize(rows_PE, dim=1) @ normalize(table_VE, dim=1).T).argmax(1),
        "euclid": (rows_PE[:, None] - table_VE[None]).norm(dim=2).argmin(1),
    }
    assert not torch.equal(wanted["cosine"], wanted["euclid"]), "distances that agree everywhere test one of the two"
    monkeypatch.setattr("epigraph.frozen.nearest_words._CHUNK", 13)
    for distance in ("cosine", "euclid"):
        found = nearest_words(frozen, prompt, distance=distance)  # type: ignore[arg-type]
        assert list(found.ids) == wanted[distance].tolist()
        assert list(found.words) == frozen.tokenizer.convert_ids_to_tokens(list(found.ids))
        torch.testing.assert_close(found.prompt.embeddings_PE, table_VE[wanted[distance]])
        assert found.distance == distance


@pytest.mark.parametrize("distance", ["cosine", "euclid"])
def test_words_are_their_own_nearest_and_the_first_of_equals(distance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where equals are in several chunks, for distances: cosines of equals differ there by rounding."""
    if distance == "euclid":
        monkeypatch.setattr("epigraph.frozen.nearest_words._CHUNK", 13)
    frozen = tiny("gemma3")
    table = frozen.model.get_input_embeddings().weight
    table[[12, 55]] = table[7].clone()
    prompt = SoftPrompt(embeddings_PE=frozen.embed([55, 40, 3]), placed=True)
    found = nearest_words(frozen, prompt, distance=distance)  # type: ignore[arg-type]
    assert found.ids == (7, 40, 3)
    assert found.prompt.placed
    assert torch.equal(found.prompt.embeddings_PE, prompt.embeddings_PE)


def test_what_has_no_words_is_refused() -> None:
    frozen = tiny("llama")
    with pytest.raises(BadValue, match="are keys and values, expected a soft prompt"):
        nearest_words(frozen, random_prefix(frozen.geometry, 2, 1))
    with pytest.raises(GeometryMismatch, match=r"expected \[1 or more, 64\]"):
        nearest_words(frozen, drawn(32, 2, 1.0))
    with pytest.raises(BadValue, match="distance is 'manhattan', expected cosine or euclid"):
        nearest_words(frozen, drawn(64, 2, 1.0), distance="manhattan")  # type: ignore[arg-type]


# Through the command

SUMS = [{"source": f"{a}+{b}", "target": str(a + b)} for a in range(4) for b in range(4)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", SUMS)


@pytest.fixture(scope="module", params=["prompt-tuning", "p-tuning"])
def trained(request: pytest.FixtureRequest, model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "out"
    flags = ["--steps", 40, "--batch-size", 8, "--precision", "fp32", "--num-virtual-tokens", 3, "--out", out]
    more = ["--lr", 0.3, "method.parameterization=raw", "method.initial=uniform"]
    assert call("train", "--model", model, "--data", data, "--method", request.param, *flags, *more) == 0
    return out


def test_the_command_asks_behind_the_words(trained: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--data", data, "--precision", "fp32", "--json"]
    printed(capsys, "evaluate", trained, *flags)
    after = json.loads((trained / "evaluations" / "after-test.json").read_text())
    said = json.loads(printed(capsys, "evaluate", trained, *flags, "--nearest-words"))
    kept = json.loads((trained / "evaluations" / "nearest-words-test.json").read_text())
    assert kept["name"] == "nearest-words"
    assert json.loads((trained / "evaluations" / "after-test.json").read_text()) == after
    tuned = Tuned.load(trained)
    found = nearest_words(tuned.frozen, tuned.artifact.tokens)
    words = {"words": list(found.words), "ids": list(found.ids), "distance": "cosine"}
    assert said["nearest_words"] == kept["nearest_words"] == words
    assert "nearest_words" not in after
    tuned.prefix = tuned.frozen.carried(found.prompt)
    got = [x["prediction"] for x in kept["examples"]]
    assert got == tuned.generate([row["source"] for row in SUMS])
    assert got != [x["prediction"] for x in after["examples"]], "words that answer as the prompt test nothing"


@pytest.mark.parametrize("other", ["--untouched", "--with"])
def test_one_way_of_asking_at_a_time(trained: Path, data: Path, other: str, capsys: pytest.CaptureFixture[str]) -> None:
    more = [other] if other == "--untouched" else [other, trained]
    said = refused(capsys, "evaluate", trained, "--data", data, "--nearest-words", *more)
    assert said == f"epigraph: got both --nearest-words and {other}, expected one of them"


@pytest.mark.parametrize("method", ["prefix-tuning", "untouched"])
def test_what_holds_no_words_is_refused_in_one_line(
    method: str, model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    flags = [] if method == "untouched" else ["--num-virtual-tokens", 2, "--steps", 1]
    words = ["train", "--model", model, "--data", data, "--method", method, "--precision", "fp32", "--out", out]
    assert call(*words, *flags) == 0
    held = "a baseline (untouched)" if method == "untouched" else "keys and values (kind 'kv')"
    assert refused(capsys, "evaluate", out, "--data", data, "--nearest-words", "--model", "no-such-model") == (
        f"epigraph: --nearest-words: the run left {held}, expected a soft prompt (kind 'soft'), "
        "whose virtual tokens lie among the vocabulary's words; leave --nearest-words out"
    )
