"""A metric against the number of training pairs, one line a system, as a PNG. It knows tables, no runs."""

from __future__ import annotations

from pathlib import Path

from epigraph.errors import BadValue
from epigraph.report.words import metric_name
from epigraph.sweep.table import Row, Table

COLOURS = ("#a3341f", "#2f5d8a", "#555555", "#7a8b2f", "#8a5a9c", "#c08a2e", "#3a8f83", "#222222")


def draw(table: Table, path: Path) -> None:
    """Mean and 95 % t interval over runs at each number of pairs; a system without training rows is a level line.

    Raises :class:`BadValue` where fewer than two numbers of pairs have scores.
    """
    from matplotlib.figure import Figure

    limits = sorted({row.limit for row in table.rows if row.limit is not None})
    if len(limits) < 2:
        raise BadValue(f"a curve needs two or more numbers of training pairs with scores, got {len(limits)}")
    figure = Figure(figsize=(6.4, 4.2), dpi=160, layout="constrained", facecolor="white")
    panel = figure.subplots()
    for number, system in enumerate(dict.fromkeys(row.system for row in table.rows)):
        _line(panel, [row for row in table.rows if row.system == system], COLOURS[number % len(COLOURS)])
    panel.set_xscale("log")
    panel.set_xticks(limits, [f"{x:,}" for x in limits])
    panel.minorticks_off()
    panel.set_xlabel("training pairs")
    panel.set_ylabel(metric_name(table.metric), parse_math=False)
    panel.set_title(table.evaluation, loc="left", fontsize=10, parse_math=False)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", alpha=0.2)
    panel.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")


def _line(panel: object, rows: list[Row], colour: str) -> None:
    at = [(row.limit, row.mean, row.half or 0.0) for row in rows if row.limit is not None]
    if not at:
        panel.axhline(rows[0].mean, color=colour, linestyle=":", label=rows[0].system)  # type: ignore[attr-defined]
        return
    where, means, halves = zip(*at, strict=True)
    panel.errorbar(  # type: ignore[attr-defined]
        where, means, yerr=halves, color=colour, marker="o", linewidth=2, capsize=3, label=rows[0].system
    )
