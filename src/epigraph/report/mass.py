"""The attention that text gives each virtual token, as a heat map: a PNG by itself, or SVG to stand inside a page.

It knows a record's shares, no model. Both pictures show the same: a row a layer, a column a virtual token, colour by
the square root of the share, so that small ones are seen; beside them what all virtual tokens get together.
"""

from __future__ import annotations

import html
import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from epigraph.report.records import MassRecord, SiteMass

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The page's own, by daylight.
PAPER, INK, MUTED, PALE, ACCENT, DEEP = "#fcfbf8", "#1f1c18", "#625c53", "#e8b8a4", "#a1331c", "#3a0d05"
MAX_CELLS = 4_000
PIXELS_A_INCH = 144
_WIDTH, _LEFT, _GAP, _BAR, _CELL, _FOOT = 720.0, 36.0, 16.0, 132.0, 11.0, 22.0


def mass_png(record: MassRecord) -> bytes:
    """The heat map of every site, one below the other. The same record gives the same pixels."""
    import matplotlib.style
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    # The reader's own matplotlibrc must not change the picture.
    with matplotlib.style.context(["default", {"font.size": 10, "font.family": ["DejaVu Sans"]}]):
        heights = [1.1 + 0.14 * len(site.text) for site in record.sites.values()]
        figure = Figure(figsize=(9, sum(heights)), dpi=PIXELS_A_INCH, layout=ConstrainedLayoutEngine(w_pad=0.08))
        figure.patch.set_facecolor(PAPER)
        rows = figure.subplots(len(heights), 2, squeeze=False, width_ratios=[4, 1], height_ratios=heights)
        for (cells, bars), (name, site) in zip(rows, record.sites.items(), strict=True):
            _draw_cells(figure, cells, name, site)
            _draw_bars(bars, site)
        written = io.BytesIO()
        figure.savefig(written, format="png", metadata={"Software": None})
    return written.getvalue()


def mass_svg(name: str, site: SiteMass) -> str:
    """The same for one site in the colours of the page, neighbouring virtual tokens joined where there are many."""
    num_joined, rows = joined(site)
    width = (_WIDTH - _LEFT - _GAP - _BAR) / len(rows[0])
    height = len(rows) * _CELL
    body = [*_cells(rows, width), *_bars(site), *_ticks(len(rows), len(rows[0]), width, num_joined)]
    label = html.escape(described(name, site))
    return f'<svg role="img" aria-label="{label}" viewBox="0 0 {_WIDTH:g} {height + _FOOT:g}">{"".join(body)}</svg>'


def joined(site: SiteMass) -> tuple[int, list[list[float]]]:
    """How many neighbouring virtual tokens make a column, and their shares together, so that cells stay few."""
    layers, count = len(site.virtual), len(site.virtual[0])
    size = -(-count * layers // MAX_CELLS)
    return size, [[sum(row[start : start + size]) for start in range(0, count, size)] for row in site.virtual]


def top(rows: Sequence[Sequence[float]]) -> float:
    """The largest share, which has the full colour; above 0, so that it can be divided by."""
    return max(*map(max, rows), 1e-9)


def described(name: str, site: SiteMass) -> str:
    """The heat map in one sentence, for who cannot see it."""
    together = [sum(shares) for shares in site.virtual]
    layer = max(range(len(together)), key=together.__getitem__)
    shares = [sum(row[number] for row in site.virtual) / len(site.virtual) for number in range(len(site.virtual[0]))]
    number = max(range(len(shares)), key=shares.__getitem__)
    return (
        f"{name}: virtual tokens get {100 * sum(together) / len(together):.1f} % of the text's attention in the mean "
        f"over {len(together)} layers, most in layer {layer} ({100 * together[layer]:.1f} %); virtual token "
        f"{number} gets most of it ({100 * shares[number]:.1f} %)"
    )


def _draw_cells(figure: Figure, panel: Axes, name: str, site: SiteMass) -> None:
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    colours = LinearSegmentedColormap.from_list("mass", [PAPER, PALE, ACCENT, DEEP])
    percent = [[100 * share for share in shares] for shares in site.virtual]
    norm = PowerNorm(0.5, vmin=0, vmax=100 * top(site.virtual))
    image = panel.imshow(percent, aspect="auto", cmap=colours, norm=norm, interpolation="nearest")
    scale = figure.colorbar(image, ax=panel, location="left", shrink=0.6, pad=0.02)
    scale.set_label("% of the text's attention", color=MUTED)
    scale.outline.set_visible(False)
    scale.ax.tick_params(colors=MUTED, labelsize=9, length=0)
    panel.set_title(name, loc="left", color=INK, fontsize=11, fontweight="bold")
    panel.set_xlabel("virtual token", color=MUTED)
    panel.set_ylabel("layer", color=MUTED)
    _plain(panel)


def _draw_bars(panel: Axes, site: SiteMass) -> None:
    together = [100 * sum(shares) for shares in site.virtual]
    panel.barh(range(len(together)), together, height=0.8, color=ACCENT)
    panel.set_xlim(0, 100)
    panel.set_ylim(len(together) - 0.5, -0.5)
    panel.set_xticks([0, 50, 100])
    panel.set_title("all of them, %", loc="left", color=INK, fontsize=11)
    panel.set_facecolor("#efe9df")
    panel.set_yticks([])
    panel.set_xlabel("the rest: the text itself", color=MUTED)
    _plain(panel)


def _plain(panel: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    panel.spines[:].set_visible(False)
    panel.tick_params(colors=MUTED, labelsize=9, length=0)
    if panel.images:
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
        panel.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))


def _cells(rows: Sequence[Sequence[float]], width: float) -> Iterator[str]:
    most = top(rows)
    for layer, shares in enumerate(rows):
        for number, share in enumerate(shares):
            x, y = _LEFT + number * width, layer * _CELL
            opacity = round((share / most) ** 0.5, 2)
            yield f'<rect x="{x:.1f}" y="{y:g}" width="{width:.1f}" height="{_CELL:g}" fill-opacity="{opacity:g}"/>'


def _bars(site: SiteMass) -> Iterator[str]:
    left = _WIDTH - _BAR
    for layer, shares in enumerate(site.virtual):
        y, width = layer * _CELL + 1, min(sum(shares), 1) * _BAR
        yield f'<rect class="track" x="{left:g}" y="{y:g}" width="{_BAR:g}" height="{_CELL - 2:g}"/>'
        yield f'<rect x="{left:g}" y="{y:g}" width="{width:.1f}" height="{_CELL - 2:g}"/>'


def _ticks(num_layers: int, num_columns: int, width: float, num_joined: int) -> Iterator[str]:
    foot = num_layers * _CELL + 15
    for layer in range(0, num_layers, 5):
        yield f'<text x="{_LEFT - 8:g}" y="{layer * _CELL + 9:g}" text-anchor="end">{layer}</text>'
    for number in range(0, num_columns, -(-num_columns // 12)):
        x = _LEFT + (number + 0.5) * width
        yield f'<text x="{x:.1f}" y="{foot:g}" text-anchor="middle">{number * num_joined}</text>'
    for share_of_all, anchor in ((0, "start"), (0.5, "middle"), (1, "end")):
        x = _WIDTH - _BAR + share_of_all * _BAR
        yield f'<text x="{x:g}" y="{foot:g}" text-anchor="{anchor}">{100 * share_of_all:g} %</text>'
