"""Whether the sums that are kept beside the rows are those of the rows, and putting them right. It knows no bytes."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, Subquery, case, func, or_, select, update

from epigraph.errors import TenantNotFound
from epigraph.registry import rows
from epigraph.registry.database import Database
from epigraph.registry.schema import PENDING, READY, prefixes, tenants, versions


def miscounted(database: Database, tenant: str, *, repair: bool) -> bool:
    """Whether any sum of a tenant is wrong; with ``repair`` it no longer is afterwards."""
    with database.reading() as connection:
        is_wrong = _is_wrong(connection, tenant)
    if is_wrong and repair:
        database.write(_put_right, tenant)
    return is_wrong


def _is_wrong(connection: Connection, tenant: str) -> bool:
    # One statement, and so one moment.
    its, kept = _wrong_prefixes(tenant), _sums(tenant)
    query = select(
        or_(
            its.exists(),
            tenants.c.num_prefixes != select(kept.c.num_prefixes).scalar_subquery(),
            tenants.c.num_bytes != select(kept.c.num_bytes).scalar_subquery(),
        )
    ).where(tenants.c.name == tenant)
    return bool(connection.execute(query).scalar())


def _put_right(connection: Connection, tenant: str) -> None:
    try:
        owner = rows.lock_tenant(connection, tenant)
    except TenantNotFound:
        return
    for row in connection.execute(_wrong_prefixes(tenant)).all():
        right = {"num_kept": row.kept, "num_ready": row.ready}
        connection.execute(update(prefixes).where(prefixes.c.id == row.id).values(right))
    sums: Row[Any] = connection.execute(select(_sums(tenant))).one()
    connection.execute(update(tenants).where(tenants.c.id == owner.id).values(sums._asdict()))
    rows.note(connection, tenant, "", "repair", "verify", what="sums")


def _kept() -> Subquery:
    return (
        select(
            versions.c.prefix_id,
            func.count().label("kept"),
            func.sum(case((versions.c.state == READY, 1), else_=0)).label("ready"),
            func.sum(versions.c.num_bytes).label("num_bytes"),
        )
        .where(versions.c.state.in_([PENDING, READY]))
        .group_by(versions.c.prefix_id)
        .subquery()
    )


def _wrong_prefixes(tenant: str) -> Any:
    kept = _kept()
    right, ready = func.coalesce(kept.c.kept, 0), func.coalesce(kept.c.ready, 0)
    return (
        select(prefixes.c.id, right.label("kept"), ready.label("ready"))
        .join_from(prefixes, kept, kept.c.prefix_id == prefixes.c.id, isouter=True)
        .where(prefixes.c.tenant_id == select(tenants.c.id).where(tenants.c.name == tenant).scalar_subquery())
        .where(or_(prefixes.c.num_kept != right, prefixes.c.num_ready != ready))
    )


def _sums(tenant: str) -> Subquery:
    kept = _kept()
    owner = tenants.alias("owners")
    return (
        select(
            func.count(kept.c.prefix_id).label("num_prefixes"),
            func.coalesce(func.sum(kept.c.num_bytes), 0).label("num_bytes"),
        )
        .join_from(prefixes, owner, owner.c.id == prefixes.c.tenant_id)
        .join(kept, kept.c.prefix_id == prefixes.c.id)
        .where(owner.c.name == tenant)
        .subquery()
    )
