"""A record of `epigraph bench` as Markdown tables and pictures. It reads numbers; it measures nothing.

The parts of training are here, those of serving in :mod:`epigraph.report.serving`, those of the fleet in
:mod:`epigraph.report.fleet`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from epigraph.errors import BadValue
from epigraph.report import fleet, serving
from epigraph.report.cells import hundredths, percents, spread, table
from epigraph.report.words import count, percent, size

OURS, THEIRS = "epigraph", "PEFT"
PICTURE = "training-cost.png"
Part = Mapping[str, Any]


def read(path: Path) -> dict[str, Any]:
    """The record in a file; raises :class:`BadValue` for anything else."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        parts = record["parts"]
    except OSError as wrong:
        raise BadValue(f"{path} cannot be read: {wrong.strerror}; give what `epigraph bench` wrote") from None
    except (ValueError, KeyError, TypeError):
        parts = None
    if not isinstance(parts, dict):
        raise BadValue(f"{path} is no record of `epigraph bench`; give what it wrote with --json")
    return dict(record)


def tables(record: Mapping[str, Any]) -> str:
    """All parts that the record has, a Markdown table each."""
    titles = {**TITLES, **serving.TITLES, **fleet.TITLES}
    shown = [f"### {titles[name]}\n\n{shown_part(name, part)}" for name, part in record["parts"].items()]
    return "\n\n".join([about(record), *shown])


def shown_part(name: str, part: Part) -> str:
    """One part, of training, serving or the fleet, as a Markdown table with what is to be said of it."""
    return {**SHOW, **serving.SHOW, **fleet.SHOW}[name](part)


def about(record: Mapping[str, Any]) -> str:
    """On what, and with what, the record was made, in a sentence each."""
    machine, settings, versions = record["machine"], record["settings"], dict(record["versions"])
    device = machine["gpu"] or f"{machine['cores']} cores ({machine['processor']}), {machine['torch_threads']} threads"
    bf16 = "computes in bf16" if machine["fast_bf16"] else "does not compute in bf16"
    given = ", ".join(f"{name} {value}" for name, value in settings.items())
    used = ", ".join(f"{name} {value}" for name, value in versions.items())
    return f"Machine: {device}, which {bf16}. Settings: {given}. Versions: {used}."


def _same(part: Part) -> str:
    names = part["seconds_a_step"]
    rows = [
        (name, hundredths(x), size(part["extra_bytes"][name]) if part["extra_bytes"][name] is not None else "not known")
        for name, x in names.items()
    ]
    said = (
        f"{part['steps']} steps, {count(part['real_tokens'])} tokens, {count(part['padded_tokens'])} with padding. "
        f"`ratio_same_batches` **{hundredths(part['ratio_same_batches'])}**; "
        f"largest difference of the two losses {part['largest_loss_difference']:.1e}."
    )
    return table(("side", "seconds a step", "memory of a step"), rows) + "\n\n" + said


def _own(part: Part) -> str:
    rows = [
        (
            name,
            hundredths(part["epoch_seconds"][name]),
            " ".join(count(x) for x in part["tokens_computed"][name]),
            spread(part["dev_loss"][name], 3),
        )
        for name in part["epoch_seconds"]
    ]
    said = (
        f"`ratio_own_batching` **{hundredths(part['ratio_own_batching'])}**, against its grouping by length "
        f"{hundredths(part['ratio_own_batching_by_length'])}."
    )
    return table(("side", "seconds an epoch", "tokens computed", "development loss"), rows) + "\n\n" + said


def _share(part: Part) -> str:
    rows = []
    for name, x in part.items():
        if not isinstance(x, Mapping):
            continue
        needs = x["operations"]
        rows.append(
            (
                name,
                hundredths(x["seconds_a_step"]),
                f"{sum(needs.values()) / 1e9:,.0f}",
                f"{x['ceiling_operations_a_second']['median'] / 1e9:,.0f}",
                f"{percents(x['share_of_ceiling'])}",
            )
        )
    return table(("", "seconds a step", "least GFLOP", "ceiling, GFLOP/s", "share of the ceiling"), rows)


def _profile(part: Part) -> str:
    kinds = list(dict.fromkeys(kind for side in part.values() for kind in side["by_kind"]))
    by_kind = table(
        ("share of the time", *part),
        [(kind, *(percent(side["by_kind"].get(kind, 0.0)) for side in part.values())) for kind in kinds],
    )
    first = next(iter(part.values()))["by_operation"]
    rows = [
        (f"`{name}`", *(percent(side["by_operation"].get(name, 0.0)) for side in part.values()))
        for name in list(first)[:12]
    ]
    return by_kind + "\n\n" + table(("operation", *part), rows)


