"""Pages of what a tenant may use, and of the record. Each begins after the last row of the one before: all cost alike.

It counts nothing and changes nothing.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, literal, select, tuple_

from epigraph.registry.records import Entry, Listed, Page
from epigraph.registry.refs import check_limit, is_name, parse_prefix
from epigraph.registry.schema import IS_LISTED, audit, prefixes, shares, tenants


def page(connection: Connection, reader: str, search: str, after: str, limit: int) -> Page:
    """As :meth:`epigraph.registry.Registry.list`."""
    check_limit(limit)
    begins = parse_prefix(after)
    if not (is_name(reader) and search.isprintable()):
        return Page(prefixes=(), next="")
    # One more than is shown, of both kinds: then the page is right, and it is known whether there is another.
    found = [
        *_own(connection, reader, search, begins, limit + 1),
        *_given(connection, reader, search, begins, limit + 1),
    ]
    found.sort(key=lambda x: (x.tenant, x.name))
    shown = tuple(found[:limit])
    return Page(prefixes=shown, next=shown[-1].prefix if len(found) > limit else "")


def _own(connection: Connection, reader: str, search: str, begins: tuple[str, str], limit: int) -> list[Listed]:
    if reader < begins[0]:
        return []
    query = (
        select(prefixes.c.name, prefixes.c.num_ready)
        .where(prefixes.c.tenant_id == _id_of(reader), IS_LISTED, *_holds(prefixes.c.name, search))
        .order_by(prefixes.c.name)
        .limit(limit)
    )
    if reader == begins[0]:
        query = query.where(prefixes.c.name > begins[1])
    return [Listed(tenant=reader, name=name, num_versions=count) for name, count in connection.execute(query)]


def _given(connection: Connection, reader: str, search: str, begins: tuple[str, str], limit: int) -> list[Listed]:
    where = tuple_(shares.c.owner, shares.c.name)
    query = (
        select(shares.c.owner, shares.c.name, prefixes.c.num_ready)
        .join_from(shares, prefixes, prefixes.c.id == shares.c.prefix_id)
        .where(shares.c.tenant_id == _id_of(reader), *_holds(shares.c.name, search))
        .where(where > tuple_(literal(begins[0]), literal(begins[1])))
        .order_by(shares.c.owner, shares.c.name)
        .limit(limit)
    )
    return [Listed(tenant=owner, name=name, num_versions=count) for owner, name, count in connection.execute(query)]


def record(connection: Connection, tenant: str, name: str, after: int, limit: int) -> tuple[Entry, ...]:
    """As :meth:`epigraph.registry.Registry.audit`."""
    check_limit(limit)
    if not all(is_name(x) for x in (tenant, name) if x):
        return ()
    told = (audit.c.done_by.label("by") if column is audit.c.done_by else column for column in audit.c)
    query = select(*told).where(audit.c.tenant == tenant, audit.c.id > after).order_by(audit.c.id).limit(limit)
    if name:
        query = query.where(audit.c.name == name)
    return tuple(Entry(**row._mapping) for row in connection.execute(query))


def _id_of(tenant: str) -> ColumnElement[Any]:
    return select(tenants.c.id).where(tenants.c.name == tenant).scalar_subquery()


def _holds(name: ColumnElement[str], search: str) -> list[ColumnElement[bool]]:
    return [name.icontains(search, autoescape=True)] if search else []
