"""What versions are called and who may use a prefix: aliases, rollback, shares, and bases that stand for others.

Each function is one transaction, with its row in the record. It knows no bytes.
"""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select

from epigraph.errors import BadValue
from epigraph.registry import rows
from epigraph.registry.refs import check_alias, check_words, is_name, not_found, parse_wanted
from epigraph.registry.schema import READY, aliases, bases, prefixes, shares, tenants, versions

_DIGEST = re.compile(r"[0-9a-f]{64}")


def set_alias(connection: Connection, tenant: str, name: str, alias: str, wanted: str | int, by: str) -> int:
    """Let ``alias`` mean a version; its number."""
    check_alias(alias)
    prefix = rows.lock_prefix(connection, tenant, name)
    number = _ready(connection, prefix, wanted)
    if number is None:
        raise not_found(tenant, f"{tenant}/{name}@{wanted}")
    was = rows.aliases_of(connection, prefix.id).get(alias)
    rows.point(connection, prefix.id, alias, number)
    rows.note(connection, tenant, name, "alias", by, number, alias=alias, was=was)
    return number


def drop_alias(connection: Connection, tenant: str, name: str, alias: str, by: str) -> None:
    """Let ``alias`` mean nothing any more."""
    prefix = rows.lock_prefix(connection, tenant, name)
    was = _meant(connection, prefix, tenant, name, alias)
    connection.execute(delete(aliases).where(aliases.c.prefix_id == prefix.id, aliases.c.alias == alias))
    rows.note(connection, tenant, name, "drop-alias", by, was, alias=alias)


def rollback(connection: Connection, tenant: str, name: str, alias: str, by: str) -> int:
    """Let ``alias`` mean the ready version before; its number."""
    prefix = rows.lock_prefix(connection, tenant, name)
    was = _meant(connection, prefix, tenant, name, alias)
    number = rows.before(connection, prefix.id, was)
    if number is None:
        raise BadValue(f"{tenant}/{name}@{alias} is version {was}, before which there is none; push one, or delete it")
    rows.point(connection, prefix.id, alias, number)
    rows.note(connection, tenant, name, "rollback", by, number, alias=alias, was=was)
    return number


def share(connection: Connection, tenant: str, name: str, with_tenant: str, by: str) -> None:
    """Let another tenant use a prefix, in all versions."""
    if with_tenant == tenant:
        rows.lock_prefix(connection, tenant, name)
        raise BadValue(f"{tenant}/{name} is {tenant}'s own; share it with another tenant")
    # Both are locked, always in one order, so that neither is removed meanwhile and nobody waits in a circle.
    if with_tenant < tenant:
        reader, prefix = rows.lock_tenant(connection, with_tenant), rows.lock_prefix(connection, tenant, name)
    else:
        prefix, reader = rows.lock_prefix(connection, tenant, name), rows.lock_tenant(connection, with_tenant)
    if prefix.num_ready == 0:
        raise not_found(tenant, f"{tenant}/{name}")
    if connection.execute(select(shares).where(*_shared(reader.id, prefix.id))).one_or_none() is None:
        row = {"tenant_id": reader.id, "owner": tenant, "name": name, "prefix_id": prefix.id}
        connection.execute(insert(shares).values(row))
        rows.note(connection, tenant, name, "share", by, reader=with_tenant)


def unshare(connection: Connection, tenant: str, name: str, with_tenant: str, by: str) -> None:
    """Let another tenant use a prefix no longer."""
    prefix = rows.lock_prefix(connection, tenant, name)
    query = select(tenants.c.id).where(tenants.c.name == with_tenant)
    reader = connection.execute(query).scalar() if is_name(with_tenant) else None
    ended = connection.execute(delete(shares).where(*_shared(reader, prefix.id)))
    if not ended.rowcount:
        raise BadValue(f"{tenant}/{name} is not shared with {with_tenant[:200]!r}; see whom it is shared with")
    rows.note(connection, tenant, name, "unshare", by, reader=with_tenant)


def shared_with(connection: Connection, tenant: str, name: str) -> tuple[str, ...]:
    """Who else may use a prefix, in order."""
    if not is_name(tenant, name):
        return ()
    owners = tenants.alias("owners")
    query = (
        select(tenants.c.name)
        .join_from(shares, tenants, tenants.c.id == shares.c.tenant_id)
        .join(prefixes, prefixes.c.id == shares.c.prefix_id)
        .join(owners, owners.c.id == prefixes.c.tenant_id)
        .where(owners.c.name == tenant, prefixes.c.name == name)
        .order_by(tenants.c.name)
    )
    return tuple(connection.execute(query).scalars())


def allow_base(connection: Connection, trained: str, admitted: str, by: str, why: str) -> None:
    """Write down that the base ``admitted`` may serve what was trained for ``trained``."""
    for what, digest in (("trained", trained), ("admitted", admitted)):
        if not _DIGEST.fullmatch(digest):
            raise BadValue(f"the fingerprint {what} is {digest[:80]!r}, expected all of its 64 hexadecimal digits")
    if trained == admitted:
        raise BadValue("the two fingerprints are the same, and a base may serve its own prefixes anyway")
    if not why.strip():
        raise BadValue("the reason is empty; say why this base stands for the other, for those who ask later")
    check_words("the reason", why)
    query = select(bases).where(bases.c.admitted == admitted, bases.c.trained == trained)
    if connection.execute(query).one_or_none() is None:
        row = {"admitted": admitted, "trained": trained, "allowed_by": by, "why": why, "created": rows.now()}
        connection.execute(insert(bases).values(row))
        rows.note(connection, "", "", "allow-base", by, trained=trained, admitted=admitted, why=why)


def refuse_base(connection: Connection, trained: str, admitted: str, by: str) -> None:
    """Take that back."""
    at = (bases.c.admitted == admitted, bases.c.trained == trained)
    if not is_name(trained, admitted) or not connection.execute(delete(bases).where(*at)).rowcount:
        raise BadValue(f"base {admitted[:12]} was not admitted for {trained[:12]}; give both fingerprints in full")
    rows.note(connection, "", "", "refuse-base", by, trained=trained, admitted=admitted)


def admitted(connection: Connection, base_fingerprint: str) -> frozenset[str]:
    """What other bases' prefixes a base may serve, by their fingerprints."""
    if not is_name(base_fingerprint):
        return frozenset()
    return frozenset(connection.execute(select(bases.c.trained).where(bases.c.admitted == base_fingerprint)).scalars())


def _ready(connection: Connection, prefix: Row[Any], wanted: str | int) -> int | None:
    meant = parse_wanted(wanted)
    if meant is None:
        return None
    number = meant.number or rows.aliases_of(connection, prefix.id).get(meant.alias)
    at = (versions.c.prefix_id == prefix.id, versions.c.number == number, versions.c.state == READY)
    return connection.execute(select(versions.c.number).where(*at)).scalar()


def _meant(connection: Connection, prefix: Row[Any], tenant: str, name: str, alias: str) -> int:
    number = rows.aliases_of(connection, prefix.id).get(alias)
    if number is None:
        raise not_found(tenant, f"{tenant}/{name}@{alias}")
    return number


def _shared(reader_id: int | None, prefix_id: int) -> tuple[Any, Any]:
    return shares.c.tenant_id == reader_id, shares.c.prefix_id == prefix_id
