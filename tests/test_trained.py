"""The models that the tests train themselves know something, come back from their folders, and are made once.

What they learnt is measured on texts that they never saw, against an untrained twin and against the unigram entropy of
the wanted tokens: no guess without context is better than that. Special tokens, which are easy, do not count.
"""

from __future__ import annotations

import gzip
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import trained
from epigraph.tasks.catalogue import find

TEXT = "The Blue Spice is a cheap Indian restaurant near the river."
NUM_ROWS, PASSES = 100, 3  # held-out texts, and random corruptions of each

MAKERS: dict[str, Callable[[], Path]] = {
    "t5-span": lambda: trained.trained_t5("span"),
    "t5-lm": lambda: trained.trained_t5("lm"),
    "bart": trained.trained_bart,
    "bert": trained.trained_bert,
}
OBJECTIVES: dict[str, trained.Objective] = {
    "t5-span": trained.span_corruption,
    "t5-lm": trained.prefix_lm,
    "bart": trained.infilling,
    "bert": trained.masking,
}
WORDS = {"t5": trained.t5_words, "bart": trained.bart_words, "bert": trained.bert_words}
# Nats below unigram entropy: half of the smaller gain of the two kinds of texts that were measured, or less.
GAINS = {"t5-span": 0.4, "t5-lm": 1.0, "bart": 1.2, "bert": 0.2}


def auto(name: str) -> type[AutoModelForMaskedLM] | type[AutoModelForSeq2SeqLM]:
    return AutoModelForMaskedLM if name == "bert" else AutoModelForSeq2SeqLM


