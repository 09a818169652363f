"""The tables of a catalogue as this version of the program has them; migrations/ makes them, from nothing or an older.

Rows of tenants and prefixes are never deleted, so that no version number is given out twice. It knows no query.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final, Literal

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    literal_column,
)

# The newest migration; a test compares it with migrations/versions.
HEAD: Final = "0001"

State = Literal["pending", "ready", "gone"]
# A push is on its way; only its own process, or one that takes it for dead, touches the row.
PENDING: Final = "pending"
READY: Final = "ready"
# Deleted for everybody; the row stays until the bytes are known to be gone.
GONE: Final = "gone"

# In the order of bytes on both databases, so that pages begin and end alike.
NAME = Text().with_variant(Text(collation="C"), "postgresql")
ID = BigInteger().with_variant(Integer, "sqlite")


class Moment(TypeDecorator[datetime]):
    """A time in UTC, on databases that know zones and on those that do not."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To the database."""
        return value and value.astimezone(UTC)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """From the database."""
        told: datetime | None = value
        return told and (told.astimezone(UTC) if told.tzinfo else told.replace(tzinfo=UTC))


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# One row: which catalogue this is, as its store knows it.
registry = Table(
    "registry",
    metadata,
    Column("id", Text, primary_key=True),
    Column("is_marked", Boolean, nullable=False),
)

tenants = Table(
    "tenants",
    metadata,
    Column("id", ID, primary_key=True),
    Column("name", NAME, nullable=False),
    # Two tenants that differ in capitals alone would share a folder where file systems do not tell them apart.
    Column("folded", NAME, nullable=False),
    Column("requests_per_minute", BigInteger),
    Column("tokens_per_minute", BigInteger),
    Column("concurrent", BigInteger),
    Column("prefixes", BigInteger),
    Column("bytes", BigInteger),
    Column("num_prefixes", BigInteger, nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    Column("created", Moment, nullable=False),
    Column("removed", Moment),
    UniqueConstraint("name"),
    UniqueConstraint("folded"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant_id", ID, ForeignKey(tenants.c.id), nullable=False, index=True),
    Column("hash", Text, nullable=False),
    Column("scopes", Text, nullable=False),
    Column("note", Text, nullable=False),
    Column("created", Moment, nullable=False),
    Column("expires", Moment),
    Column("revoked", Moment),
)

# num_kept counts versions that are pending or ready, num_ready the latter.
prefixes = Table(
    "prefixes",
    metadata,
    Column("id", ID, primary_key=True),
    Column("tenant_id", ID, ForeignKey(tenants.c.id), nullable=False),
    Column("name", NAME, nullable=False),
    Column("last_number", BigInteger, nullable=False),
    Column("num_kept", BigInteger, nullable=False),
    Column("num_ready", BigInteger, nullable=False),
    UniqueConstraint("tenant_id", "name"),
)
# Written out, not as a parameter: only then does a database see that an index holds what a query asks for.
IS_LISTED = prefixes.c.num_ready > literal_column("0")
# Lists walk along it, past any number of names that were deleted.
Index(
    "ix_prefixes_listed",
    prefixes.c.tenant_id,
    prefixes.c.name,
    sqlite_where=IS_LISTED,
    postgresql_where=IS_LISTED,
)

versions = Table(
    "versions",
    metadata,
    Column("prefix_id", ID, ForeignKey(prefixes.c.id), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("state", Text, nullable=False),
    Column("content_hash", Text, nullable=False),
    # SHA-256 of the file as it was pushed.
    Column("file_hash", Text, nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    Column("base_name", Text, nullable=False),
    Column("base_fingerprint", Text, nullable=False),
    Column("tokenizer_fingerprint", Text, nullable=False),
    Column("geometry", Text, nullable=False),
    Column("num_virtual_tokens", BigInteger, nullable=False),
    Column("method", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("is_chat", Boolean, nullable=False),
    Column("provenance", JSON, nullable=False),
    Column("scores", JSON, nullable=False),
    Column("created", Moment, nullable=False),
    Column("created_by", Text, nullable=False),
)
IS_OPEN = versions.c.state != literal_column("'ready'")
# The few that something is still to be done about.
Index(
    "ix_versions_open",
    versions.c.state,
    versions.c.created,
    sqlite_where=IS_OPEN,
    postgresql_where=IS_OPEN,
)

aliases = Table(
    "aliases",
    metadata,
    Column("prefix_id", ID, primary_key=True),
    Column("alias", NAME, primary_key=True),
    Column("number", BigInteger, nullable=False),
    ForeignKeyConstraint(["prefix_id", "number"], [versions.c.prefix_id, versions.c.number]),
)

# Owner and name are there a second time, so that what is shared with a tenant lies in the order of its list.
shares = Table(
    "shares",
    metadata,
    Column("tenant_id", ID, ForeignKey(tenants.c.id), primary_key=True),
    Column("owner", NAME, primary_key=True),
    Column("name", NAME, primary_key=True),
    Column("prefix_id", ID, ForeignKey(prefixes.c.id), nullable=False, index=True),
)

bases = Table(
    "bases",
    metadata,
    Column("admitted", Text, primary_key=True),
    Column("trained", Text, primary_key=True),
    Column("allowed_by", Text, nullable=False),
    Column("why", Text, nullable=False),
    Column("created", Moment, nullable=False),
)

# The first migration adds triggers: rows can be added and nothing else.
audit = Table(
    "audit",
    metadata,
    Column("id", ID, primary_key=True),
    Column("at", Moment, nullable=False),
    Column("tenant", NAME, nullable=False),
    Column("name", NAME, nullable=False),
    Column("number", BigInteger),
    Column("action", Text, nullable=False),
    Column("done_by", Text, nullable=False),
    Column("detail", JSON, nullable=False),
    Index("ix_audit_tenant_name_id", "tenant", "name", "id"),
    Index("ix_audit_tenant_id", "tenant", "id"),
)
