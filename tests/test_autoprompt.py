"""AutoPrompt: the gradient says which words to try, trying says which to take, and what is found is an artifact."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import FAMILIES, tiny
from epigraph import artifact
from epigraph.frozen.model import FrozenModel
from epigraph.train.batches import Share, endless
from epigraph.train.discrete import Search, Triggers, search, words
from epigraph.train.loop import Outcome, dev_loss
from epigraph.train.loss import token_losses
from epigraph.train.parallel import ALONE
from epigraph.train.parts import TrainingPart
from epigraph.train.state import State
from epigraph.train.stop import Stop
from epigraph.tuned import Tuned
from epigraph.virtual import SoftPrompt
from folders import call, printed, refused, save_family, write_rows
from test_train import rows

# Letters, all among the model's words.
FIRST = [40, 50, 60]
PLAN = TrainingPart(batch_size=4, buckets=False)


def triggers(frozen: FrozenModel, num_candidates: int = 6, first: Iterable[int] = FIRST) -> Triggers:
    ids = list(first)
    return Triggers(ids, frozen.embed(ids), num_candidates=num_candidates, placed=False)


def searching(frozen: FrozenModel, made: Triggers, plan: TrainingPart = PLAN) -> Search:
    return Search(frozen, made, plan, rows(), 1.0, ALONE, Stop())


def windows(num: int, plan: TrainingPart = PLAN) -> list[Share]:
    batches = endless(rows(), plan.batch_size, plan.seed, 0, buckets=plan.buckets)
    return [Share(batch=batch, num_rows=len(batch.ids_BT)) for _, batch in zip(range(num), batches, strict=False)]


def run(frozen: FrozenModel, made: Triggers, steps: int, **options: Any) -> tuple[Outcome, list[dict[str, Any]]]:
    torch.manual_seed(5)
    records: list[dict[str, Any]] = []
    plan = options.pop("plan", PLAN)
    options.setdefault("report", lambda record: records.append(dict(record)))
    return search(frozen, made, rows(), plan, steps=steps, lr=1.0, **options), records


def summed_loss(frozen: FrozenModel, ids: list[int], share: Share) -> float:
    """Each row alone behind the embeddings of those ids."""
    prompt = SoftPrompt(embeddings_PE=frozen.embed(ids))
    total = 0.0
    for ids_T, mask_T, scored_T in zip(share.batch.ids_BT, share.batch.mask_BT, share.batch.scored_BT, strict=True):
        real = mask_T.bool()
        with torch.no_grad(), frozen.bind(prompt):
            logs = frozen.model(input_ids=ids_T[real][None]).logits[0].log_softmax(-1)
        at = [t for t in range(1, int(real.sum())) if scored_T[t]]
        total -= sum(float(logs[t - 1, ids_T[t]]) for t in at)
    return total


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_promises_what_a_small_change_does(family: str) -> None:
    """A thousandth of the way from a word to another, the loss has changed as the gradient says: the sign is right."""
    frozen = tiny(family)
    made, (share, *_) = triggers(frozen), windows(1)
    searcher = searching(frozen, made)
    searcher._descent.gradients([share])
    gradient_PE = made.rows_PE.grad
    assert gradient_PE is not None
    with torch.no_grad():
        start = float(token_losses(frozen, share.batch, made.fold()).double().sum())
        towards = frozen.embed([70])[0] - made.rows_PE[1]
        near = made.with_word(1, made.rows_PE[1] + 1e-3 * towards)
        change = float(token_losses(frozen, share.batch, near).double().sum()) - start
    scale = float(gradient_PE[1] @ towards)
    assert change / (1e-3 * scale) > 0, "the gradient points the other way"


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_the_candidates_are_those_of_the_whole_matrix(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks, without the present word, and in the space of inputs_embeds: Gemma's is 8 times the table's."""
    frozen = tiny(family)
    made = triggers(frozen)
    gradient_E = torch.randn(64, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr("epigraph.train.discrete._CHUNK", 7)
    got = searching(frozen, made)._promising(2, gradient_E)
    allowed = [i for i in words(frozen) if i != FIRST[2]]
    estimates = (frozen.embed(allowed) - frozen.embed([FIRST[2]])) @ gradient_E
    assert got == [allowed[int(i)] for i in estimates.argsort()[:6]]


def test_special_and_unused_tokens_are_no_words() -> None:
    frozen = tiny("llama")
    assert words(frozen) == list(range(4, 100))
    own = {0, 1, 2, 3}
    assert own == set(frozen.tokenizer.all_special_ids)
    assert frozen.model.get_input_embeddings().weight.shape[0] > 100, "rows beyond the tokenizer test nothing"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_step_takes_the_best_candidate_on_rows_that_the_gradient_has_not_seen(family: str) -> None:
    frozen = tiny(family)
    changed = kept = 0
    for seed in range(8):
        made = triggers(frozen)
        searcher = searching(frozen, made)
        shares = windows(2)
        assert not torch.equal(shares[0].batch.ids_BT, shares[1].batch.ids_BT)
        searcher._descent.gradients(shares[:1])
        gradient_PE: Any = made.rows_PE.grad
        torch.manual_seed(seed)
        place = int(torch.randint(3, ()))
        candidates = searcher._promising(place, gradient_PE[place])
        made.rows_PE.grad = None
        torch.manual_seed(seed)
        record = searcher.step(shares, 1.0)
        assert record["place"] == place
        assert record["forwards"] == 1 + 1 + 6
        tried = [FIRST, *([*FIRST[:place], i, *FIRST[place + 1 :]] for i in candidates)]
        losses = [summed_loss(frozen, ids, shares[1]) for ids in tried]
        best = losses.index(min(losses))
        assert made.ids_P.tolist() == tried[best]
        torch.testing.assert_close(made.fold().embeddings_PE, frozen.embed(tried[best]))
        assert record["word"] == frozen.tokenizer.convert_ids_to_tokens(tried[best][place])
        changed, kept = changed + bool(best), kept + (not best)
        assert made.rows_PE.grad is None
    assert changed, "triggers that never change test nothing"


def test_no_word_is_taken_that_is_no_better() -> None:
    """Where the present words are already the best of all on the trial's rows, nothing changes."""
    frozen = tiny("llama")
    shares = windows(2)
    best = min(words(frozen), key=lambda i: summed_loss(frozen, [i], shares[1]))
    made = triggers(frozen, 95, first=[best])
    searching(frozen, made).step(shares, 1.0)
    assert made.ids_P.tolist() == [best]
    worse = triggers(frozen, 95, first=[next(i for i in words(frozen) if i != best)])
    searching(frozen, worse).step(shares, 1.0)
    assert worse.ids_P.tolist() == [best]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_run_lowers_the_loss_and_leaves_the_base(accumulation: int) -> None:
    frozen = tiny("llama")
    before = {name: x.clone() for name, x in frozen.model.state_dict().items()}
    made = triggers(frozen)
    start = dev_loss(frozen, rows(), made)
    plan = PLAN.model_copy(update={"accumulation": accumulation})
    outcome, records = run(frozen, made, 12, plan=plan)
    assert dev_loss(frozen, rows(), made) < start - 0.05
    assert made.ids_P.tolist() != FIRST
    assert {record["place"] for record in records} == {0, 1, 2}
    assert all(record["forwards"] == accumulation * 8 for record in records)
    # The gradient's rows once, the trial's for each of six words and the present one.
    scored = sum(share.num_tokens for share in windows(2 * accumulation)[:accumulation])
    assert records[0]["tokens"] == scored + 7 * sum(x.num_tokens for x in windows(2 * accumulation)[accumulation:])
    assert outcome.tokens == sum(record["tokens"] for record in records)
    for name, x in frozen.model.state_dict().items():
        assert torch.equal(x, before[name]), name
    assert not any(x.requires_grad for x in frozen.model.parameters())


class Kept:
    """A saver that keeps the state after one step."""

    def __init__(self, step: int) -> None:
        self.at, self.state = step, None

    state: State | None

    def is_due(self, step: int) -> bool:
        return step == self.at

    def save(self, state: State) -> None:
        self.state = state


def test_resumed_is_uninterrupted(one_thread: None) -> None:
    """Bit for bit: words, places, the rows of each step, and the best so far."""
    frozen = tiny("gpt2")
    saver, whole = Kept(4), triggers(frozen)
    plan = PLAN.model_copy(update={"dev_every": 3})

    def score(made: Any) -> dict[str, float]:
        return {"loss": dev_loss(frozen, rows()[:5], made)}

    first, records = run(frozen, whole, 9, plan=plan, saver=saver, score=score)
    assert saver.state is not None
    rest = triggers(frozen)
    second, later = run(frozen, rest, 9, plan=plan, begin=saver.state, score=score)
    assert torch.equal(whole.ids_P, rest.ids_P)
    assert torch.equal(whole.fold().embeddings_PE, rest.fold().embeddings_PE)
    assert (first.kept_step, dict(first.kept_dev)) == (second.kept_step, dict(second.kept_dev))

    def bare(some: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{name: x for name, x in record.items() if name != "seconds"} for record in some if record["step"] > 4]

    assert bare(records) == bare(later)


def test_the_best_on_development_rows_is_kept() -> None:
    """Scores that only get worse keep the first."""
    frozen = tiny("llama")
    made, seen = triggers(frozen), list[tuple[list[int], Tensor]]()

    def score(now: Any) -> dict[str, float]:
        seen.append((now.ids_P.tolist(), now.fold().embeddings_PE))
        return {"loss": float(len(seen))}

    outcome, _ = run(frozen, made, 6, plan=PLAN.model_copy(update={"dev_every": 2}), score=score)
    assert outcome.kept_step == 2
    assert seen[0][0] != seen[-1][0], "words that stay test nothing"
    assert made.ids_P.tolist() == seen[0][0]
    assert torch.equal(made.fold().embeddings_PE, seen[0][1])


# Through the command

SUMS = [{"source": f"{a}+{b}", "target": str(a + b)} for a in range(4) for b in range(4)]


@pytest.fixture(scope="module", params=["llama", "bert", "t5"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("autoprompt")
    model = save_family(request.param, folder / request.param)
    data = write_rows(folder / "rows.jsonl", SUMS)
    flags = ["--steps", 4, "--batch-size", 4, "--precision", "fp32", "method.num_candidates=3", "--dev", data]
    template = ["text.input_template={2}{source} is{1} [MASK]."] if request.param == "bert" else []
    counts = [] if template else ["--num-virtual-tokens", 3]
    words = ["train", "--model", model, "--data", data, "--out", folder / "out", "--method", "autoprompt"]
    assert call(*words, *flags, *template, *counts) == 0
    return folder / "out"


def test_what_is_found_is_an_artifact_of_words(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = artifact.load(trained / artifact.FILE_NAME)
    tuned = Tuned.load(trained)
    ids, named = content.provenance["trigger_ids"], content.provenance["trigger_words"]
    assert isinstance(ids, list)
    assert tuned.frozen.tokenizer.convert_ids_to_tokens(ids) == named
    assert isinstance(content.tokens, SoftPrompt)
    # Stored in bfloat16.
    torch.testing.assert_close(content.tokens.embeddings_PE.float(), tuned.frozen.embed(ids), rtol=1e-2, atol=1e-2)
    assert content.tokens.placed == (tuned.frozen.kind != "causal")
    shown = json.loads(printed(capsys, "inspect", trained, "--json"))
    assert shown["provenance"]["trigger_words"] == named
    assert shown["method"]["name"] == "autoprompt"
    assert shown["method"]["config"] == {"num_candidates": 3, "initial_text": None, "num_virtual_tokens": None} | (
        {} if tuned.frozen.kind == "masked" else {"num_virtual_tokens": 3}
    )
    summary = json.loads((trained / "summary.json").read_text())
    assert (summary["steps"], summary["num_virtual_tokens"]) == (4, 3)
    steps = [json.loads(line) for line in (trained / "steps.jsonl").read_text().splitlines()]
    assert [x["forwards"] for x in steps if "forwards" in x] == [5] * 4
    assert summary["tokens"] == sum(x["tokens"] for x in steps if "tokens" in x)


def test_it_starts_from_masks_or_from_the_instruction(trained: Path) -> None:
    """The first step changes one word at most; the others are what it starts from."""
    tuned = Tuned.load(trained)
    recipe = json.loads((trained / "recipe.json").read_text())
    assert recipe["method"]["initial_text"] is None
    tokenizer = tuned.frozen.tokenizer
    first = json.loads((trained / "steps.jsonl").read_text().splitlines()[0])
    start = (
        [tokenizer.mask_token_id] * 3
        if tokenizer.mask_token_id is not None
        else tokenizer("Wri", add_special_tokens=False).input_ids
    )
    assert first["loss"] == pytest.approx(_first_loss(tuned, start), rel=1e-4)


def _first_loss(tuned: Tuned, ids: list[int]) -> float:
    """The mean loss of the first batch, in the run's own order."""
    frozen = tuned.frozen
    taught = [tuned.codec.pair({"source": row["source"]}, row["target"]) for row in SUMS]
    batch = next(iter(endless(taught, 4, 0, 0, buckets=True)))
    prompt = SoftPrompt(embeddings_PE=frozen.embed(ids), placed=tuned.artifact.tokens.placed)
    with torch.no_grad():
        return float(token_losses(frozen, batch, prompt).mean())


def test_an_artifact_of_words_answers(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(trained.parent / "test.jsonl", SUMS)
    said = json.loads(printed(capsys, "evaluate", trained, "--data", data, "--precision", "fp32", "--json"))
    assert said["num_examples"] == len(SUMS)
    assert "loss" in json.loads((trained / "summary.json").read_text())["dev"]


def test_what_it_cannot_do_is_refused(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = json.loads((trained / "recipe.json").read_text())
    data = write_rows(tmp_path / "rows.jsonl", SUMS)
    words = ["train", "--model", recipe["model"], "--data", data, "--method", "autoprompt", "--steps", 2]
    words += ["--out", tmp_path / "out", "--precision", "fp32"]
    if "bert" in recipe["model"]:
        labelled = [f"text.labels={json.dumps([str(x) for x in range(7)])}"]
        assert "answered by a head" in refused(capsys, *words, *labelled)
        words.append("text.input_template={source}[MASK]")
    assert "base_lr trains the model" in refused(capsys, *words, "training.base_lr=1e-4")
    said = refused(capsys, *words, "method.num_candidates=5000")
    assert "method.num_candidates is 5000, expected less than 96, the words of " in said