def load(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    folder = MAKERS[name]()
    return auto(name).from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def untrained(name: str) -> PreTrainedModel:
    with trained.seeded(0):
        return auto(name).from_config(AutoConfig.from_pretrained(MAKERS[name]())).eval()


@torch.no_grad()
def loss_and_entropy(
    model: PreTrainedModel, words: PreTrainedTokenizerFast, objective: trained.Objective, texts: Sequence[str]
) -> tuple[float, float]:
    """Mean loss of the wanted tokens, and their unigram entropy, both in nats."""
    draw, special = Random(1), torch.tensor(words.all_special_ids)
    rows = trained.tokens_of(texts, words)
    rows = sorted(rows[:: max(1, len(rows) // NUM_ROWS)], key=len)
    total, counts = 0.0, Counter[int]()
    for start in range(0, len(rows), 25):
        pairs = [objective(ids, words, draw) for ids in rows[start : start + 25] for _ in range(PASSES)]
        batch = trained.collate(pairs, words.pad_token_id)
        wanted = batch["labels"].masked_fill(torch.isin(batch["labels"], special), trained.IGNORED).flatten()
        logits = model(**batch).logits.flatten(0, 1)
        total += float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"))
        counts.update(wanted[wanted != trained.IGNORED].tolist())
    num = counts.total()
    return total / num, -sum(n / num * math.log(n / num) for n in counts.values())


@pytest.fixture(scope="session")
def held_out() -> tuple[str, ...]:
    return trained.read_texts().held_out


@pytest.mark.parametrize("name", MAKERS)
def test_it_learnt(name: str, held_out: tuple[str, ...]) -> None:
    model, words = load(name)
    loss, entropy = loss_and_entropy(model, words, OBJECTIVES[name], held_out)
    twin, _ = loss_and_entropy(untrained(name), words, OBJECTIVES[name], held_out)
    print(f"{name}: loss {loss:.2f}, unigram entropy {entropy:.2f}, untrained {twin:.2f}")
    assert loss < entropy - GAINS[name]
    assert twin > entropy + 1.0


def test_adapted_is_another_model_than_span_corruption_leaves(held_out: tuple[str, ...]) -> None:
    """Asked for a continuation, the one answers with a sentinel, the other with text (Lester et al. 2021, 2.2)."""
    (span, words), (adapted, _) = load("t5-span"), load("t5-lm")
    assert len(words) == span.config.vocab_size
    before, after = (loss_and_entropy(model, words, trained.prefix_lm, held_out)[0] for model in (span, adapted))
    assert after < before - 2.0
    first = words.convert_tokens_to_ids("<extra_id_0>")
    for model, begins_with_sentinel in ((span, True), (adapted, False)):
        answer = model.generate(**words("The Blue Spice is", return_tensors="pt"), max_new_tokens=2, do_sample=False)
        assert (int(answer[0, 1]) >= first) is begins_with_sentinel


def test_adapted_goes_on_from_what_span_corruption_learnt() -> None:
    """It is nearer to there than to the beginning of both."""
    adapted, span, beginning = (
        torch.nn.utils.parameters_to_vector(model.parameters())
        for model in (load("t5-lm")[0], load("t5-span")[0], untrained("t5-span"))
    )
    assert (adapted - span).norm() < (adapted - beginning).norm()


@pytest.mark.parametrize("name", MAKERS)
def test_the_folder_is_a_whole_model(name: str) -> None:
    folder = MAKERS[name]()
    model, loading = auto(name).from_pretrained(folder, output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    words = AutoTokenizer.from_pretrained(folder)
    made = WORDS[name.partition("-")[0]](trained.read_texts().train)
    assert words(TEXT).data == made(TEXT).data
    assert words.all_special_tokens == made.all_special_tokens
    assert model.config.pad_token_id == words.pad_token_id
    assert model.config.vocab_size == len(words)


def test_geometries_that_catch_the_usual_mistakes() -> None:
    t5 = AutoConfig.from_pretrained(trained.trained_t5("span"))
    assert t5.num_heads * t5.d_kv != t5.d_model
    assert t5.dropout_rate > 0
    for folder in (trained.trained_t5("lm"), trained.trained_bart()):
        model = AutoModelForSeq2SeqLM.from_pretrained(folder)
        assert model.generation_config.decoder_start_token_id == model.config.decoder_start_token_id
    assert AutoConfig.from_pretrained(trained.trained_bart()).dropout > 0
    assert AutoConfig.from_pretrained(trained.trained_bert()).hidden_dropout_prob > 0


@pytest.mark.parametrize(
    ("name", "first", "last"), [("t5-lm", "\u2581The", "</s>"), ("bart", "<s>", "</s>"), ("bert", "[CLS]", "[SEP]")]
)
def test_tokenizers_put_the_ends_where_the_family_does(name: str, first: str, last: str) -> None:
    _, words = load(name)
    ids = words(TEXT).input_ids
    assert words.convert_ids_to_tokens([ids[0], ids[-1]]) == [first, last]
    assert words.decode(ids, skip_special_tokens=True) == (TEXT.lower() if name == "bert" else TEXT)


def test_a_second_call_takes_nothing_but_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {name: make() for name, make in MAKERS.items()}
    assert len(set(folders.values())) == len(MAKERS)
    for step in ("fit", *(words.__name__ for words in WORDS.values())):
        monkeypatch.setattr(trained, step, None)
    assert {name: make() for name, make in MAKERS.items()} == folders


def write_name(folder: Path, texts: Sequence[str]) -> None:
    folder.mkdir()
    (folder / "texts").write_text(str(len(texts)))


@pytest.fixture
def cards_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own, and no data but the package's."""
    monkeypatch.setenv("EPIGRAPH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("EPIGRAPH_DATA", raising=False)
    return tmp_path / "home" / "trained"


def test_two_at_once_make_it_once(cards_only: Path) -> None:
    both, made = threading.Barrier(2), []

    def make(folder: Path, texts: Sequence[str]) -> None:
        time.sleep(0.3)  # the other has seen by now that nothing is there
        write_name(folder, texts)
        made.append(folder)

    def ask(_: int) -> Path:
        both.wait()
        return trained.kept("x", make)

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(ask, range(2))
    assert first == second
    assert first.parent == cards_only
    assert (first / "texts").is_file()
    assert len(made) == 1


def test_what_fails_on_the_way_leaves_no_folder(cards_only: Path) -> None:
    def fail(folder: Path, texts: Sequence[str]) -> None:
        write_name(folder, texts)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        trained.kept("x", fail)
    assert [path.name for path in cards_only.iterdir() if path.suffix != ".lock"] == []
    assert (trained.kept("x", write_name) / "texts").is_file()


def test_other_texts_are_another_folder(cards_only: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cards = trained.kept("x", write_name)
    file = tmp_path / "e2e" / "train.jsonl.gz"
    file.parent.mkdir()
    folders = [cards]
    monkeypatch.setenv("EPIGRAPH_DATA", str(tmp_path))
    for text in ("one", "two"):
        rows = [{"source": f"{text} {number}", "references": ["a", "b", "c"]} for number in range(3)]
        file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
        folders.append(trained.kept("x", write_name))
        assert trained.read_texts().held_out == (f"{text} 0", "a", "b")
        assert trained.read_texts().train == (f"{text} 1", f"{text} 2")
    assert len(set(folders)) == 3
    assert cards.parent == cards_only


def test_without_data_the_texts_are_the_cards(cards_only: Path) -> None:
    texts = trained.read_texts()
    cards = {text for x in find("cards").load("train") for text in (x.source, *x.references)}
    assert cards <= {*texts.train, *texts.held_out}
    assert not set(texts.train) & set(texts.held_out)
    assert len(texts.held_out) > 60


@pytest.mark.parametrize("family", WORDS)
def test_a_tokenizer_is_the_same_each_time(family: str, cards_only: Path) -> None:
    texts = trained.read_texts().train
    first, second = (WORDS[family](texts).backend_tokenizer.to_str() for _ in range(2))
    assert first == second


def test_weights_depend_on_the_recipe_alone(cards_only: Path) -> None:
    texts, made = trained.read_texts().train[:64], []
    words = trained.bert_words(texts)
    config = BertConfig(vocab_size=len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        with trained.seeded(0):
            model = BertForMaskedLM(config)
            start = model.state_dict()["bert.encoder.layer.0.output.dense.weight"].clone()
            trained.fit(model, words, texts, trained.masking, steps=3, lr=0.05)
        assert torch.equal(torch.random.get_rng_state(), before)
        made.append(model.state_dict())
    assert all(torch.equal(weight, made[1][name]) for name, weight in made[0].items())
    assert not torch.equal(made[0]["bert.encoder.layer.0.output.dense.weight"], start)


@pytest.fixture(scope="module")
def words_of() -> dict[str, PreTrainedTokenizerFast]:
    texts = [text for x in find("cards").load("dev") for text in x.references]
    return {family: make(texts) for family, make in WORDS.items()}


IDS = st.lists(st.integers(200, 300), min_size=trained.MIN_TOKENS, max_size=trained.MAX_TOKENS)


@given(ids=IDS, seed=st.integers(0, 99))
def test_span_corruption_loses_nothing(words_of: dict[str, PreTrainedTokenizerFast], ids: list[int], seed: int) -> None:
    words = words_of["t5"]
    pair = trained.span_corruption(ids, words, Random(seed))
    first = words.convert_tokens_to_ids("<extra_id_0>")
    hidden: dict[int, list[int]] = {}
    for token in pair.labels[:-1]:
        if token >= first:
            hidden[token] = []
        else:
            hidden[max(hidden)].append(token)
    *spans, (end, nothing) = hidden.items()
    assert [token for token in pair.ids if token >= first] == [token for token, _ in spans]
    assert (end, nothing) == (first + len(spans), [])
    rebuilt = [x for token in pair.ids[:-1] for x in hidden.get(token, [token])]
    assert rebuilt == ids
    assert pair.ids[-1] == pair.labels[-1] == words.eos_token_id
    assert sum(len(span) for _, span in spans) == max(1, round(0.15 * len(ids)))
    assert all(span for _, span in spans)


@given(ids=IDS, seed=st.integers(0, 99))
def test_infilling_hides_three_tenths(words_of: dict[str, PreTrainedTokenizerFast], ids: list[int], seed: int) -> None:
    words = words_of["bart"]
    pair = trained.infilling(ids, words, Random(seed))
    assert pair.labels == [words.bos_token_id, *ids, words.eos_token_id]
    seen = [token for token in pair.ids if token != words.mask_token_id]
    assert len(pair.labels) - len(seen) == max(1, round(0.3 * len(ids)))
    left = iter(pair.labels)
    assert all(token in left for token in seen), "what is not masked is the text, in its order"
    masks = [at for at, token in enumerate(pair.ids) if token == words.mask_token_id]
    assert all(b - a > 1 for a, b in pairwise(masks)), "a span has one mask"


def test_prefix_lm_cuts_between_two_tokens(words_of: dict[str, PreTrainedTokenizerFast]) -> None:
    words, ids = words_of["t5"], list(range(200, 205))
    pairs = [trained.prefix_lm(ids, words, Random(seed)) for seed in range(50)]
    assert all(pair.ids[:-1] + pair.labels[:-1] == ids for pair in pairs)
    assert {len(pair.ids) for pair in pairs} == {2, 3, 4, 5}
    assert {token for pair in pairs for token in (pair.ids[-1], pair.labels[-1])} == {words.eos_token_id}


def test_masking_is_15_percent_of_which_80_10_10(words_of: dict[str, PreTrainedTokenizerFast]) -> None:
    words, ids, kinds = words_of["bert"], [250] * 100, Counter[str]()
    for seed in range(200):
        pair = trained.masking(ids, words, Random(seed))
        wanted = [token for token, label in zip(pair.ids, pair.labels, strict=True) if label != trained.IGNORED]
        assert len(wanted) == 15
        assert set(pair.labels) == {250, trained.IGNORED}
        kinds.update({words.mask_token_id: "mask", 250: "same"}.get(token, "random") for token in wanted)
        assert all(
            a == b or label != trained.IGNORED
            for a, b, label in zip(pair.ids[1:-1], ids, pair.labels[1:-1], strict=True)
        )
    assert {kind: round(num / kinds.total(), 1) for kind, num in kinds.items()} == {
        "mask": 0.8,
        "random": 0.1,
        "same": 0.1,
    }
