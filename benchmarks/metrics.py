"""Our metrics against other implementations of them, on E2E's development rows, and the slot errors of human texts.

Each row's first references in turn are its prediction, against the others. Needs EPIGRAPH_DATA with the E2E files, Java
and the extra e2e-metrics; about two minutes. Two references are given by hand, for we do not ship them: the challenge's
own BLEU and NIST (--pymteval, metrics/pymteval.py of its repository e2e-metrics) and rows that its script scored
(--segments, a .segscores.tsv file of its repository e2e-eval). What was found with them stays when they are not given.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nltk.translate.nist_score import corpus_nist
from sacrebleu.metrics.bleu import BLEU

from epigraph.tasks.captions import cider_rows, rouge_l_rows, score_captions, tokenise
from epigraph.tasks.catalogue import find
from epigraph.tasks.meteor import meteor
from epigraph.tasks.metrics import bleu_e2e
from epigraph.tasks.ngrams import tokens_13a
from epigraph.tasks.nist import score_nist
from epigraph.tasks.slot_rules import RULES
from epigraph.tasks.slots import ERRORS, SLOTS, parse_table, slot_errors
from epigraph.train.record import versions, write_json

RECORD = Path(__file__).with_suffix(".json")
NUM_LEFT_OUT = 4
NAMES = {"bleu": "BLEU", "nist": "NIST", "meteor": "METEOR", "rouge_l": "ROUGE-L", "cider": "CIDEr"}
BY_HAND = ("pymteval", "segments")

Texts = Sequence[str]
Rows = Sequence[Sequence[str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=RECORD)
    parser.add_argument("--pymteval", type=Path)
    parser.add_argument("--segments", type=Path)
    options = parser.parse_args()
    rows = [x.references for x in find("e2e").load("dev")]
    corpora = [left_out(rows, place) for place in range(NUM_LEFT_OUT)]
    found = [*text_metrics(corpora), *caption_metrics(corpora[0])]
    if options.pymteval:
        found += challenge(corpora, options.pymteval)
    if options.segments:
        found += segments(options.segments)
    before = json.loads(options.json.read_text())["comparisons"] if options.json.exists() else []
    given = [name for name in BY_HAND if getattr(options, name)]
    found += [x for x in before if x["by"] in BY_HAND and x["by"] not in given]
    record = {
        "comparisons": sorted(found, key=lambda x: [*NAMES].index(x["metric"])),
        "human_slots": {split: human_slots(split) for split in ("dev", "test")},
        "versions": versions(),
    }
    write_json(options.json, record)
    print(table(record), slot_table(record), sep="\n\n")


def left_out(rows: Rows, place: int) -> tuple[list[str], list[list[str]]]:
    """One reference of each row as its prediction, against the others."""
    rows = [row for row in rows if len(row) > max(place, 1)]
    return [row[place] for row in rows], [[*row[:place], *row[place + 1 :]] for row in rows]


def comparison(metric: str, by: str, reference: str, cases: str, largest: float) -> dict[str, Any]:
    return {"metric": metric, "by": by, "reference": reference, "cases": cases, "largest_difference": largest}


def compare(
    ours: Callable[[Texts, Rows], float], theirs: Callable[[Texts, Rows], float], corpora: Sequence[tuple[Texts, Rows]]
) -> tuple[str, float]:
    """In words what was compared, and the largest difference."""
    cases = f"{len(corpora)} corpora, {sum(len(x) for x, _ in corpora):,} rows"
    return cases, max(abs(ours(*x) - theirs(*x)) for x in corpora)


def nist(predictions: Texts, references: Rows) -> float:
    return score_nist(predictions, references).values["nist"]


def text_metrics(corpora: Sequence[tuple[Texts, Rows]]) -> list[dict[str, Any]]:
    def sacrebleu(predictions: Texts, references: Rows) -> float:
        longest = max(len(x) for x in references)
        streams: list[Any] = [[x[i] if i < len(x) else None for x in references] for i in range(longest)]
        return float(BLEU(lowercase=True, smooth_method="none").corpus_score(list(predictions), streams).score)

    def nltk(predictions: Texts, references: Rows) -> float:
        return float(corpus_nist([tokens_13a(x) for x in references], tokens_13a(predictions)))

    single = [(predictions, [row[:1] for row in references]) for predictions, references in corpora]
    return [
        comparison("bleu", "sacrebleu", "sacrebleu", *compare(bleu_e2e, sacrebleu, corpora)),
        comparison("nist", "nltk", "nltk, one reference a row", *compare(nist, nltk, single)),
    ]


def caption_metrics(corpus: tuple[Texts, Rows]) -> list[dict[str, Any]]:
    """Against pycocoevalcap from end to end: its tokeniser, its drivers, its formulas."""
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    predictions, references = corpus
    wanted = PTBTokenizer().tokenize({i: [{"caption": x} for x in row] for i, row in enumerate(references)})
    have = PTBTokenizer().tokenize({i: [{"caption": x}] for i, x in enumerate(predictions)})
    texts, rows = [have[i][0] for i in have], [wanted[i] for i in wanted]
    scores = score_captions(predictions, references).values
    scales = {"meteor": 100.0, "rouge_l": 100.0, "cider": 1.0}
    ours = {"meteor": meteor(texts, rows)[1], "rouge_l": rouge_l_rows(texts, rows), "cider": cider_rows(texts, rows)}
    found = []
    for name, scorer in (("meteor", Meteor()), ("rouge_l", Rouge()), ("cider", Cider())):
        total, each = scorer.compute_score(wanted, have)
        apart = [abs(scores[name] - scales[name] * total), *(abs(x - y) for x, y in zip(ours[name], each, strict=True))]
        cases = f"1 corpus, its {len(texts)} rows"
        found.append(comparison(name, "pycocoevalcap", "pycocoevalcap, end to end", cases, float(max(apart))))
    return found


def challenge(corpora: Sequence[tuple[Texts, Rows]], path: Path) -> list[dict[str, Any]]:
    spec = importlib.util.spec_from_file_location("pymteval", path)
    assert spec is not None
    assert spec.loader is not None
    pymteval = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pymteval)

    def score(kind: Any, predictions: Texts, references: Rows) -> float:
        scorer = kind()
        for text, row in zip(predictions, references, strict=True):
            scorer.append(text.strip(), [x.strip() for x in row])
        return float(scorer.score())

    name = "the challenge's pymteval"
    bleu = compare(bleu_e2e, lambda *x: 100 * score(pymteval.BLEUScore, *x), corpora)
    ours = compare(nist, lambda *x: score(pymteval.NISTScore, *x), corpora)
    return [comparison("bleu", "pymteval", name, *bleu), comparison("nist", "pymteval", name, *ours)]


def segments(path: Path) -> list[dict[str, Any]]:
    """Rows of a challenge system that the challenge's script scored one by one, to four decimals."""
    gold = {table_key(parse_table(x.source) or {}): x.references for x in find("e2e").load("test")}
    lines = list(csv.DictReader(path.open(encoding="utf-8"), delimiter="\t", quoting=csv.QUOTE_NONE))
    lines = [x for x in lines if table_key(from_mr(x["src"])) in gold]
    texts = [x["sys_out"] for x in lines]
    rows = [gold[table_key(from_mr(x["src"]))] for x in lines]
    have, wanted = tokenise(texts), [tokenise(x) for x in rows]
    ours = {
        "BLEU": [bleu_e2e([x], [y]) / 100 for x, y in zip(texts, rows, strict=True)],
        "NIST": [nist([x], [y]) for x, y in zip(texts, rows, strict=True)],
        "METEOR": meteor(have, wanted)[1],
        "ROUGE_L": rouge_l_rows(have, wanted),
    }
    cases = f"{len(lines)} rows alone, 0 to 1"
    return [
        comparison(
            name.lower(),
            "segments",
            "published scores of a challenge system, four decimals",
            cases if name != "NIST" else f"{len(lines)} rows alone",
            max(abs(x - float(line[name])) for x, line in zip(values, lines, strict=True)),
        )
        for name, values in ours.items()
    ]


