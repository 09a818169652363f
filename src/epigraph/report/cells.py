"""Numbers that were measured several times, as cells of Markdown tables. Pure functions of a record's values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# A median with what lies around it, as a bench records it.
Spread = Mapping[str, Any]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def spread(x: Spread, places: int) -> str:
    """The median, with the least and the most."""
    return f"{x['median']:,.{places}f} ({x['low']:,.{places}f} to {x['high']:,.{places}f})"


def hundredths(x: Spread) -> str:
    """Seconds, or how many times one is the other."""
    return spread(x, 2)


def percents(x: Spread) -> str:
    """Shares of one."""
    return f"{100 * x['median']:.0f} % ({100 * x['low']:.0f} to {100 * x['high']:.0f})"
