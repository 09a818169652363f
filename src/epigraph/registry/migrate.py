"""Brings a catalogue to the schema of this program, one process at a time. It knows no table by name but alembic's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, inspect, text

from epigraph.errors import CatalogueTooNew, CatalogueUnavailable
from epigraph.registry.database import Database
from epigraph.registry.schema import HEAD

LOCK_SECONDS = 120
# Any number that nobody else takes an advisory lock by.
_LOCK = 0x65706967


def migrate(database: Database) -> None:
    """Make the schema, or bring an older one up; nothing happens where it is of this version.

    Raises :class:`CatalogueTooNew` for one made by a later version, and :class:`CatalogueUnavailable`.
    """
    with database.reading() as connection:
        found = _revision(connection)
    if found == HEAD:
        return
    with _alone(database):
        _upgrade(database)


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _upgrade(database: Database) -> None:
    # Where nothing is to be done, and that is nearly always, the second it takes to import is not spent.
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", "epigraph.registry:migrations")
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    with database.writing() as connection:
        if not database.is_sqlite:
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            # Held until the transaction ends: of servers that start together one migrates, and the others find it done.
            connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'"))
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
        found = _revision(connection)
        if found is not None and found not in known:
            raise CatalogueTooNew(
                f"{database.label} has the schema {found}, this epigraph knows up to {HEAD}; upgrade epigraph"
            )
        config.attributes["connection"] = connection
        command.upgrade(config, HEAD)


@contextmanager
def _alone(database: Database) -> Iterator[None]:
    """On SQLite, the only process that sets the file up: turning to a write-ahead log waits for nobody."""
    if database.path is None:
        yield
        return
    from filelock import FileLock, Timeout

    try:
        with FileLock(f"{database.path}.lock", timeout=LOCK_SECONDS), database.reading() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
            yield
    except (Timeout, OSError) as error:
        raise CatalogueUnavailable(
            f"{database.label} cannot be set up: {error}; see that its folder can be written"
        ) from error
