"""Joint training: virtual tokens and base by their own learning rates, and a base of its own that the artifact needs.

Without ``base_lr`` the base is frozen, to the bit. (Liu et al. 2021, section 4.2: on SuperGLUE the model is tuned too.)
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from console import environment
from epigraph import artifact
from epigraph.errors import CannotWrite, OutputExists, ResumeMismatch
from epigraph.frozen.fingerprint import fingerprint
from epigraph.frozen.model import FrozenModel
from epigraph.frozen.resolve import resolve
from epigraph.frozen.saving import save_base
from epigraph.methods.base import Method
from epigraph.train.build import make_method
from epigraph.train.prepare import Prepared, prepare
from epigraph.train.recipe_file import check_recipe
from epigraph.train.run import run
from epigraph.tuned import Tuned
from families import tiny_family
from folders import call, printed, refused, save_family, write_rows
from forked import Forks
from test_resume import Cut, cut_at

SUMS = [{"source": f"{a}+{b}", "target": str(a + b)} for a in range(4) for b in range(4)]
SIZES = [{"source": f"{a}+{b}", "target": "even" if (a + b) % 2 == 0 else "odd"} for a in range(4) for b in range(4)]
BASE_LR = 3e-3


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "sums.jsonl", SUMS)


@pytest.fixture(scope="module")
def joint(base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "joint"
    before = contents(base)
    assert call(*words(base, rows), "--steps", 12, "--out", out, f"training.base_lr={BASE_LR}") == 0
    assert contents(base) == before, "the folder of the base that a run begins with is never written"
    return out


def words(base: Path, rows: Path) -> list[object]:
    return ["train", "--model", base, "--data", rows, "--num-virtual-tokens", 3, "--batch-size", 4, "--lr", "0.02"]


def contents(folder: Path) -> dict[str, bytes]:
    return {x.name: x.read_bytes() for x in folder.iterdir() if x.is_file()}


def weights(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def ready_for(model: Path, data: Path, method: dict[str, Any] | None = None, **training: Any) -> Prepared:
    given = {"batch_size": 4, "steps": 8, "lr": 0.02, "precision": "fp32", **training}
    labels = {"labels": ["even", "odd"]} if data.stem == "sizes" else {}
    tables = {"model": str(model), "data": {"train": str(data), "dev": str(data)}, "training": given, "text": labels}
    return prepare(check_recipe({**tables, "method": {"num_virtual_tokens": 3, **(method or {})}}))


# The folder


def test_the_base_of_a_joint_run_is_a_model_folder_for_anybody(joint: Path, base: Path, forks: Forks) -> None:
    """Read in a process that knows nothing of this package."""
    program = (
        "import sys, torch, transformers as t\n"
        "model = t.AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "ids = t.AutoTokenizer.from_pretrained(sys.argv[1])('2+3\\n', return_tensors='pt').input_ids\n"
        "with torch.no_grad():\n"
        "    torch.save(model(input_ids=ids).logits, sys.argv[2])\n"
        "assert not any('epigraph' in name for name in sys.modules)\n"
    )
    out = joint.parent / "logits.pt"
    process = forks.start(["-c", program, str(joint / "base"), str(out)], environment=environment())
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    there = FrozenModel.load(str(joint / "base"))
    with torch.no_grad():
        ours = there.model(input_ids=there.tokenizer("2+3\n", return_tensors="pt").input_ids).logits
    torch.testing.assert_close(torch.load(out), ours, rtol=1e-5, atol=1e-5)


def test_the_artifact_is_pinned_to_the_new_base(joint: Path, base: Path) -> None:
    new, old = (fingerprint(resolve(str(folder))) for folder in (joint / "base", base))
    content = artifact.load(joint / artifact.FILE_NAME)
    assert content.base_fingerprint == new != old
    assert content.base_name == "jointly trained llama"
    summary, recipe = (json.loads((joint / name).read_text()) for name in ("summary.json", "recipe.json"))
    assert recipe["inputs"]["base"] == old
    assert summary["trained_numbers"] == summary["stored_numbers"] + summary["model_parameters"]
    assert {x.name for x in joint.iterdir()} == {
        *("artifact.safetensors", "base", "recipe.json", "steps.jsonl", "summary.json")
    }


def test_a_shared_folder_can_be_read_by_others(joint: Path) -> None:
    assert (joint / "base").stat().st_mode == joint.stat().st_mode
    assert len({x.stat().st_mode for x in (joint / "base").iterdir()}) == 1


def test_the_original_base_is_refused(
    joint: Path, base: Path, rows: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    new, old = (fingerprint(resolve(str(folder)))[:12] for folder in (joint / "base", base))
    want = f"epigraph: the base is {old}, expected jointly trained llama ({new}); use jointly trained llama, or pass"
    assert refused(capsys, "evaluate", joint, "--data", rows, "--model", base).startswith(want)
    assert refused(capsys, "generate", joint, "2+3", "--model", base).startswith(want)
    assert refused(capsys, "inspect", joint, "--mass", "--model", base).startswith(want)
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((joint / artifact.FILE_NAME).read_bytes())
    said = refused(capsys, "generate", alone, "2+3")
    assert "no model 'jointly trained llama'" in said
    assert "say where it is with --model" in said
    assert printed(capsys, "generate", alone, "2+3", "--model", joint / "base") == printed(
        capsys, "generate", joint, "2+3"
    )


def test_commands_find_the_base_by_themselves(
    joint: Path, base: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What they say is what the new weights say behind the virtual tokens, and not what the old ones do."""
    sources = [row["source"] for row in SUMS]
    content = artifact.load(joint / artifact.FILE_NAME)
    own = Tuned(FrozenModel.load(str(joint / "base")), content).generate(sources)
    other = FrozenModel.load(str(base))
    foreign = Tuned(other, content, allow_base=other.fingerprint).generate(sources)
    said = [printed(capsys, "generate", joint, source).rstrip("\n") for source in sources[:2]]
    assert said == own[:2]
    printed(capsys, "evaluate", joint, "--data", rows, "--precision", "fp32", "--json")
    kept = json.loads((joint / "evaluations" / "after-test.json").read_text())
    (joint / "evaluations" / "after-test.json").unlink()
    (joint / "evaluations").rmdir()
    assert [x["prediction"] for x in kept["examples"]] == own != foreign
    assert "jointly trained llama" in printed(capsys, "inspect", joint)
    assert "mass" in json.loads(printed(capsys, "inspect", joint, "--mass", "--json"))


