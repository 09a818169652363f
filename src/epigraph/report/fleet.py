"""The parts of a record of `epigraph bench fleet` as Markdown tables and a picture. It measures nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from epigraph.report.cells import hundredths, table
from epigraph.report.words import count, size

PICTURE = "fleet-thousands.png"
Part = Mapping[str, Any]


def _overhead(part: Part) -> str:
    ratios = {"fleet": "", "one run": hundredths(part["ratio_vs_batched"]), "alone": hundredths(part["ratio_vs_solo"])}
    rows = [
        (name, hundredths(x), ratios[name], _bytes(part["extra_bytes"][name]))
        for name, x in part["examples_a_second"].items()
    ]
    said = (
        f"`ratio_vs_batched` **{ratios['one run']}**, `ratio_vs_solo` **{ratios['alone']}**. {part['users']} users, "
        f"{count(part['tokens'])} tokens on each side; a user has {size(part['user_bytes'])} on the device. Between "
        "the fleet and each user alone the largest difference of a loss was "
        f"{part['largest_loss_difference']:.1e} nats, that of a prefix {part['largest_prefix_difference']:.1e} of "
        "its length."
    )
    header = ("side", "examples a second", "the fleet's, so many times", "memory of a step")
    return table(header, rows) + "\n\n" + said


def _users(part: Part) -> str:
    if "skipped" in part:
        return f"Not measured: {part['skipped']}."
    rows = [
        (
            count(int(number)),
            hundredths(x["examples_a_second"]["fleet"]),
            hundredths(x["examples_a_second"]["alone"]),
            hundredths(x["ratio_vs_solo"]),
            count(x["passes_a_step"]),
            size(x["users_bytes"]),
            _bytes(x["extra_bytes"]),
        )
        for number, x in part.items()
    ]
    header = ("users at once", "examples a second", "alone", "ratio", "passes a step", "users' memory", "of a step")
    return table(header, rows)


def _ten_thousand(part: Part) -> str:
    has_device = any(x["device_bytes"] is not None for x in part["marks"])
    rows = [
        (
            count(x["done"]),
            f"{x['users_an_hour']:,.0f}",
            size(x["resident_bytes"]),
            *([_bytes(x["device_bytes"])] if has_device else []),
        )
        for x in part["marks"]
    ]
    header = ("users done", "users an hour since", "resident", *(["on the GPU, at the most"] if has_device else []))
    said = (
        f"The last part was **{part['last_to_first']:.2f}** times as fast as the first. {count(part['done'])} users "
        f"are done, {count(part['failed'])} set aside, in {part['seconds'] / 60:,.1f} minutes "
        f"({part['users_an_hour']:,.0f} an hour). On disk: {count(part['files'])} files of "
        f"{size(part['disk_bytes'])} in all, {size(part['artifact_bytes'])} of it artifacts."
    )
    return table(header, rows) + "\n\n" + said


def _bytes(value: int | None) -> str:
    return "not known" if value is None else size(value)


TITLES = {
    "overhead": "What mixing users costs",
    "users": "More and more users at once",
    "ten_thousand": "Thousands of users",
}
SHOW: Mapping[str, Callable[[Part], str]] = {
    "overhead": _overhead,
    "users": _users,
    "ten_thousand": _ten_thousand,
}


def draw(part: Part, folder: Path) -> Path:
    """Users an hour and resident memory as users become more: a PNG of ten_thousand in ``folder``."""
    from matplotlib.figure import Figure

    marks = part["marks"]
    done = [x["done"] for x in marks]
    lines = {
        "users an hour, in thousands": [x["users_an_hour"] / 1e3 for x in marks],
        "resident memory, GB": [x["resident_bytes"] / 1e9 for x in marks],
    }
    figure = Figure(figsize=(8.4, 3.2), dpi=160, layout="constrained", facecolor="white")
    for panel, (name, values) in zip(figure.subplots(1, 2), lines.items(), strict=True):
        panel.plot(done, values, color="#a3341f", marker="o", linewidth=2)
        panel.set_xlim(left=0)
        panel.set_ylim(0, 1.2 * max(values))
        panel.set_xlabel("users done")
        panel.set_title(name, loc="left", fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", alpha=0.2)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / PICTURE)
    return folder / PICTURE
