"""The loop: the loss is the paper's, a run repeats, and small runs learn. Ordinary PyTorch and Trainer work too."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from conftest import random_prefix, tiny, tiny_model, tiny_tokenizer
from epigraph.contract import TextContract
from epigraph.errors import TrainingFailed
from epigraph.frozen.inputs import Codec, Encoded
from epigraph.frozen.model import FrozenModel
from epigraph.methods.base import flatten
from epigraph.methods.prefix_tuning import PrefixTuning, PrefixTuningConfig
from epigraph.train.batches import collate, epoch
from epigraph.train.loop import dev_loss, train
from epigraph.train.loss import denominator, token_losses
from epigraph.train.module import TrainableModel
from epigraph.train.parts import TrainingPart

# In units of the first values, whose size is 0.3.
LR = 0.15
PAIRS = [("red", "warm"), ("blue", "cold and clear"), ("green", "leaf"), ("black", "night, late")] * 3


def rows(pairs: Sequence[tuple[str, str]] = PAIRS) -> list[Encoded]:
    codec = Codec(tiny_tokenizer(), TextContract())
    return [codec.pair({"source": source}, target) for source, target in pairs]


def method(frozen: FrozenModel, num_virtual_tokens: int = 5, **changes: Any) -> PrefixTuning:
    config = PrefixTuningConfig(num_virtual_tokens=num_virtual_tokens, **changes)
    return PrefixTuning(config, frozen.geometry, random_prefix(frozen.geometry, num_virtual_tokens, 1, std=0.3))


def run(frozen: FrozenModel, made: PrefixTuning, steps: int = 20, **plan: Any) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    train(
        frozen,
        made,
        rows(),
        TrainingPart(**{"batch_size": 4, **plan}),
        steps=steps,
        lr=LR,
        report=lambda record: records.append(dict(record)),
    )
    return records


def test_loss_is_the_target_tokens_alone(family: str) -> None:
    """Eq. 2: the mean over target tokens of -log p, by the slow way: each row alone, every position, by hand."""
    frozen = tiny(family)
    prefix = method(frozen).fold()
    some = rows()[:4]
    batch = collate(some, 0)
    with torch.no_grad():
        fast = token_losses(frozen, batch, prefix)
    slow = []
    for row in some:
        ids = torch.tensor([row.ids])
        with torch.no_grad(), frozen.bind(prefix):
            log_p = functional.log_softmax(frozen.model(input_ids=ids).logits[0], -1)
        slow += [-log_p[t - 1, row.ids[t]].item() for t in range(1, len(row.ids)) if row.scored[t]]
    assert fast.tolist() == pytest.approx(slow, abs=1e-4)


def test_reductions() -> None:
    """Over an epoch every scored token weighs the same, whatever the length of its row or of its neighbours'."""
    assert denominator(8, "example-sum", 5.5) == 8
    assert denominator(8, "token-mean", 5.5) == 44


@pytest.mark.parametrize("reduction", ["token-mean", "example-sum"])
def test_accumulation_equals_one_large_batch(reduction: str) -> None:
    """Eight rows at once, or four and four: the same epoch either way, so the same step."""
    frozen = tiny("llama")
    whole, parts = method(frozen), method(frozen)
    for made, plan in ((whole, {"batch_size": 8}), (parts, {"batch_size": 4, "accumulation": 2})):
        train(frozen, made, rows()[:8], TrainingPart(**plan, reduction=reduction), steps=4, lr=LR)  # type: ignore[arg-type]
    one, other = flatten(whole.fold()), flatten(parts.fold())
    assert (one - other).norm() < 1e-2 * one.norm()
    assert (one - flatten(method(frozen).fold())).norm() > 0.1 * one.norm()


def test_training_learns_and_the_base_does_not_move() -> None:
    frozen = tiny("gemma3")
    before = {name: x.clone() for name, x in frozen.model.state_dict().items()}
    made = method(frozen)
    records = run(frozen, made, steps=80)
    assert records[-1]["loss"] < 0.75 * records[0]["loss"]
    for name, x in frozen.model.state_dict().items():
        assert torch.equal(x, before[name]), name


@pytest.mark.parametrize("parameterization", ["raw", "mlp"])
def test_a_run_repeats_bit_for_bit(parameterization: str) -> None:
    results = []
    for _ in range(2):
        frozen = tiny("llama")
        torch.manual_seed(3)
        made = method(frozen, parameterization=parameterization, mlp_width=16, dropout=0.1)
        run(frozen, made, steps=10)
        results.append(flatten(made.fold()))
    assert torch.equal(results[0], results[1])


def test_checkpointed_training_is_the_same_training() -> None:
    frozen = tiny("gpt2")
    plain, checkpointed = method(frozen), method(frozen)
    run(frozen, plain, steps=5)
    run(frozen, checkpointed, steps=5, checkpoint_activations=True)
    assert torch.equal(flatten(plain.fold()), flatten(checkpointed.fold()))
    assert not any(layer.gradient_checkpointing for layer in frozen.layers)


