"""Metrics against a second implementation written from the rule, against sacrebleu, and by hand."""

from __future__ import annotations

import math
import os
import string
from collections.abc import Sequence

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from epigraph.errors import CountMismatch, TooFewExamples
from epigraph.tasks.base import Example
from epigraph.tasks.bootstrap import BOOTSTRAP_SEED, NUM_RESAMPLES
from epigraph.tasks.catalogue import find
from epigraph.tasks.metrics import bleu_e2e, score_generation, score_texts

SYSTEM = ["The Vaults is a cheap pub near Café Adriatic.", "Alimentum, in the city centre, is not family-friendly."]
GOLD = [
    ["The Vaults is a pub near Café Adriatic.", "Near Café Adriatic is the cheap pub The Vaults."],
    ["Alimentum is in the city centre. It is not family-friendly."],
]

# The slow twin: one character at a time, one n-gram at a time.

SPLIT_OFF = set(string.punctuation) - set("',-.")


def twin_tokens(line: str) -> list[str]:
    """mteval-v13a tokenisation of text in which no period or comma touches another one."""
    line = line.strip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")):
        line = line.replace(entity, character)
    out = ""
    for at, character in enumerate(line):
        after_digit = at > 0 and line[at - 1] in string.digits
        before_digit = at + 1 < len(line) and line[at + 1] in string.digits
        alone = (
            character in SPLIT_OFF
            or (character in ".," and not (after_digit and before_digit))
            or (character == "-" and after_digit)
        )
        out += f" {character} " if alone else character
    return [token.lower() for token in out.split()] or [""]


def twin_bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    predicted_length = reference_length = 0
    matches, possible = [0] * 4, [0] * 4
    for prediction, texts in zip(predictions, references, strict=True):
        have, wanted = twin_tokens(prediction), [twin_tokens(x) for x in texts]
        predicted_length += len(have)
        best = sorted(len(x) for x in wanted)
        reference_length += best[min(range(len(best)), key=lambda i: abs(best[i] - len(have)))]
        for n in range(1, 5):
            grams = [tuple(have[i : i + n]) for i in range(len(have) - n + 1)]
            possible[n - 1] += len(have) - n + 1
            for gram in set(grams):
                most = max(sum(x[i : i + n] == list(gram) for i in range(len(x))) for x in wanted)
                matches[n - 1] += min(grams.count(gram), most)
    brevity = 1.0 if predicted_length > reference_length else math.exp(1 - reference_length / predicted_length)
    product = math.prod(max(m, 1e-15) / max(p, 1e-9) for m, p in zip(matches, possible, strict=True))
    return 100 * brevity * product**0.25


VOCABULARY = 'the The a pub £20-25 3.5 1,000 family-friendly it\'s end. near, &amp; ( ! Café 5- ΑΣ İ "x" $ a/b -'
words = st.sampled_from(VOCABULARY.split())
salads = st.lists(words, max_size=9).map(" ".join)
tables = st.lists(st.tuples(salads, st.lists(salads, min_size=1, max_size=4)), min_size=1, max_size=5)


@settings(max_examples=300, deadline=None)
@given(tables)
def test_bleu_equals_its_slow_twin(rows: list[tuple[str, list[str]]]) -> None:
    predictions, references = [x for x, _ in rows], [y for _, y in rows]
    assert bleu_e2e(predictions, references) == pytest.approx(twin_bleu(predictions, references), abs=1e-6)


@pytest.mark.skipif(not os.environ.get("EPIGRAPH_DATA"), reason="EPIGRAPH_DATA is unset: no E2E files to score")
@pytest.mark.parametrize("left_out", [0, 1])
def test_bleu_equals_its_slow_twin_and_sacrebleu_on_e2e(left_out: int) -> None:
    rows = [x.references for x in find("e2e").load("dev") if len(x.references) > 1]
    predictions = [row[left_out] for row in rows]
    references = [row[:left_out] + row[left_out + 1 :] for row in rows]
    got = bleu_e2e(predictions, references)
    assert got == pytest.approx(twin_bleu(predictions, references), abs=1e-6)
    # Where no prediction is shorter than four tokens, sacrebleu's own BLEU is the same number.
    assert min(len(twin_tokens(x)) for x in predictions) >= 4
    assert got == pytest.approx(sacrebleu_bleu(predictions, references), abs=1e-6)
    assert 50 < got < 70


def sacrebleu_bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    metric = BLEU(lowercase=True, tokenize="13a", smooth_method="none")
    streams = [[x[i] if i < len(x) else None for x in references] for i in range(max(len(x) for x in references))]
    return metric.corpus_score(list(predictions), streams).score  # type: ignore[arg-type]


def test_bleu_by_hand() -> None:
    # Tokens: the cat sat on a mat . (7) against the cat sat on the mat . (7): 6 words, 4 pairs, 2 threes, 1 four.
    want = 100 * (6 / 7 * 4 / 6 * 2 / 5 * 1 / 4) ** 0.25
    assert bleu_e2e(["The cat sat on a mat."], [["the cat sat on the mat."]]) == pytest.approx(want)


