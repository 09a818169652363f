"""The life of a version as rows: pending, ready, gone. Every sum and every alias that depends on it moves here.

Each function is a part of one transaction, and locks first what decides. It knows no bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from epigraph.errors import BadValue, QuotaExceeded, TenantNotFound
from epigraph.registry.records import LATEST
from epigraph.registry.refs import check_words, is_name, not_found
from epigraph.registry.schema import GONE, PENDING, READY, aliases, audit, prefixes, shares, tenants, versions

MAX_ALIASES = 100
# Nobody knows when something will be deleted; a client is told to come back in an hour.
ROOM_SECONDS = 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What is pinned of a file that is pushed: columns of its row."""

    content_hash: str
    file_hash: str
    num_bytes: int
    base_name: str
    base_fingerprint: str
    tokenizer_fingerprint: str
    geometry: str
    num_virtual_tokens: int
    method: str
    kind: str
    is_chat: bool
    provenance: Mapping[str, Any]
    scores: Mapping[str, Any]


class Place(NamedTuple):
    """Where a version stands: ids of its tenant and prefix, and its number."""

    tenant_id: int
    prefix_id: int
    number: int


def lock_tenant(connection: Connection, name: str) -> Row[Any]:
    """The tenant's row, which nobody else changes until the transaction ends. Raises :class:`TenantNotFound`.

    All that changes what a tenant has begins here, so that its numbers, sums and records have one order.
    """
    query = select(tenants).where(tenants.c.name == name, tenants.c.removed.is_(None)).with_for_update(key_share=True)
    found = connection.execute(query).one_or_none() if is_name(name) else None
    if found is None:
        raise TenantNotFound(f"no tenant {name[:200]!r}; add it with `epigraph tenants add`")
    return found


def lock_prefix(connection: Connection, tenant: str, name: str) -> Row[Any]:
    """The row of a prefix, with its tenant locked. Raises :class:`PrefixNotFound`, where there is no tenant too."""
    try:
        owner = lock_tenant(connection, tenant)
    except TenantNotFound:
        raise not_found(tenant, f"{tenant}/{name}") from None
    found = _prefix(connection, owner.id, name) if is_name(name) else None
    if found is None:
        raise not_found(tenant, f"{tenant}/{name}")
    return found


def begin(connection: Connection, tenant: str, name: str, facts: Facts, by: str) -> Place:
    """Take the next number of a name for a push.

    Raises :class:`TenantNotFound`, and :class:`QuotaExceeded` where the tenant has no room for it.
    """
    owner = lock_tenant(connection, tenant)
    found = _prefix(connection, owner.id, name)
    is_new = found is None or found.num_kept == 0
    _check_room(owner, int(is_new), facts.num_bytes)
    if found is None:
        named = {"tenant_id": owner.id, "name": name, "last_number": 0, "num_kept": 0, "num_ready": 0}
        connection.execute(insert(prefixes).values(named))
        found = _prefix(connection, owner.id, name)
        assert found is not None
    place = Place(owner.id, found.id, found.last_number + 1)
    connection.execute(
        update(prefixes).where(prefixes.c.id == found.id).values(last_number=place.number, num_kept=found.num_kept + 1)
    )
    _count(connection, owner.id, int(is_new), facts.num_bytes)
    row = {name: getattr(facts, name) for name in Facts.__slots__}
    row |= {"prefix_id": found.id, "number": place.number, "state": PENDING, "created": now(), "created_by": by}
    connection.execute(insert(versions).values(row))
    return place


def make_ready(connection: Connection, tenant: str, name: str, place: Place, called: Sequence[str], by: str) -> None:
    """Show a version whose bytes are there, and let ``called`` mean it, those aside that mean a later one already.

    Raises :class:`PrefixNotFound` where it was deleted meanwhile.
    """
    lock_prefix(connection, tenant, name)
    at = (versions.c.prefix_id == place.prefix_id, versions.c.number == place.number)
    done = connection.execute(update(versions).where(*at, versions.c.state == PENDING).values(state=READY))
    if done.rowcount != 1:
        raise not_found(tenant, f"{tenant}/{name}@{place.number}")
    connection.execute(
        update(prefixes).where(prefixes.c.id == place.prefix_id).values(num_ready=prefixes.c.num_ready + 1)
    )
    meant = aliases_of(connection, place.prefix_id)
    moved = [alias for alias in called if meant.get(alias, 0) < place.number]
    for alias in moved:
        point(connection, place.prefix_id, alias, place.number)
    note(connection, tenant, name, "push", by, place.number, aliases=moved)


