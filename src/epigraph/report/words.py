"""Numbers as a reader wants them: counts, sizes, times, shares. Pure functions of plain values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

NARROW_SPACE = "\u202f"
METRICS = {
    "bleu": "BLEU",
    "nist": "NIST",
    "ter": "TER",
    "meteor": "METEOR",
    "chrf": "chrF",
    "cider": "CIDEr",
    "rouge_l": "ROUGE-L",
    "ser": "SER",
    "f1": "F1",
}
LOWER_IS_BETTER = frozenset(
    {"loss", "perplexity", "nll", "ece", "illegal_share", "ter", "ser", "ser_missing", "ser_wrong", "ser_added"}
)


def count(value: int) -> str:
    """``115200`` as 115,200."""
    return f"{value:,}"


def size(num_bytes: int) -> str:
    """A file size in decimal units, three digits: 231 KB, 1.25 GB."""
    value = float(num_bytes)
    for unit in ("bytes", "KB", "MB", "GB"):
        # 999.5 is where three digits round up into the next unit.
        if value < 999.5:
            return f"{_three_digits(value)}{NARROW_SPACE}{unit}"
        value /= 1000
    return f"{_three_digits(value)}{NARROW_SPACE}TB"


def duration(seconds: float) -> str:
    """Wall time in its two largest units: 42 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 10:
        return f"{seconds:.1f}{NARROW_SPACE}s"
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours}{NARROW_SPACE}h {minutes}{NARROW_SPACE}min"
    return f"{minutes}{NARROW_SPACE}min {rest}{NARROW_SPACE}s" if minutes else f"{rest}{NARROW_SPACE}s"


def percent(share: float) -> str:
    """A share of one with two significant digits: 0.00085641 is 0.086 %."""
    if share <= 0:
        return f"0{NARROW_SPACE}%"
    places = max(0, 1 - math.floor(math.log10(share * 100)))
    return f"{share * 100:,.{places}f}{NARROW_SPACE}%"


def metric_name(name: str) -> str:
    """``bleu`` as BLEU, ``rouge_l`` as ROUGE-L, ``exact_match`` as exact match."""
    lowered = name.lower()
    if lowered.startswith("rouge"):
        return "ROUGE-" + lowered.removeprefix("rouge").lstrip("_-").upper()
    return METRICS.get(lowered, name.replace("_", " "))


def decimals_for(values: Iterable[float]) -> int:
    """How many decimals a metric is shown with, one number for all its rows so that their points align."""
    largest = max((abs(x) for x in values if math.isfinite(x)), default=0.0)
    if largest <= 1:
        return 3
    return 2 if largest <= 10 else 1


def decimal(value: float, places: int) -> str:
    """A number with a fixed number of decimals and a real minus sign; NaN and infinities in words."""
    if not math.isfinite(value):
        return "not a number"
    return f"{value:,.{places}f}".replace("-", "\u2212")


def flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested JSON as (dotted key, value in words) in the order it was written."""
    rows: list[tuple[str, str]] = []
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            rows += flat(inner, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", _plain(inner)))
    return rows


def _plain(value: Any) -> str:
    if value is None or value in ({}, []):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(_plain(x) for x in value)
    return str(value)


def _three_digits(value: float) -> str:
    if value == round(value) or value >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
