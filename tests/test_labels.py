"""Labels of one's own, through the command: trained on words, answered by the likeliest, scored by accuracy."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from epigraph import artifact
from epigraph.frozen.generate import generate
from epigraph.tuned import Tuned
from folders import call, printed, refused, save_family, write_rows

LABELS = ("even", "odd")
# Words of several tokens, of several lengths, of which one begins like the other.
WORDS = ("no", "nothing at all")
ROWS = [{"source": f"{a}+{b}", "target": LABELS[(a + b) % 2]} for a in range(4) for b in range(4)]
SOURCES = [row["source"] for row in ROWS]
CLOZE = "text.input_template={source} is [MASK]."


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", ROWS)


@pytest.fixture(scope="module", params=["llama", "t5", "bert"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family(request.param, tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture(scope="module")
def trained(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "out"
    more = ["--dev", data, "training.dev_metric=accuracy", f"text.label_words={json.dumps(WORDS)}"]
    assert call(*words(model, data, out), *more) == 0
    return out


def words(model: Path, data: Path, out: Path) -> list[object]:
    flags = ["--num-virtual-tokens", 3, "--batch-size", 8, "--precision", "fp32", "--steps", 2, "--out", out]
    labels = [f"text.labels={json.dumps(LABELS)}", *([CLOZE] if model.name == "bert" else [])]
    return ["train", "--model", model, "--data", data, *flags, *labels]


def by_hand(tuned: Tuned, source: str) -> list[float]:
    """Each word's log-probability behind the source: the sum over its tokens, in a masked model their mean."""
    frozen, tokenizer = tuned.frozen, tuned.frozen.tokenizer
    scores = []
    for word in WORDS:
        if frozen.kind == "masked":
            # The blank before the mask is said with the word.
            said = tokenizer(f" {word}", add_special_tokens=False).input_ids
            ids = tokenizer(source + " is" + "<mask>" * len(said) + ".").input_ids
            at = [place for place, token in enumerate(ids) if token == tokenizer.mask_token_id]
            given = {"input_ids": torch.tensor([ids])}
        elif frozen.kind == "encoder-decoder":
            said = tokenizer(word, add_special_tokens=False).input_ids
            at = list(range(len(said)))
            given = {"input_ids": torch.tensor([tokenizer(source).input_ids])}
            given["decoder_input_ids"] = torch.tensor([[0, *said[:-1]]])
        else:
            asked, said = (tokenizer(x, add_special_tokens=False).input_ids for x in (f"{source}\n", word))
            at = [len(asked) - 1 + place for place in range(len(said))]
            given = {"input_ids": torch.tensor([[*asked, *said]])}
        with torch.no_grad(), frozen.bind(tuned.prefix):
            logs = frozen.model(**given).logits[0].log_softmax(-1)
        each = [float(logs[place, token]) for place, token in zip(at, said, strict=True)]
        scores.append(sum(each) / len(each) if frozen.kind == "masked" else sum(each))
    return scores


def test_the_answer_is_the_label_of_the_likeliest_word(trained: Path, data: Path) -> None:
    """The slow twin spells out rows, words and places without a codec."""
    tuned = Tuned.load(trained)
    scores = [by_hand(tuned, source) for source in SOURCES]
    assert min(abs(a - b) for a, b in scores) > 1e-3, "words that are equally likely test nothing"
    got = tuned.generate(SOURCES)
    assert got == [LABELS[x.index(max(x))] for x in scores]


