"""The parts of a record of `epigraph bench serve` as Markdown tables and a picture. It measures nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from epigraph.report.cells import hundredths, spread, table
from epigraph.report.words import count, size

PICTURE = "serving-cost.png"
Part = Mapping[str, Any]


def _own_prefixes(part: Part) -> str:
    rows = [(name, spread(x, 0)) for name, x in part["tokens_a_second"].items()]
    said = (
        f"`ratio_vs_bare` **{spread(part['ratio_vs_bare'], 3)}**; `bare_vs_bare` {spread(part['bare_vs_bare'], 3)}. "
        f"The workers' cache holds {size(part['held_bytes'])}, the engine's processes took "
        f"{size(part['peak_bytes'])} at the most. {_checked(part['check'])}"
    )
    return table(("", "tokens a second"), rows) + "\n\n" + said


def _num_prefixes(part: Part) -> str:
    header = (
        "requests",
        "prefixes",
        "asked for",
        "tokens a second",
        "times the bare model's",
        "read",
        "held",
        "resident",
    )
    rows = [
        (
            draw,
            count(int(number)),
            count(x["asked_for"]),
            spread(x["tokens_a_second"]["prefixes"], 0),
            hundredths(x["ratio_vs_bare"]),
            size(x["bytes_read"]),
            size(x["held_bytes"]),
            size(x["resident_bytes"]),
        )
        for draw, points in part.items()
        for number, x in points.items()
    ]
    return table(header, rows) + "\n\n" + _checked(_together([x["check"] for y in part.values() for x in y.values()]))


def _small_cache(part: Part) -> str:
    rows = [
        ("tokens a second", spread(part["tokens_a_second"]["prefixes"], 0)),
        ("times the bare model's", hundredths(part["ratio_vs_bare"])),
        ("prefixes asked for", count(part["asked_for"])),
        ("prefixes that fit", count(part["held_prefixes"])),
        ("held, and the most that may be", f"{size(part['held_bytes'])}, {size(part['cache_bytes'])}"),
        ("read by the engine's processes", size(part["bytes_read"])),
        ("resident, and the most that was", f"{size(part['resident_bytes'])}, {size(part['peak_bytes'])}"),
    ]
    return table(("", ""), rows) + "\n\n" + _checked(part["check"])


def _first_token(part: Part) -> str:
    rows = [(how, _milliseconds(x)) for how, x in part["seconds"].items()]
    said = (
        "Before a prefix is asked for by its content, somebody reads its file once, the front end or a client: "
        f"{_milliseconds(part['claim_seconds'])} ms."
    )
    return table(("prefix", "milliseconds to the first token"), rows) + "\n\n" + said


def _switching(part: Part) -> str:
    rows = [(name, spread(x, 1)) for name, x in part["tokens_a_second"].items()]
    said = (
        f"`ratio_vs_switching` **{spread(part['ratio_vs_switching'], 1)}**: {part['requests']} requests, each with its "
        f"own prefix, at once or one after the other. {part['same_answers']} of the answers are the same."
    )
    return table(("", "tokens a second"), rows) + "\n\n" + said


def _lora(part: Part) -> str:
    header = ("max_loras", "prefixes, tokens a second", "adapters", "prefixes to adapters", "adapters to bare", "peak")
    rows = [(max_loras, *_beside(x)) for max_loras, x in part["max_loras"].items()]
    said = (
        f"Adapters of rank {part['rank']} at the attention's four projections: {count(part['numbers'])} numbers each."
    )
    errors = [f"max_loras {name}: {x['error']}." for name, x in part["max_loras"].items() if "error" in x]
    return "\n\n".join([table(header, rows), " ".join([said, *errors])])


def _beside(x: Part) -> tuple[str, ...]:
    if "error" in x:
        return ("does not run", "", "", "", "")
    return (
        spread(x["tokens_a_second"]["prefixes"], 0),
        spread(x["tokens_a_second"]["adapters"], 0),
        hundredths(x["prefixes_vs_adapters"]),
        hundredths(x["adapters"]["ratio_vs_bare"]),
        size(x["peak_bytes"]),
    )


def _together(checks: list[Part]) -> Part:
    return {name: sum(x[name] for x in checks) for name in ("sampled", "equal", "but_for_a_tie")}


def _checked(x: Part) -> str:
    tie = f", {x['but_for_a_tie']} but for a tie" if x["but_for_a_tie"] else ""
    return f"Of {x['sampled']} sampled answers {x['equal']} are transformers', token for token{tie}."


def _milliseconds(x: Part) -> str:
    return spread({name: 1000 * x[name] for name in ("median", "low", "high")}, 0)


TITLES = {
    "own_prefixes": "Everybody's own prefix in one batch",
    "num_prefixes": "With the number of prefixes",
    "small_cache": "More prefixes than fit",
    "first_token": "Until the first token",
    "lora": "Adapters of the same size",
    "switching": "One batch, or one user after the other",
}
SHOW: Mapping[str, Callable[[Part], str]] = {
    "own_prefixes": _own_prefixes,
    "num_prefixes": _num_prefixes,
    "small_cache": _small_cache,
    "first_token": _first_token,
    "lora": _lora,
    "switching": _switching,
}


def draw(points: Part, folder: Path) -> Path:
    """How the bare model's tokens a second are kept as prefixes become more: a PNG of num_prefixes in ``folder``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.3, 3.4), dpi=160, layout="constrained", facecolor="white")
    panel = figure.subplots()
    panel.axhline(1, color="#999999", linewidth=1)
    for (name, part), colour in zip(points.items(), ("#a3341f", "#555555"), strict=True):
        spreads = [x["ratio_vs_bare"] for x in part.values()]
        middle = [x["median"] for x in spreads]
        around = [[x["median"] - x["low"] for x in spreads], [x["high"] - x["median"] for x in spreads]]
        where = [int(number) for number in part]
        panel.errorbar(where, middle, yerr=around, color=colour, marker="o", linewidth=2, capsize=3, label=name)
        panel.set_xscale("log", base=2)
        panel.set_xticks(where, list(part))
    panel.minorticks_off()
    panel.set_ylim(bottom=0)
    panel.set_xlabel("prefixes")
    panel.set_ylabel("times the bare model's tokens a second")
    panel.set_title(TITLES["num_prefixes"], loc="left", fontsize=10)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", alpha=0.2)
    panel.legend(frameon=False)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / PICTURE)
    return folder / PICTURE
