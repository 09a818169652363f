"""`epigraph lower`: what it writes answers as the soft prompt does, says where it is from, and refuses by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import random_ids, random_prefix, tiny
from epigraph import artifact
from epigraph.artifact import Artifact
from epigraph.contract import Decoding, TextContract
from epigraph.engine.lowered import lower_artifact
from epigraph.engine.servable import refuse_unservable
from epigraph.errors import CannotLower, WrongBase
from epigraph.frozen.model import FrozenModel
from epigraph.tuned import Tuned
from epigraph.virtual import KVPrefix, SoftPrompt, VirtualTokens
from folders import printed, refused, save_family

CONTRACT = TextContract(input_template="Q {source}\nA", stop=("\n",), decoding=Decoding(max_new_tokens=12))


def packed(frozen: FrozenModel, tokens: VirtualTokens, contract: TextContract = CONTRACT) -> Artifact:
    return Artifact(
        tokens=tokens,
        geometry=frozen.geometry,
        contract=contract,
        base_name=frozen.name,
        base_fingerprint=frozen.fingerprint,
        tokenizer_fingerprint=frozen.tokenizer_fingerprint,
        method="prompt-tuning",
        method_config={"num_virtual_tokens": 5},
        provenance={"seed": 3},
        allowed_bases=("c" * 64,),
        extra={"class_vectors": torch.ones(2, 3)},
    )


def soft(frozen: FrozenModel, *, placed: bool = False) -> SoftPrompt:
    shape = (5, frozen.geometry.embedding_dim)
    made = 2 * frozen.embedding_rms * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return SoftPrompt(embeddings_PE=made, placed=placed)


def test_a_lowered_artifact_gives_the_same_logits_and_keeps_the_rest(family: str) -> None:
    frozen = tiny(family)
    content = packed(frozen, soft(frozen))
    made = lower_artifact(content, frozen, "d" * 64)
    ids = torch.tensor([random_ids(20, 3)])
    logits = []
    for tokens in (content.tokens, made.tokens):
        with torch.no_grad(), frozen.bind(tokens):
            logits.append(frozen.model(input_ids=ids).logits)
    assert torch.equal(*logits)
    assert isinstance(made.tokens, KVPrefix)
    assert made.tokens.visibility == "window"
    assert {x.dtype for _, _, layer in made.tokens.layers() for x in (layer.keys_PKH, layer.values_PKH)} == {
        torch.float32
    }
    refuse_unservable(made.tokens, made.geometry)
    assert made.provenance == {"seed": 3, "lowered_from": "d" * 64}
    assert replace(made, tokens=content.tokens, provenance=content.provenance) == content


def test_the_command_writes_what_answers_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_family("llama", tmp_path / "model")
    frozen = FrozenModel.load(str(model))
    source, out = tmp_path / "soft.safetensors", tmp_path / "kv.safetensors"
    # Rounded as training rounds it: what is lowered is what the file says.
    digest = artifact.save(packed(frozen, soft(frozen)), source)
    told = json.loads(printed(capsys, "lower", source, "--out", out, "--model", model, "--json"))
    made = artifact.inspect(out)
    assert told == {
        "file": str(out),
        "content_hash": made["content_hash"],
        "lowered_from": digest,
        "num_virtual_tokens": 5,
        "num_bytes": out.stat().st_size,
    }
    assert (made["kind"], made["dtype"], made["visibility"]) == ("kv", "float32", "window")
    texts = ["a tree", "x", "The weather today is"]
    answers = [Tuned.load(path, model=str(model)).generate(texts) for path in (source, out)]
    assert answers[0] == answers[1]
    assert len(set(answers[0])) > 1
    assert "exists already" in refused(capsys, "lower", source, "--out", out, "--model", model)
    other = tmp_path / "table.safetensors"
    assert digest[:12] in printed(capsys, "lower", source, "--out", other, "--model", model)


def test_what_is_no_prompt_in_front_is_refused_before_a_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The base that the artifacts name is nowhere."""
    frozen = tiny("llama")
    slots = CONTRACT.model_copy(update={"input_template": "{source} {5}"})
    refusals = {
        "kv": (random_prefix(frozen.geometry, 3, 1), CONTRACT, "keys and values already"),
        "placed": (soft(frozen, placed=True), slots, "as embeddings"),
    }
    for name, (tokens, contract, why) in refusals.items():
        artifact.save(packed(frozen, tokens, contract), tmp_path / name)
        assert why in refused(capsys, "lower", tmp_path / name, "--out", tmp_path / "out")
    artifact.save(packed(frozen, soft(frozen)), tmp_path / "soft")
    assert "say where it is with --model" in refused(capsys, "lower", tmp_path / "soft", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_base_is_refused_unless_it_is_let_in() -> None:
    frozen = tiny("llama")
    content = replace(packed(frozen, soft(frozen)), base_fingerprint="0" * 64)
    with pytest.raises(WrongBase, match="the base is"):
        lower_artifact(content, frozen, "d" * 64)
    assert lower_artifact(content, frozen, "d" * 64, frozen.fingerprint[:12]).base_fingerprint == "0" * 64


@pytest.mark.parametrize("kind", ["kv", "placed"])
def test_only_a_prompt_in_front_is_lowered(kind: str) -> None:
    frozen = tiny("llama")
    tokens = random_prefix(frozen.geometry, 3, 1) if kind == "kv" else soft(frozen, placed=True)
    contract = CONTRACT if kind == "kv" else CONTRACT.model_copy(update={"input_template": "{source} {5}"})
    with pytest.raises(CannotLower, match="already" if kind == "kv" else "change with the text before them"):
        lower_artifact(packed(frozen, tokens, contract), frozen, "d" * 64)


def test_places_before_everything_else_are_in_front(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As P-tuning may have them: the answers are those of the embeddings at their places."""
    model = save_family("llama", tmp_path / "model")
    frozen = FrozenModel.load(str(model))
    contract = CONTRACT.model_copy(update={"input_template": "{2}{3} Q {source}\nA"})
    source, out = tmp_path / "soft.safetensors", tmp_path / "kv.safetensors"
    artifact.save(packed(frozen, soft(frozen, placed=True), contract), source)
    printed(capsys, "lower", source, "--out", out, "--model", model)
    texts = ["a tree", "x", "The weather today is"]
    answers = [Tuned.load(path, model=str(model)).generate(texts) for path in (source, out)]
    assert answers[0] == answers[1]
    assert artifact.inspect(out)["kind"] == "kv"