def _context(part: Part) -> str:
    rows = [
        (
            name,
            count(x["trained_numbers"]),
            hundredths(x["seconds_a_step"]),
            hundredths(x["times_our_prefix"]),
            size(x["extra_bytes"]) if x["extra_bytes"] is not None else "not known",
        )
        for name, x in part.items()
    ]
    return table(("", "trained numbers", "seconds a step", "times our prefix", "memory of a step"), rows)


def _growth(what: str) -> Callable[[Part], str]:
    def shown(part: Part) -> str:
        rows = [
            (
                name,
                *(hundredths(x["seconds_a_step"][side]) for side in (OURS, THEIRS)),
                hundredths(x["ratio"]),
                *_memory(x),
            )
            for name, x in part.items()
        ]
        header = (what, f"{OURS}, s a step", f"{THEIRS}, s a step", "ratio", f"{OURS}, memory", f"{THEIRS}, memory")
        return table(header, rows)

    return shown


def _evaluation(part: Part) -> str:
    decoding = f"decoding {part['decoded_rows']} rows, {count(part['decoded_tokens'])} tokens in all"
    rows = [
        (f"an epoch, {part['steps']} steps", f"{part['epoch_seconds']:.0f}"),
        (f"the loss of {part['dev_rows']} development rows", spread(part["dev_loss_seconds"], 1)),
        (decoding, spread(part["decoding_seconds"], 1)),
    ]
    said = (
        "With transformers' own cache and the prefix put in front at every step, decoding takes "
        f"{hundredths(part['times_as_long_with_transformers_cache'])} times as long."
    )
    return table(("", "seconds"), rows) + "\n\n" + said


TITLES = {
    "same_batches": "The same batches",
    "own_batching": "Each with its own batches",
    "share": "The share of the matmul ceiling",
    "profile": "Where the time goes",
    "context": "What else one could train",
    "prefix_lengths": "With the number of virtual tokens",
    "text_lengths": "With the length of texts",
    "models": "With the size of the model",
    "evaluation": "Development scores",
}
SHOW: Mapping[str, Callable[[Part], str]] = {
    "same_batches": _same,
    "own_batching": _own,
    "share": _share,
    "profile": _profile,
    "context": _context,
    "prefix_lengths": _growth("virtual tokens"),
    "text_lengths": _growth("tokens a text"),
    "models": _growth("model"),
    "evaluation": _evaluation,
}


def draw(record: Mapping[str, Any], folder: Path) -> Path:
    """The growth of cost as a PNG in ``folder``; raises :class:`BadValue` without parts that have one.

    Of training, three panels side by side; of serving, one over the number of prefixes; of the fleet, two over the
    number of users.
    """
    from matplotlib.figure import Figure

    if "num_prefixes" in record["parts"]:
        return serving.draw(record["parts"]["num_prefixes"], folder)
    if "ten_thousand" in record["parts"]:
        return fleet.draw(record["parts"]["ten_thousand"], folder)
    wanted = [name for name in ("prefix_lengths", "text_lengths", "models") if name in record["parts"]]
    if not wanted:
        raise BadValue(
            "the record has no growth of cost to draw; run its parts prefix_lengths, text_lengths, models, "
            "num_prefixes or ten_thousand"
        )
    figure = Figure(figsize=(4.2 * len(wanted), 3.4), dpi=160, layout="constrained", facecolor="white")
    for panel, name in zip(figure.subplots(1, len(wanted), squeeze=False)[0], wanted, strict=True):
        part = record["parts"][name]
        if name == "models":
            where = [x["parameters"] / 1e6 for x in part.values()]
            panel.set_xlabel("parameters, millions")
        else:
            where = [int(x) for x in part]
            panel.set_xscale("log", base=2)
            panel.set_xticks(where, [str(x) for x in where])
            panel.minorticks_off()
            panel.set_xlabel(
                {"prefix_lengths": "virtual tokens", "text_lengths": "tokens a text (2,048 a batch)"}[name]
            )
        for side, colour in ((OURS, "#a3341f"), (THEIRS, "#555555")):
            spreads = [x["seconds_a_step"][side] for x in part.values()]
            middle = [x["median"] for x in spreads]
            around = [[m - x["low"] for m, x in zip(middle, spreads, strict=True)]]
            around += [[x["high"] - m for m, x in zip(middle, spreads, strict=True)]]
            panel.errorbar(where, middle, yerr=around, color=colour, marker="o", linewidth=2, capsize=3, label=side)
        panel.set_ylim(bottom=0)
        panel.set_title(TITLES[name], loc="left", fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", alpha=0.2)
        panel.set_ylabel("seconds a step")
        panel.legend(frameon=False)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PICTURE
    figure.savefig(path)
    return path


def _memory(x: Part) -> tuple[str, ...]:
    return tuple(
        "not known" if x["extra_bytes"][side] is None else size(x["extra_bytes"][side]) for side in (OURS, THEIRS)
    )
