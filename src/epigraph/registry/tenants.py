"""Tenants of a registry: who there is, what each may have, and their keys. It knows no request."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, insert, or_, select, text, update

from epigraph.errors import AlreadyThere, TenantNotFound
from epigraph.names import check_part
from epigraph.registry import deleting, keys, rows
from epigraph.registry.database import Database
from epigraph.registry.records import SCOPES, Caller, Key, Quotas, Scope, Tenant
from epigraph.registry.refs import check_limit, is_name
from epigraph.registry.schema import tenants
from epigraph.registry.store import Store

NO_QUOTAS = Quotas()
NO_GRACE = timedelta(0)
# Any number that nobody else takes an advisory lock by.
_ADMIN_LOCK = 0x65706968


class Tenants:
    """Tenants and their API keys, in the database of a registry: :attr:`Registry.tenants`.

    ``by`` is who asks, for the record: the id of a key, or a word. Every method raises :class:`CatalogueUnavailable`
    where the database does not answer, and :class:`TenantNotFound` for a tenant that is not there.
    """

    def __init__(self, database: Database, store: Store) -> None:
        self._database, self._store = database, store

    def add(self, name: str, quotas: Quotas = NO_QUOTAS, *, by: str = "") -> Tenant:
        """A new tenant. One that was removed may come again; versions of its prefixes then count on.

        Raises :class:`AlreadyThere`, also for a name that differs in capitals alone, and :class:`BadName`.
        """
        check_part("the tenant", name)
        return self._database.write(_add, name, quotas, by)

    def ensure(self, name: str, *, by: str = "") -> Tenant:
        """The tenant, added without quotas where it is not there."""
        try:
            return self.get(name)
        except TenantNotFound:
            pass
        try:
            return self.add(name, by=by)
        except AlreadyThere:
            # Another process was first.
            return self.get(name)

    def get(self, name: str) -> Tenant:
        """The tenant as it is now."""
        with self._database.reading() as connection:
            return _get(connection, name)

    def list(self, *, after: str = "", limit: int = 100) -> tuple[Tenant, ...]:
        """Tenants in the order of their names, those behind ``after``, at most ``limit`` (1,000 at most).

        Raises :class:`BadValue` and :class:`BadName`.
        """
        check_limit(limit)
        if after:
            check_part("the tenant", after)
        here = (tenants.c.removed.is_(None), tenants.c.name > after)
        with self._database.reading() as connection:
            found = connection.execute(select(tenants).where(*here).order_by(tenants.c.name).limit(limit))
            return tuple(_tenant(row) for row in found)

    def set_quotas(self, name: str, quotas: Quotas, *, by: str = "") -> Tenant:
        """Give a tenant other quotas. What it has already stays, also where that is more."""
        return self._database.write(_set_quotas, name, quotas, by)

    def remove(self, name: str, *, by: str = "") -> int:
        """Delete a tenant: its keys are refused and nothing of it resolves at once, then all bytes go; how many
        versions those were.

        Raises :class:`StoreUnavailable` where bytes are left: then it is removed all the same, and may be removed
        again until they are gone. Its rows in the record stay.
        """
        return deleting.remove_tenant(self._database, self._store, name, by=by)

    def make_key(
        self,
        tenant: str,
        *,
        scopes: Collection[Scope],
        expires: datetime | None = None,
        note: str = "",
        by: str = "",
    ) -> tuple[Key, str]:
        """A new API key and its secret, which nobody can be told again. Raises :class:`BadValue`."""
        return self._database.write(keys.make, tenant, scopes, expires, note, by)

    def first_admin_key(self, tenant: str, *, note: str = "", by: str = "") -> tuple[Key, str] | None:
        """A key with all scopes where no good one with ``admin`` is there, else None; the tenant is added if need be.

        Of servers that start at once, one gets it.
        """
        self.ensure(tenant, by=by)
        return self._database.write(_first_admin_key, tenant, note, by, self._database.is_sqlite)

    def rotate(self, key_id: str, *, grace: timedelta = NO_GRACE, by: str = "") -> tuple[Key, str]:
        """A new key in the place of one, with its scopes, its end and its note; the old one is good for ``grace`` more.

        Raises :class:`BadKey` for a key that is not there or not good.
        """
        return self._database.write(keys.rotate, key_id, grace, by)

    def revoke(self, key_id: str, *, by: str = "") -> Key:
        """End a key at once. Raises :class:`BadKey` for one that is not there; revoking twice is no error."""
        return self._database.write(keys.revoke, key_id, by)

    def key(self, key_id: str) -> Key:
        """What is known of a key, good or not. Raises :class:`BadKey`."""
        with self._database.reading() as connection:
            return keys.get(connection, key_id)

    def keys(self, tenant: str) -> tuple[Key, ...]:
        """All keys of a tenant, good or not."""
        with self._database.reading() as connection:
            _get(connection, tenant)
            return keys.of_tenant(connection, tenant)

    def who(self, secret: str) -> Caller:
        """Who calls with that secret, by one query. Raises :class:`BadKey`, in the same words for all reasons."""
        with self._database.reading() as connection:
            return keys.who(connection, secret)


def _get(connection: Connection, name: str) -> Tenant:
    query = select(tenants).where(tenants.c.name == name, tenants.c.removed.is_(None))
    row = connection.execute(query).one_or_none() if is_name(name) else None
    if row is None:
        raise TenantNotFound(f"no tenant {name[:200]!r}; add it with `epigraph tenants add`")
    return _tenant(row)


def _add(connection: Connection, name: str, quotas: Quotas, by: str) -> Tenant:
    alike = or_(tenants.c.name == name, tenants.c.folded == name.lower())
    found = connection.execute(select(tenants).where(alike).with_for_update()).one_or_none()
    if found is not None and (found.removed is None or found.name != name):
        raise AlreadyThere(f"tenant {found.name} is there, or was; choose a name that is not its, capitals aside")
    told = {**asdict(quotas), "created": rows.now(), "removed": None, "num_prefixes": 0, "num_bytes": 0}
    if found is None:
        connection.execute(insert(tenants).values(name=name, folded=name.lower(), **told))
    else:
        connection.execute(update(tenants).where(tenants.c.id == found.id).values(told))
    rows.note(connection, name, "", "add-tenant", by, quotas=asdict(quotas))
    return _get(connection, name)


def _set_quotas(connection: Connection, name: str, quotas: Quotas, by: str) -> Tenant:
    owner = rows.lock_tenant(connection, name)
    connection.execute(update(tenants).where(tenants.c.id == owner.id).values(asdict(quotas)))
    rows.note(connection, name, "", "quotas", by, quotas=asdict(quotas))
    return _get(connection, name)


def _first_admin_key(
    connection: Connection, tenant: str, note: str, by: str, is_sqlite: bool
) -> tuple[Key, str] | None:
    if not is_sqlite:
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_ADMIN_LOCK})"))
    return None if keys.any_admin(connection) else keys.make(connection, tenant, SCOPES, None, note, by)


def _tenant(row: Row[Any]) -> Tenant:
    told = {name: row._mapping[name] for name in ("name", "num_prefixes", "num_bytes", "created")}
    return Tenant(**told, quotas=Quotas(**{name: row._mapping[name] for name in keys.QUOTAS}))
