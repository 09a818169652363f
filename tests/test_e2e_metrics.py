"""NIST, METEOR, ROUGE-L and CIDEr against second implementations, and what happens where Java is not there."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.translate.nist_score import corpus_nist

from conftest import benchmark, tiny_model, tiny_tokenizer
from epigraph.cli import main
from epigraph.errors import CountMismatch, MetricUnavailable, TooFewExamples
from epigraph.tasks import captions, java
from epigraph.tasks.base import Example
from epigraph.tasks.bootstrap import Summed
from epigraph.tasks.catalogue import find
from epigraph.tasks.e2e_metrics import BETTER_WHEN_HIGHER, CAPTION_METRICS, METRICS, score_e2e
from epigraph.tasks.meteor import meteor
from epigraph.tasks.metrics import bleu_e2e
from epigraph.tasks.ngrams import tokens_13a
from epigraph.tasks.nist import score_nist

ROOT = Path(__file__).parents[1]
INSTALLED = importlib.util.find_spec("pycocoevalcap") is not None
needs_java = pytest.mark.skipif(
    not (INSTALLED and shutil.which("java")), reason="no Java or no pycocoevalcap: pip install 'epigraph[e2e-metrics]'"
)
needs_data = pytest.mark.skipif(not os.environ.get("EPIGRAPH_DATA"), reason="EPIGRAPH_DATA is unset: no E2E files here")

# Invented restaurants; each row is a prediction, its references and its table.
ROWS = [
    (
        "The Lantern is a cheap pub near Old Bridge Café. It isn't family-friendly.",
        [
            "The Lantern, a cheap Italian pub, is near the Old Bridge Café; it is not for families.",
            "A cheap pub: The Lantern!",
        ],
        "name : The Lantern | Type : pub | price : cheap | family friendly : no | near : Old Bridge Café",
    ),
    (
        "Copper Kettle (a coffee shop) has a 5 out of 5 rating and costs £20-25.",
        ["Copper Kettle is a coffee shop. It costs £20-25 and is rated 5 out of 5."],
        "name : Copper Kettle | Type : coffee shop | price : £20-25 | customer rating : 5 out of 5",
    ),
    (
        'In the city centre there is a "family friendly" restaurant -- Saffron Gate...',
        [
            "Saffron Gate is a family friendly restaurant in the city centre.",
            "Families like Saffron Gate, in the centre.",
            "Yes.",
        ],
        "name : Saffron Gate | Type : restaurant | area : city centre | family friendly : yes",
    ),
    (
        "Nothing at all.",
        ["Blue Anchor serves fast food by the riverside."],
        "name : Blue Anchor | food : Fast food | area : riverside",
    ),
    ("", ["Tin Whistle is a pub.", "A pub named Tin Whistle."], "name : Tin Whistle | Type : pub"),
]
SYSTEM = [text for text, _, _ in ROWS]
GOLD = [references for _, references, _ in ROWS]
EXAMPLES = [Example(source=source, references=tuple(references)) for _, references, source in ROWS]


def left_out(rows: Sequence[Sequence[str]], place: int) -> tuple[list[str], list[list[str]]]:
    """One reference of each row as its prediction, against the others."""
    rows = [row for row in rows if len(row) > max(place, 1)]
    return [row[place] for row in rows], [[*row[:place], *row[place + 1 :]] for row in rows]


def cards() -> tuple[list[str], list[list[str]]]:
    return left_out([x.references for x in find("cards").load("test")], 0)


# NIST


def twin_nist(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """NIST written from Doddington (2002), section 5, one n-gram at a time."""
    have, wanted = tokens_13a(predictions), [tokens_13a(row) for row in references]
    texts = [tokens for row in wanted for tokens in row]

    def occurrences(gram: tuple[str, ...]) -> int:
        if not gram:
            return sum(len(x) for x in texts)
        return sum(tuple(x[i : i + len(gram)]) == gram for x in texts for i in range(len(x)))

    total = 0.0
    for n in range(1, 6):
        information = 0.0
        for tokens, row in zip(have, wanted, strict=True):
            grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
            for gram in set(grams):
                most = max(sum(tuple(x[i : i + n]) == gram for i in range(len(x))) for x in row)
                if kept := min(grams.count(gram), most):
                    information += kept * math.log(occurrences(gram[:-1]) / occurrences(gram), 2)
        possible = sum(len(tokens) - n + 1 for tokens in have)
        total += information / possible if possible > 0 else 0.0
    ratio = sum(map(len, have)) / sum(sum(map(len, row)) / len(row) for row in wanted)
    beta = math.log(0.5) / math.log(2 / 3) ** 2
    return total * math.exp(beta * math.log(min(1.0, ratio)) ** 2)


words = st.sampled_from("the The a pub £20-25 3.5 is near, family-friendly it's end. centre &amp; (".split())  # noqa: SIM905
salads = st.lists(words, max_size=9).map(" ".join)
tables = st.lists(st.tuples(salads, st.lists(salads, min_size=1, max_size=3)), min_size=1, max_size=4)


@settings(max_examples=200, deadline=None)
@given(tables)
def test_nist_equals_its_slow_twin(rows: list[tuple[str, list[str]]]) -> None:
    predictions, references = [x for x, _ in rows], [y for _, y in rows]
    got = score_nist(predictions, references).values["nist"]
    assert got == pytest.approx(twin_nist(predictions, references), abs=1e-9)


def nltk_nist(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    return float(corpus_nist([tokens_13a(row) for row in references], tokens_13a(predictions)))


def test_nist_equals_nltk_where_a_row_has_one_reference() -> None:
    # With more, nltk takes the best one where the challenge takes all of them together.
    predictions, references = cards()
    single = [row[:1] for row in references]
    assert min(map(len, tokens_13a(predictions))) >= 5
    got = score_nist(predictions, single).values["nist"]
    assert got == pytest.approx(nltk_nist(predictions, single), abs=1e-9)
    assert 1 < got < 15


@needs_data
@pytest.mark.parametrize("place", [0, 2])
def test_nist_equals_nltk_on_e2e(place: int) -> None:
    predictions, references = left_out([x.references for x in find("e2e").load("dev")], place)
    single = [row[:1] for row in references]
    assert score_nist(predictions, single).values["nist"] == pytest.approx(nltk_nist(predictions, single), abs=1e-9)
    assert 8 < score_nist(predictions, references).values["nist"] < 9


def test_nist_by_hand() -> None:
    # Two references of 3 and 1 tokens; a stands twice, b and c once. a b (2 tokens) matches a, b and "a b".
    references = [["a b c", "a"]]
    information = (math.log2(4 / 2) + math.log2(4 / 1)) / 2 + math.log2(2 / 1) / 1
    assert score_nist(["a b"], references).values["nist"] == pytest.approx(information)
    # A prediction of two thirds of the length loses half.
    assert score_nist(["a b"], [["a b c"]]).values["nist"] == pytest.approx(0.5 * (2 * math.log2(3) / 2 + 0))


def test_nist_has_an_interval_and_says_what_it_is() -> None:
    scores = score_nist(SYSTEM, GOLD)
    low, high = scores.intervals["nist"]
    assert low < scores.values["nist"] < high
    assert "mteval-v13a" in scores.variants["nist"]
    assert score_nist([""], [["a"]]).values["nist"] == 0


# METEOR, ROUGE-L and CIDEr against pycocoevalcap, whose own tokeniser and METEOR drivers run here


@pytest.fixture(scope="module")
def official() -> dict[str, Any]:
    """Everything by pycocoevalcap, on the cards and the invented rows (its tokeniser cannot end in an empty text)."""
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    predictions, references = cards()
    predictions, references = [*SYSTEM, *predictions], [*GOLD, *references]
    wanted = PTBTokenizer().tokenize({i: [{"caption": x} for x in row] for i, row in enumerate(references)})
    have = PTBTokenizer().tokenize({i: [{"caption": x}] for i, x in enumerate(predictions)})
    return {
        "predictions": predictions,
        "references": references,
        "have": [have[i][0] for i in range(len(predictions))],
        "wanted": [wanted[i] for i in range(len(predictions))],
        "rouge_l": Rouge().compute_score(wanted, have),
        "cider": Cider().compute_score(wanted, have),
    }


@needs_java
def test_rouge_l_and_cider_equal_pycocoevalcap(official: dict[str, Any]) -> None:
    have, wanted = official["have"], official["wanted"]
    assert captions.tokenise(official["predictions"]) == have
    assert captions.rouge_l_rows(have, wanted) == pytest.approx(list(official["rouge_l"][1]), abs=1e-12)
    assert captions.cider_rows(have, wanted) == pytest.approx(list(official["cider"][1]), abs=1e-12)
    scores = captions.score_captions(official["predictions"], official["references"], {"rouge_l", "cider"})
    assert scores.values["rouge_l"] == pytest.approx(100 * official["rouge_l"][0], abs=1e-12)
    assert scores.values["cider"] == pytest.approx(official["cider"][0], abs=1e-12)
    assert 10 < scores.values["rouge_l"] < 90
    low, high = scores.intervals["cider"]
    assert low < scores.values["cider"] < high
    assert [*scores.intervals] == [*scores.summed] == ["rouge_l", "cider"]
    assert scores.missing == {}


@needs_java
@pytest.mark.slow
def test_meteor_equals_pycocoevalcap(official: dict[str, Any]) -> None:
    from pycocoevalcap.meteor.meteor import Meteor

    have, wanted = official["have"], official["wanted"]
    theirs = Meteor()
    try:
        total, rows = theirs.compute_score(dict(enumerate(wanted)), {i: [x] for i, x in enumerate(have)})
    finally:
        for pipe in (theirs.meteor_p.stdout, theirs.meteor_p.stderr):
            pipe.close()
    assert meteor(have, wanted) == (total, rows)
    assert captions.score_captions(official["predictions"], official["references"], ["meteor"]).values == {
        "meteor": pytest.approx(100 * total, abs=1e-10)
    }
    assert 0.1 < total < 0.9


def longest_common(left: list[str], right: list[str]) -> int:
    """By its definition: over every subsequence of the shorter one."""
    short, long = sorted((left, right), key=len)
    best = 0
    for mask in range(1 << len(short)):
        picked = [x for i, x in enumerate(short) if mask >> i & 1]
        rest = iter(long)
        if all(x in rest for x in picked):
            best = max(best, len(picked))
    return best


letters = st.lists(st.sampled_from("abc"), min_size=1, max_size=7).map(" ".join)


@settings(max_examples=200, deadline=None)
@given(letters, st.lists(letters, min_size=1, max_size=3))
def test_rouge_l_equals_its_definition(prediction: str, references: list[str]) -> None:
    have, wanted = prediction.split(), [x.split() for x in references]
    precision = max(longest_common(have, x) / len(have) for x in wanted)
    recall = max(longest_common(have, x) / len(x) for x in wanted)
    want = 0.0 if precision == 0 else (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)
    assert captions.rouge_l_rows([prediction], [references]) == pytest.approx([want])


def test_rouge_l_takes_precision_and_recall_from_different_references() -> None:
    # Precision 1 against the long one, recall 1 against the short one.
    assert captions.rouge_l_rows(["a b"], [["a", "a b c d"]]) == [1.0]


def twin_cider(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D from Vedantam et al. (2015), equations 1 to 3 and section 5, one n-gram at a time."""

    def grams(text: str, n: int) -> list[str]:
        tokens = text.split()
        return [" ".join(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]

    def weight(gram: str, text: str, n: int) -> float:
        rows_with_it = sum(any(gram in grams(x, n) for x in row) for row in references)
        return grams(text, n).count(gram) * math.log(len(references) / max(1, rows_with_it))

    def length(text: str, n: int) -> float:
        return math.sqrt(sum(weight(x, text, n) ** 2 for x in set(grams(text, n))))

    found = []
    for prediction, row in zip(predictions, references, strict=True):
        total = 0.0
        for reference in row:
            gap = len(grams(prediction, 2)) - len(grams(reference, 2))
            for n in range(1, 5):
                product = sum(
                    min(weight(x, prediction, n), weight(x, reference, n)) * weight(x, reference, n)
                    for x in set(grams(prediction, n))
                )
                norms = length(prediction, n) * length(reference, n)
                total += math.exp(-(gap**2) / 72) * (product / norms if norms else 0)
        found.append(10 * total / 4 / len(row))
    return found


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(letters, st.lists(letters, min_size=1, max_size=3)), min_size=1, max_size=4))
def test_cider_equals_its_definition(rows: list[tuple[str, list[str]]]) -> None:
    predictions, references = [x for x, _ in rows], [y for _, y in rows]
    want = twin_cider(predictions, references)
    assert captions.cider_rows(predictions, references) == pytest.approx(want, abs=1e-9)