def test_evaluate_scores_labels(trained: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows of one's own under an artifact with labels are labels too."""
    said = json.loads(printed(capsys, "evaluate", trained, "--data", data, "--precision", "fp32", "--json"))
    assert set(said["scores"]) == {"accuracy", "macro_f1", "illegal_share", "nll", "ece"}
    kept = json.loads((trained / "evaluations" / "after-test.json").read_text())
    predictions = [x["prediction"] for x in kept["examples"]]
    assert set(predictions) <= set(LABELS)
    right = sum(x == row["target"] for x, row in zip(predictions, ROWS, strict=True))
    assert said["scores"]["accuracy"] == pytest.approx(100 * right / len(ROWS))
    assert said["scores"]["illegal_share"] == 0
    source = ROWS[5]["source"]
    assert printed(capsys, "generate", trained, source) == f"{predictions[5]}\n"
    assert printed(capsys, "inspect", trained, "--json").count('"label_words"') > 0


def test_words_are_what_is_taught(trained: Path) -> None:
    """The target of a row is the word and not the label; a label as it is spelt where there are no words."""
    tuned = Tuned.load(trained)
    tokenizer = tuned.frozen.tokenizer
    for row in ROWS[:4]:
        taught = tuned.codec.pair({"source": row["source"]}, row["target"])
        said = taught.answer or [x for x, counts in zip(taught.ids, taught.scored, strict=True) if counts]
        assert tokenizer.decode(said, skip_special_tokens=True).strip() == WORDS[LABELS.index(row["target"])]


def test_a_development_score_is_an_accuracy(trained: Path) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    assert set(summary["dev"]) == {"loss", "accuracy"}
    recipe = json.loads((trained / "recipe.json").read_text())
    assert recipe["text"]["labels"] == list(LABELS)
    assert recipe["text"]["label_words"] == list(WORDS)
    assert artifact.load(trained / artifact.FILE_NAME).contract.label_words == WORDS


def test_targets_that_are_no_labels_are_refused_by_line(
    trained: Path, model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In training and in evaluating; the word of a label is none."""
    bad = write_rows(tmp_path / "bad.jsonl", [*ROWS[:2], {"source": "9+9", "target": "no"}])
    want = f'{bad}:3: field target: got "no", expected one of the labels even, odd'
    for flags in (words(model, bad, tmp_path / "out"), ["evaluate", trained, "--data", bad]):
        capsys.readouterr()
        assert call(*flags) == 2
        assert capsys.readouterr().err.splitlines() == [f"epigraph: 1 bad row in {bad}", want]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "want"),
    [
        (['text.label_words=["yes"]'], "1 label_words for 2 labels; give each its own"),
        (['text.label_words=["yes","yes "]'], "'yes' stands there twice or is blank"),
        (['text.labels=["odd"]'], "labels: got 'odd' alone, expected two or more to choose from"),
        (['text.labels=["odd","odd"]'], "labels: got 'odd' as number 1"),
        (["text.pooling=mean"], "pooling = 'mean' is for layout = 'label'"),
        (["text.max_target_tokens=2"], "the answer 'even' has [45] tokens, expected 1 to [12]; give it words"),
    ],
)
def test_labels_that_make_no_sense_are_refused(
    model: Path, data: Path, tmp_path: Path, more: Sequence[str], want: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert re.search(want, refused(capsys, *words(model, data, tmp_path / "out"), *more))
    assert not (tmp_path / "out").exists()


def at_the_mask(tuned: Tuned, source: str) -> str:
    """The one token that a masked model finds likeliest."""
    tokenizer = tuned.frozen.tokenizer
    ids = tokenizer(f"{source} is<mask>.").input_ids
    with torch.no_grad(), tuned.frozen.bind(tuned.prefix):
        said = tuned.frozen.model(input_ids=torch.tensor([ids])).logits[0, ids.index(tokenizer.mask_token_id)]
    return str(tokenizer.decode([int(said.argmax())], skip_special_tokens=True)).strip()


def test_a_run_without_labels_decodes_and_is_scored_as_text(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--num-virtual-tokens", 3, "--steps", 1, "--precision", "fp32", "--out", tmp_path / "out", CLOZE]
    assert call("train", "--model", model, "--data", data, *flags[: None if model.name == "bert" else -1]) == 0
    said = json.loads(printed(capsys, "evaluate", tmp_path / "out", "--data", data, "--max-new-tokens", 3, "--json"))
    assert "bleu" in said["scores"]
    assert "accuracy" not in said["scores"]
    tuned = Tuned.load(tmp_path / "out")
    if model.name == "bert":
        assert tuned.generate(SOURCES) == [at_the_mask(tuned, source) for source in SOURCES]
        return
    decoding = tuned.artifact.contract.decoding.model_copy(update={"max_new_tokens": 3})
    new = generate(tuned.frozen, [tuned.encode(SOURCES[0]).ids], tuned.prefix, decoding)
    assert tuned.generate(SOURCES[:1], decoding=decoding) == [tuned.codec.text(new[0])]


PAIRS = [{"source": f"{a}+{b}", "next": str(a), "target": LABELS[a % 2]} for a in range(4) for b in range(4)]
NAMED = "text.input_template={source} after {next}"


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_a_template_may_name_any_field_of_a_row(
    suffix: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row with two texts is read, trained on, evaluated and asked with both."""
    rows = tmp_path / f"pairs.{suffix}"
    if suffix == "csv":
        rows.write_text(
            "\n".join(["next,source,note,target", *(f"{x['next']},{x['source']},,{x['target']}" for x in PAIRS)])
        )
    else:
        write_rows(rows, PAIRS)
    template = NAMED + (" is [MASK]." if model.name == "bert" else "")
    assert call(*words(model, rows, tmp_path / "out"), template) == 0
    tuned = Tuned.load(tmp_path / "out")
    ids = tuned.encode({"source": "0+1", "next": "3"}).ids
    assert len(ids) == len(tuned.encode({"source": "0+1", "next": "3 3"}).ids) - 2
    said = json.loads(printed(capsys, "evaluate", tmp_path / "out", "--data", rows, "--json"))
    answers = tuned.generate(PAIRS)
    right = sum(answer == row["target"] for answer, row in zip(answers, PAIRS, strict=True))
    assert said["scores"]["accuracy"] == pytest.approx(100 * right / len(PAIRS))


def test_a_field_that_the_template_names_and_a_row_lacks_is_refused(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = NAMED + (" is [MASK]." if model.name == "bert" else "")
    said = refused(capsys, *words(model, data, tmp_path / "out"), template)
    assert "the input template asks for the field 'next', the row has source" in said
