"""The schema of a catalogue: made by migrations, opened from its first version on, refused when it is newer."""

from __future__ import annotations

import json
import re
import sqlite3
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event

import postgres
from conftest import benchmark
from epigraph.errors import CatalogueTooNew, CatalogueUnavailable
from epigraph.registry import Quotas, Registry
from epigraph.registry.database import Database
from epigraph.registry.migrate import migrate
from epigraph.registry.schema import HEAD, metadata
from registry_worker import saved

FIRST = Path(__file__).with_name("registry_0001.sql")
# As the first version gave it out; it is nobody's.
FIRST_SECRET = "epk_0123456789abcdef_not-a-secret-" + "x" * 30


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Postgres]:
    if why := postgres.missing():
        pytest.skip(why)
    with postgres.running() as started:
        yield started


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        made = Database(tmp_path / "catalogue.sqlite")
    else:
        started: postgres.Postgres = request.getfixturevalue("server")
        made = Database(started.database(uuid.uuid4().hex))
    yield made
    made.close()


def test_migrations_make_what_the_tables_say(database: Database) -> None:
    migrate(database)
    with database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, metadata) == []
        assert context.get_current_revision() == HEAD


def test_a_difference_would_be_seen(database: Database) -> None:
    """The slow twin of the test above: it is not blind."""
    migrate(database)
    with database.writing() as connection:
        connection.exec_driver_sql("ALTER TABLE bases ADD COLUMN more TEXT")
        connection.exec_driver_sql("DROP INDEX ix_versions_open")
    with database.reading() as connection:
        found = compare_metadata(MigrationContext.configure(connection), metadata)
    assert sorted(x[0] for x in found) == ["add_index", "remove_column"]


def test_migrating_twice_is_no_error(database: Database) -> None:
    migrate(database)
    migrate(database)


def test_the_newest_migration_is_the_one_that_is_known() -> None:
    config = Config()
    config.set_main_option("script_location", "epigraph.registry:migrations")
    scripts = ScriptDirectory.from_config(config)
    assert scripts.get_heads() == [HEAD]
    assert scripts.get_bases() == ["0001"]


def test_a_newer_catalogue_is_refused_and_left_alone(database: Database) -> None:
    migrate(database)
    with database.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(CatalogueTooNew, match=f"has the schema 9999, this epigraph knows up to {HEAD}; upgrade"):
        migrate(database)
    with database.reading() as connection:
        assert connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one() == "9999"


def test_a_catalogue_of_the_first_version_opens(tmp_path: Path) -> None:
    """Its dump is kept as it was written: a version, an alias, a share, a key, a deletion, a tenant that is gone."""
    with sqlite3.connect(tmp_path / "c.sqlite") as connection:
        connection.executescript(FIRST.read_text(encoding="utf-8"))
    connection.close()
    with Registry.open(tmp_path / "c.sqlite", tmp_path / "store") as registry:
        found = registry.resolve("bob", "ann/cards@stable")
        assert (found.number, found.aliases, found.scores) == (1, ("stable",), {"test": {"bleu": 57.5}})
        assert [x.number for x in registry.versions("ann", "cards")] == [1, 3]
        assert registry.tenants.get("ann").quotas == Quotas(prefixes=10, bytes=1_000_000)
        assert registry.tenants.who(FIRST_SECRET).scopes == {"use", "push"}
        assert registry.admitted("d" * 64) == {"b" * 64}
        assert registry.audit("ann")[-1].action == "make-key"
        assert [x.name for x in registry.tenants.list()] == ["ann", "bob"]
        (tmp_path / "store").mkdir()
        registry.adopt_store()
        assert registry.push("ann", "cards", saved(tmp_path)).number == 4


def test_what_is_no_database_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "c.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(CatalogueUnavailable, match=r"c.sqlite does not answer: file is not a database; see that"):
        Registry.open(tmp_path / "c.sqlite", tmp_path / "store")
    (tmp_path / "file").touch()
    with pytest.raises(CatalogueUnavailable, match="cannot be made: "):
        Registry.open(tmp_path / "file" / "c.sqlite", tmp_path / "store")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CatalogueUnavailable, match="unable to open database file"):
        Registry.open(tmp_path / "folder", tmp_path / "store")


def test_no_request_walks_along_a_table(tmp_path: Path) -> None:
    """Every statement of a lookup, a page and a key finds its rows by an index, as SQLite itself says."""
    asked: list[tuple[str, object]] = []
    with Registry.open(tmp_path / "c.sqlite", tmp_path / "store") as registry:
        registry.tenants.add("ann")
        registry.push("ann", "cards", saved(tmp_path))
        _, secret = registry.tenants.make_key("ann", scopes={"use"})

        def noted(_: object, __: object, statement: str, given: object, *___: object) -> None:
            asked.append((statement, given))

        engine = registry._database._engine
        event.listen(engine, "before_cursor_execute", noted)
        registry.resolve("ann", "cards@1")
        registry.resolve("ann", "ann/cards@latest")
        assert len(asked) == 2
        registry.list("ann", after="ann/a")
        registry.versions("ann", "cards", after=0)
        registry.audit("ann", after=1)
        registry.audit("ann", name="cards", after=1)
        registry.tenants.who(secret)
        registry.tenants.get("ann")
        registry.tidy()
        event.remove(engine, "before_cursor_execute", noted)
        assert len(asked) > 9
        # SQLite looks at what a parameter is; PostgreSQL, once a statement is prepared, does not.
        assert any("num_ready > 0" in statement for statement, _ in asked)
        with registry._database.reading() as connection:
            used: set[str] = set()
            for statement, given in asked:
                plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", given).all()  # type: ignore[arg-type]
                words = "\n".join(str(row[-1]) for row in plan)
                assert not re.search(r"SCAN (?!CONSTANT)|TEMP B-TREE", words), f"{statement}\n{words}"
                assert "count(" not in statement
                used |= set(re.findall(r"INDEX (ix_\w+)", words))
            assert {"ix_prefixes_listed", "ix_versions_open", "ix_audit_tenant_id", "ix_audit_tenant_name_id"} <= used


@pytest.mark.slow
def test_the_benchmark_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, path = benchmark("registry"), tmp_path / "record.json"
    monkeypatch.setattr(sys, "argv", ["registry", "--json", str(path), "--prefixes", "2000", "--lookups", "20"])
    bench.main()
    record = json.loads(path.read_text(encoding="utf-8"))
    assert set(record["SQLite"]) == {"1000", "2000"}
    assert all(0 < x["p50"] < 10_000 for rows in record["SQLite"].values() for x in rows.values())


def test_the_benchmarks_table_is_in_the_page() -> None:
    bench, root = benchmark("registry"), Path(__file__).parents[1]
    kept = json.loads((root / "benchmarks" / "registry.json").read_text(encoding="utf-8"))
    assert bench.table(kept) in (root / "docs" / "registry.md").read_text(encoding="utf-8")