# What moves, and how far


def test_a_tuned_base_is_not_scored_as_the_bare_model(
    joint: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "this run trained its base too" in refused(capsys, "evaluate", joint, "--data", rows, "--untouched")
    assert not (joint / "evaluations" / "before-test.json").exists()


def test_each_part_moves_by_its_own_learning_rate(tmp_path: Path) -> None:
    """Adam's first step moves each number by its learning rate: virtual tokens, head and base by three of them."""
    model = save_family("bert", tmp_path / "bert")
    data = write_rows(tmp_path / "sizes.jsonl", SIZES)
    rates = {"own": 0.02, "head": 4e-3, "base": 5e-4}
    ready = ready_for(
        model,
        data,
        {"name": "prompt-tuning"},
        steps=1,
        schedule="constant",
        head_lr=rates["head"],
        base_lr=rates["base"],
    )
    method = make_method(ready)
    before = {name: x.detach().clone() for name, x in method.named_parameters()}
    run(ready, method, tmp_path / "out")
    moved: dict[str, float] = dict.fromkeys(rates, 0.0)
    for name, x in method.named_parameters():
        part = name.partition(".")[0]
        far = float((x.detach() - before[name]).abs().max())
        part = part if part in rates else "own"
        moved[part] = max(far, moved[part])
    assert moved == pytest.approx(rates, rel=1e-2)
    # What only a language-modelling head needs has no gradient when another head is trained.
    assert {name.rpartition(".")[0] for name, x in method.named_parameters() if torch.equal(x, before[name])} == {
        *("base.cls.predictions", "base.cls.predictions.transform.dense", "base.cls.predictions.transform.LayerNorm")
    }


def test_the_three_rates_follow_one_schedule(base: Path, rows: Path, tmp_path: Path) -> None:
    """With warm-up and decay, each part's rate is the same share of its own as the record says of the method's."""
    ready = ready_for(base, rows, base_lr=BASE_LR, steps=4, warmup_steps=2)
    method = make_method(ready)
    assert method.base is not None
    seen: list[tuple[float, float]] = []
    last = {name: x.detach().clone() for name, x in method.base.named_parameters()}

    def watch(record: Any) -> None:
        nonlocal last
        assert method.base is not None
        now = {name: x.detach().clone() for name, x in method.base.named_parameters()}
        if "lr" in record and record["step"] == 1:
            seen.append((record["lr"] / 0.02, max(float((now[x] - last[x]).abs().max()) for x in now) / BASE_LR))
        last = now

    run(ready, method, tmp_path / "out", report=watch)
    assert [x for pair in seen for x in pair] == pytest.approx([1 / 3, 1 / 3], rel=1e-2)


@pytest.mark.parametrize("table", [{}, {"name": "prompt-tuning"}, {"parameterization": "mlp", "mlp_width": 8}])
def test_without_a_learning_rate_of_its_own_not_a_bit_of_the_base_moves(
    base: Path, rows: Path, tmp_path: Path, table: dict[str, Any]
) -> None:
    ready = ready_for(base, rows, table, weight_decay=0.1)
    before = {name: x.clone() for name, x in ready.frozen.model.state_dict().items()}
    method = make_method(ready)
    run(ready, method, tmp_path / "out")
    assert not [name for name, x in ready.frozen.model.state_dict().items() if not torch.equal(x, before[name])]
    assert not any(x.requires_grad or x.grad is not None for x in ready.frozen.model.parameters())
    assert not (tmp_path / "out" / "base").exists()
    assert artifact.load(tmp_path / "out" / artifact.FILE_NAME).base_fingerprint == fingerprint(resolve(str(base)))


def test_the_base_in_memory_is_the_one_that_was_written(base: Path, rows: Path, tmp_path: Path) -> None:
    """After a joint run the same object is another model: it is known as that, and frozen again."""
    ready = ready_for(base, rows, base_lr=BASE_LR)
    old = ready.frozen.fingerprint
    run(ready, make_method(ready), tmp_path / "out")
    assert ready.frozen.fingerprint == fingerprint(resolve(str(tmp_path / "out" / "base"))) != old
    assert not any(x.requires_grad for x in ready.frozen.model.parameters())
    assert not any(x.training for x in ready.frozen.model.modules())
    live = Tuned(ready.frozen, artifact.load(tmp_path / "out" / artifact.FILE_NAME)).generate(["1+2"])
    assert live == Tuned.load(tmp_path / "out").generate(["1+2"])


def test_the_best_base_is_kept_with_the_best_virtual_tokens(base: Path, rows: Path, tmp_path: Path) -> None:
    """A rate that is too high: what is written is the step that was best, as a run of so many steps makes it."""
    plan = {"base_lr": 0.5, "schedule": "constant"}
    kept = run(*begun(ready_for(base, rows, steps=10, dev_every=1, **plan)), tmp_path / "long")["kept_step"]
    assert 0 < kept < 10
    run(*begun(ready_for(base, rows, steps=kept, dev_every=0, **plan)), tmp_path / "short")
    assert_same(tmp_path / "long", tmp_path / "short")


def begun(ready: Prepared) -> tuple[Prepared, Method]:
    return ready, make_method(ready)


def assert_same(one: Path, other: Path) -> None:
    """Virtual tokens and base, bit for bit."""
    tokens = [artifact.load(x / artifact.FILE_NAME).tokens for x in (one, other)]
    for (_, _, a), (_, _, b) in zip(*(x.layers() for x in tokens), strict=True):
        assert torch.equal(a.keys_PKH, b.keys_PKH)
        assert torch.equal(a.values_PKH, b.values_PKH)
    first, second = weights(one / "base"), weights(other / "base")
    assert first.keys() == second.keys()
    assert not [name for name, x in first.items() if not torch.equal(x, second[name])]


# Refused


def test_bf16_is_refused_and_auto_is_fp32(
    base: Path,
    rows: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    flags = [*words(base, rows), "--steps", 1, "--out", tmp_path / "out", "training.base_lr=1e-4"]
    assert refused(capsys, *flags, "--precision", "bf16") == (
        "epigraph: training: base_lr trains the model's own weights, which bf16 is too coarse for; set precision fp32"
    )
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert call(*flags, "--precision", "auto") == 0
    assert json.loads((tmp_path / "out" / "recipe.json").read_text())["training"]["precision"] == "fp32"
    assert {x.dtype for x in weights(tmp_path / "out" / "base").values()} == {torch.float32}


def test_a_run_does_not_replace_the_base_that_it_begins_with(
    joint: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {x: x.read_bytes() for x in joint.rglob("*") if x.is_file()}
    flags = [*words(joint / "base", rows), "--steps", 1, "--out", joint, "--overwrite"]
    assert "holds the model to be trained, which a new run there replaces; choose another --out" in refused(
        capsys, *flags
    )
    assert {x: x.read_bytes() for x in joint.rglob("*") if x.is_file()} == before
    ready = ready_for(joint / "base", rows)
    with pytest.raises(OutputExists, match="choose another --out"):
        run(ready, make_method(ready), Path(os.path.relpath(joint)))


# Saving that fails, and going on


def test_a_base_that_cannot_be_saved_leaves_the_former_one(tmp_path: Path) -> None:
    """The kernel refuses every file over a size that the weights are larger than and the configuration is not."""
    frozen = tiny_family("llama")
    old = save_base(frozen, tmp_path / "base")
    before = contents(tmp_path / "base")
    with torch.no_grad():
        frozen.model.lm_head.weight.add_(1)
    with limited(100_000), pytest.raises(Exception, match="File too large"):
        save_base(frozen, tmp_path / "base")
    assert [x.name for x in tmp_path.iterdir()] == ["base"]
    assert contents(tmp_path / "base") == before
    assert frozen.fingerprint == old
    assert save_base(frozen, tmp_path / "base") == frozen.fingerprint != old


@contextlib.contextmanager
def limited(num_bytes: int) -> Iterator[None]:
    """No file may be larger inside."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_at_the_end_is_said_plainly(base: Path, rows: Path, tmp_path: Path) -> None:
    """No artifact without its base: neither a half nor one of the two."""
    ready = ready_for(base, rows, base_lr=BASE_LR, checkpoint_every=0)
    with limited(100_000), pytest.raises(CannotWrite, match=r"out/base was not written: .*File too large.*; make room"):
        run(ready, make_method(ready), tmp_path / "out")
    assert sorted(x.name for x in (tmp_path / "out").iterdir()) == ["recipe.json", "steps.jsonl"]


def test_a_run_whose_base_could_not_be_saved_goes_on(base: Path, rows: Path, tmp_path: Path) -> None:
    """A file lies where the base is to be; once it is gone, the last checkpoint is all that it takes."""
    run(*begun(ready_for(base, rows, base_lr=BASE_LR)), tmp_path / "whole")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "base").write_text("in the way")
    with pytest.raises(CannotWrite, match="cut/base was not written"):
        run(*begun(ready_for(base, rows, base_lr=BASE_LR)), tmp_path / "cut")
    assert not (tmp_path / "cut" / artifact.FILE_NAME).exists()
    (tmp_path / "cut" / "base").unlink()
    half = tmp_path / "cut" / ".base-0123456789abcdef"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"what a killed writer left")
    assert run(*begun(ready_for(base, rows, base_lr=BASE_LR)), tmp_path / "cut", resume=True)["resumed_at"] == [8]
    assert_same(tmp_path / "cut", tmp_path / "whole")
    assert sorted(x.name for x in (tmp_path / "cut").iterdir()) == sorted(
        x.name for x in (tmp_path / "whole").iterdir()
    )


def test_a_joint_run_cut_off_goes_on_bit_for_bit(base: Path, rows: Path, tmp_path: Path) -> None:
    plan = {"base_lr": BASE_LR, "checkpoint_every": 2, "dev_every": 3}
    run(*begun(ready_for(base, rows, **plan)), tmp_path / "whole")
    for cut in (cut_at(4), cut_at(6, after_dev=True)):
        with pytest.raises(Cut):
            run(*begun(ready_for(base, rows, **plan)), tmp_path / "cut", resume=True, report=cut)
        assert not (tmp_path / "cut" / "base").exists()
    with pytest.raises(ResumeMismatch, match=r"training\.base_lr = 0\.003, got 0\.004"):
        run(*begun(ready_for(base, rows, **{**plan, "base_lr": 4e-3})), tmp_path / "cut", resume=True)
    summary = run(*begun(ready_for(base, rows, **plan)), tmp_path / "cut", resume=True)
    assert summary["resumed_at"] == [2, 4]
    assert_same(tmp_path / "cut", tmp_path / "whole")
