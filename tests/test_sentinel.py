"""``text.target_sentinel``: T5's first sentinel in front of every target, counted by the loss and shown to nobody.

(Lester et al. 2021, section 3.2: "Span Corruption + Sentinel".)
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from epigraph import artifact
from epigraph.contract import Decoding
from epigraph.frozen.batch import num_scored
from epigraph.frozen.generate import generate
from epigraph.frozen.inputs import Codec
from epigraph.tuned import Tuned
from families import KINDS, tiny_family
from folders import call, printed, refused, save_family, write_rows

SUMS = [{"source": f"{a}+{b}", "target": str(a + b)} for a in range(4) for b in range(4)]
SENTINEL = "text.target_sentinel=true"


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family("t5", tmp_path_factory.mktemp("models") / "t5")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "sums.jsonl", SUMS)


@pytest.fixture(scope="module")
def trained(t5: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "out"
    assert call(*words(t5, rows, out), SENTINEL, "training.accumulation=4", "--steps", 1) == 0
    return out


def words(model: Path, rows: Path, out: Path) -> list[object]:
    flags = ["--num-virtual-tokens", 3, "--batch-size", 4, "--precision", "fp32", "--seed", 3]
    return ["train", "--model", model, "--data", rows, *flags, "--out", out]


def test_every_target_begins_with_the_sentinel_and_no_source_does(trained: Path) -> None:
    contract = artifact.load(trained / artifact.FILE_NAME).contract
    assert contract.target_template == "<extra_id_0>{target}"
    tokenizer = tiny_family("t5").tokenizer
    sentinel, end = tokenizer.convert_tokens_to_ids("<extra_id_0>"), tokenizer.eos_token_id
    codec = Codec(tokenizer, contract)
    for row in SUMS:
        taught = codec.pair({"source": row["source"]}, row["target"])
        plain = tokenizer(row["target"], add_special_tokens=False).input_ids
        assert taught.answer == (sentinel, *plain, end)
        assert sentinel not in taught.ids
        assert num_scored(taught) == len(plain) + 2


def test_the_loss_counts_the_sentinel_like_any_token(trained: Path, t5: Path) -> None:
    """The first step's loss by hand: every row alone, each of its tokens, over the first values."""
    first = json.loads((trained / "steps.jsonl").read_text().splitlines()[0])
    assert first["step"] == 1
    from epigraph.train.build import make_method
    from epigraph.train.folder import given_tables
    from epigraph.train.prepare import prepare
    from epigraph.train.recipe_file import check_recipe

    ready = prepare(check_recipe(given_tables(trained)))
    frozen, tokens = ready.frozen, make_method(ready).fold()
    sentinel = frozen.tokenizer.convert_tokens_to_ids("<extra_id_0>")
    said: list[tuple[int, float]] = []
    for row in ready.rows:
        decoder = torch.tensor([[0, *row.answer[:-1]]])
        with torch.no_grad(), frozen.bind(tokens):
            logs = frozen.model(input_ids=torch.tensor([row.ids]), decoder_input_ids=decoder).logits[0].log_softmax(-1)
        said += [(token, -float(logs[place, token])) for place, token in enumerate(row.answer)]
    every, without = [x for _, x in said], [x for token, x in said if token != sentinel]
    assert first["loss"] == pytest.approx(sum(every) / len(every), rel=1e-4)
    assert not math.isclose(sum(without) / len(without), first["loss"], rel_tol=1e-2)


def test_answers_do_not_show_it(trained: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model whose head is turned to the sentinel says it first, and its user never sees it."""
    tuned = Tuned.load(trained)
    sentinel = tuned.frozen.tokenizer.convert_tokens_to_ids("<extra_id_0>")
    head = tuned.frozen.model.get_output_embeddings()

    def first(module: torch.nn.Module, args: tuple[torch.Tensor, ...], logits: torch.Tensor) -> torch.Tensor:
        """The sentinel wherever it has not been said yet."""
        logits[..., sentinel] = torch.where(next(said), torch.inf, -torch.inf)
        return logits

    said = iter([torch.tensor(True), *[torch.tensor(False)] * 50])
    handle = head.register_forward_hook(first)
    asked = tuned.codec.source({"source": "2+1"})
    decoding = Decoding(max_new_tokens=5, min_new_tokens=5)
    [new] = generate(tuned.frozen, [asked.ids], tuned.prefix, decoding)
    assert new[0] == sentinel
    assert len(new) == 5
    said = iter([torch.tensor(True), *[torch.tensor(False)] * 50])
    [answer] = tuned.generate(["2+1"], decoding=decoding)
    handle.remove()
    assert answer == tuned.frozen.tokenizer.decode(new[1:], skip_special_tokens=True).strip()
    assert "extra_id" not in answer
    assert "extra_id" not in printed(capsys, "generate", trained, "2+1", "--max-new-tokens", 5)


def test_it_stands_before_a_template_of_ones_own(t5: Path, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert call(*words(t5, rows, out), SENTINEL, "text.target_template=is {target}", "--steps", 1) == 0
    assert artifact.load(out / artifact.FILE_NAME).contract.target_template == "<extra_id_0>is {target}"


def test_without_it_there_is_none(t5: Path, rows: Path, tmp_path: Path) -> None:
    assert call(*words(t5, rows, tmp_path / "out"), "--steps", 1) == 0
    assert artifact.load(tmp_path / "out" / artifact.FILE_NAME).contract.target_template == "{target}"


def test_a_label_is_behind_it_too(t5: Path, tmp_path: Path) -> None:
    """All labels begin alike then, so that the rest of them decides; the twin adds the log-probabilities up by hand."""
    data = write_rows(
        tmp_path / "rows.jsonl", [{"source": x["source"], "target": "ab"[i % 2]} for i, x in enumerate(SUMS)]
    )
    assert call(*words(t5, data, tmp_path / "out"), SENTINEL, 'text.labels=["a","b"]', "--steps", 1) == 0
    tuned = Tuned.load(tmp_path / "out")
    sentinel = tuned.frozen.tokenizer.convert_tokens_to_ids("<extra_id_0>")
    by_hand = []
    for row in SUMS:
        asked = torch.tensor([tuned.codec.source({"source": row["source"]}).ids])
        with torch.no_grad(), tuned.frozen.bind(tuned.prefix):
            out = tuned.frozen.model(input_ids=asked, decoder_input_ids=torch.tensor([[0, sentinel]])).logits[0, -1]
        ids = [tuned.frozen.tokenizer.convert_tokens_to_ids(x) for x in "ab"]
        by_hand.append("ab"[int(out[ids].argmax())])
    assert tuned.generate([row["source"] for row in SUMS]) == by_hand


@pytest.mark.parametrize("family", ["llama", "bart", "bert", "bert without a language-modelling head"])
def test_a_model_without_sentinels_is_refused_by_name(
    family: str, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_family(family, tmp_path / "model")
    if family == "bart":
        from conftest import tiny_tokenizer

        tiny_tokenizer().save_pretrained(model)
    more = ["text.input_template={source} is [MASK]."] if family == "bert" else []
    said = refused(capsys, *words(model, rows, tmp_path / "out"), SENTINEL, *more)
    assert said == (
        "epigraph: text.target_sentinel is for encoder-decoders that were trained on missing spans and have the token "
        f"<extra_id_0> (T5's), model ({KINDS[family]}) is none; leave it out"
    )
    assert not (tmp_path / "out").exists()
