"""That a catalogue and a store belong together: the catalogue's id stands in the store, and is looked at before writes.

Without it two catalogues could give one number to two files, and an empty mount could pass for a store.
"""

from __future__ import annotations

from sqlalchemy import Connection, select, update

from epigraph.errors import StoreUnavailable
from epigraph.registry.database import Database
from epigraph.registry.schema import registry
from epigraph.registry.store import Store


def check_store(database: Database, store: Store) -> None:
    """Raise :class:`StoreUnavailable` unless the store is this catalogue's own; a new catalogue takes an unmarked one.

    Also raises :class:`CatalogueUnavailable`.
    """
    with database.reading() as connection:
        mark, is_marked = connection.execute(select(registry.c.id, registry.c.is_marked)).one()
    found = store.mark()
    if found is None and is_marked:
        raise StoreUnavailable(
            f"{store.label} has no mark of this catalogue; see that it is mounted and the right one, or say that it is "
            "with `epigraph registry verify --adopt`"
        )
    if found is None:
        found = _take(database, store, mark)
    if found != mark:
        raise StoreUnavailable(f"{store.label} belongs to another catalogue; give each catalogue a store of its own")


def adopt_store(database: Database, store: Store) -> None:
    """Take a store that has no mark for this catalogue's, as after files were copied. Raises as above."""
    with database.reading() as connection:
        mark = connection.execute(select(registry.c.id)).scalar_one()
    if store.mark() is None:
        _take(database, store, mark)
    check_store(database, store)


def _take(database: Database, store: Store, mark: str) -> str | None:
    store.set_mark(mark)
    database.write(_marked)
    return store.mark()


def _marked(connection: Connection) -> None:
    connection.execute(update(registry).values(is_marked=True))
