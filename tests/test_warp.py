"""WARP: class vectors beside virtual tokens, read at the mask in the space of the model's own words, as by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import gelu

from epigraph import artifact
from epigraph.contract import TextContract
from epigraph.errors import BadValue
from epigraph.frozen.answers import Head, answer_logits
from epigraph.frozen.batch import collate
from epigraph.frozen.classes import first_class_vectors
from epigraph.frozen.inputs import FIRST_SLOT, Codec
from epigraph.frozen.model import FrozenModel
from epigraph.train.build import head_for
from epigraph.tuned import Tuned
from families import tiny_family
from folders import call, printed, refused, save_family, write_rows
from test_heads import changed

LABELS, WORDS = ("one", "two", "three"), ("a", "bcd", "k")
ROWS = [{"source": "a7~"[n % 3] * (1 + n // 3), "target": LABELS[n % 3]} for n in range(18)]
# The mask stands neither first nor last, and at another column in rows of other lengths.
TEMPLATE = "{2}{source} is{1} [MASK] {1}."
FAMILIES = ("bert", "roberta", "albert", "electra", "bert without a language-modelling head", "electra discriminator")


def contract(**changes: Any) -> TextContract:
    known = {"layout": "label", "labels": LABELS, "label_words": WORDS, "pooling": "mask", "input_template": TEMPLATE}
    return TextContract.model_validate({**known, "bos": True, "ends_source": True, "eos": False, **changes})


def at_mask(frozen: FrozenModel, tokens: Any, source: str, num_slots: int = 4) -> Tensor:
    """``[W]``: the row alone, spelt out; the transform of each family's head as its own modules."""
    tokenizer = frozen.tokenizer
    start, end, mask = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id
    spelt = tokenizer(f"{source} is", add_special_tokens=False).input_ids
    slots = list(range(FIRST_SLOT, FIRST_SLOT + num_slots))
    # A blank behind a slot begins the next piece; the one before the slot belongs to none.
    ids = [start, *slots[:2], *spelt, slots[2], mask, slots[3], tokenizer.convert_tokens_to_ids("."), end]
    with torch.no_grad(), frozen.bind(tokens):
        states = frozen.model.base_model(
            input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long)
        ).last_hidden_state[0]
        return transformed(frozen.model, states[ids.index(mask)])


