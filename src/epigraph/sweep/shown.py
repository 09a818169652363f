"""A sweep's tables as plain values, and those as Markdown: what `epigraph sweep show` prints and a page is made of.

It knows tables and records as they are written; it reads no file.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from epigraph.report.words import LOWER_IS_BETTER, count, decimal, decimals_for, duration, metric_name, size

if TYPE_CHECKING:
    from epigraph.sweep.table import Results, Row, Table

Found = Mapping[str, Any]


def is_lower_better(metric: str) -> bool:
    """Whether a lower value of the metric is a better one."""
    return metric.lower() in LOWER_IS_BETTER


def summary(results: Results, tables: Sequence[Table]) -> dict[str, Any]:
    """One sweep as plain values: its tables, what failed, and what it took, on which machines, by which versions.

    A run that a search and a final job share counts once; an ensemble's members are not trained again.
    """
    spec, records = results.plan.spec, results.every()
    done = [record for record in records if "failed" not in record]
    trained = {record["run"]: record["train_seconds"] for record in done if not record.get("num_members")}
    return {
        "name": spec.name,
        "title": spec.title,
        "task": spec.base.get("data", {}).get("task"),
        "num_runs": len(trained),
        "train_seconds": sum(trained.values()),
        "evaluate_seconds": sum(record["evaluate_seconds"] for record in done),
        "machines": _each_once(record["machine"] for record in done),
        "versions": _each_once(record["versions"] for record in done),
        "tables": [to_json(table) for table in tables],
        "failed": [dict(record) for record in records if "failed" in record],
    }


def to_json(table: Table) -> dict[str, Any]:
    """The table as plain values, each run with its own score and bootstrap interval."""
    return {
        "evaluation": table.evaluation,
        "metric": table.metric,
        "variant": table.variant,
        "against": table.against,
        "rows": [_row_json(row) for row in table.rows],
    }


def _row_json(row: Row) -> dict[str, Any]:
    about = ("lr", "trained_numbers", "stored_numbers", "stored_bytes")
    each = ("key", "draw", "seed", "train_seconds", "evaluate_seconds", "dev")
    return {
        "system": row.system,
        "model": row.model,
        "limit": row.limit,
        "mean": row.mean,
        "half": row.half,
        "best": row.best,
        "num_planned": row.num_planned,
        **{name: row.first[name] for name in about},
        "lr_is_at_end": row.is_at_end,
        "illegal_share": row.illegal_share,
        "train_seconds": statistics.mean(x["train_seconds"] for x in row.runs),
        "runs": [
            {**{name: run[name] for name in each}, "score": value, "interval": interval}
            for run, value, interval in zip(row.runs, row.values, row.intervals, strict=True)
        ],
        "advantage": None if row.advantage is None else row.advantage.to_json(),
    }


def page(found: Found) -> str:
    """What :func:`summary` or :func:`together` gave, as Markdown: title, tables, and what it took."""
    if "sweeps" not in found:
        return "\n\n".join([found["title"] or found["name"], *map(markdown, found["tables"]), taken([found])])
    parts = [*titles(found["sweeps"]), overview(found["sweeps"]), *map(markdown, found["together"])]
    return "\n\n".join([*filter(None, parts), taken(found["sweeps"])])


def together(sweeps: Sequence[Found], tables: Sequence[Table]) -> dict[str, Any]:
    """Several sweeps as plain values, and the tables that are of all of them."""
    return {"sweeps": list(sweeps), "together": [to_json(table) for table in tables]}


def titles(sweeps: Iterable[Found]) -> list[str]:
    """Each title once."""
    return list(dict.fromkeys(x["title"] or x["name"] for x in sweeps))


def overview(sweeps: Sequence[Found]) -> str:
    """The first table of each sweep as a column, systems below one another; empty where they have no scores."""
    firsts = [(sweep, sweep["tables"][0]) for sweep in sweeps if sweep["tables"]]
    if not firsts:
        return ""
    names = {(row["system"], row["limit"]): None for _, table in firsts for row in table["rows"]}
    heads = [f"{sweep['task'] or sweep['name']}, {metric_name(table['metric'])}" for sweep, table in firsts]
    lines = []
    for system, limit in names:
        cells = [_mean_of(table, system, limit) for _, table in firsts]
        lines.append([f"{system}{'' if limit is None else f', {count(limit)} pairs'}", *cells])
    return _grid(["system", *heads], lines)


def taken(sweeps: Sequence[Found]) -> str:
    """What these sweeps took and where, in a sentence."""
    runs = sum(x["num_runs"] for x in sweeps)
    training, scoring = (duration(sum(x[name] for x in sweeps)) for name in ("train_seconds", "evaluate_seconds"))
    machines = _each_once(machine for x in sweeps for machine in x["machines"])
    kinds = _each_once(versions for x in sweeps for versions in x["versions"])
    where = "; ".join(_machine(x) for x in machines)
    made = "; ".join(", ".join(f"{name} {x[name]}" for name in ("epigraph", "torch", "transformers")) for x in kinds)
    return f"{runs} runs, searches among them: {training} of training, {scoring} of scoring. {where}; {made}."


def markdown(table: Found) -> str:
    """One table as Markdown, with its metric's variant below."""
    rows, metric = table["rows"], table["metric"]
    places = decimals_for(row["mean"] for row in rows)
    header, lines = _header(table), [_cells(table, row, places) for row in rows]
    keep = [number for number in range(len(header)) if any(line[number] for line in lines)]
    body = _grid([header[x] for x in keep], [[line[x] for x in keep] for line in lines])
    arrow = "lower is better" if is_lower_better(metric) else ""
    title = ", ".join(x for x in (f"**{metric_name(metric)}**, {table['evaluation']}", arrow) if x)
    return f"{title}\n\n{body}\n\n{metric}: {table['variant']}"


