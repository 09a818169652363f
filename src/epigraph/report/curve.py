"""The training curve as SVG to stand inside a page. It knows steps and scores, no run and no page.

Colours are the page's own (``currentColor`` and ``var(--accent)``), so that one picture serves light and dark.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from epigraph.report.records import Development, Step
from epigraph.report.words import decimal, decimals_for, metric_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_POINTS = 400
SMOOTHED_OVER = 0.05
POINTS_PER_INCH = 72

# Matplotlib knows no CSS: these stand in for it until the picture is written, and occur nowhere else.
INK, ACCENT, PAPER = "#0a0b0c", "#0d0e0f", "#0a0c0e"
CSS = {INK: "currentColor", ACCENT: "var(--accent, #a3341f)", PAPER: "var(--paper, #fff)"}

Row = Step | Development


def training_curve_svg(rows: Sequence[Row], *, width: int = 720, height: int = 300) -> str:
    """The training loss of ``rows`` with the development points, and a second panel if development has another score.

    ``width`` and ``height`` (of one panel) are CSS pixels; the type is 12 pixels at that width. The same rows give the
    same text. Without any row of either kind the answer is empty.
    """
    steps = [x for x in rows if isinstance(x, Step)]
    development = [x for x in rows if isinstance(x, Development)]
    losses, metric = development_points(development, "loss"), score_metric(development)
    if not steps and not development:
        return ""
    has_loss = bool(steps or losses)
    with _own_style(salt=f"curve-{width}"):
        figure, axes = _panels(width, height, int(has_loss) + int(metric is not None))
        for panel in axes:
            panel.set_xlim(0, max(1, *(x.step for x in rows)) * 1.02)
        if has_loss:
            _draw_loss(axes[0], steps, losses)
        if metric is not None:
            _draw_score(axes[-1], development_points(development, metric), metric)
        axes[-1].set_xlabel("step", loc="right", color=INK, alpha=0.75)
        return _inline(_written(figure), described(rows))


def thinned(steps: Sequence[Step], limit: int = MAX_POINTS) -> list[tuple[float, float]]:
    """(step, loss) pairs, at most ``limit``: each the mean of as many steps in a row as it takes."""
    share = max(1, math.ceil(len(steps) / limit))
    groups = [steps[start : start + share] for start in range(0, len(steps), share)]
    return [(sum(x.step for x in group) / len(group), sum(x.loss for x in group) / len(group)) for group in groups]


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """The mean over ``window`` neighbours (odd), fewer at the ends; what is not a number is left out of the mean."""
    half = window // 2
    means = []
    for place in range(len(values)):
        near = [x for x in values[max(0, place - half) : place + half + 1] if math.isfinite(x)]
        means.append(sum(near) / len(near) if near and math.isfinite(values[place]) else math.nan)
    return means


def development_points(development: Sequence[Development], metric: str) -> list[tuple[int, float]]:
    """The (step, value) pairs of one development score, where it was measured."""
    return [(x.step, x.dev[metric]) for x in development if metric in x.dev]


def by_step(development: Sequence[Development]) -> dict[int, dict[str, float]]:
    """All development scores of each step together; a score measured twice keeps its last value."""
    merged: dict[int, dict[str, float]] = {}
    for row in development:
        merged.setdefault(row.step, {}).update(row.dev)
    return merged


def score_metric(development: Sequence[Development]) -> str | None:
    """The first development score that is not the loss, None if there is no other."""
    return next((name for x in development for name in x.dev if name != "loss"), None)


def described(rows: Sequence[Row]) -> str:
    """The curve in one sentence, for who cannot see it."""
    series: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        values = {"training loss": row.loss} if isinstance(row, Step) else _development_names(row.dev)
        for name, value in values.items():
            series.setdefault(name, []).append((row.step, value))
    return "; ".join(_described_series(name, points) for name, points in series.items())


def _development_names(scores: Mapping[str, float]) -> dict[str, float]:
    return {f"development {metric_name(name)}": value for name, value in scores.items()}


def _described_series(name: str, points: Sequence[tuple[int, float]]) -> str:
    (first_step, first), (last_step, last) = points[0], points[-1]
    places = decimals_for(value for _, value in points)
    if len(points) == 1:
        return f"{name} {decimal(first, places)} at step {first_step}"
    return f"{name} from {decimal(first, places)} at step {first_step} to {decimal(last, places)} at step {last_step}"


def _panels(width: int, height: int, number: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    # A point is 1/72 inch, so at 72 a inch matplotlib's points are the pixels of the picture.
    size = (width / POINTS_PER_INCH, (height + 190 * (number - 1)) / POINTS_PER_INCH)
    figure = Figure(figsize=size, dpi=POINTS_PER_INCH, layout=ConstrainedLayoutEngine(hspace=0.14))
    figure.patch.set_alpha(0)
    ratios = [height, 190][:number]
    axes = figure.subplots(number, 1, squeeze=False, sharex=True, height_ratios=ratios)[:, 0]
    for panel in axes:
        panel.patch.set_alpha(0)
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.spines["bottom"].set(color=INK, alpha=0.45, linewidth=1)
        panel.grid(axis="y", color=INK, alpha=0.14, linewidth=1)
        panel.set_axisbelow(True)
        panel.tick_params(colors=INK, labelsize=12, length=0, pad=6)
        panel.locator_params(axis="y", nbins=5)
        panel.locator_params(axis="x", nbins=5 if width < 500 else 9, integer=True)
    return figure, list(axes)


def _draw_loss(panel: Axes, steps: Sequence[Step], points: Sequence[tuple[int, float]]) -> None:
    if steps:
        where, loss = zip(*thinned(steps), strict=True)
        window = max(3, round(len(loss) * SMOOTHED_OVER) | 1)
        panel.plot(where, loss, color=INK, alpha=0.3, linewidth=1)
        panel.plot(where, smoothed(loss, window), color=ACCENT, linewidth=2.25, solid_capstyle="round")
    if points:
        _draw_points(panel, points, line=False)
    panel.set_title("Loss", loc="left", color=INK, fontsize=13, fontweight="bold", pad=10)


def _draw_score(panel: Axes, points: Sequence[tuple[int, float]], metric: str) -> None:
    _draw_points(panel, points, line=True)
    panel.margins(y=0.2)
    title = f"{metric_name(metric)} on the development split"
    panel.set_title(title, loc="left", color=INK, fontsize=13, fontweight="bold", pad=10, parse_math=False)


def _draw_points(panel: Axes, points: Sequence[tuple[int, float]], *, line: bool) -> None:
    where, values = zip(*points, strict=True)
    panel.plot(
        where,
        values,
        color=INK,
        linewidth=1.25 if line else 0,
        marker="o",
        markersize=7,
        markerfacecolor=PAPER,
        markeredgewidth=1.75,
        clip_on=False,
        zorder=3,
    )


@contextmanager
def _own_style(salt: str) -> Iterator[None]:
    # The reader's own matplotlibrc must not change the picture, and the salt makes its ids the same every time.
    import matplotlib.style

    own = {"svg.hashsalt": salt, "svg.fonttype": "none", "font.size": 12, "font.family": ["DejaVu Sans"]}
    with matplotlib.style.context(["default", own]):
        yield


def _written(figure: Figure) -> str:
    written = io.StringIO()
    figure.savefig(written, format="svg", metadata={"Date": None})
    return written.getvalue()


def _inline(file: str, label: str) -> str:
    """A file of matplotlib's as an element of a page: no addresses, no rules for the whole page, the page's colours."""
    opening, body = re.sub(r"<(metadata|style)\b.*?</\1>", "", file[file.index("<svg") :], flags=re.DOTALL).split(
        ">", 1
    )
    view = re.search(r'viewBox="[^"]*"', opening)
    body = re.sub(r"'DejaVu Sans'(?:, [^;\"]*)?", "var(--sans, sans-serif)", body.replace("xlink:href=", "href="))
    body = _without_idle_ids(body)
    for stand_in, colour in CSS.items():
        body = body.replace(stand_in, colour)
    attributes = f'role="img" aria-label="{html.escape(label)}" stroke-linejoin="round"'
    return f"<svg {attributes} {view.group(0) if view else ''}>{body.strip()}"


def _without_idle_ids(svg: str) -> str:
    # Matplotlib names every group (axes_1, ...): two pictures in one page would repeat the names.
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
    return re.sub(r'\sid="([^"]*)"', lambda match: match.group(0) if match.group(1) in used else "", svg)
