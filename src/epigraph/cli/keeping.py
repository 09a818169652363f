"""What the commands of a registry share: flags, opening it, taking a prefix id apart, who asks. They know no query."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from epigraph.errors import BadName, CatalogueUnavailable

if TYPE_CHECKING:
    from epigraph.registry import Registry, Version
    from epigraph.registry.refs import Ref

Flag = typer.Option

LOCAL = "local"
PREFIX = typer.Argument(help="A prefix id: NAME of tenant local, or TENANT/NAME.", metavar="PREFIX")
VERSION = typer.Argument(help="A prefix id, with @NUMBER or @ALIAS for one version.", metavar="PREFIX[@VERSION]")
Catalogue = Annotated[
    str | None, Flag(help="A path (SQLite) or an SQLAlchemy URL (PostgreSQL). Default: $EPIGRAPH_CATALOGUE.")
]
Store = Annotated[str | None, Flag(help="A folder or an fsspec address (s3://...). Default: $EPIGRAPH_STORE.")]
Json = Annotated[bool, Flag("--json", help="Print JSON.")]
Yes = Annotated[bool, Flag("--yes", help="Really; there is no way back.")]


@contextmanager
def opened(catalogue: str | None, store: str | None) -> Iterator[Registry]:
    """The registry that flags and environment name; tenant ``local`` is there."""
    try:
        from epigraph.registry import Registry
        from epigraph.registry.addresses import catalogue_address, store_address
    except ModuleNotFoundError as missing:
        raise CatalogueUnavailable(f"no registry here: {missing}; install epigraph[registry]") from missing
    with Registry.open(catalogue_address(catalogue), store_address(store)) as registry:
        registry.tenants.ensure(LOCAL, by=me())
        yield registry


def own(prefix: str, *, one: bool = True) -> Ref:
    """Tenant, name and, where ``one`` may be asked for, the version in ``prefix``. Raises :class:`BadName`."""
    from epigraph.registry.refs import parse_ref

    ref = parse_ref(prefix, LOCAL, "")
    if ref is None or (ref.wanted and not one):
        raise BadName(
            f"got {prefix[:200]!r}, expected NAME or TENANT/NAME{', and @VERSION for one version' if one else ''}"
        )
    return ref


def me() -> str:
    """Who sits here, for the record."""
    try:
        return f"{getpass.getuser()} at the command line"
    except (KeyError, OSError):
        return "the command line"


def told(version: Version) -> dict[str, Any]:
    """A version as JSON has it."""
    return {"id": version.id, **asdict(version), "created": time_of(version.created)}


def time_of(when: datetime) -> str:
    """As tables and JSON say it, to the second."""
    return when.isoformat(timespec="seconds")
