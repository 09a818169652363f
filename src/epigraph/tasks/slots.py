"""Slot error rate of E2E texts: which values of the table a text leaves out, gets wrong or makes up.

It knows the eight E2E slots and words for them (``slot_rules``); it knows no model and no reference. In the spirit of
the matcher of Dusek, Howcroft & Rieser (2019), with rules of its own. Differences: a slot has at most one error; grades
are read with their noun ("low prices, high rating"); a negated mention stands for the slot's other values.

A slot of a table is *missing* if the text says nothing of it, and *wrong* if the text says only values that its own is
not one of. A slot is *added* if the text says a value and the table has none, or says its value and another one too.
SER = 100 * (missing + wrong + added) / slots of the tables, summed over all rows; above 100 is possible.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from functools import cache, partial
from types import MappingProxyType

import numpy as np

from epigraph.tasks.base import Scores
from epigraph.tasks.bootstrap import INTERVAL_VARIANT, Floats, Summed
from epigraph.tasks.slot_rules import NAMES, NEARS, OTHER, RULES, VALUES, Rule

SLOTS = ("name", "eatType", "food", "priceRange", "customer rating", "area", "familyFriendly", "near")
ERRORS = ("missing", "wrong", "added")

_RULES_VARIANT = "percentage of the tables' slots, 0 is best, above 100 possible; rules of docs/metrics.md"
_VARIANTS = {
    "ser": f"slots missing, wrong or added, {_RULES_VARIANT}; {INTERVAL_VARIANT}",
    "ser_missing": f"slots of which the text says nothing, {_RULES_VARIANT}; {INTERVAL_VARIANT}",
    "ser_wrong": f"slots of which the text says only other values, {_RULES_VARIANT}; {INTERVAL_VARIANT}",
    "ser_added": f"slots of which the text says a value that the table has not, {_RULES_VARIANT}; {INTERVAL_VARIANT}",
}

# What the table's linearisation calls them (Li & Liang 2021, section 5.1).
_LABELS: Mapping[str, str] = MappingProxyType(
    {"Type": "eatType", "price": "priceRange", "family friendly": "familyFriendly"}
    | {x: x for x in ("name", "food", "customer rating", "area", "near")}
)
_NUMBERS = MappingProxyType({"zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"})
# A negation reaches over words of this kind only: in "not child friendly and cheap" it has its noun already.
_NEGATED = re.compile(
    r"\b(?:not|no|non|never|nor|neither|without|hardly|nt) "
    r"(?:(?:a|an|the|in|at|come|comes|on|by|to|of|any|be|have|has|having|get|got|serve|serves|serving|offer|offers|offering|"
    r"located|situated|very|too|so|really|particularly|overly|especially|exactly|that|most) )*$"
)


def score_slots(predictions: Sequence[str], sources: Sequence[str], only: Collection[str] | None = None) -> Scores:
    """``ser`` and its three parts, for predictions from E2E tables, one a row; ``only`` these of them, None for all.

    Where a source is no E2E table, all are in ``missing`` with the number of the row, from 1.
    """
    names = [x for x in _VARIANTS if only is None or x in only]
    tables = [parse_table(x) for x in sources]
    if (stranger := next((number for number, x in enumerate(tables, start=1) if x is None), None)) is not None:
        reason = f"row {stranger} is no E2E table (name : X | Type : Y | ...), and slots are read from those only"
        return Scores(
            values={}, intervals={}, variants={}, missing=dict.fromkeys(names, reason), num_examples=len(tables)
        )
    statistics = _statistics(predictions, [x for x in tables if x is not None])
    columns = {"ser": (0, 1, 2), "ser_missing": (0,), "ser_wrong": (1,), "ser_added": (2,)}
    found = {name: Summed(statistics=statistics, finish=partial(_percentage, columns=columns[name])) for name in names}
    return Scores.of(found, _VARIANTS, len(tables))


def _statistics(predictions: Sequence[str], tables: Sequence[Mapping[str, str]]) -> Floats:
    """Slots missing, wrong and added, and slots of the table, ``[rows, 4]``."""
    rows = []
    for text, table in zip(predictions, tables, strict=True):
        verdicts = list(slot_errors(table, text).values())
        rows.append([*(verdicts.count(error) for error in ERRORS), len(table)])
    return np.array(rows, dtype=np.float64)


def _percentage(totals: Floats, columns: tuple[int, ...]) -> Floats:
    return np.asarray(100.0 * totals[..., columns].sum(axis=-1) / totals[..., -1])


def parse_table(source: str) -> Mapping[str, str] | None:
    """The slots of ``name : Aromi | Type : pub``, by their E2E names; None where ``source`` is no E2E table."""
    pairs = [part.partition(" : ") for part in source.strip().split(" | ")]
    if not all(label in _LABELS and value.strip() for label, _, value in pairs):
        return None
    return {_LABELS[label]: value.strip() for label, _, value in pairs}


def plain_text(text: str) -> str:
    """``text`` as the rules read it: small letters, no accents, words and marks apart, ``isn't`` as ``is not``."""
    text = re.sub(r"n't\b|\bcannot\b", " not", _letters(text).lower())
    text = re.sub(r"[£\u0141\u0142\"]|\bl(?=\d)|\b(?:british )?(?:pounds?|gbp)\b", " ", text)
    text = re.sub(r"[-\u2010-\u2015_']", " ", text)
    text = re.sub(r"([^\w\s])", r" \1 ", text)
    return " ".join(_NUMBERS.get(x, x) for x in text.split())


