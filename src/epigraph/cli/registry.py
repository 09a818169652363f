"""`epigraph registry`: prefixes in versions, for one user on a laptop or for the tenants of a server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from epigraph.cli import show
from epigraph.cli.keeping import LOCAL, PREFIX, VERSION, Catalogue, Flag, Json, Store, Yes, me, opened, own, told
from epigraph.cli.keeping import time_of as _time
from epigraph.errors import BadValue

if TYPE_CHECKING:
    from epigraph.registry import Entry, Findings, Version

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.command()
def push(
    path: Annotated[Path, typer.Argument(help="An artifact file, or the folder of a run.", metavar="PATH")],
    prefix: Annotated[
        str | None,
        typer.Argument(help="NAME or TENANT/NAME. Default: the name of the folder or file.", metavar="PREFIX"),
    ] = None,
    alias: Annotated[list[str] | None, Flag(help="An alias for it beside latest; give it again for more.")] = None,
    no_latest: Annotated[bool, Flag("--no-latest", help="Leave latest where it is.")] = False,
    scores: Annotated[
        Path | None, Flag(help="Scores as JSON. Default: what epigraph evaluate left in the run's folder.")
    ] = None,
    catalogue: Catalogue = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Check an artifact in full and keep it as a new version of a prefix."""
    ref = own(prefix if prefix is not None else path.resolve().name.removesuffix(".safetensors"))
    aliases = [*([] if no_latest else ["latest"]), *(alias or [])]
    with opened(catalogue, store) as registry:
        from epigraph.registry.scores import scores_beside, scores_in

        said = scores_beside(path) if scores is None else scores_in(scores)
        made = registry.push(ref.tenant, ref.name, path, by=me(), aliases=aliases, scores=said)
    _print_version(made, as_json)


