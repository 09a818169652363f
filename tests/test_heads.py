"""Heads through the command: trained beside the virtual tokens, kept in the artifact, and asked as computed by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from epigraph import artifact
from epigraph.artifact import Artifact
from epigraph.frozen.answers import answer_logits
from epigraph.frozen.batch import collate
from epigraph.frozen.inputs import FIRST_SLOT
from epigraph.tuned import Tuned
from folders import call, printed, refused, save_family, write_rows

LABELS, TAGS = ("one", "two", "three"), ("A", "B")
# What a row is about is plain to see, and rows are of several lengths.
ROWS = [{"source": "a7~"[n % 3] * (1 + n // 3), "target": LABELS[n % 3]} for n in range(18)]
TAGGED = [
    {"source": "red fox", "target": "A B"},
    {"source": "owl", "target": "B"},
    {"source": "the old grey wolf", "target": "A A A B"},
]
# What reads the text: a prefix, which has no places in it, and a prompt, whose places no mean counts.
METHODS = {"prefix": ["--num-virtual-tokens", 3], "prompt": ["--method", "prompt-tuning", "--num-virtual-tokens", 4]}
HEADS = {
    "first": [f"text.labels={json.dumps(LABELS)}"],
    "mean": [f"text.labels={json.dumps(LABELS)}", "text.pooling=mean"],
    "tags": [f"text.labels={json.dumps(TAGS)}", "text.layout=tags"],
}


@pytest.fixture(scope="module", params=["bert", "bert without a language-modelling head"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family(request.param, tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("rows")
    rows, tagged = write_rows(folder / "rows.jsonl", ROWS), write_rows(folder / "tagged.jsonl", TAGGED)
    return {"first": rows, "mean": rows, "tags": tagged}


Train = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def train(model: Path, files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Train:
    """A run of that head with that method, made once."""
    made: dict[tuple[str, str], Path] = {}

    def run(head: str, method: str) -> Path:
        if (head, method) not in made:
            out = tmp_path_factory.mktemp("runs") / f"{head}-{method}"
            flags = ["--steps", 20, "--batch-size", 8, "--precision", "fp32", "training.head_lr=0.05", "--out", out]
            words = ["train", "--model", model, "--data", files[head], *flags]
            assert call(*words, *METHODS[method], *HEADS[head]) == 0
            made[head, method] = out
        return made[head, method]

    return run


def by_hand(tuned: Tuned, head: str, source: str) -> Tensor:
    """``[S, C]`` logits of one row alone, spelt out: start, slots, characters, end; the head from the file."""
    frozen, tokenizer = tuned.frozen, tuned.frozen.tokenizer
    start, end = tokenizer.cls_token_id, tokenizer.sep_token_id
    text = tokenizer(source, add_special_tokens=False).input_ids
    num_slots = tuned.artifact.contract.num_slots
    ids = torch.tensor([[start, *range(FIRST_SLOT, FIRST_SLOT + num_slots), *text, end]])
    with torch.no_grad(), frozen.bind(tuned.prefix):
        states: Tensor = frozen.model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[
            0
        ]
    own = [0, *range(1 + num_slots, ids.shape[1])]
    if head == "first":
        read = states[:1]
    elif head == "mean":
        read = states[own].mean(0, keepdim=True)
    else:
        words = [at for at in range(len(source)) if at == 0 or source[at - 1] == " "]
        # A blank is said with the word behind it.
        read = states[[1 + num_slots + max(0, at - 1) for at in words]]
    weight, bias = (tuned.artifact.extra[f"head.{name}"] for name in ("weight", "bias"))
    return read @ weight.float().T + bias.float()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("head", HEADS)
def test_a_head_answers_as_computed_by_hand(
    train: Train, files: dict[str, Path], head: str, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = train(head, method)
    tuned = Tuned.load(out)
    rows = TAGGED if head == "tags" else ROWS
    logits = [by_hand(tuned, head, row["source"]) for row in rows]
    taught = [tuned.codec.pair({"source": row["source"]}, row["target"]) for row in rows]
    with torch.no_grad():
        together, right = answer_logits(tuned.frozen, collate(taught, 0), tuned.prefix, tuned.head)
    torch.testing.assert_close(together, torch.cat(logits), rtol=1e-4, atol=1e-4)
    labels = tuned.artifact.contract.labels
    assert [labels[x] for x in right] == " ".join(row["target"] for row in rows).split()
    want = [" ".join(labels[x] for x in one.argmax(-1)) for one in logits]
    assert len(set(want)) > 1, "a head that says one thing only tests nothing"
    printed(capsys, "evaluate", out, "--data", files[head], "--precision", "fp32", "--json")
    kept = json.loads((out / "evaluations" / "after-test.json").read_text())
    assert [x["prediction"] for x in kept["examples"]] == want
    assert printed(capsys, "generate", out, rows[0]["source"]) == f"{want[0]}\n"
    if head == "tags":
        assert kept["scores"]["exact_match"] == pytest.approx(
            100 * sum(x == row["target"] for x, row in zip(want, rows, strict=True)) / len(rows)
        )
    else:
        assert kept["scores"]["accuracy"] == pytest.approx(
            100 * sum(x == row["target"] for x, row in zip(want, rows, strict=True)) / len(rows)
        )


@pytest.mark.parametrize("head", HEADS)
def test_the_head_is_in_the_artifact(train: Train, head: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = train(head, "prefix")
    with safe_open(out / artifact.FILE_NAME, "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys() if "head" in name}  # noqa: SIM118
    num_classes = len(TAGS if head == "tags" else LABELS)
    assert shapes == {"extra.head.weight": [num_classes, 64], "extra.head.bias": [num_classes]}
    summary = json.loads((out / "summary.json").read_text())
    kv = 3 * 3 * 2 * 4 * 16
    assert summary["stored_numbers"] == summary["trained_numbers"] == kv + num_classes * 65
    contract = json.loads(printed(capsys, "inspect", out, "--json"))["contract"]
    assert contract["layout"] == ("tags" if head == "tags" else "label")
    assert contract["pooling"] == ("mean" if head == "mean" else "first")


def test_a_head_learns(train: Train) -> None:
    answers = Tuned.load(train("mean", "prefix")).generate([row["source"] for row in ROWS])
    assert sum(x == row["target"] for x, row in zip(answers, ROWS, strict=True)) >= 15


def changed(content: Artifact, **extra: Tensor | None) -> Artifact:
    kept = {**content.extra, **{f"head.{name}": x for name, x in extra.items()}}
    return replace(content, extra={name: x for name, x in kept.items() if x is not None})


@pytest.mark.parametrize(
    ("extra", "want"),
    [
        ({"weight": None, "bias": None}, "the artifact's head.weight is missing, expected [3, 64] (labels, width of"),
        ({"bias": None}, "the artifact's head.bias is missing, expected [3]"),
        ({"weight": torch.zeros(3, 32)}, "the artifact's head.weight is [3, 32], expected [3, 64]"),
        ({"weight": torch.zeros(2, 64)}, "the artifact's head.weight is [2, 64], expected [3, 64]"),
        ({"bias": torch.zeros(4)}, "the artifact's head.bias is [4], expected [3]"),
        ({"weight": torch.zeros(64, 3)}, "the artifact's head.weight is [64, 3], expected [3, 64]"),
    ],
)
def test_a_head_that_does_not_fit_is_refused_by_name(
    train: Train,
    model: Path,
    files: dict[str, Path],
    tmp_path: Path,
    extra: dict[str, Any],
    want: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "a.safetensors"
    artifact.save(changed(artifact.load(train("first", "prefix") / artifact.FILE_NAME), **extra), file)
    for words in (["generate", file, "1+1"], ["evaluate", file, "--data", files["first"]]):
        assert want in refused(capsys, *words, "--model", model)


def test_a_head_of_another_model_is_refused(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = save_family("electra discriminator", tmp_path / "electra")
    said = refused(capsys, "generate", train("first", "prompt"), "1+1", "--model", other)
    assert "which is built otherwise" in said


@pytest.mark.parametrize(
    ("more", "want"),
    [
        (["text.pooling=last"], "text.pooling: got \"last\", expected: 'first', 'mean' or 'mask'"),
        (["text.layout=tags", "text.pooling=mean"], "pooling = 'mean' is for layout = 'label', got 'tags'"),
        (["text.layout=tags", "text.input_template=words"], "layout = 'tags' needs {source}"),
        (["text.layout=continuation"], "can be asked by"),
        (["text.layout=label", "text.input_template={source} [MASK]"], "take [MASK] out of input_template"),
    ],
)
def test_heads_that_make_no_sense_are_refused(
    model: Path, files: dict[str, Path], tmp_path: Path, more: list[str], want: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--model", model, "--data", files["first"], "--out", tmp_path / "out", HEADS["first"][0]]
    assert want in refused(capsys, *words, *more)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("target", "want"),
    [
        ("A", "1 tags for 2 words; a row needs one tag a word"),
        ("A C", "the target 'C' is no label, expected one of 'A', 'B'"),
    ],
)
def test_tags_that_do_not_fit_the_words_are_refused(
    model: Path, tmp_path: Path, target: str, want: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [*TAGGED, {"source": "red hen", "target": target}])
    assert want in refused(capsys, "train", "--model", model, "--data", data, "--out", tmp_path / "out", *HEADS["tags"])


def test_several_heads_are_not_asked_together(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    one = train("first", "prefix")
    assert "several heads cannot be asked together" in refused(capsys, "generate", one, "1+1", "--with", one)


def test_what_a_head_reads_decides(train: Train) -> None:
    """The same run read by the other pooling answers otherwise, or all of this tests one of the two."""
    tuned = Tuned.load(train("mean", "prompt"))
    for row in ROWS:
        first, mean = (by_hand(tuned, head, row["source"]) for head in ("first", "mean"))
        assert float((first - mean).abs().max()) > 1e-2