@pytest.mark.parametrize(
    ("schedule", "want"),
    [
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1]),
        ("linear", [1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25]),
        ("cosine", [1 / 3, 2 / 3, 1, 0.853553, 0.5, 0.146447]),
    ],
)
def test_schedules_with_warm_up(schedule: str, want: list[float]) -> None:
    frozen = tiny("llama")
    records = run(frozen, method(frozen), steps=6, schedule=schedule, warmup_steps=2)
    assert [record["lr"] / LR for record in records] == pytest.approx(want, abs=1e-5)


def test_early_stopping_keeps_the_best() -> None:
    frozen = tiny("llama")
    made = method(frozen)
    scores = iter([3.0, 1.0, 2.0, 2.5, 0.5])
    kept: list[torch.Tensor] = []

    def score(live: Any) -> dict[str, float]:
        kept.append(flatten(live.fold()))
        return {"loss": next(scores)}

    plan = TrainingPart(batch_size=4, dev_every=2, patience=2)
    outcome = train(frozen, made, rows(), plan, steps=20, lr=LR, score=score)
    assert (outcome.steps, outcome.kept_step, outcome.stopped_early) == (8, 4, True)
    assert outcome.kept_dev == {"loss": 1.0}
    assert torch.equal(flatten(made.fold()), kept[1])


def test_dev_loss_does_not_depend_on_batches() -> None:
    frozen = tiny("llama")
    made = method(frozen)
    assert dev_loss(frozen, rows(), made, 2) == pytest.approx(dev_loss(frozen, rows(), made, 12), rel=1e-5)


def test_a_loss_that_is_no_number_is_named() -> None:
    frozen = tiny("llama")
    made = method(frozen)
    with torch.no_grad():
        next(made.parameters()).fill_(torch.nan)
    with pytest.raises(TrainingFailed, match=r"lower training\.lr"):
        run(frozen, made, steps=1)


def test_an_epoch_has_every_row_once_and_buckets_waste_less() -> None:
    lengths = [random.Random(i).randint(5, 80) for i in range(200)]
    waste = []
    for buckets in (False, True):
        batches = epoch(lengths, 8, random.Random(1), buckets=buckets)
        assert sorted(row for batch in batches for row in batch) == list(range(200))
        waste.append(sum(len(b) * max(lengths[i] for i in b) for b in batches))
    assert waste[1] < 0.75 * waste[0]
    assert epoch(lengths, 8, random.Random(1), buckets=True) == epoch(lengths, 8, random.Random(1), buckets=True)
    assert epoch(lengths, 8, random.Random(1), buckets=True) != epoch(lengths, 8, random.Random(2), buckets=True)


def test_a_plain_pytorch_loop() -> None:
    frozen = tiny("llama")
    model = TrainableModel(frozen, method(frozen))
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    batch = collate(rows()[:4], 0)
    labels = batch.ids_BT.masked_fill(~batch.scored_BT, -100)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = model(input_ids=batch.ids_BT, attention_mask=batch.mask_BT, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert set(model.state_dict()) == {
        "method.free.0.change_PN",
        "method.free.0.first_PN",
        "method.free.0.scale",
        "method.sinks_SN",
    }
    model.train()
    assert not frozen.model.training


@pytest.mark.parametrize("checkpointing", [False, True])
def test_transformers_trainer(tmp_path: Path, checkpointing: bool) -> None:
    """peers.md B7: Trainer switches checkpointing on after wrapping, and the prefix still trains."""
    from transformers import Trainer, TrainingArguments

    frozen = tiny("llama")
    made = method(frozen)
    start = flatten(made.fold())
    examples = []
    for row in rows():
        labels = [token if counts else -100 for token, counts in zip(row.ids, row.scored, strict=True)]
        examples.append({"input_ids": list(row.ids), "labels": labels})

    def collator(items: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        longest = max(len(item["input_ids"]) for item in items)

        def padded(name: str, fill: int) -> torch.Tensor:
            return torch.tensor([item[name] + [fill] * (longest - len(item[name])) for item in items])

        ids = padded("input_ids", 0)
        return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": padded("labels", -100)}

    # The argument's new name; where there is one, the old one warns.
    names = ("activation_checkpointing", "gradient_checkpointing")
    flag = next(name for name in names if name in TrainingArguments.__dataclass_fields__)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=20,
        per_device_train_batch_size=4,
        learning_rate=LR,
        report_to=[],
        use_cpu=True,
        **{flag: checkpointing},
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(TrainableModel(frozen, made), arguments, data_collator=collator, train_dataset=examples)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert not torch.equal(flatten(made.fold()), start)
    assert all(layer.gradient_checkpointing == checkpointing for layer in frozen.layers)
    for name, x in tiny_model("llama").state_dict().items():
        assert torch.equal(x, frozen.model.state_dict()[name])