def from_mr(mr: str) -> dict[str, str]:
    """``name[Aromi], eatType[pub]`` as slots."""
    return dict(part.rstrip("]").split("[", 1) for part in mr.split("], "))


def table_key(slots: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset(slots.items())


def human_slots(split: str) -> dict[str, Any]:
    """What the matcher finds in the references themselves, by slot."""
    slots: Counter[str] = Counter()
    found: Counter[str] = Counter()
    texts = faulty = 0
    for example in find("e2e").load(split):
        said = parse_table(example.source) or {}
        for text in example.references:
            errors = slot_errors(said, text)
            texts, faulty = texts + 1, faulty + bool(errors)
            slots.update(said.keys())
            found.update(f"{slot} {error}" for slot, error in errors.items())
    by_slot = {s: {"slots": slots[s], **{e: found[f"{s} {e}"] for e in ERRORS}} for s in SLOTS}
    return {"texts": texts, "texts_with_errors": faulty, "by_slot": by_slot}


def table(record: Mapping[str, Any]) -> str:
    """The comparisons as the table of docs/metrics.md."""
    lines = [["metric", "reference implementation", "cases compared", "largest difference"], ["---"] * 4]
    for x in record["comparisons"]:
        largest = x["largest_difference"]
        lines.append([NAMES[x["metric"]], x["reference"], x["cases"], "0" if largest == 0 else f"{largest:.0e}"])
    return markdown(lines)


def slot_table(record: Mapping[str, Any]) -> str:
    """Slot errors of human references as the table of docs/metrics.md."""
    splits = record["human_slots"]
    lines = [["slot", *(f"{split}: missing | wrong | added | %" for split in splits)]]
    lines.append(["---"] * (1 + 4 * len(splits)))
    for slot in SLOTS:
        lines.append([slot, *(cells([found["by_slot"][slot]]) for found in splits.values())])
    lines.append(["all", *(cells([*found["by_slot"].values()]) for found in splits.values())])
    return markdown(lines)


def cells(counts: Sequence[Mapping[str, int]]) -> str:
    errors = [sum(x[error] for x in counts) for error in ERRORS]
    rate = 100 * sum(errors) / sum(x["slots"] for x in counts)
    return " | ".join([*(f"{x:,}" for x in errors), f"{rate:.1f}"])


def rule_table() -> str:
    """The matcher's rules, in their order, as the table of docs/metrics.md."""
    lines = [["slot", "ways to say it, for example", "true of"], ["---"] * 3]
    for rule in RULES:
        values = ", ".join(rule.values) or "nothing"
        lines.append([rule.slot, rule.example, f"{values} (a hint)" if rule.is_hint else values])
    return markdown(lines)


def markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    if not os.environ.get("EPIGRAPH_DATA"):
        raise SystemExit("EPIGRAPH_DATA is unset, expected a folder with e2e/dev.jsonl.gz")
    main()
