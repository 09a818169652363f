"""Users trained together are what each would be trained alone: in float64, after fifty steps, to 1e-8."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from epigraph.errors import BadValue, TrainingFailed, UserError
from epigraph.frozen.model import FrozenModel
from epigraph.methods.base import flatten
from epigraph.tasks.catalogue import find, own_data
from epigraph.train.build import make_method
from epigraph.train.development import dev_score
from epigraph.train.fleet.member import Member
from epigraph.train.fleet.together import Together
from epigraph.train.loop import Outcome, train
from epigraph.train.prepare import Prepared, draw, prepare_on
from epigraph.train.recipe_file import check_recipe
from epigraph.train.run import plan_of
from epigraph.train.state import State
from epigraph.virtual import SoftPrompt
from families import tiny_family
from folders import write_rows

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = ("warm", "cold and clear", "leaf", "night, late", "a", "the end of it", "no", "yes and no")
EXACT = 1e-8
# Root-mean-square norms compute in float32 whatever comes in, so that a last bit there is now and then another.
ROUNDED = 1e-5


def exact(family: str) -> FrozenModel:
    frozen = tiny_family(family)
    frozen.model.double()
    return frozen


def recipe_tables(data: Any, training: Mapping[str, Any], method: Mapping[str, Any], text: Any) -> dict[str, Any]:
    given = {"batch_size": 3, "steps": 50, "lr": 0.05, "precision": "fp32", **training}
    return {"model": "tiny", "data": data, "training": given, "method": method, "text": text or {}}


def users(
    folder: Path,
    frozen: FrozenModel,
    num: int,
    training: Any,
    method: Any,
    text: Any = None,
    *,
    all_have_dev: bool = False,
) -> list[Prepared]:
    """Users of 4, 7, 10 ... rows; every second one has development rows."""
    made = []
    labels = (text or {}).get("labels", ())
    for number in range(num):
        draws = random.Random(number)
        targets = labels or WORDS
        rows = [
            {"source": " ".join(draws.choices(WORDS, k=draws.randint(1, 4))), "target": draws.choice(targets)}
            for _ in range(4 + 3 * number)
        ]
        path = write_rows(folder / f"user-{number}.jsonl", rows)
        has_dev = all_have_dev or number % 2
        dev = write_rows(folder / f"user-{number}.dev.jsonl", unlike(rows[:3])) if has_dev else None
        data = {"train": path, **({} if dev is None else {"dev": dev})}
        recipe = check_recipe(recipe_tables(data, training, method, text))
        task = own_data(path, dev, None, f"user-{number}", labels)
        made.append(prepare_on(frozen, recipe, task, draw(recipe, task), precision="fp32"))
    return made


def unlike(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Other answers to the same sources, so that who learns his rows well gets worse at these."""
    return [{**row, "target": rows[number - 1]["target"]} for number, row in enumerate(rows)]


def alone(ready: Prepared) -> tuple[dict[str, Tensor], Outcome, list[dict[str, Any]]]:
    method, records = make_method(ready).double(), list[dict[str, Any]]()
    outcome = train(
        ready.frozen,
        method,
        ready.rows,
        plan_of(ready, method),
        steps=ready.steps,
        lr=ready.recipe.lr,
        score=dev_score(ready) if ready.dev_rows else None,
        report=lambda record: records.append(dict(record)),
    )
    return {name: x.detach() for name, x in method.named_parameters()}, outcome, records


def together(every: Sequence[Prepared], *, room: int, num_rows: int) -> dict[str, Any]:
    """Users enter as there is room, and leave when they are done."""
    fleet = Together(every[0], make_method(every[0]).double(), room=room, num_rows=num_rows)
    waiting, done = list(enumerate(every)), {}
    while waiting or fleet.members:
        while waiting and fleet.has_room:
            number, ready = waiting.pop(0)
            fleet.enter(str(number), ready)
        assert not fleet.step()
        for member in [x for x in fleet.members if x.is_done]:
            method = fleet.result(member)
            found = {name: x.detach() for name, x in method.named_parameters()}
            done[member.name] = (found, member.outcome(), list(member.records))
            fleet.leave(member)
    return done


