"""Runs of baselines: what they leave in their folder, how that answers, how they go on, and files that are refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from epigraph.errors import (
    BadHeader,
    BadTensor,
    CannotWrite,
    NotAnArtifact,
    OutputExists,
    TooLarge,
    Truncated,
    UnknownVersion,
    WrongBase,
    WrongTokenizer,
)
from epigraph.frozen.model import FrozenModel
from epigraph.methods.base import Method
from epigraph.train import kept
from epigraph.train.answering import contents, of_kept, open_run
from epigraph.train.build import make_method
from epigraph.train.evaluate import evaluate
from epigraph.train.folder import check_output
from epigraph.train.kept import Kept
from epigraph.train.loss import head_of
from epigraph.train.prepare import Prepared
from epigraph.train.run import run
from families import tiny_family
from folders import call, printed, refused, save_family, write_rows
from test_baselines import LABELS, SIZES, SUMS, logits, ready_for
from test_joint import limited
from test_resume import Cut, cut_at, lines

NAMES = ("full", "top", "adapter", "lora")
LR = 1e-2

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {family: save_family(family, folder / family) for family in ("llama", "gpt2", "bert")}


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "sums.jsonl", SUMS)


Made = tuple[Prepared, Method, Path]


@pytest.fixture(scope="module")
def made(models: dict[str, Path], sums: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Made]:
    """A run of that baseline on that family, made once: what it was prepared from, its live method, its folder."""
    runs: dict[tuple[str, str], Made] = {}

    def get(family: str, name: str) -> Made:
        if (family, name) not in runs:
            ready = ready_for(models[family], sums, {"name": name}, lr=LR, seed=1)
            method, folder = make_method(ready), tmp_path_factory.mktemp("runs") / name
            run(ready, method, folder)
            runs[family, name] = ready, method, folder
        return runs[family, name]

    return get


@pytest.fixture
def lora(made: Callable[[str, str], Made], tmp_path: Path) -> Path:
    """A copy of LoRA's file, to be spoilt."""
    path = tmp_path / kept.FILE_NAME
    path.write_bytes((made("llama", "lora")[2] / kept.FILE_NAME).read_bytes())
    return path


# Kept and opened


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("name", [*NAMES, "untouched"])
def test_opened_again_it_gives_the_same_logits_and_answers(
    family: str, name: str, made: Callable[[str, str], Made], models: dict[str, Path]
) -> None:
    ready, method, folder = made(family, name)
    opened = open_run(folder)
    assert (opened.name, opened.tokens, opened.head, opened.says) == (name, None, None, None)
    assert torch.equal(logits(opened.frozen), logits(ready.frozen))
    bare = FrozenModel.load(str(models[family]))
    assert torch.equal(logits(opened.frozen), logits(bare)) == (name == "untouched")
    live = evaluate(ready.frozen, ready.codec, None, ready.task, ready.examples, head=head_of(method))
    again = opened.evaluate(ready.task, ready.examples)
    assert again.predictions == live.predictions
    assert again.scores.values == live.scores.values


def test_the_folder_is_that_of_any_run(made: Callable[[str, str], Made]) -> None:
    ready, method, folder = made("llama", "lora")
    assert {x.name for x in folder.iterdir() if x.name != "evaluations"} == {
        *("baseline.safetensors", "recipe.json", "steps.jsonl", "summary.json")
    }
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["method"] == "lora"
    assert summary["trained_numbers"] == summary["stored_numbers"]
    assert summary["trained_numbers"] == sum(x.numel() for x in method.parameters())
    assert summary["stored_bytes"] == (folder / kept.FILE_NAME).stat().st_size
    assert summary["model_parameters"] == FrozenModel.load(ready.recipe.model).num_parameters
    assert summary["trained_share"] == summary["trained_numbers"] / summary["model_parameters"]
    said = contents(folder)
    assert isinstance(said, Kept)
    assert (said.method, said.method_config["rank"], dict(said.tensors)) == ("lora", 8, {})
    assert said.base_fingerprint == ready.frozen.fingerprint == FrozenModel.load(ready.recipe.model).fingerprint
    assert said.provenance["data"]["hashes"] == ready.data_hashes
    assert str(folder.parent) not in json.dumps(dict(said.provenance))


