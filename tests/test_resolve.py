from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from conftest import tiny_tokenizer
from epigraph.errors import ModelNotFound, UnsupportedModel
from epigraph.frozen.checkpoint import Checkpoint, weight_files
from epigraph.frozen.model import FrozenModel
from epigraph.frozen.resolve import resolve


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EPIGRAPH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=40
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(str(folder)) == Checkpoint(folder=folder, name=str(folder))
    assert weight_files(resolve(str(folder))) == (folder / "model.safetensors",)
    monkeypatch.chdir(folder.parent)
    assert resolve("tiny").folder == Path("tiny")
    assert resolve("./tiny").folder == Path("tiny")


def test_a_folder_in_shards(folder: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="4KB")
    files = weight_files(resolve(str(folder)))
    assert len(files) > 3
    assert set(files) == set(folder.glob("*.safetensors"))
    files[1].unlink()
    with pytest.raises(ModelNotFound, match=f"lacks {files[1].name}, named in model.safetensors.index.json"):
        resolve(str(folder))


@pytest.mark.parametrize("content", ["", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 4}}', "{}"])
def test_a_broken_index(folder: Path, content: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UnsupportedModel, match=r"model\.safetensors\.index\.json is broken"):
        resolve(str(folder))


def test_an_index_cannot_point_out_of_its_folder(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../model.safetensors"}}')
    with pytest.raises(ModelNotFound, match=r"lacks model\.safetensors"):
        resolve(str(folder))


def test_pickles_are_refused_by_name(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsupportedModel, match=r"no safetensors weights \(only pytorch_model.bin, a pickle"):
        resolve(str(folder))


def test_a_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(UnsupportedModel, match=r"no safetensors weights \(none\)"):
        resolve(str(folder))


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"is no model folder: it has no config\.json"):
        resolve(str(tmp_path))


def test_a_file_that_is_no_model(folder: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"is a file, expected a model folder or a \.gguf file"):
        resolve(str(folder / "config.json"))


def test_a_gguf_file(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    with pytest.raises(ModelNotFound, match="no file"):
        resolve(str(file))
    file.write_bytes(b"GGUF")
    assert resolve(str(file)) == Checkpoint(folder=tmp_path, gguf_file="tiny.gguf", name=str(file))
    assert weight_files(resolve(str(file))) == (file,)


def test_a_part_of_a_gguf_file(tmp_path: Path) -> None:
    file = tmp_path / "big-00001-of-00003.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(UnsupportedModel, match="one part of several"):
        resolve(str(file))


def test_a_known_name_that_was_not_fetched() -> None:
    with pytest.raises(
        ModelNotFound, match=r"^model smollm2-135m is not here yet; run: epigraph models fetch smollm2-135m$"
    ):
        resolve("smollm2-135m")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("smolm2-135m", r"^no model 'smolm2-135m'; did you mean smollm2-135m\?$"),
        ("gemma3-270m", r"did you mean gemma-3-270m\?$"),
        ("qwertz", r"^no model 'qwertz'; expected smollm2-135m, .*, a folder, a \.gguf file or owner/name$"),
        ("./nothing/here", r"^no model './nothing/here'; expected"),
        ("a/b/c", r"^no model 'a/b/c'; expected"),
        ("", r"^no model ''; expected"),
    ],
)
def test_what_is_nothing_we_know(name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(ModelNotFound, match=words) as caught:
        resolve(name)
    assert "\n" not in str(caught.value)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An offline hub cache below the returned folder."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_hub_id_that_is_in_the_cache(hub: Path, folder: Path) -> None:
    repository = hub / "models--owner--tiny"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    (repository / "refs" / "v1.0").write_text("a" * 40)
    assert resolve("owner/tiny") == Checkpoint(folder=snapshot, name="owner/tiny")
    assert resolve("owner/tiny@v1.0").folder == snapshot
    with pytest.raises(ModelNotFound):
        resolve("owner/tiny@v2.0")


def test_a_hub_id_that_is_not(hub: Path) -> None:
    with pytest.raises(
        ModelNotFound, match=r"^no model 'owner/tiny'; the hub was not reached and there is no copy of it here"
    ):
        resolve("owner/tiny")
    with pytest.raises(ModelNotFound, match=r"did you mean smollm2-135m\?$"):
        resolve("HuggingFaceTB/SmolLM2-135M")


def test_the_control_has_the_shape_and_other_weights(folder: Path) -> None:
    tiny_tokenizer().save_pretrained(folder)
    name = f"random:{folder}"
    control, base = FrozenModel.load(name), FrozenModel.load(str(folder))
    assert {x: y.shape for x, y in control.model.state_dict().items()} == {
        x: y.shape for x, y in base.model.state_dict().items()
    }
    assert not torch.equal(control.model.get_input_embeddings().weight, base.model.get_input_embeddings().weight)
    assert control.tokenizer_fingerprint == base.tokenizer_fingerprint
    assert control.name == "random:tiny"
    assert control.fingerprint == FrozenModel.load(name).fingerprint != base.fingerprint
    # The control of another model of that name is another.
    with torch.no_grad():
        base.model.get_input_embeddings().weight.add_(1)
    base.model.save_pretrained(folder)
    assert resolve(name).folder != Path(control.model.config.name_or_path)
    with pytest.raises(ModelNotFound, match="no model 'nothing'"):
        resolve("random:nothing")


def test_making_a_control_draws_no_random_number_of_yours(folder: Path) -> None:
    tiny_tokenizer().save_pretrained(folder)
    torch.manual_seed(5)
    want = torch.randn(3)
    torch.manual_seed(5)
    resolve(f"random:{folder}")
    assert torch.equal(torch.randn(3), want)
