"""In context: solved training examples in front of every row, whole, and the answer that the model says behind them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import tiny
from epigraph.contract import TextContract
from epigraph.errors import BadValue
from epigraph.frozen.inputs import Codec
from epigraph.frozen.model import FrozenModel
from epigraph.tasks.base import Example, Task
from epigraph.train import kept
from epigraph.train.answering import open_run
from epigraph.train.baselines.in_context import drawn, shot, with_shots
from epigraph.train.recipe_file import check_recipe
from families import tiny_family
from folders import call, printed, refused, save_family, write_rows

LABELS, WORDS = ("even", "odd"), ("no", "nothing at all")


def examples(count: int, start: int = 0) -> list[Example]:
    return [Example(source=f"say {n}", references=(f"it is {n}.",)) for n in range(start, start + count)]


def labelled(count: int) -> list[Example]:
    """Nine of ten are even."""
    return [Example(source=f"{n}", references=(LABELS[n % 10 == 0],)) for n in range(count)]


def made(
    frozen: FrozenModel, some: Sequence[Example], seed: int = 0, num_examples: int = 3, **text: Any
) -> tuple[TextContract, str]:
    """The contract with the examples in it, and their text."""
    method = {"name": "in-context", "num_examples": num_examples}
    recipe = check_recipe({"data": {"task": "cards"}, "method": method, "training": {"seed": seed}})
    task = Task(name="own", summary="", instruction="", splits={}, score=lambda *_: None)  # type: ignore[arg-type, return-value]
    base = {"layout": {"masked": "cloze", "encoder-decoder": "answer"}.get(frozen.kind, "continuation")}
    contract, fields = with_shots(recipe, task, frozen, TextContract.model_validate({**base, **text}), some)
    assert set(fields) == {"shots"}
    return contract, fields["shots"]


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ({}, "say {x}\nno"),
        ({"input_template": "{source} is [MASK] ."}, "say {x} is no ."),
        ({"input_template": "{source} is [MASK] .", "target_template": " {target}"}, "say {x} is no ."),
        ({"layout": "cloze", "input_template": "[MASK]? {more}: {source}"}, "no? [MASK]: say {x}"),
        ({"layout": "answer", "input_template": "do: {source}"}, "do: say {x}\nno"),
        ({"layout": "answer", "input_template": "{source}: [MASK]."}, "say {x}: no."),
        ({"labels": LABELS, "label_words": WORDS}, "say {x}\nnothing at all"),
    ],
)
def test_an_example_is_written_as_its_contract_says(text: dict[str, Any], want: str) -> None:
    """What a row spells is text, whatever it looks like; a label is called by its word."""
    answer = "odd" if "labels" in text else "no"
    example = Example(source="say {x}", references=(answer,), further={"more": "[MASK]"})
    assert shot(TextContract.model_validate(text), example) == want


def test_the_seed_draws_and_each_source_stands_once() -> None:
    twice = [*examples(5), *examples(5)]
    first = [x.source for x in drawn(TextContract(), twice, 1)]
    assert sorted(first) == [f"say {n}" for n in range(5)]
    assert first == [x.source for x in drawn(TextContract(), twice, 1)]
    assert len({tuple(x.source for x in drawn(TextContract(), twice, seed)) for seed in range(6)}) > 3


def test_classes_take_turns() -> None:
    """However rare one is, and not always in the same order."""
    contract = TextContract(labels=LABELS)
    firsts = set()
    for seed in range(8):
        order = [x.references[0] for x in drawn(contract, labelled(40), seed)]
        assert len(order) == 40
        for pair in range(4):
            assert set(order[2 * pair : 2 * pair + 2]) == set(LABELS)
        firsts.add(order[0])
    assert firsts == set(LABELS)


def test_the_examples_stand_in_front_of_every_row_and_nothing_else_changes() -> None:
    frozen = tiny("llama")
    contract, shots = made(frozen, examples(9))
    assert contract.input_template == "{shots}{source}\n"
    assert shots.count("\n\n") == 3
    assert shots.endswith(".\n\n")
    codec = Codec(frozen.tokenizer, contract, {"shots": shots})
    row = codec.pair({"source": "say 99"}, "it is 99.")
    assert frozen.tokenizer.decode(row.ids) == f"{shots}say 99\nit is 99.</s>"
    said = [token for token, counts in zip(row.ids, row.scored, strict=True) if counts]
    assert frozen.tokenizer.decode(said) == "it is 99.</s>"


def test_a_said_answer_ends_with_its_line_or_with_a_blank_one() -> None:
    frozen = tiny("llama")
    assert made(frozen, examples(9))[0].stop == ("\n",)
    longer = [*examples(9), Example(source="x", references=("two\nlines",))]
    assert made(frozen, longer, stop=("END",))[0].stop == ("END", "\n\n")
    assert made(frozen, labelled(20), labels=LABELS)[0].stop == ()


def test_examples_that_are_too_long_are_passed_over() -> None:
    """GPT-2 has 96 positions here: 16 for the answer, half of the rest for the row."""
    frozen = tiny("gpt2")
    some = [Example(source="x" * 60, references=("y",)), *examples(6)]
    contract, shots = made(frozen, some, num_examples=6, max_target_tokens=16)
    assert contract.max_source_tokens == 80
    # 17 characters and a blank line each.
    assert [shots.count("\n\n"), "x" * 60 in shots] == [2, False]
    assert len(frozen.tokenizer(shots).input_ids) <= 40
    assert made(frozen, some, num_examples=1, max_target_tokens=16)[1].count("\n\n") == 1
    with pytest.raises(BadValue, match="none of 1 training examples fits into 40 tokens, which is what tiny-gpt2 has"):
        made(frozen, some[:1], max_target_tokens=16)


def test_a_row_that_is_too_long_is_cut_and_not_the_examples() -> None:
    """Also where the examples are the longest of all fields; and no field of a row takes their place."""
    frozen = tiny("gpt2")
    contract, shots = made(frozen, examples(6), num_examples=2, max_target_tokens=16)
    codec = Codec(frozen.tokenizer, contract, {"shots": shots})
    assert len(shots) == 32
    row = codec.source({"source": "z" * 60})
    assert (row.truncated, len(row.ids)) == (True, 80)
    assert frozen.tokenizer.decode(row.ids) == f"{shots}{'z' * 47}\n"
    short = codec.source({"source": "z", "shots": "mine", "more": "w" * 99})
    assert frozen.tokenizer.decode(short.ids) == f"{shots}z\n"
    two = contract.model_copy(update={"input_template": "{shots}{more}{source}\n"})
    row = Codec(frozen.tokenizer, two, {"shots": shots}).source({"source": "z" * 29, "more": "y" * 30})
    assert frozen.tokenizer.decode(row.ids) == f"{shots}{'y' * 18}{'z' * 29}\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            {"layout": "label", "labels": LABELS},
            "layout 'label' is answered by a head, which nothing trains in context",
        ),
        ({"chat_template_hash": "a" * 64}, "the rows are conversations; use plain rows"),
        ({"input_template": "{shots}{source}"}, "input_template has a field {shots}"),
        ({"stop": [str(x) for x in range(16)]}, "at most 16 items"),
    ],
)
def test_what_cannot_be_shown_is_refused(text: dict[str, Any], words: str) -> None:
    with pytest.raises(BadValue) as caught:
        made(tiny("llama"), examples(3), **text)
    assert words in str(caught.value)


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_other_kinds_of_model_read_the_examples_too(family: str) -> None:
    frozen = tiny_family(family)
    template = "{source} is [MASK] ." if family == "bert" else "{source}"
    contract, shots = made(frozen, examples(5), input_template=template, max_target_tokens=12)
    codec = Codec(frozen.tokenizer, contract, {"shots": shots})
    read = codec.source({"source": "say 9"}).ids
    mask = frozen.tokenizer.mask_token_id
    assert frozen.tokenizer.decode([x for x in read if x != mask]).startswith(shots)
    assert list(read).count(mask) == (family == "bert")


# Through the command

TRAIN = [{"source": f"{a}+{b}", "target": str(a + b)} for a in range(5) for b in range(5)]
DEV = [{"source": f"7+{b}", "target": str(7 + b)} for b in range(5)]


def trained(folder: Path, family: str, *more: object) -> Path:
    model = save_family(family, folder / family)
    data, dev = write_rows(folder / "rows.jsonl", TRAIN), write_rows(folder / "dev.jsonl", DEV)
    words = ["train", "--model", model, "--data", data, "--dev", dev, "--method", "in-context", "--precision", "fp32"]
    assert call(*words, "--out", folder / "out", "--seed", 4, *more) == 0
    return folder / "out"


def test_the_command_answers_behind_the_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By hand: the text with the examples written out, greedy, up to the first line break."""
    out = trained(tmp_path, "llama", "text.max_target_tokens=12")
    content = kept.load(out / kept.FILE_NAME)
    shots = content.fields["shots"]
    pairs = [text.split("\n") for text in shots.removesuffix("\n\n").split("\n\n")]
    known = {row["source"]: row["target"] for row in TRAIN}
    assert len(pairs) == 5
    assert all(known[source] == target for source, target in pairs), "an example of another file, or a wrong answer"
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["steps"], summary["trained_numbers"], summary["stored_numbers"]) == (0, 0, 0)
    assert summary["dev"]["loss"] == pytest.approx(_dev_loss(out, shots), rel=1e-4)
    data = write_rows(tmp_path / "test.jsonl", DEV)
    printed(capsys, "evaluate", out, "--data", data, "--precision", "fp32", "--json")
    record = json.loads((out / "evaluations" / "after-test.json").read_text())
    frozen = open_run(out).frozen
    said = []
    for row in DEV:
        ids = torch.tensor([frozen.tokenizer(f"{shots}{row['source']}\n", add_special_tokens=False).input_ids])
        with torch.no_grad():
            new = frozen.model.generate(ids, max_new_tokens=12, do_sample=False, attention_mask=torch.ones_like(ids))
        text = frozen.tokenizer.decode(new[0, ids.shape[1] :], skip_special_tokens=True)
        said.append(text.split("\n")[0].strip())
    assert [x["prediction"] for x in record["examples"]] == said
    assert any(said)