def test_brevity_takes_the_nearest_reference_and_the_shorter_on_ties() -> None:
    four, five, six, nine = "a b c d", "a b c d e", "a b c d e f", "a b c d e f g h i"
    assert bleu_e2e([five], [[nine, four + " e f"]]) == pytest.approx(100 * math.exp(1 - 6 / 5))
    # 4 and 6 are as near to 5: by the shorter one there is no penalty.
    assert bleu_e2e([five], [[six, four]]) == pytest.approx(100)


def test_document_level_is_not_the_mean_of_rows() -> None:
    alone = [bleu_e2e([x], [y]) for x, y in zip(SYSTEM, GOLD, strict=True)]
    assert bleu_e2e(SYSTEM, GOLD) != pytest.approx(sum(alone) / 2, abs=0.1)


def test_where_sacrebleu_differs_the_challenge_is_followed() -> None:
    long, short = "one two three four five six", "yes"
    differing = [
        ([long, short], [[long], ["no"]]),  # a short prediction takes n-grams away
        ([short], [[short]]),  # no n-gram of some order
        ([long, ""], [[long], [short]]),  # nothing is one empty token
        ([long + " &QUOT;"], [[long + ' "']]),  # an entity in capitals is not one
    ]
    for predictions, references in differing:
        got = bleu_e2e(predictions, references)
        assert got == pytest.approx(twin_bleu(predictions, references), abs=1e-9)
        assert got != pytest.approx(sacrebleu_bleu(predictions, references), abs=1e-3)


def test_no_match_is_nearly_nothing_and_a_number() -> None:
    assert 0 < bleu_e2e(["x y z"], [["a b c d e"]]) < 1e-3


def test_the_other_scores() -> None:
    scores = score_generation([*SYSTEM, " Yes. "], [*GOLD, ["No.", "Yes.", "Perhaps."]])
    assert scores.num_examples == 3
    assert set(scores.values) == set(scores.variants) == {"bleu", "chrf", "exact_match", "mean_length_words"}
    assert scores.values["exact_match"] == pytest.approx(100 / 3)
    assert scores.values["mean_length_words"] == pytest.approx((9 + 8 + 1) / 3)
    streams = [[GOLD[0][0], GOLD[1][0], "No."], [GOLD[0][1], GOLD[1][0], "Yes."], ["x", "x", "Perhaps."]]
    assert scores.values["chrf"] == pytest.approx(CHRF().corpus_score([*SYSTEM, "Yes."], streams).score)
    for name in ("bleu", "chrf"):
        assert sacrebleu.__version__ in scores.variants[name]
    assert "nc:6" in scores.variants["chrf"]


def test_intervals_equal_scoring_every_resample_again() -> None:
    predictions, references = [*SYSTEM, "No match at all here."], [*GOLD, ["Something else entirely different."]]
    random = np.random.default_rng(BOOTSTRAP_SEED)
    draws = [random.integers(3, size=3) for _ in range(NUM_RESAMPLES)]
    slow = [bleu_e2e([predictions[i] for i in draw], [references[i] for i in draw]) for draw in draws]
    scores = score_generation(predictions, references)
    assert scores.intervals["bleu"] == pytest.approx(tuple(np.percentile(slow, [2.5, 97.5])))
    assert scores.intervals["exact_match"] == (0, 0)
    chrf = CHRF()
    slow = [
        chrf.corpus_score(
            [predictions[i] for i in draw], [[references[i][0] for i in draw], [references[i][-1] for i in draw]]
        ).score
        for draw in draws
    ]
    assert scores.intervals["chrf"] == pytest.approx(tuple(np.percentile(slow, [2.5, 97.5])))
    lengths = np.array([len(x.split()) for x in predictions])
    means = [lengths[draw].mean() for draw in draws]
    assert scores.intervals["mean_length_words"] == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))
    assert scores.intervals["bleu"][0] < scores.values["bleu"] < scores.intervals["bleu"][1]


def test_the_same_texts_have_the_same_scores() -> None:
    assert score_generation(SYSTEM, GOLD) == score_generation(list(SYSTEM), [tuple(x) for x in GOLD])


def test_only_what_is_wanted_is_computed_and_is_the_same() -> None:
    everything = score_generation(SYSTEM, GOLD)
    for name, value in everything.values.items():
        one = score_generation(SYSTEM, GOLD, only={name, "nist"})
        assert (one.values, one.missing) == ({name: value}, {})
        assert set(one.variants) == {name}
        assert set(one.intervals) == {name} & set(everything.intervals)


def test_examples_are_scored_by_their_references() -> None:
    examples = [Example(source="", references=tuple(x)) for x in GOLD]
    assert score_texts(SYSTEM, examples) == score_generation(SYSTEM, GOLD)
    assert score_texts(SYSTEM, examples, ["bleu"]).values == {"bleu": bleu_e2e(SYSTEM, GOLD)}


def test_rows_that_do_not_pair_up_are_refused() -> None:
    with pytest.raises(CountMismatch, match="got 1 predictions for 2 rows of references"):
        score_generation(SYSTEM[:1], GOLD)
    with pytest.raises(CountMismatch, match="row 1: got no reference"):
        score_generation(SYSTEM, [GOLD[0], []])
    with pytest.raises(CountMismatch, match="row 0: got a bare string"):
        score_generation(SYSTEM, ["a", "b"])
    with pytest.raises(TooFewExamples, match="got no predictions"):
        bleu_e2e([], [])
