"""`epigraph tenants` and `epigraph keys`: whose a server's prefixes are, what each may have, and who may come in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from epigraph.cli import show
from epigraph.cli.keeping import Catalogue, Flag, Json, Store, Yes, me, opened, time_of
from epigraph.errors import BadValue

if TYPE_CHECKING:
    from epigraph.registry import Key, Quotas, Scope, Tenant

tenants_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
keys_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(help="The tenant.", metavar="TENANT")]
KeyId = Annotated[str, typer.Argument(help="The id of a key, as keys list shows it.", metavar="KEY")]
Requests = Annotated[str | None, Flag("--requests-per-minute", help="A number, or none.", metavar="N")]
Tokens = Annotated[str | None, Flag("--tokens-per-minute", help="A number, or none.", metavar="N")]
Concurrent = Annotated[str | None, Flag("--concurrent", help="Answers at a time: a number, or none.", metavar="N")]
Prefixes = Annotated[str | None, Flag("--prefixes", help="Prefixes that it may have: a number, or none.", metavar="N")]
Bytes = Annotated[str | None, Flag("--bytes", help="Bytes that these may have: a number, or none.", metavar="N")]


@tenants_app.command()
def add(
    name: Name,
    requests_per_minute: Requests = None,
    tokens_per_minute: Tokens = None,
    concurrent: Concurrent = None,
    prefixes: Prefixes = None,
    num_bytes: Bytes = None,
    catalogue: Catalogue = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Add a tenant. Without numbers it may have and do what it likes."""
    given = _given(requests_per_minute, tokens_per_minute, concurrent, prefixes, num_bytes)
    with opened(catalogue, store) as registry:
        from epigraph.registry import Quotas

        _print_tenants([registry.tenants.add(name, Quotas(**given), by=me())], as_json, one=True)


