"""Which version is meant, by one indexed query: what a server asks before every request. It changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, bindparam, func, or_, select

from epigraph.registry.records import LATEST, Version
from epigraph.registry.refs import Wanted, check_limit, is_name, not_found, parse_ref, parse_wanted
from epigraph.registry.schema import READY, aliases, prefixes, shares, tenants, versions

_TOLD = (
    "number",
    "content_hash",
    "base_name",
    "base_fingerprint",
    "tokenizer_fingerprint",
    "geometry",
    "num_virtual_tokens",
    "num_bytes",
    "method",
    "kind",
    "is_chat",
    "created",
    "created_by",
    "provenance",
    "scores",
)


def resolve(connection: Connection, reader: str, ref: str) -> Version:
    """The version that ``reader`` means by ``ref``. Raises :class:`PrefixNotFound`, in one wording for all reasons."""
    asked = parse_ref(ref, reader, LATEST)
    wanted = None if asked is None else parse_wanted(asked.wanted)
    if asked is None or wanted is None:
        raise not_found(reader, ref)
    found = _one(connection, asked.tenant, asked.name, wanted, reader)
    if found is None:
        raise not_found(reader, ref)
    return found


def get(connection: Connection, tenant: str, name: str, wanted: str | int) -> Version:
    """The tenant's own version of that name. Raises :class:`PrefixNotFound`."""
    meant = parse_wanted(wanted) if is_name(tenant, name) else None
    found = None if meant is None else _one(connection, tenant, name, meant, tenant)
    if found is None:
        raise not_found(tenant, f"{tenant}/{name}@{wanted}")
    return found


def page(connection: Connection, tenant: str, name: str, after: int, limit: int) -> tuple[Version, ...]:
    """Ready versions of one name in the order of their numbers. Raises :class:`PrefixNotFound` where there are none."""
    check_limit(limit)
    found: Sequence[Row[Any]] = ()
    if is_name(tenant, name):
        query = _told().where(_is_named(), versions.c.number > bindparam("after"))
        given = {"tenant": tenant, "name": name, "after": after}
        found = connection.execute(query.order_by(versions.c.number).limit(limit), given).all()
    if not found and after == 0:
        raise not_found(tenant, f"{tenant}/{name}")
    return tuple(version_of(row) for row in found)


def _one(connection: Connection, tenant: str, name: str, wanted: Wanted, reader: str) -> Version | None:
    given = {"tenant": tenant, "name": name, "reader": reader, "number": wanted.number, "alias": wanted.alias}
    query = _by_alias() if wanted.number is None else _by_number()
    row = connection.execute(query, given).one_or_none()
    return None if row is None else version_of(row)


@cache
def _told() -> Select[Any]:
    """Ready versions with all that is said of one, in one statement."""
    called = (
        select(func.aggregate_strings(aliases.c.alias, ","))
        .where(aliases.c.prefix_id == versions.c.prefix_id, aliases.c.number == versions.c.number)
        .scalar_subquery()
    )
    return (
        select(
            tenants.c.name.label("tenant"),
            prefixes.c.name.label("name"),
            called.label("aliases"),
            *(versions.c[name] for name in _TOLD),
        )
        .join_from(tenants, prefixes, prefixes.c.tenant_id == tenants.c.id)
        .join(versions, versions.c.prefix_id == prefixes.c.id)
        .where(versions.c.state == READY)
    )


def _is_named() -> Any:
    return and_(tenants.c.name == bindparam("tenant"), prefixes.c.name == bindparam("name"))


@cache
def _usable() -> Select[Any]:
    """Of these, what the reader owns or was given to use."""
    readers = tenants.alias("readers")
    given = (
        select(shares.c.prefix_id)
        .join_from(shares, readers, readers.c.id == shares.c.tenant_id)
        .where(shares.c.prefix_id == prefixes.c.id, readers.c.name == bindparam("reader"))
        .exists()
    )
    return _told().where(_is_named(), or_(tenants.c.name == bindparam("reader"), given))


@cache
def _by_number() -> Select[Any]:
    return _usable().where(versions.c.number == bindparam("number"))


@cache
def _by_alias() -> Select[Any]:
    meant = (
        select(aliases.c.number)
        .where(aliases.c.prefix_id == prefixes.c.id, aliases.c.alias == bindparam("alias"))
        .scalar_subquery()
    )
    return _usable().where(versions.c.number == meant)


def version_of(row: Row[Any]) -> Version:
    """The value of a row of the statement above."""
    told = dict(row._mapping)
    called = told.pop("aliases")
    return Version(**told, aliases=tuple(sorted(called.split(","))) if called else ())
