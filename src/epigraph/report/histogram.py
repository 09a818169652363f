"""How many of many values lie where, as SVG to stand inside a page. It knows numbers, no users and no page."""

from __future__ import annotations

import html
import math
import statistics
from collections.abc import Callable, Sequence

MAX_BARS = 24
_WIDTH, _HEIGHT, _FOOT, _HEAD = 300.0, 96.0, 20.0, 18.0


def histogram_svg(values: Sequence[float], name: str, shown: Callable[[float], str]) -> str:
    """Bars of equal width between the least and the most of ``values``, a line at the median, all three in words.

    ``shown`` writes a value. What is no finite number is left out; without any that is, the answer is empty.
    """
    finite = sorted(x for x in values if math.isfinite(x))
    if not finite:
        return ""
    low, high, middle = finite[0], finite[-1], statistics.median(finite)
    counts = counted(finite)
    width = _WIDTH / len(counts)
    bars = [
        f'<rect x="{number * width + 0.5:.1f}" y="{_HEAD + _HEIGHT * (1 - count / max(counts)):.1f}" '
        f'width="{width - 1:.1f}" height="{_HEIGHT * count / max(counts):.1f}"/>'
        for number, count in enumerate(counts)
    ]
    at = _WIDTH * ((middle - low) / (high - low) if high > low else 0.5)
    foot = _HEAD + _HEIGHT
    words = [
        _text(0, foot + 15, "start", shown(low)),
        _text(_WIDTH, foot + 15, "end", shown(high)) if high > low else "",
        _text(min(max(at, 24), _WIDTH - 24), _HEAD - 6, "middle", shown(middle)),
    ]
    line = f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{_HEAD - 2:g}" y2="{foot:g}"/>'
    base = f'<line class="base" x1="0" x2="{_WIDTH:g}" y1="{foot:g}" y2="{foot:g}"/>'
    label = html.escape(f"{name}: {shown(low)} to {shown(high)}, median {shown(middle)}, {len(finite):,} users")
    view = f"0 0 {_WIDTH:g} {foot + _FOOT:g}"
    return f'<svg role="img" aria-label="{label}" viewBox="{view}">{"".join([*bars, base, line, *words])}</svg>'


def counted(ordered: Sequence[float]) -> list[int]:
    """How many values each of up to :data:`MAX_BARS` bars of equal width holds, the first beginning at the least."""
    low, high = ordered[0], ordered[-1]
    number = min(MAX_BARS, len(set(ordered)))
    counts = [0] * number
    for x in ordered:
        share = (x - low) / (high - low) if high > low else 0.0
        counts[min(number - 1, int(share * number))] += 1
    return counts


def _text(x: float, y: float, anchor: str, words: str) -> str:
    return f'<text x="{x:.1f}" y="{y:g}" text-anchor="{anchor}">{html.escape(words)}</text>'
