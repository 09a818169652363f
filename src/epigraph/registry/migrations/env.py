"""What alembic runs: all steps in one transaction, on the connection that migrate.py brings. It opens nothing."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