def test_only_what_is_trained_is_stored(made: Callable[[str, str], Made]) -> None:
    for name in NAMES:
        _, method, folder = made("llama", name)
        with safe_open(folder / kept.FILE_NAME, "pt") as file:
            tensors = [file.get_tensor(x) for x in file.keys()]  # noqa: SIM118
        assert {x.dtype for x in tensors} == {torch.float32}
        assert sum(x.numel() for x in tensors) == sum(x.numel() for x in method.parameters())


def test_a_probe_and_full_tuning_keep_their_heads(models: dict[str, Path], tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "sizes.jsonl", SIZES)
    for name in ("linear-probe", "full"):
        ready = ready_for(models["bert"], rows, {"name": name}, LABELS, lr=1e-3, steps=6)
        method = make_method(ready)
        run(ready, method, tmp_path / name)
        live = evaluate(ready.frozen, ready.codec, None, ready.task, ready.examples, head=head_of(method))
        opened = open_run(tmp_path / name)
        assert opened.head is not None
        assert method.head is not None
        assert torch.equal(opened.head.weight_CD, method.head.weight)
        assert opened.evaluate(ready.task, ready.examples).predictions == live.predictions
        assert set(live.predictions) <= {"even", "odd"}


def test_a_baseline_that_trains_nothing_takes_no_step(made: Callable[[str, str], Made]) -> None:
    ready, _, folder = made("llama", "untouched")
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["steps"], summary["trained_numbers"], summary["stored_numbers"]) == (0, 0, 0)
    assert summary["dev"]["loss"] > 0
    assert json.loads((folder / "recipe.json").read_text())["training"]["steps"] == 0
    assert not (folder / "steps.jsonl").exists()
    with pytest.raises(OutputExists, match=r"already holds baseline\.safetensors; choose another --out"):
        check_output(folder, overwrite=False)
    assert run(ready, make_method(ready), folder, resume=True) == summary


# Going on


@pytest.mark.parametrize("name", ["lora", "top"])
def test_a_run_cut_off_goes_on_bit_for_bit(name: str, models: dict[str, Path], sums: Path, tmp_path: Path) -> None:
    def ready() -> Prepared:
        plan = {"steps": 8, "checkpoint_every": 2, "dev_every": 3, "accumulation": 2, "seed": 4}
        return ready_for(models["llama"], sums, {"name": name}, lr=LR, **plan)

    def go(folder: str, **options: Any) -> dict[str, Any]:
        given = ready()
        return run(given, make_method(given), tmp_path / folder, resume=True, **options)

    go("whole")
    for cut in (cut_at(4), cut_at(6, after_dev=True)):
        with pytest.raises(Cut):
            go("cut", report=cut)
    assert go("cut")["resumed_at"] == [2, 4]
    one, other = (kept.load(tmp_path / x / kept.FILE_NAME).tensors for x in ("cut", "whole"))
    assert one.keys() == other.keys()
    assert not [x for x, tensor in one.items() if not torch.equal(tensor, other[x])]
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")


def test_the_best_weights_are_kept(models: dict[str, Path], sums: Path, tmp_path: Path) -> None:
    """On development rows with other answers: what is kept is the best step, as a run of so many makes it."""
    others = write_rows(tmp_path / "others.jsonl", [{**row, "target": "~"} for row in SUMS])

    def go(folder: str, **plan: Any) -> dict[str, Any]:
        given = ready_for(models["llama"], sums, {"name": "full"}, dev=others, lr=LR, schedule="constant", **plan)
        return run(given, make_method(given), tmp_path / folder)

    best = go("long", steps=10, dev_every=1)["kept_step"]
    assert 0 < best < 10
    go("short", steps=best, dev_every=0)
    one, other = (kept.load(tmp_path / x / kept.FILE_NAME).tensors for x in ("long", "short"))
    assert not [x for x, tensor in one.items() if not torch.equal(tensor, other[x])]