def _dev_loss(out: Path, shots: str) -> float:
    frozen = open_run(out).frozen
    losses = []
    for row in DEV:
        asked, target = (
            frozen.tokenizer(x, add_special_tokens=False).input_ids
            for x in (f"{shots}{row['source']}\n", row["target"])
        )
        ids = [*asked, *target, frozen.tokenizer.eos_token_id]
        with torch.no_grad():
            logs = frozen.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        losses += [-float(logs[t - 1, ids[t]]) for t in range(len(asked), len(ids))]
    return sum(losses) / len(losses)


def test_labels_are_ranked_behind_the_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"source": f"{n}", "target": LABELS[n % 2]} for n in range(12)]
    model, data = save_family("llama", tmp_path / "llama"), write_rows(tmp_path / "rows.jsonl", rows)
    text = [f"text.labels={json.dumps(LABELS)}", f"text.label_words={json.dumps(WORDS)}"]
    words = ["train", "--model", model, "--data", data, "--method", "in-context", "--precision", "fp32"]
    assert call(*words, "--out", tmp_path / "out", "method.num_examples=4", *text) == 0
    printed(capsys, "evaluate", tmp_path / "out", "--data", data, "--precision", "fp32", "--json")
    record = json.loads((tmp_path / "out" / "evaluations" / "after-test.json").read_text())
    shots = kept.load(tmp_path / "out" / kept.FILE_NAME).fields["shots"]
    answers = [text.split("\n")[1] for text in shots.removesuffix("\n\n").split("\n\n")]
    assert sorted(answers) == sorted(WORDS * 2)
    frozen = open_run(tmp_path / "out").frozen
    want = []
    for row in rows:
        scores = []
        for word in WORDS:
            asked, said = (
                frozen.tokenizer(x, add_special_tokens=False).input_ids for x in (f"{shots}{row['source']}\n", word)
            )
            with torch.no_grad():
                logs = frozen.model(input_ids=torch.tensor([[*asked, *said]])).logits[0].log_softmax(-1)
            scores.append(sum(float(logs[len(asked) - 1 + at, token]) for at, token in enumerate(said)))
        want.append(LABELS[scores.index(max(scores))])
    assert [x["prediction"] for x in record["examples"]] == want


def test_another_seed_shows_other_examples(tmp_path: Path) -> None:
    frozen = tiny("llama")
    texts = {made(frozen, examples(30), seed)[1] for seed in range(4)}
    assert len(texts) == 4


def test_heads_and_conversations_are_refused_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = save_family("bert", tmp_path / "bert"), write_rows(tmp_path / "rows.jsonl", TRAIN)
    labels = f"text.labels={json.dumps([str(x) for x in range(9)])}"
    words = ["train", "--model", model, "--data", data, "--method", "in-context", "--out", tmp_path / "out", labels]
    assert "layout 'label' is answered by a head" in refused(capsys, *words)