@tenants_app.command("list")
def list_tenants(
    after: Annotated[str, Flag(help="Begin after this tenant.")] = "",
    limit: Annotated[int, Flag(help="At most so many.")] = 1000,
    catalogue: Catalogue = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """List tenants with what they have and may have."""
    with opened(catalogue, store) as registry:
        _print_tenants(registry.tenants.list(after=after, limit=limit), as_json)


@tenants_app.command()
def quotas(
    name: Name,
    requests_per_minute: Requests = None,
    tokens_per_minute: Tokens = None,
    concurrent: Concurrent = None,
    prefixes: Prefixes = None,
    num_bytes: Bytes = None,
    catalogue: Catalogue = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Change the numbers that are given, and show all. A number that is not given stays."""
    given = _given(requests_per_minute, tokens_per_minute, concurrent, prefixes, num_bytes)
    with opened(catalogue, store) as registry:
        tenant = registry.tenants.get(name)
        if given:
            tenant = registry.tenants.set_quotas(name, replace(tenant.quotas, **given), by=me())
        _print_tenants([tenant], as_json, one=True)


@tenants_app.command()
def remove(
    name: Name,
    yes: Yes = False,
    catalogue: Catalogue = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Delete a tenant with all its prefixes, their bytes and its keys."""
    if not yes:
        raise BadValue(f"tenant {name} would go with all it has; say --yes")
    with opened(catalogue, store) as registry:
        count = registry.tenants.remove(name, by=me())
    if as_json:
        show.print_json({"deleted": count})
    else:
        typer.echo(f"removed {name} and {count:,} version{'' if count == 1 else 's'}")


@keys_app.command()
def make(
    tenant: Name,
    scope: Annotated[
        list[str] | None,
        Flag(help="use, push, manage or admin; give it again for more. Default: use."),
    ] = None,
    expires_days: Annotated[float | None, Flag(help="Days that it is good for. Default: until it is revoked.")] = None,
    note: Annotated[str, Flag(help="What it is for, for the list.")] = "",
    catalogue: Catalogue = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Make an API key and print it, once: nobody can show it again."""
    expires = None if expires_days is None else _in_days(expires_days)
    with opened(catalogue, store) as registry:
        scopes = frozenset(cast("list[Scope]", scope or ["use"]))
        made = registry.tenants.make_key(tenant, scopes=scopes, expires=expires, note=note, by=me())
    _print_secret(*made, as_json)


@keys_app.command("list")
def list_keys(
    tenant: Name,
    catalogue: Catalogue = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """List a tenant's keys, those that are no longer good too."""
    with opened(catalogue, store) as registry:
        keys = registry.tenants.keys(tenant)
    if as_json:
        show.print_json([_told(key) for key in keys])
        return
    rows = ((key.id, ", ".join(sorted(key.scopes)), time_of(key.created), _state(key), key.note) for key in keys)
    show.print_rows(f"keys of {tenant}", ("key", "scopes", "made", "state", "note"), rows)


@keys_app.command()
def rotate(
    key: KeyId,
    grace_minutes: Annotated[float, Flag(min=0, help="Minutes that the old one is still good for.")] = 0.0,
    catalogue: Catalogue = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Make a key in the place of another, with its scopes and its end, and print it, once."""
    with opened(catalogue, store) as registry:
        made = registry.tenants.rotate(key, grace=timedelta(minutes=grace_minutes), by=me())
    _print_secret(*made, as_json)


@keys_app.command()
def revoke(
    key: KeyId,
    catalogue: Catalogue = None,
    store: Store = None,
) -> None:
    """End a key at once, on all servers."""
    with opened(catalogue, store) as registry:
        registry.tenants.revoke(key, by=me())


def _given(
    requests: str | None, tokens: str | None, concurrent: str | None, prefixes: str | None, num_bytes: str | None
) -> dict[str, Any]:
    """The quotas that were given, None for those that are to have no limit. Raises :class:`BadValue`."""
    words = {
        "requests_per_minute": requests,
        "tokens_per_minute": tokens,
        "concurrent": concurrent,
        "prefixes": prefixes,
        "bytes": num_bytes,
    }
    return {name: _number(name, word) for name, word in words.items() if word is not None}


def _number(name: str, word: str) -> int | None:
    if word == "none":
        return None
    if not (word.isascii() and word.isdigit()):
        raise BadValue(f"--{name.replace('_', '-')} is {word!r}, expected a number of 0 or more, or none")
    return int(word[:20])


def _in_days(days: float) -> datetime:
    try:
        return datetime.now(UTC) + timedelta(days=days)
    except (OverflowError, ValueError):
        raise BadValue(f"--expires-days is {days}, expected so many that a calendar has them") from None


def _print_tenants(tenants: Any, as_json: bool, *, one: bool = False) -> None:
    if as_json:
        said = [{**asdict(x), "created": time_of(x.created)} for x in tenants]
        show.print_json(said[0] if one else said)
        return
    header = ("tenant", "prefixes", "bytes", "requests/min", "tokens/min", "at a time")
    show.print_rows("tenants", header, (_row(x) for x in tenants))


def _row(tenant: Tenant) -> tuple[str, ...]:
    quotas: Quotas = tenant.quotas
    most = {name: "no limit" if x is None else f"{x:,}" for name, x in asdict(quotas).items()}
    return (
        tenant.name,
        f"{tenant.num_prefixes:,} of {most['prefixes']}",
        f"{tenant.num_bytes:,} of {most['bytes']}",
        most["requests_per_minute"],
        most["tokens_per_minute"],
        most["concurrent"],
    )


def _print_secret(key: Key, secret: str, as_json: bool) -> None:
    if as_json:
        show.print_json({**_told(key), "secret": secret})
        return
    ends = "until it is revoked" if key.expires is None else f"until {time_of(key.expires)}"
    typer.echo(f"key {key.id} of {key.tenant}, for {', '.join(sorted(key.scopes))}, good {ends}; shown this once:")
    typer.echo(secret)


def _told(key: Key) -> Mapping[str, Any]:
    times = {name: None if (when := getattr(key, name)) is None else time_of(when) for name in ("expires", "revoked")}
    return {
        **asdict(key),
        **times,
        "created": time_of(key.created),
        "scopes": sorted(key.scopes),
        "good": key.is_good(),
    }


def _state(key: Key) -> str:
    if key.revoked is not None:
        return f"revoked {time_of(key.revoked)}"
    if key.expires is None:
        return "good"
    return f"{'good until' if key.is_good() else 'expired'} {time_of(key.expires)}"
