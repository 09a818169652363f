"""BLEU of multi-bleu.perl, TER and sacreBLEU against second implementations and published output; prepared texts."""

from __future__ import annotations

import importlib.util
import itertools
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.translate.bleu_score import corpus_bleu
from sacrebleu.metrics.base import Metric
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER

from epigraph.errors import CountMismatch, TooFewExamples
from epigraph.tasks.base import Example
from epigraph.tasks.bootstrap import Summed, compare
from epigraph.tasks.catalogue import find
from epigraph.tasks.meteor import meteor, meteor_percent, meteor_summed
from epigraph.tasks.metrics import by_sacrebleu
from epigraph.tasks.translation import (
    BETTER_WHEN_HIGHER,
    DART_SCRIPT,
    METRICS,
    WEBNLG_SCRIPT,
    multi_bleu,
    score_translation,
    split_plain_words,
    split_words,
)

INSTALLED = importlib.util.find_spec("pycocoevalcap") is not None
needs_java = pytest.mark.skipif(
    not (INSTALLED and shutil.which("java")), reason="no Java or no pycocoevalcap: pip install 'epigraph[e2e-metrics]'"
)
needs_data = pytest.mark.skipif(not os.environ.get("EPIGRAPH_DATA"), reason="EPIGRAPH_DATA is unset: no WebNLG here")

# Invented facts; a row is a prediction and its references.
ROWS = [
    (
        "Harbour Light, a 3.5-star café, stands in Old Quay.",
        ["Harbour Light is a 3.5-star café in Old Quay.", "In Old Quay there is the café Harbour Light (3.5 stars)."],
    ),
    (
        "Ana Norde wrote The Glass Orchard in 1961.",
        [
            "The Glass Orchard was written by Ana Norde in 1961.",
            "Ana Norde's The Glass Orchard is of 1961.",
            "In 1961 Ana Norde wrote The Glass Orchard.",
            "Ana Norde wrote The Glass Orchard in 1961.",
        ],
    ),
    ("Nothing is known.", ["The bridge of Tallow is 212 metres long."]),
]
SYSTEM = [text for text, _ in ROWS]
GOLD = [references for _, references in ROWS]
EXAMPLES = [Example(source="s", references=tuple(references)) for _, references in ROWS]


def streams(references: Sequence[Sequence[str]], absent: str | None) -> list[list[str]]:
    longest = max(len(x) for x in references)
    return [[row[i] if i < len(row) else absent for row in references] for i in range(longest)]  # type: ignore[misc]


def cards() -> tuple[list[str], list[list[str]]]:
    rows = [x.references for x in find("cards").load("test") if len(x.references) > 1]
    return [split_words(row[0]) for row in rows], [[split_words(x) for x in row[1:]] for row in rows]


# multi-bleu


def by_library(predictions: Sequence[str], references: Sequence[Sequence[str]], *, lowercase: bool) -> float:
    """sacreBLEU without tokeniser and smoothing, with an empty text where the Perl script has an empty line."""
    padded = [[*row, *[""] * (3 - len(row))] for row in references]
    metric = BLEU(tokenize="none", smooth_method="none", lowercase=lowercase, force=True)
    return float(metric.corpus_score(list(predictions), streams(padded, None)).score)


words = st.sampled_from("the The a pub pub. near , 3.5 é É".split())  # noqa: SIM905
salads = st.lists(words, max_size=9).map(" ".join)
tables = st.lists(st.tuples(salads, st.lists(salads, min_size=1, max_size=3)), min_size=1, max_size=5)


@settings(max_examples=300, deadline=None)
@given(tables, st.booleans())
def test_multi_bleu_is_unsmoothed_bleu_of_what_stands_between_blanks(
    rows: list[tuple[str, list[str]]], lowercase: bool
) -> None:
    predictions, references = [x for x, _ in rows], [y for _, y in rows]
    got = multi_bleu(predictions, references, lowercase=lowercase).value
    assert got == pytest.approx(by_library(predictions, references, lowercase=lowercase), abs=1e-6)