def _header(table: Found) -> list[str]:
    compared = (f"against {table['against']}", "95 %, rows", "p, rows", "p, runs") if table["against"] else ()
    return [
        *("pairs", "system", "model", metric_name(table["metric"]), "± (95 %, t)", "best run", "runs", "lr"),
        *("trained numbers", "stored", "seconds", "illegal, %"),
        *compared,
    ]


def _cells(table: Found, row: Found, places: int) -> list[str]:
    num_runs, lr = len(row["runs"]), row["lr"]
    cells = [
        "" if row["limit"] is None else count(row["limit"]),
        row["system"],
        row["model"] or "",
        decimal(row["mean"], places),
        _shown(row["half"], places),
        _shown(row["best"], places),
        str(num_runs) if num_runs == row["num_planned"] else f"{num_runs} of {row['num_planned']}",
        "" if lr is None else f"{lr:g}{' (end)' if row['lr_is_at_end'] else ''}",
        count(row["trained_numbers"]),
        size(row["stored_bytes"]) if row["stored_bytes"] else "",
        decimal(row["train_seconds"], 0),
        _shown(row["illegal_share"], 1),
    ]
    if table["against"] is None:
        return cells
    found = row["advantage"]
    if found is None:
        return [*cells, "", "", "", ""]
    interval = "" if found["interval"] is None else " to ".join(decimal(x, places) for x in found["interval"])
    return [*cells, decimal(found["value"], places), interval, _shown(found["p_rows"], 3), _shown(found["p_runs"], 3)]


def _mean_of(table: Found, system: str, limit: int | None) -> str:
    places = decimals_for(row["mean"] for row in table["rows"])
    for row in table["rows"]:
        if (row["system"], row["limit"]) == (system, limit):
            return decimal(row["mean"], places) + ("" if row["half"] is None else f" ± {decimal(row['half'], places)}")
    return ""


def _grid(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *lines))


def _shown(value: float | None, places: int) -> str:
    return "" if value is None else decimal(value, places)


def _machine(found: Found) -> str:
    threads = found["torch_threads"]
    on = found["gpu"] or f"{threads} thread{'' if threads == 1 else 's'}"
    return f"{found['system']} on {found['processor']} with {found['cores']} cores, {on}"


def _each_once(values: Iterable[Any]) -> list[Any]:
    return list({json.dumps(x, sort_keys=True): x for x in values}.values())
