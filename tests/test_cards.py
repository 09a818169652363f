"""The bundled cards keep their promises: sizes, format, no leak between splits, and references true to their card."""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib import resources
from typing import Any

import pytest

SIZES = {"train": 300, "dev": 36, "test": 60}
KEYS = {
    "trail": {"length", "climb", "difficulty", "dogs", "view", "start", "surface"},
    "museum": {"town", "collection", "building", "ticket", "closed", "founded", "café"},
    "board game": {"kind", "theme", "players", "time", "age", "designer", "price"},
    "houseplant": {"leaves", "flowers", "height", "light", "water", "pets", "pot"},
    "ferry": {"from", "to", "crossing", "fare", "cars", "bikes", "runs", "sailings"},
    "camera": {"type", "made", "price", "condition", "lens", "film", "meter", "case"},
}
# Values of these keys become other words (allowed: welcome) or are all number, which has its own test.
REWORDED = {"dogs", "pets", "café", "cars", "meter", "case", "age", "time", "crossing", "sailings"}
NUMBER = re.compile(r"\d+(?:\.\d+)?")

Row = dict[str, Any]


def rows_of(split: str) -> list[Row]:
    text = (resources.files("epigraph.tasks") / "cards" / f"{split}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def pairs_of(row: Row) -> dict[str, str]:
    pairs = [pair.split(" : ") for pair in row["source"].split(" | ")]
    assert all(len(pair) == 2 for pair in pairs), row["source"]
    card = dict(pairs)
    assert len(card) == len(pairs), f"a key twice: {row['source']}"
    return card


ALL = [(split, row) for split in SIZES for row in rows_of(split)]
REFERENCES = [(pairs_of(row), reference) for _, row in ALL for reference in row["references"]]


@pytest.mark.parametrize("split", SIZES)
def test_sizes_and_balance(split: str) -> None:
    rows = rows_of(split)
    assert len(rows) == SIZES[split]
    for start in range(0, len(rows), len(KEYS)):
        assert {row["domain"] for row in rows[start : start + len(KEYS)]} == set(KEYS)


def test_fields_and_keys() -> None:
    for _, row in ALL:
        assert list(row) == ["domain", "source", "references"]
        card = pairs_of(row)
        assert next(iter(card)) == "name"
        assert set(card) - {"name"} <= KEYS[row["domain"]], row["source"]
        assert 3 <= len(card) - 1 <= 6, row["source"]
        assert all(value == value.strip() != "" for value in card.values()), row["source"]


def test_number_of_references() -> None:
    assert all(len(row["references"]) in (1, 2) for _, row in ALL)
    assert all(len(row["references"]) == 2 for split, row in ALL if split == "test")
    two = sum(len(row["references"]) == 2 for split, row in ALL if split == "train")
    assert 90 <= two <= 120


def test_no_name_card_or_sentence_stands_twice() -> None:
    names = Counter(pairs_of(row)["name"].casefold() for _, row in ALL)
    cards = Counter((row["domain"], *sorted(row["source"].split(" | ")[1:])) for _, row in ALL)
    sentences = Counter(reference for _, reference in REFERENCES)
    for seen in (names, cards, sentences):
        assert [x for x, count in seen.items() if count > 1] == []


def test_names_are_literal() -> None:
    assert [ref for card, ref in REFERENCES if card["name"] not in ref] == []


def test_numbers_are_the_card_s_and_no_others() -> None:
    wrong = [
        ref
        for card, ref in REFERENCES
        if Counter(NUMBER.findall(" | ".join(card.values()))) != Counter(NUMBER.findall(ref))
    ]
    assert wrong == []


def test_other_values_are_literal() -> None:
    missing = [
        (key, value, ref)
        for card, ref in REFERENCES
        for key, value in card.items()
        if key not in REWORDED and re.sub(r"^an? ", "", value).casefold() not in ref.casefold()
    ]
    assert missing == []


def test_yes_and_no_are_told_apart() -> None:
    no = re.compile(r"\b(no|not|without|closed to|stay at home)\b")
    for card, ref in REFERENCES:
        told = ref.replace(card["name"], "").casefold()
        denied = any(card.get(key) in ("no", "not allowed", "none") for key in ("dogs", "café", "cars", "meter"))
        if card.get("case") != "missing":  # "no case" and "the case is missing" are both fine
            assert bool(no.search(told)) == denied, ref
        assert ("toxic" in told, "safe" in told) == (card.get("pets") == "toxic", card.get("pets") == "safe"), ref


def test_house_style() -> None:
    for card, ref in REFERENCES:
        assert 10 <= len(ref.split()) <= 45, ref
        assert re.fullmatch(r"[A-Z].*\.", ref), ref
        assert "  " not in ref, ref
        assert len(re.findall(r"\.(?: |$)", ref)) <= 2, ref
        assert not re.search(r"\b(was|were|had|will)\b", ref.replace(card["name"], "")), ref


def test_openings_vary() -> None:
    openings = [" ".join(ref.replace(card["name"], "NAME").split()[:3]) for card, ref in REFERENCES]
    assert len(set(openings)) > len(openings) / 2
    assert Counter(openings).most_common(1)[0][1] < len(openings) / 5