def test_multi_bleu_equals_nltk() -> None:
    predictions, references = cards()
    # Where a row has an empty reference, nltk's nearest length is never that one's.
    padded = [(row * 3)[:3] for row in references]
    want = 100 * corpus_bleu([[x.split() for x in row] for row in padded], [x.split() for x in predictions])
    assert multi_bleu(predictions, padded).value == pytest.approx(want, abs=1e-9)
    assert 10 < want < 90


@needs_data
def test_multi_bleu_equals_sacrebleu_on_webnlg() -> None:
    from epigraph.tasks.triples import webnlg

    rows = [x.references for x in webnlg().load("test-seen") if len(x.references) > 1]
    predictions = [split_plain_words(row[0]) for row in rows]
    references = [[split_plain_words(x) for x in row[1:4]] for row in rows]
    got = multi_bleu(predictions, references, lowercase=True).value
    assert got == pytest.approx(by_library(predictions, references, lowercase=True), abs=1e-6)
    assert 30 < got < 80


def test_multi_bleu_of_published_counts() -> None:
    # "BLEU = 63.99, 89.5/72.2/57.5/45.1 (BP=1.000, ratio=1.027, hyp_len=564, ref_len=549)": what multi-bleu.perl said
    # of ADAPT Centre's texts on the 35 comics characters of WebNLG 2017, in the repository of DART.
    counts = np.array([[549.0, 505, 382, 284, 207, 564, 529, 494, 459]])
    assert [round(100 * m / n, 1) for m, n in zip(counts[0, 1:5], counts[0, 5:], strict=True)] == [
        89.5,
        72.2,
        57.5,
        45.1,
    ]
    finish = multi_bleu(["a"], [["a"]]).finish
    assert round(Summed(statistics=counts, finish=finish).value, 2) == 63.99


def test_multi_bleu_by_hand() -> None:
    # a b c d e against a b c d x: 4 of 5 words, 3 of 4 pairs, 2 of 3, 1 of 2.
    want = 100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert multi_bleu(["a b c d e"], [["a b c d x"] * 3]).value == pytest.approx(want)
    assert multi_bleu(["A b c d e"], [["a b c d e"] * 3]).value < 100
    assert multi_bleu(["A b c d e"], [["a b c d e"] * 3], lowercase=True).value == pytest.approx(100)
    assert multi_bleu(["a b c"], [["a b c"]]).value == 0
    assert multi_bleu([""], [["a b c d"]]).value == 0


def test_a_missing_reference_is_an_empty_one_and_can_be_the_nearest() -> None:
    text, long = "a b c d", "a b c d e f g h i"
    assert multi_bleu([text], [[long] * 3]).value == pytest.approx(100 * math.exp(1 - 9 / 4))
    # 4 tokens are nearer to none than to 9.
    assert multi_bleu([text], [[long]]).value == pytest.approx(100)
    # 6 is as near as 2: the shorter one.
    assert multi_bleu([text], [["a b c d e f", "a b", "a b c d e f"]]).value == pytest.approx(100)


# What sacreBLEU sums


@pytest.mark.parametrize("metric", [BLEU(force=True), CHRF(), TER()], ids=["BLEU", "chrF", "TER"])
def test_sums_over_drawn_rows_are_the_score_of_those_rows(metric: Metric) -> None:
    summed, signature = by_sacrebleu(metric, SYSTEM, GOLD)
    assert signature.endswith(f"version:{sacrebleu.__version__}")
    assert summed.value == pytest.approx(metric.corpus_score(SYSTEM, streams(GOLD, None)).score)
    for draw in itertools.product(range(3), repeat=3):
        have, wanted = [SYSTEM[i] for i in draw], [GOLD[i] for i in draw]
        want = metric.corpus_score(have, streams(wanted, None)).score
        assert float(summed.finish(summed.statistics[list(draw)].sum(axis=0))) == pytest.approx(want)


def test_many_draws_are_finished_at_once() -> None:
    summed, _ = by_sacrebleu(TER(), SYSTEM, GOLD)
    both = np.stack([summed.statistics[0], summed.statistics.sum(axis=0)])
    assert summed.finish(both) == pytest.approx([float(summed.finish(both[0])), summed.value])


# TER


