"""`epigraph sweep`: many runs from one spec, cost first; and what they came to."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from epigraph.cli import show
from epigraph.cli.options import check_positive
from epigraph.errors import BadValue
from epigraph.report.words import duration

if TYPE_CHECKING:
    from epigraph.sweep.groups import Member
    from epigraph.sweep.pace import Cost
    from epigraph.sweep.run import Sweep
    from epigraph.sweep.table import Results

Flag = typer.Option


class _RunUnlessNamed(TyperGroup):
    """`epigraph sweep SPEC` is `epigraph sweep run SPEC`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        is_spec = bool(args) and args[0] not in self.commands and (args[0].endswith(".toml") or Path(args[0]).is_dir())
        return super().resolve_command(ctx, ["run", *args] if is_spec else args)


app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, cls=_RunUnlessNamed)


@app.command()
def run(
    specs: Annotated[
        list[Path],
        typer.Argument(metavar="SPEC", help="What to compare, TOML files or folders of such; see docs/sweeps.md."),
    ],
    out: Annotated[
        Path, Flag(metavar="DIR", help="Folder of the sweep, or of several by name; processes may share it.")
    ],
    only: Annotated[list[str] | None, Flag(metavar="SYSTEM", help="Only jobs of this system; may be repeated.")] = None,
    max_jobs: Annotated[int | None, Flag(help="Leave after so many jobs.")] = None,
    retry_failed: Annotated[bool, Flag("--retry-failed", help="Try once more what failed before.")] = False,
    dry_run: Annotated[bool, Flag("--dry-run", help="Say what the sweep would cost, and run nothing.")] = False,
    device: Annotated[str, Flag(help="cpu, cuda, ...")] = "cpu",
    as_json: Annotated[bool, Flag("--json", help="Print what was planned and done as JSON.")] = False,
) -> None:
    """Run what specs compare: the expected cost of all first, then every job that has no record yet."""
    from epigraph.sweep.groups import all_costs, members_of

    check_positive(max_jobs=max_jobs)
    members = members_of(specs, out)
    _check_only(only or (), members)
    sweeps = [(x.path, _sweep(x, device, retry_failed=retry_failed)) for x in members]
    before = all_costs(sweeps, only or ())
    if not as_json:
        _print_costs([x for _, x in sweeps], before)
    _say(f"{sum(x.seconds_left for one in before for x in one) / 60:.1f} minutes expected")
    counts = [] if dry_run else _run_all([x for _, x in sweeps], only or (), max_jobs)
    after = before if dry_run else all_costs(sweeps, only or ())
    failed = sum(x.failed for one in after for x in one)
    if as_json:
        expected = {x.plan.spec.name: [_cost_json(y) for y in one] for (_, x), one in zip(sweeps, before, strict=True)}
        one_or_all = expected if len(sweeps) > 1 else next(iter(expected.values()))
        show.print_json({"expected": one_or_all, "done_here": sum(counts), "failed": failed})
    if not dry_run:
        _say(_ending(sum(counts), sum(len(x.left(only or ())) for _, x in sweeps), failed, out))
    if failed and not dry_run:
        raise typer.Exit(2)


@app.command("show")
def show_results(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a sweep, or of several.")],
    metric: Annotated[
        list[str] | None, Flag(help="A metric to show; may be repeated. Default: the task's headline.")
    ] = None,
    against: Annotated[str | None, Flag(metavar="SYSTEM", help="Compare all others with this one, in pairs.")] = None,
    picture: Annotated[
        Path | None, Flag(metavar="FILE", help="Also draw the first table against the number of pairs, as a PNG.")
    ] = None,
    as_json: Annotated[bool, Flag("--json", help="Print the tables as JSON, with every run.")] = False,
) -> None:
    """Print what sweeps found so far, as Markdown."""
    from epigraph.sweep import groups, shown

    found = [_results(x) for x in groups.folders_in(folder)]
    tables = [results.tables(metric or (), against) for results in found]
    if picture is not None:
        _draw(tables, folder, picture)
    sweeps = [shown.summary(results, some) for results, some in zip(found, tables, strict=True)]
    by_task = {str(x["task"]): results for x, results in zip(sweeps, found, strict=True)}
    joint = groups.together(by_task, against) if len(by_task) == len(sweeps) else []
    if as_json:
        show.print_json(sweeps[0] if len(sweeps) == 1 else shown.together(sweeps, joint))
        return
    if not any(tables):
        print("no scores yet")
    elif len(sweeps) == 1:
        print(shown.page(sweeps[0]))
    else:
        each = [shown.markdown(x) for sweep in sweeps for x in sweep["tables"]]
        print("\n\n".join([shown.page(shown.together(sweeps, joint)), *each]))
    for record in (x for sweep in sweeps for x in sweep["failed"]):
        _say(f"failed: {record['system']}, {record['kind']}, lr {record['lr']}: {record['failed']}")


