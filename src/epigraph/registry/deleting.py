"""Deletion: first nothing resolves any more, then the bytes go, then the rows. Each step may be done again.

It knows no engine: what was read before stays where it was read to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, delete, or_, select, update

from epigraph.errors import TenantNotFound
from epigraph.registry import rows
from epigraph.registry.database import Database
from epigraph.registry.marks import check_store
from epigraph.registry.records import path_of
from epigraph.registry.refs import is_name, not_found, parse_wanted
from epigraph.registry.schema import (
    GONE,
    IS_OPEN,
    PENDING,
    READY,
    aliases,
    api_keys,
    prefixes,
    shares,
    tenants,
    versions,
)
from epigraph.registry.store import Store

_BATCH = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Undeleted:
    """A version that nobody sees any more and whose bytes may still be there."""

    tenant: str
    name: str
    prefix_id: int
    number: int

    @property
    def id(self) -> str:
        """What people call it."""
        return f"{self.tenant}/{self.name}@{self.number}"

    @property
    def path(self) -> str:
        """Where its bytes would be."""
        return path_of(self.tenant, self.name, self.number)


def delete_versions(
    database: Database, store: Store, tenant: str, name: str, wanted: str | int | None, *, by: str
) -> int:
    """As :meth:`epigraph.registry.Registry.delete`."""
    prefix_id, count = database.write(_entomb, tenant, name, wanted, by)
    finish(database, store, prefix_id=prefix_id)
    return count


def remove_tenant(database: Database, store: Store, tenant: str, *, by: str) -> int:
    """As :meth:`epigraph.registry.Tenants.remove`."""
    tenant_id = database.write(_entomb_tenant, tenant, by)
    return finish(database, store, tenant_id=tenant_id)


def finish(database: Database, store: Store, *, prefix_id: int | None = None, tenant_id: int | None = None) -> int:
    """Take away bytes and rows of deleted versions: of one prefix, of one tenant, or all; how many there were.

    Raises :class:`StoreUnavailable`; what is left is found the next time.
    """
    count = 0
    while batch := undeleted(database, prefix_id=prefix_id, tenant_id=tenant_id):
        check_store(database, store)
        store.delete([one.path for one in batch])
        database.write(_forget, batch)
        count += len(batch)
    return count


def undeleted(
    database: Database, *, prefix_id: int | None = None, tenant_id: int | None = None, limit: int = _BATCH
) -> list[Undeleted]:
    """Deleted versions whose bytes may still be there, the first ``limit`` of them."""
    query = (
        select(tenants.c.name.label("tenant"), prefixes.c.name.label("name"), versions.c.prefix_id, versions.c.number)
        .join_from(versions, prefixes, prefixes.c.id == versions.c.prefix_id)
        .join(tenants, tenants.c.id == prefixes.c.tenant_id)
        .where(IS_OPEN, versions.c.state == GONE)
        .limit(limit)
    )
    if prefix_id is not None:
        query = query.where(versions.c.prefix_id == prefix_id)
    if tenant_id is not None:
        query = query.where(prefixes.c.tenant_id == tenant_id)
    with database.reading() as connection:
        return [Undeleted(**row._mapping) for row in connection.execute(query)]


def _forget(connection: Connection, batch: list[Undeleted]) -> None:
    numbers: dict[int, list[int]] = {}
    for one in batch:
        numbers.setdefault(one.prefix_id, []).append(one.number)
    for prefix_id, those in numbers.items():
        rows.forget(connection, prefix_id, those)


def _entomb(connection: Connection, tenant: str, name: str, wanted: str | int | None, by: str) -> tuple[int, int]:
    prefix = rows.lock_prefix(connection, tenant, name)
    number = None if wanted is None else _number(connection, prefix, wanted)
    left = rows.gone(connection, prefix.id)
    withdrawn = [] if number == 0 else rows.withdraw(connection, prefix, None if number is None else [number])
    # What was deleted before, and could not be taken out of the store, may be deleted once more.
    again = [x for x in left if number in (None, x)]
    if not withdrawn and not again:
        raise not_found(tenant, f"{tenant}/{name}" if wanted is None else f"{tenant}/{name}@{wanted}")
    if withdrawn:
        rows.note(connection, tenant, name, "delete", by, number, numbers=withdrawn)
    return prefix.id, len(withdrawn) or len(again)


def _number(connection: Connection, prefix: Row[Any], wanted: str | int) -> int:
    """0 for what there is not."""
    meant = parse_wanted(wanted)
    if meant is None:
        return 0
    return meant.number or rows.aliases_of(connection, prefix.id).get(meant.alias, 0)


def _entomb_tenant(connection: Connection, tenant: str, by: str) -> int:
    try:
        owner = rows.lock_tenant(connection, tenant)
    except TenantNotFound:
        half = _half_removed(connection, tenant)
        if half is None:
            raise
        return half
    its = select(prefixes.c.id).where(prefixes.c.tenant_id == owner.id)
    seen = (versions.c.prefix_id.in_(its), versions.c.state.in_([PENDING, READY]))
    connection.execute(update(versions).where(*seen).values(state=GONE))
    connection.execute(update(prefixes).where(prefixes.c.tenant_id == owner.id).values(num_kept=0, num_ready=0))
    connection.execute(delete(aliases).where(aliases.c.prefix_id.in_(its)))
    connection.execute(delete(shares).where(or_(shares.c.prefix_id.in_(its), shares.c.tenant_id == owner.id)))
    keys = (api_keys.c.tenant_id == owner.id, api_keys.c.revoked.is_(None))
    connection.execute(update(api_keys).where(*keys).values(revoked=rows.now()))
    told = {"removed": rows.now(), "num_prefixes": 0, "num_bytes": 0}
    connection.execute(update(tenants).where(tenants.c.id == owner.id).values(told))
    rows.note(connection, tenant, "", "remove-tenant", by, prefixes=owner.num_prefixes, bytes=owner.num_bytes)
    owner_id: int = owner.id
    return owner_id


def _half_removed(connection: Connection, tenant: str) -> int | None:
    """The id of a tenant that is gone and whose bytes are not."""
    query = (
        select(tenants.c.id)
        .join_from(tenants, prefixes, prefixes.c.tenant_id == tenants.c.id)
        .join(versions, versions.c.prefix_id == prefixes.c.id)
        .where(tenants.c.name == tenant, IS_OPEN, versions.c.state == GONE)
        .limit(1)
    )
    return connection.execute(query).scalar() if is_name(tenant) else None