def ter(prediction: str, *references: str) -> float:
    return by_sacrebleu(TER(), [prediction], [list(references)])[0].value


def test_ter_of_the_published_example() -> None:
    # Snover et al. (2006), section 3: a shift, two substitutions and an insertion by 13 words, 31 %.
    reference = "SAUDI ARABIA denied THIS WEEK information published in the AMERICAN new york times"
    text = "THIS WEEK THE SAUDIS denied information published in the new york times"
    assert ter(text, reference) == pytest.approx(100 * 4 / 13)


def test_ter_divides_the_fewest_edits_by_the_mean_length() -> None:
    assert ter("a b c", "a b", "a b c d") == pytest.approx(100 * 1 / 3)
    assert ter("x y z", "a") == pytest.approx(300)
    assert ter("A b", "a B") == 0


def edit_distance(have: Sequence[str], wanted: Sequence[str]) -> int:
    above = list(range(len(wanted) + 1))
    for i, token in enumerate(have, start=1):
        row = [i]
        for j, other in enumerate(wanted, start=1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (token != other)))
        above = row
    return above[-1]


def fewest_edits(have: Sequence[str], wanted: Sequence[str]) -> int:
    """With any shifts at all, each one edit: what no greedy search can be below."""
    best, seen, front = edit_distance(have, wanted), {tuple(have)}, [tuple(have)]
    for shifts in range(1, best):
        moved = set()
        for text in front:
            for start, end in itertools.combinations(range(len(text) + 1), 2):
                rest = text[:start] + text[end:]
                moved |= {rest[:to] + text[start:end] + rest[to:] for to in range(len(rest) + 1)}
        front = list(moved - seen)
        seen |= moved
        best = min([best, *(shifts + edit_distance(x, wanted) for x in front)])
    return best


tokens = st.lists(st.sampled_from("abcd"), min_size=1, max_size=5)


@settings(max_examples=200, deadline=None)
@given(tokens, tokens)
def test_ter_is_between_the_edit_distance_and_all_possible_shifts(have: list[str], wanted: list[str]) -> None:
    edits = ter(" ".join(have), " ".join(wanted)) * len(wanted) / 100
    assert fewest_edits(have, wanted) - 1e-9 <= edits <= edit_distance(have, wanted) + 1e-9


# METEOR


def test_meteor_of_published_statistics() -> None:
    # What METEOR 1.5 printed, with its final score, of the same 35 texts. The numbers of function words are those that
    # its precision and recall leave.
    stages = [285, 285, 179, 179, 8, 8, 0, 0, 0, 0, 0, 0, 7, 7, 7, 4]
    row = np.array([[564, 528, 243, 217, *stages, 123, 486, 483]], dtype=np.float64)
    got = Summed(statistics=row, finish=meteor_percent).value
    assert got == pytest.approx(49.941376965868417, abs=1e-12)
    assert float(meteor_percent(np.array([5.0, 4, 2, 2, *[0] * 19]))) == 0


@needs_java
@pytest.mark.slow
def test_meteor_of_drawn_rows_is_what_the_program_says_of_them() -> None:
    predictions, references = cards()
    have = [*SYSTEM, "", "the same words", "words the same", *predictions[:20]]
    wanted = [*GOLD, ["a"], ["the same words"], ["the same words"], *references[:20]]
    summed = meteor_summed(have, wanted)
    draw = np.random.default_rng(0).integers(len(have), size=len(have))
    total, rows = meteor([have[i] for i in draw], [wanted[i] for i in draw])
    assert float(summed.finish(summed.statistics[draw].sum(axis=0))) == pytest.approx(100 * total, abs=1e-10)
    assert summed.finish(summed.statistics[draw]) == pytest.approx([100 * x for x in rows], abs=1e-10)
    assert max(rows) == 1
    assert 0.1 < total < 0.9


# Texts


def test_texts_are_prepared_as_the_scripts_do_it() -> None:
    text = " The 3.5-star Café's  menu: £20_x! "
    assert split_words(text) == "the 3 . 5 - star café ' s menu : £ 20_x !"
    assert split_plain_words("Łódź \u2013 Škoda\u2019s \u201cÆrø\u201d") == 'lodz - skoda \' s " aero "'
    assert split_plain_words("cafe\u0301") == split_plain_words("café") == "cafe"
    assert split_words("") == split_plain_words(" ") == ""