def test_cider_of_one_row_is_nothing() -> None:
    # Every n-gram is in every row, so none says anything.
    assert captions.cider_rows(["a b"], [["a b"]]) == [0.0]
    assert captions.cider_rows(["a b", "c"], [["a b"], ["c"]])[0] == pytest.approx(5.0)


# Java


@needs_java
def test_odd_texts_keep_their_lines() -> None:
    odd = ["a\rb", "c\x0bd\x0ce", "f\u2028g\x85h", "", "  ", "x\x00y", "\U0001f600 smile", "one ||| two", "Café £5", ""]
    assert captions.tokenise(odd)[:3] == ["a b", "c d e", "f g h"]
    assert captions.tokenise(odd)[-2:] == ["café # 5", ""]
    assert captions.tokenise([""]) == [""]
    scores = captions.score_captions(odd, [["a b", x] for x in odd], {"rouge_l", "cider"})
    assert (set(scores.values), scores.missing) == ({"rouge_l", "cider"}, {})


@needs_java
@pytest.mark.slow
def test_meteor_takes_odd_texts() -> None:
    odd = ["", "one ||| two", "SCORE ||| a ||| b", "\u4e2d\u6587", "a"]
    total, rows = meteor(odd, [["", x] for x in odd])
    assert len(rows) == 5
    assert rows[-1] == 1.0
    assert 0 < total <= 1