def flat(record: Mapping[str, Any]) -> dict[str, float]:
    """A step's record, or a development score's, without its time."""
    return {name: x for name, x in {**record, **record.get("dev", {})}.items() if name not in ("dev", "seconds")}


def check(
    every: Sequence[Prepared],
    found: dict[str, Any] | None = None,
    *,
    room: int = 3,
    num_rows: int = 7,
    close: float = 1e-6,
) -> float:
    found = found or together(every, room=room, num_rows=num_rows)
    worst = 0.0
    for number, ready in enumerate(every):
        (ours, outcome, records), (theirs, wanted, steps) = found[str(number)], alone(ready)
        assert ours.keys() == theirs.keys()
        worst = max(worst, *(float((ours[name] - x).abs().max()) for name, x in theirs.items()))
        assert (outcome.steps, outcome.kept_step, outcome.stopped_early, outcome.tokens) == (
            wanted.steps,
            wanted.kept_step,
            wanted.stopped_early,
            wanted.tokens,
        )
        assert [x["step"] for x in records] == [x["step"] for x in steps]
        for one, other in zip(records, steps, strict=True):
            assert flat(one) == pytest.approx(flat(other), rel=close)
    print(f"max_prefix_difference {worst:.2e}")
    return worst


RAW = {"num_virtual_tokens": 4}
METHODS: dict[str, dict[str, Any]] = {
    "raw": RAW,
    "dropout": {**RAW, "dropout": 0.3},
    "sinks": {**RAW, "num_sink_tokens": 2},
    "mlp": {**RAW, "parameterization": "mlp", "mlp_width": 8},
    "infix": {**RAW, "place": "infix"},
    "infix-code": {**RAW, "place": "infix-code"},
    "prompt": {"name": "prompt-tuning", **RAW},
    "prompt-residual": {"name": "prompt-tuning", **RAW, "parameterization": "residual", "mlp_width": 8},
    "prompt-dropout": {"name": "prompt-tuning", **RAW, "dropout": 0.2},
    "prompt-mlp": {"name": "prompt-tuning", **RAW, "parameterization": "mlp", "mlp_width": 8},
    "p-tuning": {"name": "p-tuning", **RAW, "hidden_width": 8},
    "p-tuning-mlp": {"name": "p-tuning", **RAW, "hidden_width": 8, "parameterization": "mlp"},
}


EVERYTHING = {"accumulation": 2, "warmup_steps": 5, "weight_decay": 0.1, "max_grad_norm": 0.5}
KINDS = ("bart", "bert", "llama", "gemma3", "qwen3", "t5")
QUICK = ("mlp", "prompt-dropout")


def slow_but(quick: Sequence[str], names: Iterable[str]) -> list[Any]:
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("method", slow_but(QUICK, METHODS))
def test_every_method_is_what_it_would_be_alone(tmp_path: Path, method: str) -> None:
    assert check(users(tmp_path, exact("gpt2"), 3, EVERYTHING, METHODS[method]), room=2, num_rows=5) < EXACT


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize("schedule", slow_but(["linear"], ["linear", "cosine", "constant"]))
def test_users_of_unequal_data_enter_and_leave(tmp_path: Path, optimizer: str, schedule: str) -> None:
    """Ten epochs of 4 to 16 rows are 13 to 53 steps, so that places are taken over at different times."""
    training = {**EVERYTHING, "steps": None, "epochs": 10.0, "accumulation": 1, "reduction": "example-sum"}
    training |= {"optimizer": optimizer, "schedule": schedule}
    every = users(tmp_path, exact("gpt2"), 5, training, METHODS["raw"])
    assert len({ready.steps for ready in every}) > 3
    assert check(every, room=2) < EXACT


def test_who_gets_no_better_stops_early(tmp_path: Path) -> None:
    training = {"steps": 50, "dev_every": 2, "patience": 2, "lr": 0.2}
    every = users(tmp_path, exact("gpt2"), 4, training, METHODS["raw"], all_have_dev=True)
    found = together(every, room=3, num_rows=7)
    assert len({outcome.steps for _, outcome, _ in found.values()}) > 1
    assert check(every, found) < EXACT