@needs_data
def test_plain_words_of_webnlg_are_ascii() -> None:
    from epigraph.tasks.triples import webnlg

    texts = [text for split in ("dev", "test") for x in webnlg().load(split) for text in x.references]
    assert all(split_plain_words(text).isascii() for text in texts)
    assert sum(not text.isascii() for text in texts) > 100


# The scorer


def test_every_metric_says_which_variant_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    every = [x for x in METRICS if x != "meteor"]
    webnlg = score_translation(SYSTEM, EXAMPLES, every, script=WEBNLG_SCRIPT)
    dart = score_translation(SYSTEM, EXAMPLES, every, script=DART_SCRIPT)
    for scores in (webnlg, dart):
        assert [*scores.values] == [*scores.intervals] == [*scores.variants] == [*scores.summed] == every
        assert scores.missing == {}
        for name in every:
            low, high = scores.intervals[name]
            assert low <= scores.values[name] <= high
            assert "95 % percentile" in scores.variants[name]
        assert compare(scores.summed["ter"], scores.summed["ter"]).p == 1
    assert "multi-bleu.perl -lc:" in webnlg.variants["bleu_multi"]
    assert "multi-bleu.perl:" in dart.variants["bleu_multi"]
    assert "accents dropped" in webnlg.variants["ter"]
    assert "the first 3 references" in webnlg.variants["ter"]
    assert "the first reference;" in dart.variants["ter"]
    assert f"version:{sacrebleu.__version__}" in webnlg.variants["sacrebleu"]
    assert set(BETTER_WHEN_HIGHER) == set(METRICS) - {"ter", "mean_length_words"}


def test_each_metric_is_given_its_references() -> None:
    # The prediction is the fourth reference, and the accents are the only difference from the second.
    rows = [Example(source="s", references=("x x x x", "é b c d", "y y y y", "e b c d"))]

    def values(script: object) -> dict[str, float]:
        only = ["bleu_multi", "ter", "sacrebleu"]
        return dict(score_translation(["e b c d"], rows, only, script=script).values)  # type: ignore[arg-type]

    assert values(WEBNLG_SCRIPT) == pytest.approx({"bleu_multi": 100, "ter": 0, "sacrebleu": 100})
    assert values(DART_SCRIPT) == pytest.approx({"bleu_multi": 0, "ter": 100, "sacrebleu": 100})


def test_only_what_is_wanted_is_computed_and_is_the_same() -> None:
    everything = score_translation(SYSTEM, EXAMPLES, set(METRICS) - {"meteor"}, script=WEBNLG_SCRIPT)
    for name, value in everything.values.items():
        one = score_translation(SYSTEM, EXAMPLES, [name], script=WEBNLG_SCRIPT)
        assert (one.values, one.missing) == ({name: value}, {})


def test_without_java_the_others_are_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    scores = score_translation(SYSTEM, EXAMPLES, script=DART_SCRIPT)
    assert [*scores.missing] == ["meteor"]
    assert [*scores.values] == [x for x in METRICS if x != "meteor"]


def test_the_learned_metrics_are_asked_for_by_name() -> None:
    scores = score_translation(SYSTEM, EXAMPLES, ["bleurt", "ter"], script=DART_SCRIPT, learned=True)
    assert ([*scores.values], [*scores.missing]) == (["ter"], ["bleurt"])
    assert not score_translation(SYSTEM, EXAMPLES, ["bleurt"], script=DART_SCRIPT).missing


def test_rows_that_do_not_pair_up_are_refused() -> None:
    with pytest.raises(CountMismatch, match="got 1 predictions for 3 rows"):
        score_translation(["a"], EXAMPLES, script=DART_SCRIPT)
    with pytest.raises(CountMismatch, match="got 1 predictions for 2 rows"):
        multi_bleu(["a"], [["a"], ["b"]])
    with pytest.raises(TooFewExamples):
        score_translation([], [], script=DART_SCRIPT)