@app.command("list")
def list_prefixes(
    search: Annotated[str, typer.Argument(help="Only names that hold this, capitals aside.", metavar="WORDS")] = "",
    tenant: Annotated[str, Flag(help="Whose list: its own prefixes and those shared with it.")] = LOCAL,
    after: Annotated[str, Flag(help="Begin after this prefix id, as the page before says.")] = "",
    limit: Annotated[int, Flag(help="At most so many.")] = 100,
    catalogue: Catalogue = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """List the prefixes that a tenant may use."""
    with opened(catalogue, store) as registry:
        page = registry.list(tenant, search=search, after=after, limit=limit)
    if as_json:
        found = [{"id": x.prefix, "num_versions": x.num_versions} for x in page.prefixes]
        show.print_json({"prefixes": found, "next": page.next})
        return
    show.print_rows(
        f"prefixes of {tenant}", ("prefix", "versions"), ((x.prefix, f"{x.num_versions:,}") for x in page.prefixes)
    )
    if page.next:
        typer.echo(f"more: --after {page.next}")


@app.command("show")
def show_prefix(
    prefix: Annotated[str, VERSION],
    catalogue: Catalogue = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Show a version with its provenance and scores, and which other versions there are."""
    ref = own(prefix)
    with opened(catalogue, store) as registry:
        version = registry.get(ref.tenant, ref.name, ref.wanted or "latest")
        others = registry.versions(ref.tenant, ref.name, limit=1000)
        shared = registry.shares(ref.tenant, ref.name)
    if as_json:
        versions = [{"number": x.number, "aliases": x.aliases, "created": _time(x.created)} for x in others]
        show.print_json({**told(version), "versions": versions, "shared_with": shared})
        return
    _print_version(version, as_json=False)
    rows = (
        (str(x.number), ", ".join(x.aliases), _time(x.created), x.created_by, show.size(x.num_bytes)) for x in others
    )
    show.print_rows("versions", ("version", "aliases", "pushed", "by", "size"), rows)
    if shared:
        typer.echo(f"shared with {', '.join(shared)}")


@app.command("alias")
def set_alias(
    prefix: Annotated[str, PREFIX],
    alias: Annotated[str, typer.Argument(help="What the version is to be called.", metavar="ALIAS")],
    version: Annotated[str | None, typer.Argument(help="A number or another alias.", metavar="VERSION")] = None,
    drop: Annotated[bool, Flag("--drop", help="Take the alias away.")] = False,
    catalogue: Catalogue = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Let an alias mean a version, or nothing any more."""
    ref = own(prefix, one=False)
    if drop is (version is not None):
        raise BadValue("expected either a version for the alias or --drop")
    with opened(catalogue, store) as registry:
        if version is None:
            registry.drop_alias(ref.tenant, ref.name, alias, by=me())
            return
        _print_version(registry.set_alias(ref.tenant, ref.name, alias, version, by=me()), as_json)


@app.command()
def rollback(
    prefix: Annotated[str, PREFIX],
    alias: Annotated[str, Flag(help="The alias that goes back.")] = "latest",
    catalogue: Catalogue = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Let an alias mean the version before the one it means."""
    ref = own(prefix, one=False)
    with opened(catalogue, store) as registry:
        _print_version(registry.rollback(ref.tenant, ref.name, alias, by=me()), as_json)


@app.command()
def delete(
    prefix: Annotated[str, VERSION],
    yes: Yes = False,
    catalogue: Catalogue = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Delete one version, or with --yes a prefix in all its versions. Its bytes are gone when the command returns."""
    ref = own(prefix)
    if not ref.wanted and not yes:
        raise BadValue(f"{ref.tenant}/{ref.name} would go in all its versions; say --yes, or @VERSION for one")
    with opened(catalogue, store) as registry:
        count = registry.delete(ref.tenant, ref.name, ref.wanted or None, by=me())
    _print_count(count, "version", as_json)


@app.command()
def share(
    prefix: Annotated[str, PREFIX],
    tenant: Annotated[str, typer.Argument(help="Who may use it from now on.", metavar="TENANT")],
    catalogue: Catalogue = None,
    store: Store = None,
) -> None:
    """Let another tenant use a prefix in all its versions."""
    ref = own(prefix, one=False)
    with opened(catalogue, store) as registry:
        registry.share(ref.tenant, ref.name, tenant, by=me())


@app.command()
def unshare(
    prefix: Annotated[str, PREFIX],
    tenant: Annotated[str, typer.Argument(help="Who may use it no longer.", metavar="TENANT")],
    catalogue: Catalogue = None,
    store: Store = None,
) -> None:
    """Let another tenant use a prefix no longer."""
    ref = own(prefix, one=False)
    with opened(catalogue, store) as registry:
        registry.unshare(ref.tenant, ref.name, tenant, by=me())


@app.command()
def verify(
    repair: Annotated[bool, Flag("--repair", help="Take away what killed processes left over.")] = False,
    quick: Annotated[bool, Flag("--quick", help="Compare sizes alone, without reading files.")] = False,
    patience: Annotated[float, Flag(min=0, help="Minutes after which a push that goes on is taken for dead.")] = 60.0,
    adopt: Annotated[
        bool, Flag("--adopt", help="First mark a store that has lost its mark as this catalogue's.")
    ] = False,
    catalogue: Catalogue = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Compare catalogue and store, version by version; exits with 2 where something is wrong and was not repaired."""
    with opened(catalogue, store) as registry:
        if adopt:
            registry.adopt_store()
        # Before the bar: who cannot begin says so in one line.
        registry.check()
        with show.progress(shown=not as_json) as bar:
            job = bar.add_task("versions", total=None)
            found = registry.verify(
                repair=repair,
                patience=timedelta(minutes=patience),
                contents=not quick,
                advance=lambda n: bar.advance(job, n),
            )
    _print_findings(found, as_json)
    if not found.is_clean:
        raise typer.Exit(2)


@app.command("allow-base")
def allow_base(
    trained: Annotated[str, typer.Argument(help="Fingerprint of the base that prefixes were trained for.")],
    admitted: Annotated[str, typer.Argument(help="Fingerprint of the base that may serve them, a quantised twin say.")],
    why: Annotated[str, Flag(help="The reason, for the record.")] = "",
    remove: Annotated[bool, Flag("--remove", help="Take it back.")] = False,
    catalogue: Catalogue = None,
    store: Store = None,
) -> None:
    """Write down, once and for all servers, that one base may serve what was trained for another."""
    with opened(catalogue, store) as registry:
        if remove:
            registry.refuse_base(trained, admitted, by=me())
        else:
            registry.allow_base(trained, admitted, by=me(), why=why)


@app.command()
def audit(
    name: Annotated[str, typer.Argument(help="Only this prefix.", metavar="NAME")] = "",
    tenant: Annotated[str, Flag(help="Whose record; empty for that of the registry itself.")] = LOCAL,
    after: Annotated[int, Flag(help="Begin after this entry.")] = 0,
    limit: Annotated[int, Flag(help="At most so many.")] = 100,
    catalogue: Catalogue = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Show who did what to which version, and when, the oldest first."""
    with opened(catalogue, store) as registry:
        entries = registry.audit(tenant, name=name, after=after, limit=limit)
    if as_json:
        show.print_json([{**asdict(x), "at": _time(x.at)} for x in entries])
        return
    show.print_rows("record", ("entry", "at", "by", "what", "prefix", "more"), map(_entry, entries))


def _print_version(version: Version, as_json: bool) -> None:
    if as_json:
        show.print_json(told(version))
        return
    kind = "keys and values" if version.kind == "kv" else "a soft prompt"
    made = f"{kind}, by {version.method}, {show.size(version.num_bytes)}"
    scores = ", ".join(f"{split} {name} {x:.4g}" for split, name, x in _numbers(version.scores))
    pairs = {
        "version": f"{version.number}, pushed {_time(version.created)} by {version.created_by or 'nobody named'}",
        "aliases": ", ".join(version.aliases) or "none",
        "virtual tokens": f"{version.num_virtual_tokens:,}, {made}",
        "base": f"{version.base_name} ({version.base_fingerprint[:12]})",
        "content": version.content_hash,
        "scores": scores or "none",
        "provenance": json.dumps(dict(version.provenance), ensure_ascii=False),
    }
    show.print_pairs(version.id, pairs)


def _numbers(scores: Any) -> Iterator[tuple[str, str, float]]:
    for split, metrics in scores.items():
        for name, value in (metrics if isinstance(metrics, dict) else {"": metrics}).items():
            if isinstance(value, int | float):
                yield split, name, value


def _print_count(count: int, what: str, as_json: bool) -> None:
    if as_json:
        show.print_json({"deleted": count})
    else:
        typer.echo(f"deleted {count:,} {what}{'' if count == 1 else 's'}")


def _print_findings(found: Findings, as_json: bool) -> None:
    if as_json:
        show.print_json({**asdict(found), "is_clean": found.is_clean})
        return
    wrong = [(kind, one) for kind, those in asdict(found).items() if isinstance(those, tuple) for one in those]
    if wrong:
        show.print_rows("found", ("what", "which"), wrong)
    state = "well" if found.is_clean else "not well; --repair takes away what was left over"
    typer.echo(
        f"{found.num_versions:,} version{'' if found.num_versions == 1 else 's'}, {show.size(found.num_bytes)}: {state}"
    )


def _entry(entry: Entry) -> tuple[str, ...]:
    which = entry.name + (f"@{entry.number}" if entry.number else "")
    more = ", ".join(f"{name} {value}" for name, value in entry.detail.items())
    return str(entry.id), _time(entry.at), entry.by, entry.action, which, more