def _results(folder: Path) -> Results:
    """The records in a sweep's folder, as its spec asks for them."""
    from epigraph.sweep.folder import SPEC, SweepFolder
    from epigraph.sweep.pace import steps_in
    from epigraph.sweep.plan import Plan
    from epigraph.sweep.spec import read_spec
    from epigraph.sweep.table import Results

    where, plan = SweepFolder(folder), Plan(read_spec(folder / SPEC))
    return Results(Plan(plan.spec, steps_in(plan, where)), where)


def _draw(tables: Sequence[Sequence[Any]], folder: Path, picture: Path) -> None:
    from epigraph.sweep.picture import draw

    if len(tables) > 1:
        raise BadValue(f"--picture: {folder} holds {len(tables)} sweeps, expected one; name its folder")
    if not tables[0]:
        raise BadValue(f"--picture: {folder} has no scores yet")
    draw(tables[0][0], picture)


def _sweep(member: Member, device: str, *, retry_failed: bool) -> Sweep:
    """The spec's plan on its data, in its folder; a budget of seconds has become steps by a pilot of each system."""
    from epigraph.sweep.folder import SweepFolder
    from epigraph.sweep.inputs import read_inputs
    from epigraph.sweep.pace import paces, steps_in
    from epigraph.sweep.plan import Plan
    from epigraph.sweep.run import Sweep

    plan = Plan(member.spec)
    inputs = read_inputs(plan)
    folder = SweepFolder(member.folder)
    folder.make(member.path, member.task)
    if plan.spec.budget.seconds is not None:
        _say("timing a few steps of each system, for a budget of seconds")
        paces(plan, folder, device, tuple(plan.spec.systems))
        plan = Plan(plan.spec, steps_in(plan, folder))
    sweep = Sweep(plan=plan, inputs=inputs, folder=folder, device=device, tell=_say)
    if retry_failed:
        sweep.retry_failed()
    return sweep


def _check_only(only: Sequence[str], members: Sequence[Member]) -> None:
    known = list(dict.fromkeys(name for x in members for name in x.spec.systems))
    unknown = [x for x in only if x not in known]
    if unknown:
        raise BadValue(f"--only: got {unknown[0]!r}, expected one of {', '.join(known)}")


def _run_all(sweeps: Sequence[Sweep], only: Sequence[str], most: int | None) -> list[int]:
    """How many jobs were done here in each, ``most`` in all."""
    counts: list[int] = []
    for sweep in sweeps:
        if len(sweeps) > 1:
            _say(f"{sweep.plan.spec.name}: {sweep.folder.path}")
        counts.append(sweep.run(only=only, most=None if most is None else most - sum(counts)))
    return counts


def _print_costs(sweeps: Sequence[Sweep], found: Sequence[Sequence[Cost]]) -> None:
    for sweep, costs in zip(sweeps, found, strict=True):
        lines = [_cost_line(x.system, [x]) for x in costs]
        _print_cost_rows(sweep.plan.spec.name, [*lines, _cost_line("all", costs)])
    if len(sweeps) > 1:
        lines = [_cost_line(x.plan.spec.name, costs) for x, costs in zip(sweeps, found, strict=True)]
        _print_cost_rows("all sweeps", [*lines, _cost_line("all", [x for costs in found for x in costs])])


def _cost_line(name: str, found: Sequence[Cost]) -> tuple[str, ...]:
    counts = (str(sum(getattr(x, part) for x in found)) for part in ("searches", "finals", "done", "failed"))
    return name, *counts, duration(sum(x.seconds_left for x in found))


def _print_cost_rows(title: str, lines: Sequence[tuple[str, ...]]) -> None:
    show.print_rows(title, ("system", "search", "final", "done", "failed", "left, expected"), lines)


def _cost_json(found: Cost) -> dict[str, Any]:
    names = ("system", "searches", "finals", "done", "failed", "seconds_left")
    return {name: getattr(found, name) for name in names}


def _ending(count: int, left: int, failed: int, out: Path) -> str:
    parts = [f"{count} jobs done here, {left} left"]
    if failed:
        parts.append(f"{failed} failed (try them again with --retry-failed)")
    return f"{', '.join(parts)}; see them with: epigraph sweep show {out}"


def _say(words: str) -> None:
    print(f"epigraph: {words}", file=sys.stderr, flush=True)