def test_a_development_metric_that_takes_decoding(tmp_path: Path) -> None:
    training = {"steps": 12, "dev_every": 4, "dev_metric": "chrf"}
    text = {"max_target_tokens": 8}
    every = users(tmp_path, exact("gpt2"), 3, training, METHODS["raw"], text, all_have_dev=True)
    assert check(every) < EXACT


@pytest.mark.parametrize(
    "family", slow_but(["bart", "bert", "llama"], ["bart", "bert", "llama", "gemma3", "qwen3", "t5"])
)
@pytest.mark.parametrize("method", ["raw", "prompt"])
def test_on_every_kind_of_model(tmp_path: Path, family: str, method: str) -> None:
    text = {"labels": ["red", "blue", "green"]} if family == "bert" else None
    rounded = family not in ("bart", "bert")
    every = users(tmp_path, exact(family), 3, {"steps": 5, "lr": 0.02}, METHODS[method], text)
    assert check(every, room=2, close=1e-3 if rounded else 1e-6) < (ROUNDED if rounded else EXACT)


def test_a_user_whose_loss_is_no_number_harms_nobody(tmp_path: Path) -> None:
    """One user's numbers are none after five steps; the others' results are those of a fleet that he was never in."""
    frozen = exact("gpt2")
    every = users(tmp_path, frozen, 4, {"steps": 20}, METHODS["raw"])
    fleet = Together(every[0], make_method(every[0]).double(), room=4, num_rows=32)
    for number, ready in enumerate(every):
        fleet.enter(str(number), ready)
    others = [x for x in fleet.members if x.name != "1"]
    poisoned = next(x for x in fleet.members if x.name == "1")
    failed: dict[str, UserError] = {}
    for step in range(20):
        if step == 5:
            poison(fleet, poisoned)
        failed |= fleet.step()
    assert list(failed) == ["1"]
    assert isinstance(failed["1"], TrainingFailed)
    assert "the loss became nan" in str(failed["1"])
    assert len(fleet.members) == 3
    for member, ready in zip(others, [every[0], every[2], every[3]], strict=True):
        theirs = alone(ready)[0]
        ours = {name: x.detach() for name, x in fleet.result(member).named_parameters()}
        assert max(float((ours[name] - x).abs().max()) for name, x in theirs.items()) < EXACT


def poison(fleet: Together, member: Member) -> None:
    values = fleet._stack._values["free.0.change_PN"]
    values[fleet.members.index(member)] = math.nan


def test_a_state_of_a_fleet_is_that_of_a_run_of_ones_own(tmp_path: Path) -> None:
    """The same names, shapes and values, so that either goes on with what the other saved."""
    every = users(tmp_path, exact("gpt2"), 3, {"steps": 20, "dev_every": 3}, METHODS["dropout"], all_have_dev=True)
    fleet = Together(every[0], make_method(every[0]).double(), room=3, num_rows=32)
    for number, ready in enumerate(every):
        fleet.enter(str(number), ready)
    for _ in range(8):
        fleet.step()
    for member, ready in zip(list(fleet.members), every, strict=True):
        ours, theirs = fleet.state(member), saved_alone(ready, 8)
        assert ours.tensors.keys() == theirs.tensors.keys()
        for name, x in theirs.tensors.items():
            assert ours.tensors[name].shape == x.shape
            assert torch.allclose(ours.tensors[name].double(), x.double(), rtol=0, atol=EXACT), name
        without = {"seconds", "kept_values"}
        assert ours.position.model_dump(exclude=without) == theirs.position.model_dump(exclude=without)


