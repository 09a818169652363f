"""``precision = "auto"``: what is taken where, that it is written down, and that what was asked for wins."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from epigraph import artifact
from epigraph.errors import BadValue
from epigraph.frozen.loading import has_fast_bf16
from epigraph.train.prepare import precision_for, prepare
from epigraph.train.recipe_file import check_recipe
from folders import call, printed, refused, save_family, write_rows

SUMS = [{"source": f"{a}+{b}", "target": str(a + b)} for a in range(3) for b in range(3)]
CPU = torch.device("cpu")
Told = Callable[..., None]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "sums.jsonl", SUMS)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """Lets torch say of this processor what it has: no machine has all the answers."""

    def tell(**capabilities: object) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)

    return tell


@pytest.mark.parametrize(
    ("capabilities", "is_fast"),
    [
        ({}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True, "avx512_bf16": False}, True),
        ({"bf16": True}, True),
        ({"avx512_bf16": False, "amx_bf16": False, "bf16": False}, False),
        ({"avx2": True, "avx512_f": True, "avx_vnni": True, "architecture": "x86_64"}, False),
    ],
)
def test_a_processor_that_computes_in_bf16_says_so(told: Told, capabilities: dict[str, Any], is_fast: bool) -> None:
    told(**capabilities)
    assert has_fast_bf16(CPU) is is_fast
    assert precision_for("auto", "cpu") == ("bf16" if is_fast else "fp32")
    for asked in ("bf16", "fp32"):
        assert precision_for(asked, "cpu") == asked


def test_a_torch_that_says_nothing_is_taken_to_be_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not has_fast_bf16(CPU)


@pytest.mark.parametrize("is_fast", [True, False])
def test_a_gpu_that_only_emulates_bf16_does_not_compute_in_it(monkeypatch: pytest.MonkeyPatch, is_fast: bool) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return including_emulation or is_fast

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert has_fast_bf16(torch.device("cuda")) is is_fast


def test_other_devices_are_taken_to_be_slow(told: Told) -> None:
    told(bf16=True, avx512_bf16=True)
    assert not has_fast_bf16(torch.device("mps"))
    assert not has_fast_bf16(torch.device("meta"))


def test_a_device_that_is_not_here_is_said_before_its_precision() -> None:
    with pytest.raises(BadValue, match="device is 'nonsense'"):
        precision_for("auto", "nonsense")


@pytest.mark.parametrize("is_fast", [True, False])
@pytest.mark.parametrize("asked", ["auto", "bf16", "fp32", None])
def test_what_was_taken_is_what_is_loaded(told: Told, base: Path, rows: Path, asked: str | None, is_fast: bool) -> None:
    told(avx512_bf16=is_fast)
    training = {} if asked is None else {"precision": asked}
    ready = prepare(check_recipe({"model": str(base), "data": {"train": str(rows)}, "training": training}))
    want = asked if asked in ("bf16", "fp32") else "bf16" if is_fast else "fp32"
    assert ready.precision == want
    assert ready.frozen.model.dtype == {"bf16": torch.bfloat16, "fp32": torch.float32}[want]


def test_this_machine_takes_what_it_says(base: Path, rows: Path) -> None:
    ready = prepare(check_recipe({"model": str(base), "data": {"train": str(rows)}}))
    assert (ready.precision == "bf16") == has_fast_bf16(CPU)


@pytest.mark.parametrize("is_fast", [True, False])
def test_a_run_and_its_scores_say_what_was_taken(
    told: Told, base: Path, rows: Path, is_fast: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everywhere: a later reader of the artifact alone must know it too."""
    told(bf16=is_fast)
    taken, other = ("bf16", "fp32") if is_fast else ("fp32", "bf16")
    out = tmp_path / "out"
    flags = ["--model", base, "--data", rows, "--steps", 1, "--num-virtual-tokens", 2, "--out", out]
    summary = json.loads(printed(capsys, "train", *flags, "--json"))
    recipe = json.loads((out / "recipe.json").read_text())
    provenance: dict[str, Any] = artifact.load(out / artifact.FILE_NAME).provenance
    assert summary["precision"] == recipe["training"]["precision"] == taken
    assert provenance["recipe"]["training"]["precision"] == taken
    assert recipe["given"]["training"]["precision"] == "auto"
    for asked, want in (([], taken), (["--precision", "auto"], taken), (["--precision", other], other)):
        said = json.loads(printed(capsys, "evaluate", out, "--data", rows, *asked, "--max-new-tokens", 2, "--json"))
        assert said["precision"] == want


def test_a_run_goes_on_in_the_precision_that_it_began_in(
    told: Told, base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What auto takes on another machine is another run."""
    flags = ["--model", base, "--data", rows, "--steps", 1, "--num-virtual-tokens", 2, "--out", tmp_path / "out"]
    told(bf16=False)
    assert call("train", *flags) == 0
    told(bf16=True)
    capsys.readouterr()
    assert call("train", *flags, "--resume") == 2
    assert 'was begun with training.precision = "fp32", got "bf16"' in capsys.readouterr().err


def test_another_precision_is_refused(
    base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", base, "--data", rows, "--precision", "fp16", "--out", tmp_path / "out"]
    assert refused(capsys, "train", *flags) == (
        "epigraph: training.precision: got \"fp16\", expected: 'auto', 'bf16' or 'fp32'"
    )
