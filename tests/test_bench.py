"""The training bench: both sides really do the same thing, counts are right, and records hold what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import save_tiny
from epigraph.bench import compare, evaluation, growth, peers
from epigraph.bench.ceiling import least, matmul_ceiling
from epigraph.bench.clock import extra_bytes, ratios, spread
from epigraph.bench.job import LR, Job
from epigraph.bench.share import share
from epigraph.bench.train import PARTS, run
from epigraph.cli import main
from epigraph.errors import BadValue
from epigraph.frozen.inputs import Encoded
from epigraph.report.performance import SHOW, TITLES, draw, read, tables
from epigraph.train.prepare import prepare
from epigraph.train.recipe_file import check_recipe
from epigraph.virtual import KVPrefix

pytest.importorskip("peft", reason="PEFT is not installed: pip install 'epigraph[bench]'")
# transformers and PEFT warn of themselves.
pytestmark = pytest.mark.filterwarnings("ignore")
ROWS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = save_tiny(tmp_path_factory.mktemp("bench") / "tiny")
    config = json.loads((made / "config.json").read_text())
    # PEFT's users train with the model's dropout on; ours is off, and here theirs has none.
    (made / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.0}))
    return made


@pytest.fixture(scope="module")
def job(folder: Path) -> Job:
    recipe = check_recipe(
        {
            "model": str(folder),
            "data": {"task": "cards", "limit": ROWS, "dev_limit": 4},
            "method": {"name": "prefix-tuning"},
            "training": {"precision": "fp32", "batch_size": 4},
        }
    )
    return Job(ready=prepare(recipe), batch_size=4, repeats=2, num_seeds=1)


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    small = {"rows": ROWS, "dev_rows": 4, "batch_size": 4, "repeats": 2, "seeds": 1}
    return {"model": str(folder), "task": "cards", **small, "precision": "fp32", **more}


def nothing() -> None:
    return


def test_both_sides_take_the_same_step(job: Job) -> None:
    """From one prefix, on one padded batch: the same loss, and after the step the same prefix."""
    first = job.first()
    ours, theirs = job.ours(), peers.prefix_side(job.plain(), first, LR)
    batch = job.batches()[0]
    assert int(batch.mask_BT.sum()) < batch.mask_BT.numel(), "without padding nothing is packed"
    assert ours.step(batch) == pytest.approx(theirs.step(batch), abs=1e-5)
    mine, other = ours.method.fold(), peers.prefix_of(theirs.model, first, job.ready.frozen)
    assert isinstance(mine, KVPrefix)
    moved = 0.0
    for (_, _, x), (_, _, y), (_, _, z) in zip(mine.layers(), other.layers(), first.layers(), strict=True):
        assert torch.allclose(x.keys_PKH, y.keys_PKH, atol=1e-4)
        assert torch.allclose(x.values_PKH, y.values_PKH, atol=1e-4)
        moved = max(moved, float((x.values_PKH - z.values_PKH).abs().max()))
    assert moved > 0.5 * LR


def test_the_same_batches(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "SAME_STEPS", 4)
    found = compare.same_batches(job, nothing)
    assert found["steps"] == 4
    assert found["real_tokens"] < found["padded_tokens"]
    assert found["largest_loss_difference"] < 1e-3
    ratio, (ours, theirs) = found["ratio_same_batches"], found["seconds_a_step"].values()
    assert ratio["values"] == [x / y for x, y in zip(theirs["values"], ours["values"], strict=True)]
    assert len(ratio["values"]) == job.repeats


def test_own_batches_are_an_epoch_of_every_row(job: Job) -> None:
    found = compare.own_batching(job, nothing)
    real = sum(len(row.ids) for row in job.ready.rows)
    computed = found["tokens_computed"]
    assert computed["epigraph"] == [real]
    assert all(computed[name][0] > real for name in computed if name != "epigraph")
    losses = [x["median"] for x in found["dev_loss"].values()]
    assert max(losses) - min(losses) < 0.1
    assert set(found["epoch_seconds"]) == {"epigraph", "PEFT, Trainer", "PEFT, Trainer by length"}


def test_what_else_one_could_train(job: Job) -> None:
    found = compare.context(job, nothing)
    assert len(found) == 12
    width, layers = 64, 3
    assert found["prefix-tuning, epigraph"]["trained_numbers"] == found["prefix-tuning, PEFT"]["trained_numbers"]
    assert found["prompt-tuning, PEFT"]["trained_numbers"] == 20 * width
    adapters = layers * (2 * width * 4 + 4 + width)
    assert found["adapters, width 4"]["trained_numbers"] == adapters
    lora = {found[name]["trained_numbers"] for name in found if name.startswith("LoRA")}
    assert len(lora) == 1
    full = job.ready.frozen.num_parameters
    assert {found[name]["trained_numbers"] for name in found if name.startswith("full")} == {full}
    assert not any(x.requires_grad for x in job.ready.frozen.model.parameters()), "another copy was trained"


def test_growth_has_texts_of_one_length_and_one_batch_of_tokens(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "TEXT_LENGTHS", (16, 32))
    monkeypatch.setattr(growth, "TOKENS_A_BATCH", 64)
    monkeypatch.setattr(growth, "PREFIX_LENGTHS", (1, 3))
    assert {tuple(x["real_tokens"]) for x in growth.text_lengths(job, nothing).values()} == {(64, 64, 64)}
    assert list(growth.prefix_lengths(job, nothing)) == ["1", "3"]


def test_development_scores(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "DECODED", 3)
    found = evaluation.evaluation(job, nothing)
    assert (found["steps"], found["dev_rows"], found["decoded_rows"]) == (ROWS // 4, 4, 3)
    assert found["decoded_tokens"] > 3
    slower, decoding = found["times_as_long_with_transformers_cache"], found["decoding_seconds"]
    assert len(slower["values"]) == len(decoding["values"]) == evaluation.REPEATS


def test_least_operations_counted_by_hand(job: Job) -> None:
    """One row of 6 tokens, 2 of them scored, behind 5 virtual ones, on the tiny Llama of 3 layers."""
    row = Encoded(ids=(5,) * 6, scored=(False,) * 4 + (True,) * 2)
    found = least(job.ready.frozen, [row], 5)
    a_layer = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128
    read_first = 64 * 64 + 2 * 64 * 32
    assert found.layers == 6 * (2 * 3 * a_layer + 2 * (3 * a_layer - read_first))
    assert found.head == 2 * 4 * 120 * 64
    pairs = 6 * 5 + 6 * 7 // 2
    assert found.attention == 3 * 12 * 64 * pairs
    assert found.weight_bytes == 2 * 4 * (3 * a_layer + 120 * 64)
    assert found.operations == found.layers + found.head + found.attention


def test_the_share_is_of_what_was_measured(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("epigraph.bench.share.SIZES", (4,))
    monkeypatch.setattr("epigraph.bench.share.matmul_ceiling", lambda *_: 1e9)
    found = share(job, nothing)["batch 4"]
    took = found["seconds_a_step"]["values"][-1]
    assert found["share_of_ceiling"]["values"][-1] == pytest.approx(sum(found["operations"].values()) / took / 1e9)


def test_the_ceiling_is_a_number_of_operations() -> None:
    assert 1e8 < matmul_ceiling(torch.device("cpu"), torch.float32) < 1e14


def test_memory_of_a_step_is_seen() -> None:
    held: list[torch.Tensor] = []
    found = extra_bytes(lambda: held.append(torch.ones(32 << 20, dtype=torch.uint8)), torch.device("cpu"))
    if found is None:
        pytest.skip("this system does not tell how much memory a process takes")
    assert 30 << 20 < found < 64 << 20


def test_medians_and_ratios() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "low": 1.0, "high": 3.0, "values": [3.0, 1.0, 2.0]}
    assert ratios([4.0, 9.0], [2.0, 3.0])["values"] == [2.0, 3.0]


def test_a_record_grows_part_by_part_and_is_not_mixed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare, "SAME_STEPS", 2)
    monkeypatch.setattr("epigraph.bench.share.SIZES", (4,))
    monkeypatch.setattr(growth, "PREFIX_LENGTHS", (1, 3))
    path = tmp_path / "record.json"
    run(path, ["same_batches"], settings(folder))
    run(path, ["share", "profile", "prefix_lengths"], settings(folder))
    record = json.loads(path.read_text())
    assert list(record["parts"]) == ["same_batches", "share", "profile", "prefix_lengths"]
    assert record["versions"]["peft"].startswith("0.21.")
    assert record["settings"]["precision"] == "fp32"
    assert record["machine"]["fast_bf16"] in (True, False)
    for side in record["parts"]["profile"].values():
        assert sum(side["by_kind"].values()) == pytest.approx(1.0)
    with pytest.raises(BadValue, match="is of other settings, and numbers of two are not mixed"):
        run(path, ["share"], settings(folder, repeats=3))
    other = tmp_path / "other.json"
    other.write_text('{"parts": []}')
    with pytest.raises(BadValue, match="no record of this command"):
        run(other, ["share"], settings(folder))
    shown = tables(read(path))
    ratio = record["parts"]["same_batches"]["ratio_same_batches"]["median"]
    assert f"`ratio_same_batches` **{ratio:.2f} (" in shown
    assert all(f"### {TITLES[name]}" in shown for name in record["parts"])
    assert f"repeats 2, seeds 1, precision fp32. Versions: python {record['versions']['python']}" in shown
    with pytest.raises(SystemExit) as done:
        main(["bench", "show", str(path), "--pictures", str(tmp_path / "pictures")])
    assert done.value.code == 0
    assert capsys.readouterr().out == f"{shown}\n"
    assert (tmp_path / "pictures" / "training-cost.png").read_bytes().startswith(b"\x89PNG")


def test_every_part_has_a_table_and_a_title() -> None:
    assert list(PARTS) == list(TITLES) == list(SHOW)


def test_what_cannot_be_shown_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadValue, match="cannot be read: No such file or directory"):
        read(tmp_path / "nothing.json")
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(BadValue, match="is no record of `epigraph bench`"):
        read(tmp_path / "a.json")
    with pytest.raises(BadValue, match="no growth of cost to draw"):
        draw({"parts": {}}, tmp_path)


def test_peft_that_is_not_there_is_said_in_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda _: None)
    with pytest.raises(BadValue, match=r"PEFT is not installed.*pip install 'epigraph\[bench\]'"):
        run(tmp_path / "record.json", ["share"], settings(folder))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--part", "speed"], "--part is 'speed', expected one of same_batches, own_batching"),
        (["--repeats", "0"], "--repeats is 0, expected 1 or more"),
    ],
)
def test_wrong_flags(flags: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["bench", "train", "--json", str(tmp_path / "record.json"), *flags])
    assert done.value.code == 2
    assert said in capsys.readouterr().err