def test_a_user_goes_on_from_a_state(tmp_path: Path) -> None:
    """Taken up in another company, in another place, after eight steps: what he would have become."""
    every = users(tmp_path, exact("gpt2"), 3, {"steps": 20, "dev_every": 3}, METHODS["dropout"], all_have_dev=True)
    begin = saved_alone(every[1], 8)
    fleet = Together(every[0], make_method(every[0]).double(), room=2, num_rows=32)
    fleet.enter("0", every[0])
    member = fleet.enter("1", every[1], begin)
    while not member.is_done:
        assert not fleet.step()
    theirs, wanted, _ = alone(every[1])
    ours = {name: x.detach() for name, x in fleet.result(member).named_parameters()}
    assert max(float((ours[name] - x).abs().max()) for name, x in theirs.items()) < EXACT
    assert (member.outcome().kept_step, member.outcome().tokens) == (wanted.kept_step, wanted.tokens)


def saved_alone(ready: Prepared, step: int) -> State:
    saver = Saver(step)
    method = make_method(ready).double()
    train(
        ready.frozen,
        method,
        ready.rows,
        plan_of(ready, method),
        steps=ready.steps,
        lr=ready.recipe.lr,
        score=dev_score(ready),
        saver=saver,
    )
    assert saver.state is not None
    return saver.state


class Saver:
    """Keeps the state after one step."""

    def __init__(self, step: int) -> None:
        self._step = step
        self.state: State | None = None

    def is_due(self, step: int) -> bool:
        return step == self._step

    def save(self, state: State) -> None:
        self.state = state


@pytest.mark.parametrize(
    ("method", "training", "words"),
    [
        ({"name": "lora"}, {}, "makes none"),
        ({}, {"base_lr": 1e-5}, "training.base_lr"),
    ],
)
def test_what_no_fleet_trains_is_refused(tmp_path: Path, method: Any, training: Any, words: str) -> None:
    [ready] = users(tmp_path, tiny_family("llama"), 1, training, method)
    with pytest.raises(BadValue, match=words):
        Together(ready, make_method(ready), room=1, num_rows=1)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["raw", "prompt"])
def test_on_a_real_model_in_float32(tmp_path: Path, smollm2: FrozenModel, epigraph_data: Path, method: str) -> None:
    """Guarantee 6: each user's loss at each step within 1e-3, each final prefix within 1e-2, relative."""
    rows = [(x.source, x.references[0]) for x in find("e2e").load("train")[::40]]
    every = []
    for number in range(8):
        own = [{"source": source, "target": target} for source, target in rows[number * 6 : number * 6 + 6 + number]]
        path = write_rows(tmp_path / f"{number}.jsonl", own)
        tables = recipe_tables({"train": path}, {"steps": 12, "batch_size": 2, "lr": 2e-2}, METHODS[method], None)
        recipe = check_recipe(tables)
        task = own_data(path, None, None, str(number), ())
        every.append(prepare_on(smollm2, recipe, task, draw(recipe, task), precision="fp32"))
    fleet = Together(every[0], make_method(every[0]), room=8, num_rows=16)
    members = [fleet.enter(str(number), ready) for number, ready in enumerate(every)]
    while not members[0].is_done:
        assert not fleet.step()
    losses, prefixes = 0.0, 0.0
    for member, ready in zip(members, every, strict=True):
        method_alone, records = make_method(ready), list[Mapping[str, Any]]()
        plan = plan_of(ready, method_alone)
        train(
            smollm2,
            method_alone,
            ready.rows,
            plan,
            steps=12,
            lr=ready.recipe.lr,
            report=records.append,
        )
        pairs = zip(member.records, records, strict=True)
        losses = max(losses, *(abs(one["loss"] - other["loss"]) for one, other in pairs))
        ours, theirs = (flat_numbers(x.fold()) for x in (fleet.result(member), method_alone))
        prefixes = max(prefixes, float((ours - theirs).norm() / theirs.norm()))
    print(f"max_loss_difference {losses:.2e} max_prefix_difference {prefixes:.2e}")
    assert losses < 1e-3
    assert prefixes < 1e-2


def flat_numbers(tokens: Any) -> Tensor:
    return tokens.embeddings_PE.flatten() if isinstance(tokens, SoftPrompt) else flatten(tokens).flatten()