def transformed(model: Any, state_D: Tensor) -> Tensor:
    match type(model).__name__:
        case "BertForMaskedLM":
            made = model.cls.predictions.transform(state_D)
        case "RobertaForMaskedLM":
            made = model.lm_head.layer_norm(gelu(model.lm_head.dense(state_D)))
        case "AlbertForMaskedLM":
            head = model.predictions
            made = head.LayerNorm(head.activation(head.dense(state_D)))
        case "ElectraForMaskedLM":
            made = model.generator_predictions(state_D)
        case _:
            made = state_D
    assert isinstance(made, Tensor)
    return made


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def trained(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("warp")
    model = save_family(family, folder / "model")
    data = write_rows(folder / "rows.jsonl", ROWS)
    flags = ["--steps", 60, "--batch-size", 8, "--precision", "fp32", "training.head_lr=0.05", "--out", folder / "out"]
    text = [f"text.labels={json.dumps(LABELS)}", f"text.label_words={json.dumps(WORDS)}"]
    more = ["text.pooling=mask", f"text.input_template={TEMPLATE}", "--method", "p-tuning"]
    assert call("train", "--model", model, "--data", data, *flags, *text, *more) == 0
    return folder / "out"


def test_the_head_reads_the_mask_and_nothing_else(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows of several lengths in one batch, against each row alone and by hand."""
    tuned = Tuned.load(trained)
    weight = tuned.artifact.extra["head.weight"].float()
    want = torch.stack([weight @ at_mask(tuned.frozen, tuned.prefix, row["source"]) for row in ROWS])
    taught = [tuned.codec.pair({"source": row["source"]}, row["target"]) for row in ROWS]
    with torch.no_grad():
        together, right = answer_logits(tuned.frozen, collate(taught, 0), tuned.prefix, tuned.head)
    torch.testing.assert_close(together, want, rtol=1e-4, atol=1e-4)
    assert [LABELS[x] for x in right] == [row["target"] for row in ROWS]
    said = [LABELS[int(x)] for x in want.argmax(1)]
    assert len(set(said)) > 1, "a head that says one thing only tests nothing"
    assert tuned.generate([row["source"] for row in ROWS]) == said
    data = write_rows(trained.parent / "test.jsonl", ROWS)
    printed(capsys, "evaluate", trained, "--data", data, "--precision", "fp32", "--json")
    kept = json.loads((trained / "evaluations" / "after-test.json").read_text())
    assert [x["prediction"] for x in kept["examples"]] == said


def test_the_artifact_holds_class_vectors_without_a_bias(trained: Path, family: str) -> None:
    width = 32 if family in ("albert", "electra") else 64
    with safe_open(trained / artifact.FILE_NAME, "pt") as file:
        heads = {name: file.get_slice(name).get_shape() for name in file.keys() if "head" in name}  # noqa: SIM118
    assert heads == {"extra.head.weight": [len(LABELS), width]}
    kept = artifact.load(trained / artifact.FILE_NAME).contract
    assert (kept.layout, kept.pooling, kept.label_words) == ("label", "mask", WORDS)


def test_it_learns(trained: Path) -> None:
    answers = Tuned.load(trained).generate([row["source"] for row in ROWS])
    assert sum(x == row["target"] for x, row in zip(answers, ROWS, strict=True)) >= 12


@pytest.mark.parametrize("family", ["bert", "roberta", "albert", "electra"])
def test_it_starts_as_the_words_of_its_labels(family: str) -> None:
    """Untrained, a class of a one-token word has the word's own logit at the mask, but for the vocabulary's bias."""
    frozen = tiny_family(family)
    words = frozen.model.get_output_embeddings()
    with torch.no_grad():
        words.bias.normal_(generator=torch.Generator().manual_seed(3))
    made = contract(input_template="{source} is [MASK] .", label_words=("a", "bc", "k"))
    head = head_for(frozen, made)
    assert head.bias is None
    batch = collate([Codec(frozen.tokenizer, made).pair({"source": "abc"}, "one")], 0)
    at = int(batch.scored_BT.nonzero()[0, 1])
    assert batch.ids_BT[0, at] == frozen.tokenizer.mask_token_id
    with torch.no_grad():
        classes, _ = answer_logits(frozen, batch, None, Head(weight_CD=head.weight, bias_C=None, reads="mask"))
        logits_V = frozen.model(input_ids=batch.ids_BT, attention_mask=batch.mask_BT).logits[0, at] - words.bias
    # The blank before the mask is said with each word, as a token of its own in this vocabulary.
    want = [logits_V[frozen.tokenizer(f" {word}", add_special_tokens=False).input_ids].mean() for word in ("a", "bc")]
    torch.testing.assert_close(classes[0, :2], torch.stack(want), rtol=1e-4, atol=1e-4)
    assert float((classes[0, 0] - classes[0, 1]).abs()) > 1e-3


def test_an_encoder_starts_from_its_embeddings_where_they_are_as_wide_as_its_states() -> None:
    made = contract(label_words=("a", "bc", "k"), input_template="{source}[MASK]")
    bert = tiny_family("bert without a language-modelling head")
    first = first_class_vectors(bert, made)
    assert first is not None
    ids = bert.tokenizer("bc", add_special_tokens=False).input_ids
    torch.testing.assert_close(first[1], bert.embed(ids).mean(0))
    assert first_class_vectors(tiny_family("electra discriminator"), made) is None


def test_a_label_without_a_word_is_called_by_its_name() -> None:
    bert = tiny_family("bert")
    named = first_class_vectors(bert, contract(label_words=(), labels=("a", "b", "c")))
    worded = first_class_vectors(bert, contract(label_words=("a", "b", "c")))
    assert named is not None
    assert worded is not None
    assert torch.equal(named, worded)


def test_a_word_without_tokens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    bert = tiny_family("bert")
    monkeypatch.setattr(bert.tokenizer.backend_tokenizer, "normalizer", _drop("k"))
    with pytest.raises(BadValue, match="makes nothing of the label word 'k'; give other label_words"):
        first_class_vectors(bert, contract(input_template="{source}[MASK]"))


def _drop(character: str) -> Any:
    from tokenizers import normalizers

    return normalizers.Replace(character, "")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input_template": "{source}"}, "pooling = 'mask' needs [MASK] in input_template, where the head reads"),
        ({"pooling": "first"}, "take [MASK] out of input_template, or let a label head read there (pooling = 'mask')"),
        ({"pooling": "mean"}, "or let a label head read there (pooling = 'mask')"),
        ({"layout": "tags"}, "pooling = 'mask' is for layout = 'label', got 'tags'"),
        ({"layout": "cloze"}, "pooling = 'mask' is for layout = 'label', got 'cloze'"),
    ],
)
def test_contracts_that_make_no_sense(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        contract(**changes)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("extra", "want"),
    [
        ({"weight": None}, "the artifact's head.weight is missing, expected [3, 64]"),
        ({"weight": torch.zeros(3, 32)}, "the artifact's head.weight is [3, 32], expected [3, 64]"),
    ],
)
@pytest.mark.parametrize("family", ["bert"], scope="module")
def test_class_vectors_that_do_not_fit_are_refused(
    trained: Path, tmp_path: Path, extra: dict[str, Any], want: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.safetensors"
    artifact.save(changed(artifact.load(trained / artifact.FILE_NAME), **extra), file)
    assert want in refused(capsys, "generate", file, "aa", "--model", trained.parent / "model")