def withdraw(connection: Connection, prefix: Row[Any], numbers: Collection[int] | None = None) -> list[int]:
    """Make versions of a prefix gone, all of them without ``numbers``; which they were, pushes on their way included.

    From here on nothing resolves to them. ``latest`` goes to the version before; other aliases go with theirs.
    """
    among = [versions.c.prefix_id == prefix.id, versions.c.state.in_([PENDING, READY])]
    among += [] if numbers is None else [versions.c.number.in_(numbers)]
    rows = connection.execute(select(versions.c.number, versions.c.state, versions.c.num_bytes).where(*among)).all()
    if not rows:
        return []
    connection.execute(update(versions).where(*among).values(state=GONE))
    num_ready = prefix.num_ready - sum(row.state == READY for row in rows)
    num_kept = prefix.num_kept - len(rows)
    connection.execute(
        update(prefixes).where(prefixes.c.id == prefix.id).values(num_kept=num_kept, num_ready=num_ready)
    )
    _count(connection, prefix.tenant_id, -int(num_kept == 0), -sum(row.num_bytes for row in rows))
    withdrawn = [row.number for row in rows]
    _unname(connection, prefix.id, set(withdrawn))
    if num_ready == 0:
        connection.execute(delete(shares).where(shares.c.prefix_id == prefix.id))
    return withdrawn


def gone(connection: Connection, prefix_id: int) -> list[int]:
    """Numbers of versions that were deleted and whose bytes may still be there."""
    query = select(versions.c.number).where(versions.c.prefix_id == prefix_id, versions.c.state == GONE)
    return list(connection.execute(query).scalars())


def forget(connection: Connection, prefix_id: int, numbers: Collection[int]) -> None:
    """Take away the rows of deleted versions, whose bytes are gone."""
    at = (versions.c.prefix_id == prefix_id, versions.c.number.in_(numbers), versions.c.state == GONE)
    connection.execute(delete(versions).where(*at))


def aliases_of(connection: Connection, prefix_id: int) -> dict[str, int]:
    """What each alias of a prefix means."""
    query = select(aliases.c.alias, aliases.c.number).where(aliases.c.prefix_id == prefix_id)
    return {row.alias: row.number for row in connection.execute(query)}


def point(connection: Connection, prefix_id: int, alias: str, number: int) -> None:
    """Let an alias mean that version from now on. Raises :class:`BadValue` where a prefix has too many."""
    at = (aliases.c.prefix_id == prefix_id, aliases.c.alias == alias)
    if connection.execute(update(aliases).where(*at).values(number=number)).rowcount:
        return
    if len(aliases_of(connection, prefix_id)) >= MAX_ALIASES:
        raise BadValue(f"the prefix has {MAX_ALIASES} aliases, and no room for {alias!r}; drop one first")
    connection.execute(insert(aliases).values(prefix_id=prefix_id, alias=alias, number=number))


def before(connection: Connection, prefix_id: int, number: int) -> int | None:
    """The ready version before that number."""
    query = select(func.max(versions.c.number)).where(
        versions.c.prefix_id == prefix_id, versions.c.state == READY, versions.c.number < number
    )
    return connection.execute(query).scalar()


def note(
    connection: Connection, tenant: str, name: str, action: str, by: str, number: int | None = None, **detail: Any
) -> None:
    """Add a row to the record of who did what. Raises :class:`BadValue` for a ``by`` that cannot be kept."""
    check_words("by", by)
    row = {"at": now(), "tenant": tenant, "name": name, "number": number, "action": action, "done_by": by}
    connection.execute(insert(audit).values(**row, detail=detail))


def now() -> datetime:
    """The time that rows are given."""
    return datetime.now(UTC)


def _prefix(connection: Connection, tenant_id: int, name: str) -> Row[Any] | None:
    query = select(prefixes).where(prefixes.c.tenant_id == tenant_id, prefixes.c.name == name)
    return connection.execute(query).one_or_none()


def _check_room(owner: Row[Any], num_new: int, num_bytes: int) -> None:
    has = {"prefixes": (owner.num_prefixes, num_new), "bytes": (owner.num_bytes, num_bytes)}
    for what, (there, more) in has.items():
        most = getattr(owner, what)
        if most is not None and more and there + more > most:
            raise QuotaExceeded(
                f"tenant {owner.name} has {there:,} {what} and would have {there + more:,}, expected at most {most:,}; "
                "delete some, or ask for more",
                retry_after=ROOM_SECONDS,
            )


def _count(connection: Connection, tenant_id: int, num_prefixes: int, num_bytes: int) -> None:
    more = {"num_prefixes": tenants.c.num_prefixes + num_prefixes, "num_bytes": tenants.c.num_bytes + num_bytes}
    connection.execute(update(tenants).where(tenants.c.id == tenant_id).values(more))


def _unname(connection: Connection, prefix_id: int, numbers: Collection[int]) -> None:
    for alias, number in aliases_of(connection, prefix_id).items():
        if number not in numbers:
            continue
        earlier = before(connection, prefix_id, number) if alias == LATEST else None
        if earlier is None:
            at = (aliases.c.prefix_id == prefix_id, aliases.c.alias == alias)
            connection.execute(delete(aliases).where(*at))
        else:
            point(connection, prefix_id, alias, earlier)
