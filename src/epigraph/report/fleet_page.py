"""A fleet as one HTML file: what was trained, how many users are done, how they came out, and who they are.

It reads records and trains nothing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup

from epigraph.report import words
from epigraph.report.fleet_records import Done, FleetRecords, SetAside, read_fleet
from epigraph.report.histogram import histogram_svg
from epigraph.report.page import provenance
from epigraph.report.written import out_for, rendered, write_page

MAX_USERS = 1_000
MAX_SET_ASIDE = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class UserRow:
    """A line of the table of users; ``aside`` is why there is no artifact."""

    user: str
    done: Done | None
    aside: SetAside | None


def write_fleet_report(folder: Path, out: Path | None = None) -> Path:
    """Write the report of the fleet in ``folder`` to ``out`` (default ``folder/report.html``) and return its path.

    It may be written while workers go on: it has the users that have ended by then. Raises what
    :func:`~epigraph.report.fleet_records.read_fleet` raises, and :class:`OutputExists` where ``out`` is a folder.
    """
    out = out_for(folder, out)
    return write_page(render(read_fleet(folder)), out)


def render(fleet: FleetRecords) -> str:
    """The page as text; the same records give the same text."""
    return rendered("fleet_page.html.jinja", page_values(fleet))


def page_values(fleet: FleetRecords) -> dict[str, Any]:
    """Everything the template shows."""
    users = user_rows(fleet)
    metrics = list(dict.fromkeys(name for x in fleet.done.values() for name in x.dev))
    return {
        "title": title(fleet),
        "lead": " ".join(lead(fleet)),
        "glance": at_a_glance(fleet),
        "metrics": metrics,
        "places": {name: words.decimals_for(_scores(fleet, name)) for name in metrics},
        "pictures": pictures(fleet, metrics),
        "set_aside": list(fleet.set_aside.values())[:MAX_SET_ASIDE],
        "num_set_aside": len(fleet.set_aside),
        "kinds": kinds(fleet),
        "users": users[:MAX_USERS],
        "num_users": len(users),
        "recipe": words.flat(fleet.recipe),
        "provenance": made(fleet),
    }


def title(fleet: FleetRecords) -> str:
    """The page's title in words."""
    whose = f" on {fleet.example.model}" if fleet.example is not None else f" in {fleet.name}"
    return f"{_users(len(fleet.done))}{whose}"


def lead(fleet: FleetRecords) -> list[str]:
    """The fleet in a few plain sentences."""
    sentences = []
    if fleet.example is not None:
        example, one = fleet.example, fleet.example.num_virtual_tokens
        sentences += [
            f"The {words.count(example.model_parameters)} numbers of {example.model} stayed as they were.",
            f"{_users(len(fleet.done))} {_has(len(fleet.done))} {words.count(one)} virtual token{'s' * (one != 1)} of "
            f"their own, trained by {example.method}: {words.count(example.stored_numbers)} numbers each.",
        ]
    if fleet.set_aside:
        sentences.append(f"{_users(len(fleet.set_aside))} {_was(len(fleet.set_aside))} set aside, each with a reason.")
    if fleet.num_unfinished:
        sentences.append(f"When this was written, {_users(fleet.num_unfinished)} had begun and not ended.")
    return sentences


def at_a_glance(fleet: FleetRecords) -> list[tuple[str, str, str]]:
    """The figures worth remembering, as (what, how much, beside what)."""
    done = list(fleet.done.values())
    figures = [("Users done", words.count(len(done)), f"{words.count(len(fleet.set_aside))} set aside")]
    if not done:
        return figures
    metric = next((name for x in done for name in x.dev if math.isfinite(x.dev[name])), None)
    if metric is not None:
        scores = _scores(fleet, metric)
        shown = partial(words.decimal, places=words.decimals_for(scores))
        beside = f"median; {shown(min(scores))} to {shown(max(scores))}"
        figures.append((f"Development {words.metric_name(metric)}", shown(statistics.median(scores)), beside))
    total = sum(x.stored_bytes for x in done)
    steps, tokens = sum(x.steps for x in done), sum(x.tokens for x in done)
    figures.append(("Artifacts", words.size(total), f"{words.size(round(total / len(done)))} each"))
    figures.append(("Steps", words.count(steps), f"{words.count(tokens)} tokens"))
    return figures


def pictures(fleet: FleetRecords, metrics: list[str]) -> list[tuple[str, Markup]]:
    """How users came out, as (what, histogram): the development scores, the steps kept, the time in the fleet."""
    done = list(fleet.done.values())
    found = []
    for name in metrics:
        scores = _scores(fleet, name)
        shown = partial(words.decimal, places=words.decimals_for(scores))
        found.append((f"Development {words.metric_name(name)}", histogram_svg(scores, name, shown)))
    kept = [float(x.kept_step) for x in done]
    found.append(("Step kept", histogram_svg(kept, "step kept", lambda x: words.count(round(x)))))
    found.append(("Time in the fleet", histogram_svg([x.seconds for x in done], "time", words.duration)))
    return [(name, Markup(svg)) for name, svg in found if svg]


def kinds(fleet: FleetRecords) -> list[tuple[str, int]]:
    """The errors for which users were set aside, the commonest first, with how many."""
    names = [x.error for x in fleet.set_aside.values()]
    return sorted(((name, names.count(name)) for name in set(names)), key=lambda x: (-x[1], x[0]))


def user_rows(fleet: FleetRecords) -> list[UserRow]:
    """All users who ended, by id."""
    rows = {name: UserRow(user=x.user, done=x, aside=None) for name, x in fleet.done.items()}
    rows |= {name: UserRow(user=x.user, done=None, aside=x) for name, x in fleet.set_aside.items()}
    return [rows[name] for name in sorted(rows)]


def made(fleet: FleetRecords) -> Mapping[str, list[tuple[str, str]]]:
    """With what and where the users were trained, as far as one of them tells of all."""
    if fleet.example is None:
        return {}
    own = {"task", "step kept", "artifact file"}
    tables = provenance(fleet.example)
    return {name: [row for row in rows if row[0] not in own] for name, rows in tables.items()}


def _scores(fleet: FleetRecords, metric: str) -> list[float]:
    return [x.dev[metric] for x in fleet.done.values() if math.isfinite(x.dev.get(metric, math.nan))]


def _users(number: int) -> str:
    return f"{words.count(number)} user{'s' * (number != 1)}"


def _has(number: int) -> str:
    return "has" if number == 1 else "have"


def _was(number: int) -> str:
    return "was" if number == 1 else "were"
