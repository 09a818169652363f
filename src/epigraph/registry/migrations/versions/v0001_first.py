"""The first schema. It knows nothing of schema.py, which goes on changing."""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

NAME = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
MOMENT = sa.DateTime(timezone=True)
ANY_READY = sa.text("num_ready > 0")
NOT_READY = sa.text("state <> 'ready'")

APPEND_ONLY = {
    "sqlite": [
        f"CREATE TRIGGER audit_{word} BEFORE {word} ON audit BEGIN "
        "SELECT RAISE(ABORT, 'rows of audit are never changed'); END"
        for word in ("UPDATE", "DELETE")
    ],
    "postgresql": [
        "CREATE FUNCTION audit_stays() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'rows of audit are never changed'; END $$",
        "CREATE TRIGGER audit_stays BEFORE UPDATE OR DELETE OR TRUNCATE ON audit "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_stays()",
    ],
}


def upgrade() -> None:
    """From nothing."""
    marks = op.create_table(
        "registry",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("is_marked", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_registry"),
    )
    op.bulk_insert(marks, [{"id": secrets.token_hex(16), "is_marked": False}])
    _tenants()
    _prefixes()
    _names()
    _records()
    for statement in APPEND_ONLY[op.get_bind().dialect.name]:
        op.execute(statement)


def _tenants() -> None:
    op.create_table(
        "tenants",
        sa.Column("id", ID, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("folded", NAME, nullable=False),
        sa.Column("requests_per_minute", sa.BigInteger),
        sa.Column("tokens_per_minute", sa.BigInteger),
        sa.Column("concurrent", sa.BigInteger),
        sa.Column("prefixes", sa.BigInteger),
        sa.Column("bytes", sa.BigInteger),
        sa.Column("num_prefixes", sa.BigInteger, nullable=False),
        sa.Column("num_bytes", sa.BigInteger, nullable=False),
        sa.Column("created", MOMENT, nullable=False),
        sa.Column("removed", MOMENT),
        sa.PrimaryKeyConstraint("id", name="pk_tenants"),
        sa.UniqueConstraint("name", name="uq_tenants_name"),
        sa.UniqueConstraint("folded", name="uq_tenants_folded"),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("tenant_id", ID, nullable=False),
        sa.Column("hash", sa.Text, nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("created", MOMENT, nullable=False),
        sa.Column("expires", MOMENT),
        sa.Column("revoked", MOMENT),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_api_keys_tenant_id"),
    )
    op.create_index("ix_api_keys_tenant_id", "api_keys", ["tenant_id"])


def _prefixes() -> None:
    op.create_table(
        "prefixes",
        sa.Column("id", ID, nullable=False),
        sa.Column("tenant_id", ID, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("last_number", sa.BigInteger, nullable=False),
        sa.Column("num_kept", sa.BigInteger, nullable=False),
        sa.Column("num_ready", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_prefixes"),
        sa.UniqueConstraint("tenant_id", "name", name="uq_prefixes_tenant_id_name"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_prefixes_tenant_id"),
    )
    op.create_index(
        "ix_prefixes_listed", "prefixes", ["tenant_id", "name"], sqlite_where=ANY_READY, postgresql_where=ANY_READY
    )
    texts = ("base_name", "base_fingerprint", "tokenizer_fingerprint", "geometry", "method", "kind", "created_by")
    op.create_table(
        "versions",
        sa.Column("prefix_id", ID, nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("content_hash", sa.Text, nullable=False),
        sa.Column("file_hash", sa.Text, nullable=False),
        sa.Column("num_bytes", sa.BigInteger, nullable=False),
        sa.Column("num_virtual_tokens", sa.BigInteger, nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in texts),
        sa.Column("is_chat", sa.Boolean, nullable=False),
        sa.Column("provenance", sa.JSON, nullable=False),
        sa.Column("scores", sa.JSON, nullable=False),
        sa.Column("created", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("prefix_id", "number", name="pk_versions"),
        sa.ForeignKeyConstraint(["prefix_id"], ["prefixes.id"], name="fk_versions_prefix_id"),
    )
    op.create_index(
        "ix_versions_open", "versions", ["state", "created"], sqlite_where=NOT_READY, postgresql_where=NOT_READY
    )


def _names() -> None:
    op.create_table(
        "aliases",
        sa.Column("prefix_id", ID, nullable=False),
        sa.Column("alias", NAME, nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("prefix_id", "alias", name="pk_aliases"),
        sa.ForeignKeyConstraint(
            ["prefix_id", "number"], ["versions.prefix_id", "versions.number"], name="fk_aliases_prefix_id_number"
        ),
    )
    op.create_table(
        "shares",
        sa.Column("tenant_id", ID, nullable=False),
        sa.Column("owner", NAME, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("prefix_id", ID, nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "owner", "name", name="pk_shares"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_shares_tenant_id"),
        sa.ForeignKeyConstraint(["prefix_id"], ["prefixes.id"], name="fk_shares_prefix_id"),
    )
    op.create_index("ix_shares_prefix_id", "shares", ["prefix_id"])


def _records() -> None:
    op.create_table(
        "bases",
        sa.Column("admitted", sa.Text, nullable=False),
        sa.Column("trained", sa.Text, nullable=False),
        sa.Column("allowed_by", sa.Text, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("created", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("admitted", "trained", name="pk_bases"),
    )
    op.create_table(
        "audit",
        sa.Column("id", ID, nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        sa.Column("tenant", NAME, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("number", sa.BigInteger),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("done_by", sa.Text, nullable=False),
        sa.Column("detail", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
    )
    op.create_index("ix_audit_tenant_id", "audit", ["tenant", "id"])
    op.create_index("ix_audit_tenant_name_id", "audit", ["tenant", "name", "id"])
