"""The registry: many users' prefixes in versions, a catalogue of them in a database and their bytes in a store.

It remembers nothing between calls: what another process changed is seen by the next one. It knows no engine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from sqlalchemy import text

from epigraph.registry import deleting, listing, lookup, marks, naming, verify
from epigraph.registry.database import Database
from epigraph.registry.migrate import migrate
from epigraph.registry.records import LATEST, Entry, Findings, Page, Version
from epigraph.registry.store import Store
from epigraph.registry.tenants import Tenants

# Longer than a push takes: one that is still on its way by then has lost its process.
PATIENCE = timedelta(hours=1)


class Registry:
    """A catalogue and a store; :meth:`open` makes one. It may be used by all threads of a process at once.

    ``by`` is who asks, for the record: the id of a key, or a word. Every method raises :class:`CatalogueUnavailable`
    where the database does not answer, and :class:`PrefixNotFound` for a prefix or a version that is not there.
    """

    def __init__(self, database: Database, store: Store) -> None:
        self._database, self._store = database, store
        self.tenants = Tenants(database, store)

    @classmethod
    def open(cls, catalogue: str | os.PathLike[str], store: str | os.PathLike[str]) -> Self:
        """The registry of a catalogue (a path: SQLite; or an SQLAlchemy URL of SQLite or PostgreSQL) and a store (a
        folder, or any fsspec address). The schema is made, or brought up to this version.

        Raises :class:`CatalogueTooNew`, :class:`CatalogueUnavailable`, :class:`StoreUnavailable` for an address that
        cannot be used, and :class:`BadValue`. Whether the store answers is not asked: :meth:`check`.
        """
        database = Database(catalogue)
        try:
            migrate(database)
            return cls(database, Store(store))
        except BaseException:
            database.close()
            raise

    def close(self) -> None:
        """Give all connections back. Closing twice is no error."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def store_address(self) -> str:
        """Where engines find the bytes: prefix ``tenant/name`` in version ``3``, as engine/shelf.py reads it."""
        return self._store.address

    def check(self) -> None:
        """Raise :class:`CatalogueUnavailable` or :class:`StoreUnavailable` where one of them cannot do its work."""
        with self._database.reading() as connection:
            connection.execute(text("SELECT 1"))
        marks.check_store(self._database, self._store)

    def push(
        self,
        tenant: str,
        name: str,
        path: str | os.PathLike[str],
        *,
        by: str = "",
        aliases: Sequence[str] = (LATEST,),
        scores: Mapping[str, Any] | None = None,
    ) -> Version:
        """A new version of a prefix, from an artifact file or a run's folder, which is read and checked in full.

        ``aliases`` mean it from now on, unless one means a later version already. Raises :class:`TenantNotFound`,
        :class:`QuotaExceeded`, :class:`BadName`, :class:`BadValue`, :class:`StoreUnavailable`, what
        :func:`epigraph.artifact.load` raises, and :class:`PrefixNotFound` where it was deleted meanwhile. After an
        error there is no such version for anybody, except that :class:`CatalogueUnavailable` may leave it unknown.
        """
        # Reading artifacts takes torch, which takes seconds to import; looking takes none.
        from epigraph.registry.pushing import push

        return push(self._database, self._store, tenant, name, path, by=by, aliases=aliases, scores=scores or {})

    def get(self, tenant: str, name: str, wanted: str | int = LATEST) -> Version:
        """The tenant's own version of that number or alias."""
        with self._database.reading() as connection:
            return lookup.get(connection, tenant, name, wanted)

    def resolve(self, reader: str, ref: str) -> Version:
        """The version that ``reader`` means: ``tenant/name``, ``tenant/name@3``, ``tenant/name@alias``, or without
        ``tenant/`` one of its own. One query.

        What it may not use and what is not there raise the same :class:`PrefixNotFound` with the same words.
        """
        with self._database.reading() as connection:
            return lookup.resolve(connection, reader, ref)

    def list(self, reader: str, *, search: str = "", after: str = "", limit: int = 100) -> Page:
        """Prefixes that ``reader`` may use, its own and what was shared with it, in the order of tenants and names.

        ``search`` keeps the names that hold it, capitals aside; ``after`` is the ``next`` of the page before; at most
        ``limit`` (1,000 at most). Raises :class:`BadValue`.
        """
        with self._database.reading() as connection:
            return listing.page(connection, reader, search, after, limit)

    def versions(self, tenant: str, name: str, *, after: int = 0, limit: int = 100) -> tuple[Version, ...]:
        """The versions of a prefix in the order of their numbers, those above ``after``. Raises :class:`BadValue`."""
        with self._database.reading() as connection:
            return lookup.page(connection, tenant, name, after, limit)

    def set_alias(self, tenant: str, name: str, alias: str, wanted: str | int, by: str = "") -> Version:
        """Let ``alias`` mean the version ``wanted``, whatever it meant. Raises :class:`BadName`, :class:`BadValue`."""
        return self.get(tenant, name, self._database.write(naming.set_alias, tenant, name, alias, wanted, by))

    def drop_alias(self, tenant: str, name: str, alias: str, by: str = "") -> None:
        """Let ``alias`` mean nothing any more."""
        self._database.write(naming.drop_alias, tenant, name, alias, by)

    def rollback(self, tenant: str, name: str, alias: str = LATEST, *, by: str = "") -> Version:
        """Let ``alias`` mean the version before the one it means. Raises :class:`BadValue` where there is none."""
        return self.get(tenant, name, self._database.write(naming.rollback, tenant, name, alias, by))

    def delete(self, tenant: str, name: str, wanted: str | int | None = None, *, by: str = "") -> int:
        """Delete one version, or the whole name with its versions, aliases and shares; how many versions.

        From the first moment nothing resolves to it; when the call returns the bytes are gone. Raises
        :class:`StoreUnavailable` where they could not be removed: it stays refused, and deleting it again or
        :meth:`verify` ends the work. Pushes of a deleted name that are on their way fail.
        """
        return deleting.delete_versions(self._database, self._store, tenant, name, wanted, by=by)

    def share(self, tenant: str, name: str, with_tenant: str, by: str = "") -> None:
        """Let another tenant use a prefix in all its versions. Doing so twice is no error.

        Raises :class:`TenantNotFound`, and :class:`BadValue` for one's own.
        """
        self._database.write(naming.share, tenant, name, with_tenant, by)

    def unshare(self, tenant: str, name: str, with_tenant: str, by: str = "") -> None:
        """Let another tenant use a prefix no longer. Raises :class:`BadValue` where it does not."""
        self._database.write(naming.unshare, tenant, name, with_tenant, by)

    def shares(self, tenant: str, name: str) -> tuple[str, ...]:
        """Who else may use a prefix, in order."""
        with self._database.reading() as connection:
            return naming.shared_with(connection, tenant, name)

    def audit(self, tenant: str, *, name: str = "", after: int = 0, limit: int = 100) -> tuple[Entry, ...]:
        """Who did what, when, the oldest first, entries above ``after``: of a tenant, of one of its prefixes, or, for
        an empty tenant, of the registry itself. Rows are added and never changed."""
        with self._database.reading() as connection:
            return listing.record(connection, tenant, name, after, limit)

    def allow_base(self, trained: str, admitted: str, *, by: str, why: str) -> None:
        """Write down that the base ``admitted`` may serve what was trained for ``trained``, a quantised twin say.

        Both are fingerprints in full. Raises :class:`BadValue`. Doing so twice is no error.
        """
        self._database.write(naming.allow_base, trained, admitted, by, why)

    def refuse_base(self, trained: str, admitted: str, *, by: str) -> None:
        """Take that back. Raises :class:`BadValue` where it was not written down."""
        self._database.write(naming.refuse_base, trained, admitted, by)

    def admitted(self, base_fingerprint: str) -> frozenset[str]:
        """Fingerprints of the other bases whose prefixes the base that runs may serve."""
        with self._database.reading() as connection:
            return naming.admitted(connection, base_fingerprint)

    def verify(
        self,
        *,
        repair: bool = False,
        patience: timedelta = PATIENCE,
        contents: bool = True,
        advance: Callable[[int], object] = lambda _: None,
    ) -> Findings:
        """Compare catalogue and store while both are in use; with ``repair`` take away what was left over.

        Pushes that began longer than ``patience`` ago count as abandoned. Without ``contents`` files are compared by
        size alone. ``advance`` is called for every version. Raises :class:`StoreUnavailable`.
        """
        return verify.verify(
            self._database, self._store, repair=repair, patience=patience, contents=contents, advance=advance
        )

    def tidy(self, *, patience: timedelta = PATIENCE) -> int:
        """The part of a repair that looks at no file: abandoned pushes and unfinished deletions; how many versions.

        A server may do so every hour. Raises :class:`StoreUnavailable`.
        """
        return verify.tidy(self._database, self._store, patience)

    def adopt_store(self) -> None:
        """Take a store that has lost its mark, or never had one, for this catalogue's. Raises
        :class:`StoreUnavailable`."""
        marks.adopt_store(self._database, self._store)