# The command


def test_the_command_trains_and_evaluates_as_in_process(
    models: dict[str, Path], sums: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["train", "--model", models["llama"], "--data", sums, "--method", "adapter", "--steps", 4, "--out", out]
    said = printed(capsys, *words, "--precision", "fp32", "--lr", LR, "method.bottleneck=4")
    assert "baseline" in said
    assert "1.7 % of the model's" in said
    assert call(*words) == 2, "it is not written over"
    record = json.loads(printed(capsys, "evaluate", out, "--data", sums, "--precision", "fp32", "--json"))
    opened = open_run(out)
    assert opened.provenance["recipe"]["method"]["bottleneck"] == 4
    task = ready_for(models["llama"], sums, {"name": "untouched"}).task
    done = opened.evaluate(task, task.load("train"))
    assert record["scores"] == done.to_json()["scores"]
    after = json.loads((out / "evaluations" / "after-test.json").read_text())
    assert [x["prediction"] for x in after["examples"]] == list(done.predictions)


def test_the_file_alone_answers_with_its_base_named(
    lora: Path, models: dict[str, Path], sums: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no model 'llama'" in refused(capsys, "evaluate", lora, "--data", sums)
    printed(capsys, "evaluate", lora, "--data", sums, "--model", models["llama"])


def test_a_dry_run_counts_a_baseline(models: dict[str, Path], sums: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--dry-run", "--json", "--model", models["llama"], "--data", sums, "--method"]
    found = json.loads(printed(capsys, *words, "lora"))
    assert found["trained_numbers"] == found["stored_numbers"] == 8 * 3 * (64 + 64 + 64 + 32)
    assert json.loads(printed(capsys, *words, "untouched"))["steps"] == 0


def test_a_baseline_is_not_scored_as_the_bare_model(
    made: Callable[[str, str], Made], sums: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, folder = made("llama", "lora")
    assert "got --untouched and a run of method lora" in refused(
        capsys, "evaluate", folder, "--data", sums, "--untouched"
    )
    assert "a baseline has no virtual tokens to be joined" in refused(
        capsys, "evaluate", folder, "--data", sums, "--with", sums
    )
    assert not (folder / "evaluations" / "before-test.json").exists()


# Files that are refused


def spoilt(path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> Path:
    """The file with its header and its tensors changed."""
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()[kept.KEY])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(header, tensors)
    text = json.dumps(header, sort_keys=True, separators=(",", ":"))
    safetensors.torch.save_file(tensors, path, {kept.KEY: text})
    return path


def put(*keys: str, value: Any) -> Callable[[dict[str, Any], dict[str, torch.Tensor]], None]:
    def change(header: dict[str, Any], _: dict[str, torch.Tensor]) -> None:
        for key in keys[:-1]:
            header = header[key]
        header[keys[-1]] = value

    return change


def lose(_: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    tensors.pop(min(tensors))


def add(_: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    tensors["weights.of.another"] = torch.zeros(2)


def reshape(_: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    tensors[min(tensors)] = torch.zeros(3, 3)


def spoil(_: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    tensors[min(tensors)][0, 0] = float("nan")


def whole_numbers(_: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    tensors[min(tensors)] = tensors[min(tensors)].long()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (put("base", "fingerprint", value="0" * 64), WrongBase, "expected llama (000000000000); use llama"),
        (put("tokenizer", "fingerprint", value="0" * 64), WrongTokenizer, "expected 000000000000, that of llama"),
        (put("format", value="epigraph-baseline/2"), UnknownVersion, "'epigraph-baseline/2', expected 'epigraph-base"),
        (put("method", "name", value="bitfit"), UnknownVersion, "the baseline 'bitfit', which this epigraph does not"),
        (put("method", "config", value={"rank": -1}), BadHeader, "method.config is none of lora: Input should be grea"),
        (put("method", "config", value={"rank": 4}), BadTensor, "expected [4, 64] for this model"),
        (put("contract", "layout", value="sideways"), BadHeader, "header: contract.layout"),
        (put("further", value=1), BadHeader, "header: further: Extra inputs are not permitted"),
        (put("fields", value={"shots": 3}), BadHeader, "header: fields.shots: Input should be a valid string"),
        (lose, BadTensor, "is missing"),
        (add, BadTensor, "tensor 'weights.of.another' is not one of this baseline"),
        (reshape, BadTensor, "is [3, 3], expected ["),
        (spoil, BadTensor, "has 1 of 512 numbers that are not finite"),
        (whole_numbers, BadTensor, "is torch.int64, expected floating-point numbers"),
    ],
)
def test_a_file_that_is_not_right_is_refused(
    change: Any, error: type[Exception], message: str, lora: Path, models: dict[str, Path]
) -> None:
    with pytest.raises(error) as caught:
        open_run(spoilt(lora, change), model=str(models["llama"]))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_model_is_refused_and_may_be_admitted(
    made: Callable[[str, str], Made], models: dict[str, Path]
) -> None:
    content = kept.load(made("llama", "lora")[2] / kept.FILE_NAME)
    other = tiny_family("llama")
    with torch.no_grad():
        other.model.lm_head.weight.add_(1)
    with pytest.raises(WrongBase, match="expected llama"):
        of_kept(other, content)
    assert of_kept(other, content, allow_base=other.fingerprint).name == "lora"
    with pytest.raises(WrongBase):
        open_run(made("llama", "lora")[2], model=str(models["gpt2"]))


def test_broken_bytes_are_refused(lora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = lora.read_bytes()
    lora.write_bytes(data[:-7])
    with pytest.raises(Truncated, match=r"baseline\.safetensors: .*; fetch it again, or train it again"):
        kept.load(lora)
    lora.write_bytes(data)
    for limit, message in (("MAX_FILE_BYTES", "bytes, expected at most 99"), ("MAX_HEADER_BYTES", "its header has")):
        with monkeypatch.context() as patch:
            patch.setattr(kept, limit, 99)
            with pytest.raises(TooLarge, match=message):
                kept.load(lora)
    with monkeypatch.context() as patch:
        patch.setattr(kept, "MAX_TENSORS", 3)
        with pytest.raises(TooLarge, match="has 12 tensors, expected at most 3"):
            kept.load(lora)
    lora.write_bytes(b"\x80\x04 no tensors")
    with pytest.raises(NotAnArtifact):
        kept.load(lora)
    lora.unlink()
    with pytest.raises(NotAnArtifact, match="is not there"):
        kept.load(lora)


def test_what_is_no_baseline_is_left_to_the_artifacts_reader(made: Callable[[str, str], Made], tmp_path: Path) -> None:
    assert kept.find(made("llama", "lora")[2]) is not None
    (tmp_path / "model.safetensors").write_bytes(safetensors.torch.save({"x": torch.zeros(2)}))
    os.mkfifo(tmp_path / "pipe")
    for name in ("model.safetensors", "pipe", "missing", "."):
        assert kept.find(tmp_path / name) is None
        with pytest.raises(NotAnArtifact):
            open_run(tmp_path / name)


def test_numbers_that_are_not_finite_and_full_disks_leave_nothing(
    made: Callable[[str, str], Made], tmp_path: Path
) -> None:
    content = kept.load(made("llama", "full")[2] / kept.FILE_NAME)
    with limited(100_000), pytest.raises(CannotWrite, match="was not written: File too large; make room"):
        kept.save(content, tmp_path / kept.FILE_NAME)
    next(iter(content.tensors.values())).view(-1)[0] = float("inf")
    with pytest.raises(BadTensor, match=r"was not written: tensor .* not finite"):
        kept.save(content, tmp_path / kept.FILE_NAME)
    assert not list(tmp_path.iterdir())
