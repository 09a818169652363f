"""A database that is asked and changed in short transactions: SQLite in a file, or PostgreSQL. It knows no table.

Every error of a database that cannot do its work becomes :class:`CatalogueUnavailable`, in one line without a secret.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    NoSuchModuleError,
    NotSupportedError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

from epigraph.errors import BadValue, CatalogueUnavailable

Result = TypeVar("Result")

BUSY_SECONDS = 30
CONNECT_SECONDS = 3
STATEMENT_SECONDS = 30
# How often a transaction is begun that others got in the way of.
ATTEMPTS = 8

_BEGIN = "epigraph_begin"
# Serialisation failures and deadlocks: nothing happened, and it may be tried again.
_AGAIN = frozenset({"40001", "40P01"})
_NOT_ALLOWED = "42501"
# What is our mistake, or a conflict that the caller knows about.
_OURS = (IntegrityError, DataError, NotSupportedError, ProgrammingError)

_POSTGRES: dict[str, Any] = {
    "pool_size": 8,
    "max_overflow": 24,
    "pool_timeout": 10,
    "pool_pre_ping": True,
    "connect_args": {
        "connect_timeout": CONNECT_SECONDS,
        "keepalives_idle": 10,
        "keepalives_interval": 3,
        "keepalives_count": 3,
        # A server that vanished without a word is noticed in seconds, too.
        "tcp_user_timeout": 10_000,
        "application_name": "epigraph",
    },
}


class Database:
    """The database at ``address``: a path (SQLite), or an SQLAlchemy URL of SQLite or PostgreSQL.

    One is shared by all threads of a process; another process opens its own. Raises :class:`BadValue` for an address
    that cannot be read, :class:`CatalogueUnavailable` where the database's client is not installed.
    """

    def __init__(self, address: str | os.PathLike[str]) -> None:
        url = _url(address)
        self.is_sqlite = url.get_backend_name() == "sqlite"
        self.path = Path(str(url.database)).absolute() if self.is_sqlite else None
        self.label = str(self.path) if self.is_sqlite else _label(url)
        try:
            self._engine = _sqlite(self.path, self.label) if self.path is not None else _postgres(url)
        except ModuleNotFoundError as missing:
            raise CatalogueUnavailable(
                f"{self.label} cannot be reached: {missing}; install epigraph[postgres]"
            ) from missing
        # A read is one statement: it needs no transaction, and no words to begin and end one.
        how: dict[str, Any] = {_BEGIN: ""} if self.is_sqlite else {"isolation_level": "AUTOCOMMIT"}
        self._reading = self._engine.execution_options(**how)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection on which each statement sees what was committed before it."""
        with self._said_plainly(), self._reading.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction, committed when the block ends well. What fails in it is not tried again: :meth:`write`."""
        with self._said_plainly(), self._engine.begin() as connection:
            yield connection

    def write(self, change: Callable[..., Result], /, *given: Any, **named: Any) -> Result:
        """What ``change(connection, ...)`` returns, run in a transaction, and again where others got in its way.

        SQLite gives the right to write to one transaction at a time, from its first statement on; on PostgreSQL
        ``change`` locks the rows that decide.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with self.writing() as connection:
                    return change(connection, *given, **named)
            except DBAPIError as error:
                if attempt == ATTEMPTS or not _is_conflict(error):
                    raise
        raise AssertionError

    def close(self) -> None:
        """Give all connections back. Closing twice is no error."""
        self._engine.dispose()

    @contextmanager
    def _said_plainly(self) -> Iterator[None]:
        try:
            yield
        except PoolTimeout as error:
            raise CatalogueUnavailable(
                f"{self.label} does not answer: all connections are busy; try again later"
            ) from error
        except DBAPIError as error:
            if _is_conflict(error) or (isinstance(error, _OURS) and _code(error) != _NOT_ALLOWED):
                raise
            raise CatalogueUnavailable(
                f"{self.label} does not answer: {_first_line(error.orig)}; see that the database runs and can be "
                "reached, then try again"
            ) from error


def _url(address: str | os.PathLike[str]) -> URL:
    text = os.fspath(address)
    if "://" not in text:
        return URL.create("sqlite", database=str(Path(text).expanduser().absolute()))
    try:
        url = make_url(text.replace("postgres://", "postgresql://", 1) if text.startswith("postgres://") else text)
        kind = url.get_backend_name()
    except (ArgumentError, NoSuchModuleError, ValueError):
        # Without the address: it may hold a password.
        raise BadValue("the catalogue's address cannot be read, expected a path or an SQLAlchemy URL") from None
    if kind == "sqlite" and not (url.database and url.database != ":memory:"):
        raise BadValue("the catalogue is an SQLite database in memory, which ends with the process; give a path")
    if kind not in ("sqlite", "postgresql"):
        raise BadValue(f"the catalogue's address is of kind {kind!r}, expected a path, sqlite or postgresql")
    return url if kind == "sqlite" else url.set(drivername="postgresql+psycopg")


def _label(url: URL) -> str:
    """What messages call it: nothing of who logs in, nor of options, which may hold a password."""
    port = f":{url.port}" if url.port else ""
    return f"PostgreSQL {url.host or 'on this machine'}{port}/{url.database or ''}"


def _sqlite(path: Path, label: str) -> Engine:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CatalogueUnavailable(f"{label} cannot be made: {error.strerror}; choose another place") from error
    # A thread takes a connection out of the pool for as long as its transaction: as many as there are threads.
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
        pool_size=4,
        max_overflow=-1,
    )
    event.listen(engine, "connect", _settled)
    event.listen(engine, "begin", _begun)
    return engine


def _settled(connection: Any, _: Any) -> None:
    """As every connection to SQLite must be. The driver itself shall begin nothing."""
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys = ON")
    # What was acknowledged is on the disk, also after a power cut.
    connection.execute("PRAGMA synchronous = FULL")


def _begun(connection: Connection) -> None:
    word = connection.get_execution_options().get(_BEGIN, "BEGIN IMMEDIATE")
    if word:
        connection.exec_driver_sql(word)


def _postgres(url: URL) -> Engine:
    engine = create_engine(url, **_POSTGRES)
    event.listen(engine, "connect", partial(_limited, seconds=STATEMENT_SECONDS))
    return engine


def _limited(connection: Any, _: Any, *, seconds: int) -> None:
    """Nobody waits for ever: neither for a statement nor for another's lock."""
    connection.execute(f"SET statement_timeout = '{seconds}s'")
    connection.execute(f"SET idle_in_transaction_session_timeout = '{2 * seconds}s'")
    connection.commit()


def _code(error: DBAPIError) -> str:
    return getattr(error.orig, "sqlstate", None) or ""


def _is_conflict(error: DBAPIError) -> bool:
    return isinstance(error, IntegrityError) or _code(error) in _AGAIN


def _first_line(error: BaseException | None) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