def slot_errors(table: Mapping[str, str], text: str) -> dict[str, str]:
    """The slots that ``text`` gets wrong, each with ``missing``, ``wrong`` or ``added``; ``table`` by E2E names."""
    said, rest = _said_venues(table, _letters(text))
    said |= _said(table, plain_text(rest))
    verdicts = {slot: _verdict(table.get(slot), said[slot]) for slot in SLOTS}
    return {slot: verdict for slot, verdict in verdicts.items() if verdict}


def _verdict(own: str | None, said: Sequence[Collection[str]]) -> str | None:
    """``said`` are the mentions of a slot, each the values that it is true of."""
    if own is None:
        return "added" if said else None
    is_said = any(own in mention for mention in said)
    if any(own not in mention for mention in said):
        return "added" if is_said else "wrong"
    return None if is_said else "missing"


def _said(table: Mapping[str, str], plain: str) -> dict[str, list[Collection[str]]]:
    """The mentions of the other six slots in a plain text. What a rule has read is hidden from the rules after it."""
    said: dict[str, list[Collection[str]]] = {slot: [] for slot in VALUES}
    for slot, value in table.items():
        if slot in VALUES and value not in VALUES[slot] and re.search(rf"\b{re.escape(plain_text(value))}\b", plain):
            said[slot].append((value,))
    for rule, pattern in _compiled():
        own = table.get(rule.slot)
        for match in pattern.finditer(plain) if not rule.is_hint or own in rule.values else ():
            is_negated = not rule.is_final and _NEGATED.search(plain, 0, match.start()) is not None
            said[rule.slot].append(_opposite(rule, own) if is_negated else rule.values)
        plain = pattern.sub(lambda match: "#" * len(match.group()), plain)
    return {slot: [x for x in mentions if x] for slot, mentions in said.items()}


def _opposite(rule: Rule, own: str | None) -> Collection[str]:
    """What a negated mention is true of. To serve no Chinese food says nothing of what is served."""
    if rule.slot in ("food", "eatType"):
        return (OTHER,) if own in rule.values else ()
    return tuple(x for x in VALUES[rule.slot] if x not in rule.values)


@cache
def _compiled() -> tuple[tuple[Rule, re.Pattern[str]], ...]:
    return tuple((rule, re.compile(rf"\b(?:{rule.pattern})(?!\w)")) for rule in RULES)


def _said_venues(table: Mapping[str, str], text: str) -> tuple[dict[str, list[Collection[str]]], str]:
    """The mentions of ``name`` and ``near``, and the text without them: the Rainbow Vegetarian Café is no café.

    The table's own venues are found in any case, with or without "The"; others as they are spelt, with capitals. What
    only one of the two slots ever holds counts for that one.
    """
    said: dict[str, list[Collection[str]]] = {"name": [], "near": []}
    # The longer one first: it may have the other in it.
    for slot in sorted(table.keys() & said.keys(), key=lambda slot: (-len(table[slot]), slot)):
        text, count = _venue(table[slot], re.IGNORECASE).subn(" # ", text)
        said[slot] += [(table[slot],)] * bool(count)
    for venue in dict.fromkeys((*NEARS, *NAMES)):
        text, count = _venue(venue, 0).subn(" # ", text)
        said["near" if venue in NEARS else "name"] += [(venue,)] * bool(count)
    return said, text


@cache
def _venue(name: str, flags: int) -> re.Pattern[str]:
    words = re.findall(r"\w+", _letters(name).removeprefix("The "))
    if not words:
        return re.compile(re.escape(name))
    pattern = r"\W+".join(words).replace("Crowne", "Crowne?")
    return re.compile(rf"\b(?:[Tt]he )?{pattern}\b", flags)


def _letters(text: str) -> str:
    """``text`` without accents, with one kind of apostrophe."""
    text = unicodedata.normalize("NFKD", text.replace("\u2019", "'"))
    return "".join(x for x in text if not unicodedata.combining(x))