@needs_java
@pytest.mark.slow
def test_meteor_reads_utf_8_in_any_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    # Synonyms apart, é must be a letter: "café" is one word, and not that of "caf".
    monkeypatch.setenv("LC_ALL", "C")
    same, other = meteor(["café", "café"], [["café"], ["caf"]])[1]
    assert same == 1.0
    assert other < 1.0


@needs_java
@pytest.mark.slow
def test_two_at_once_and_nothing_is_written_beside_the_jars() -> None:
    folder = java.find_jar("meteor/meteor-1.5.jar").parents[1]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if "__pycache__" not in path.parts}
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda _: captions.score_captions(SYSTEM, GOLD), range(2))
    assert one == two
    assert one.values
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if "__pycache__" not in path.parts}


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))


def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """A Java of our own making, found by JAVA_HOME."""
    path = tmp_path / "home" / "bin" / "java"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(["#!/bin/sh", f"echo $$ > {tmp_path}/pid", *lines, ""]))
    path.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))


def is_running(tmp_path: Path) -> bool:
    try:
        os.kill(int((tmp_path / "pid").read_text()), 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(not INSTALLED, reason="no pycocoevalcap: pip install 'epigraph[e2e-metrics]'")
@pytest.mark.usefixtures("no_java")
def test_without_java_the_others_are_there_and_the_reason() -> None:
    scores = score_e2e(SYSTEM, EXAMPLES)
    reason = "needs Java, which neither JAVA_HOME nor PATH has; install one, on Debian default-jre-headless"
    assert scores.missing == dict.fromkeys(CAPTION_METRICS, reason)
    assert [*scores.values] == [x for x in METRICS if x not in CAPTION_METRICS]
    assert scores.to_json()["missing"] == scores.missing


def test_without_the_extra_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    scores = score_e2e(SYSTEM, EXAMPLES, {"cider", "bleu"})
    assert scores.missing == {
        "cider": "needs pycocoevalcap, which is not installed; run: pip install 'epigraph[e2e-metrics]'"
    }
    assert scores.values == {"bleu": bleu_e2e(SYSTEM, GOLD)}


def test_a_java_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(tmp_path, monkeypatch, "echo 'Unable to locate a Java Runtime.' >&2", "exit 3")
    said = (
        "Java ended with code 3 and said: Unable to locate a Java Runtime.; see that it runs, with 2 GB of memory free"
    )
    with pytest.raises(MetricUnavailable) as caught:
        java.run(["-version"], "", timeout_s=10)
    assert str(caught.value) == said
    with pytest.raises(MetricUnavailable) as caught, java.conversation([], timeout_s=10) as spoken:
        spoken.hear()
    assert str(caught.value) == said


def test_a_java_that_cannot_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(tmp_path, monkeypatch)
    (tmp_path / "home" / "bin" / "java").write_bytes(b"\x7fELF and nothing else")
    with pytest.raises(MetricUnavailable, match=r"Java could not be started: .*; install it again"):
        java.run([], "", timeout_s=10)
    with pytest.raises(MetricUnavailable, match="Java could not be started"), java.conversation([], timeout_s=10):
        pass


def test_a_java_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(tmp_path, monkeypatch, "exec sleep 600")
    with pytest.raises(MetricUnavailable, match=r"Java did not finish in 1 s; try again on a quiet machine"):
        java.run([], "text", timeout_s=1)
    assert not is_running(tmp_path)
    began = time.monotonic()
    with java.conversation([], timeout_s=1) as spoken:
        spoken.tell("line")
        with pytest.raises(MetricUnavailable, match="was stopped, by its time limit"):
            spoken.hear()
    assert time.monotonic() - began < 30
    assert not is_running(tmp_path)


def test_a_conversation_ends_its_program_whatever_happens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(tmp_path, monkeypatch, "read line", 'echo "you said $line"', "echo noise >&2", "exec sleep 600")

    def interrupted() -> None:
        with java.conversation([], timeout_s=60) as spoken:
            spoken.tell("é")
            assert spoken.hear() == "you said é"
            assert is_running(tmp_path)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not is_running(tmp_path)
    assert not [x for x in threading.enumerate() if isinstance(x, threading.Timer) and not x.finished.is_set()]


def test_a_tokeniser_that_loses_lines_is_not_believed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("pycocoevalcap.rouge.rouge")
    program(tmp_path, monkeypatch, "echo one")
    with pytest.raises(MetricUnavailable, match="the tokeniser gave 1 lines for 2"):
        captions.tokenise(["one", "two"])


# All together


@needs_java
@pytest.mark.slow
def test_e2e_has_them_all() -> None:
    scores = find("e2e").score(SYSTEM, EXAMPLES)
    assert [*scores.values] == [*METRICS]
    assert set(scores.variants) == set(METRICS)
    assert [*scores.intervals] == [*scores.summed] == [*METRICS]
    assert scores.missing == {}
    assert scores.values["ser"] == pytest.approx(sum(scores.values[f"ser_{x}"] for x in ("missing", "wrong", "added")))
    for name in METRICS:
        assert score_e2e(SYSTEM, EXAMPLES, [name]).values == {name: scores.values[name]}
    assert set(find("e2e").better_when_higher) == set(BETTER_WHEN_HIGHER) <= set(METRICS)
    assert not [x for x in BETTER_WHEN_HIGHER if x.startswith("ser")]


def test_e2e_rows_that_do_not_pair_up_are_refused() -> None:
    with pytest.raises(CountMismatch, match="got 1 predictions for 5 rows"):
        score_e2e(["a"], EXAMPLES)
    with pytest.raises(TooFewExamples):
        score_e2e([], [])


def test_an_estimate_is_of_the_sums() -> None:
    import numpy as np

    summed = Summed(statistics=np.array([[1.0, 2.0], [3.0, 2.0]]), finish=lambda x: x[..., 0] / x[..., 1])
    value, (low, high) = summed.estimate()
    assert (value, low, high) == (1.0, 0.5, 1.5)


# The command


@pytest.fixture
def restaurants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of data with invented E2E rows, and a tiny model."""
    import gzip

    folder = tmp_path / "data" / "e2e"
    folder.mkdir(parents=True)
    lines = "".join(json.dumps({"source": x.source, "references": x.references}) + "\n" for x in EXAMPLES)
    for split in ("train", "dev", "test"):
        (folder / f"{split}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    monkeypatch.setenv("EPIGRAPH_DATA", str(tmp_path / "data"))
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path


def command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as done:
        main(list(words))
    out, err = capsys.readouterr()
    return int(str(done.value.code)), out, err


def train(folder: Path, *more: str) -> list[str]:
    flags = ["--num-virtual-tokens", "2", "--steps", "2", "--batch-size", "2", "--precision", "fp32"]
    return ["train", "--model", f"{folder}/model", "--task", "e2e", "--out", f"{folder}/out", *flags, *more]


@pytest.mark.skipif(not INSTALLED, reason="no pycocoevalcap: pip install 'epigraph[e2e-metrics]'")
@pytest.mark.usefixtures("no_java")
def test_evaluate_says_what_is_missing(restaurants: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(capsys, *train(restaurants))[0] == 0
    code, out, _ = command(capsys, "evaluate", f"{restaurants}/out", "--max-new-tokens", "8")
    assert code == 0
    said = [line for line in out.splitlines() if line.startswith("not computed: ")]
    assert len(said) == 1
    assert said[0].startswith("not computed: meteor, rouge_l, cider: needs Java, which neither JAVA_HOME nor PATH has")
    record = json.loads((restaurants / "out" / "evaluations" / "after-test.json").read_text())
    assert set(record["missing"]) == set(CAPTION_METRICS)
    assert set(record["scores"]) == set(METRICS) - set(CAPTION_METRICS)


@pytest.mark.skipif(not INSTALLED, reason="no pycocoevalcap: pip install 'epigraph[e2e-metrics]'")
@pytest.mark.usefixtures("no_java")
def test_a_run_cannot_be_chosen_by_what_cannot_be_computed(
    restaurants: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = command(capsys, *train(restaurants, "training.dev_metric=meteor"))
    assert code == 2
    assert err.strip().splitlines()[-1] == (
        "epigraph: training.dev_metric: meteor cannot be computed here: needs Java, which neither JAVA_HOME nor PATH "
        "has; install one, on Debian default-jre-headless; or choose by another metric"
    )
    assert not (restaurants / "out" / "artifact.safetensors").exists()
    code, _, err = command(capsys, *train(restaurants, "training.dev_metric=ser"))
    assert code == 2
    assert "training.dev_metric: got 'ser', expected one of loss, bleu, nist" in err


@pytest.mark.usefixtures("no_java")
def test_a_run_by_nist_computes_nothing_else(restaurants: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["training.dev_metric=nist", "training.dev_every=1"]
    assert command(capsys, *train(restaurants, *flags))[0] == 0
    steps = [json.loads(x) for x in (restaurants / "out" / "steps.jsonl").read_text().splitlines()]
    assert [set(x["dev"]) for x in steps if "dev" in x] == [{"loss", "nist"}] * 2


# The record


def test_the_page_shows_the_record() -> None:
    record = json.loads((ROOT / "benchmarks" / "metrics.json").read_text())
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert benchmark("metrics").table(record) in page
    assert benchmark("metrics").slot_table(record) in page
    assert {x["metric"] for x in record["comparisons"]} >= {"bleu", "nist", "meteor", "rouge_l", "cider"}


def test_the_page_shows_every_rule() -> None:
    assert benchmark("metrics").rule_table() in (ROOT / "docs" / "metrics.md").read_text()


@needs_data
def test_the_record_of_human_references_is_still_true() -> None:
    record = json.loads((ROOT / "benchmarks" / "metrics.json").read_text())
    assert benchmark("metrics").human_slots("dev") == record["human_slots"]["dev"]
