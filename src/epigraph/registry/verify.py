"""Whether catalogue and store say the same, file by file, while both are in use; and the leftovers of what was killed.

It takes away only what this catalogue once wrote and has no version for. It knows no engine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Row, Select, select, tuple_

from epigraph.errors import PrefixNotFound
from epigraph.names import PART
from epigraph.registry import deleting, rows
from epigraph.registry.database import Database
from epigraph.registry.marks import check_store
from epigraph.registry.records import Findings, path_of
from epigraph.registry.schema import IS_OPEN, PENDING, READY, prefixes, tenants, versions
from epigraph.registry.store import Store
from epigraph.registry.sums import miscounted

_BATCH = 500
_ALL = 1 << 31
_FILE = re.compile(rf"{PART}/(?P<name>{PART})/(?P<number>[1-9][0-9]{{0,8}})\.safetensors")
# As files.py calls a file on its way.
_HIDDEN = re.compile(rf"{PART}/(?P<name>{PART})/\.(?P<number>[1-9][0-9]{{0,8}})\.safetensors\.[0-9a-f]+\.tmp")


@dataclass(kw_only=True, slots=True)
class _Look:
    """What is looked at, how, and what was found so far."""

    database: Database
    store: Store
    repair: bool
    patience: timedelta
    contents: bool
    advance: Callable[[int], object]
    found: dict[str, list[str]] = field(default_factory=dict)
    num_versions: int = 0
    num_bytes: int = 0

    def note(self, kind: str, what: str) -> None:
        self.found.setdefault(kind, []).append(what)


def verify(
    database: Database,
    store: Store,
    *,
    repair: bool,
    patience: timedelta,
    contents: bool,
    advance: Callable[[int], object],
) -> Findings:
    """As :meth:`epigraph.registry.Registry.verify`."""
    check_store(database, store)
    look = _Look(database=database, store=store, repair=repair, patience=patience, contents=contents, advance=advance)
    _abandoned(look)
    _undeleted(look)
    for tenant in sorted({*store.folders(), *_tenants(database)}):
        # Files first: a version's row is there before its bytes, so that what is seen and has none is left over.
        files = store.below(tenant)
        _files(look, tenant, files)
        _rows(look, tenant, files)
        if miscounted(database, tenant, repair=repair):
            look.note("miscounted", tenant)
    if not repair and "undeleted" in look.found:
        # What somebody was deleting just then has been deleted by now.
        still = {one.id for one in deleting.undeleted(database, limit=_ALL)}
        look.found["undeleted"] = [one for one in look.found["undeleted"] if one in still]
    told = {kind: tuple(names) for kind, names in look.found.items()}
    return Findings(num_versions=look.num_versions, num_bytes=look.num_bytes, is_repaired=repair, **told)


def tidy(database: Database, store: Store, patience: timedelta) -> int:
    """As :meth:`epigraph.registry.Registry.tidy`."""
    for row in _stale(database, patience):
        database.write(_withdraw, row)
    return deleting.finish(database, store)


def _abandoned(look: _Look) -> None:
    for row in _stale(look.database, look.patience):
        look.note("abandoned", f"{row.tenant}/{row.name}@{row.number}")
        if look.repair:
            look.database.write(_withdraw, row)


def _undeleted(look: _Look) -> None:
    said = set(look.found.get("abandoned", ()))
    for one in deleting.undeleted(look.database, limit=_ALL):
        if one.id not in said:
            look.note("undeleted", one.id)
    if look.repair:
        deleting.finish(look.database, look.store)


def _stale(database: Database, patience: timedelta) -> Sequence[Row[Any]]:
    """Pushes that began so long ago that their process must be dead."""
    query = _named().where(IS_OPEN, versions.c.state == PENDING, versions.c.created <= rows.now() - patience)
    with database.reading() as connection:
        return connection.execute(query).all()


def _withdraw(connection: Connection, row: Row[Any]) -> None:
    try:
        prefix = rows.lock_prefix(connection, row.tenant, row.name)
    except PrefixNotFound:
        return
    query = select(versions.c.state).where(*_at(row))
    if connection.execute(query).scalar() == PENDING:
        rows.withdraw(connection, prefix, [row.number])
        rows.note(connection, row.tenant, row.name, "repair", "verify", row.number, what="abandoned push")


def _tenants(database: Database) -> list[str]:
    with database.reading() as connection:
        return list(connection.execute(select(tenants.c.name).where(tenants.c.num_prefixes > 0)).scalars())


# Files, and whether there is a row for each


def _files(look: _Look, tenant: str, files: Mapping[str, int]) -> None:
    for batch in _batches(list(files)):
        known = _numbers(look.database, tenant, batch)
        wrong = {path: kind for path in batch if (kind := _kind(path, known))}
        for path, kind in wrong.items():
            look.note(kind, path)
        if look.repair:
            look.store.delete([path for path, kind in wrong.items() if kind != "strangers"])


def _kind(path: str, known: Mapping[str, tuple[int, Mapping[int, str]]]) -> str:
    """What a file is that should not be there, empty for one that should."""
    match = _FILE.fullmatch(path) or _HIDDEN.fullmatch(path)
    last, states = known.get(match["name"], (0, {})) if match else (0, {})
    number = int(match["number"]) if match else 0
    # Numbers are never used twice, and names are never forgotten: what we wrote once, we know.
    if match is None or number > last:
        return "strangers"
    if match.re is _HIDDEN:
        return "" if states.get(number) == PENDING else "unfinished"
    return "" if number in states else "orphans"


def _numbers(database: Database, tenant: str, paths: Sequence[str]) -> dict[str, tuple[int, dict[int, str]]]:
    """By name, the last number that was given out, and which of the files' numbers there are, in which state."""
    asked = {(m["name"], int(m["number"])) for path in paths if (m := _FILE.fullmatch(path) or _HIDDEN.fullmatch(path))}
    if not asked:
        return {}
    its = (
        select(prefixes.c.name, prefixes.c.last_number)
        .join_from(prefixes, tenants, tenants.c.id == prefixes.c.tenant_id)
        .where(tenants.c.name == tenant, prefixes.c.name.in_({name for name, _ in asked}))
    )
    there = _named().add_columns(versions.c.state).where(tenants.c.name == tenant)
    there = there.where(tuple_(prefixes.c.name, versions.c.number).in_(sorted(asked)))
    with database.reading() as connection:
        known: dict[str, tuple[int, dict[int, str]]] = {name: (n, {}) for name, n in connection.execute(its)}
        for row in connection.execute(there):
            known[row.name][1][row.number] = row.state
    return known


# Rows, and whether there are bytes for each


def _rows(look: _Look, tenant: str, files: Mapping[str, int]) -> None:
    for row in _ready(look.database, tenant):
        wrong = _wrong(look, row, files)
        # What was deleted while it was looked at is not missed.
        if wrong and _is_ready(look.database, row):
            look.note(wrong, f"{row.tenant}/{row.name}@{row.number}")
        look.num_versions += 1
        look.num_bytes += row.num_bytes
        look.advance(1)


def _wrong(look: _Look, row: Row[Any], files: Mapping[str, int]) -> str:
    path = path_of(row.tenant, row.name, row.number)
    # What was pushed after the files were listed is looked at by itself.
    size = files.get(path) if path in files else look.store.size(path)
    if size is None:
        return "missing"
    if size != row.num_bytes:
        return "changed"
    found = look.store.hash(path) if look.contents else row.file_hash
    return "missing" if found is None else "" if found == row.file_hash else "changed"


def _ready(database: Database, tenant: str) -> Iterator[Row[Any]]:
    """All ready versions of a tenant, in pages."""
    query = _named().add_columns(versions.c.num_bytes, versions.c.file_hash)
    query = query.where(tenants.c.name == tenant, versions.c.state == READY)
    query = query.order_by(prefixes.c.name, versions.c.number).limit(_BATCH)
    last = ("", 0)
    while True:
        with database.reading() as connection:
            page = connection.execute(query.where(tuple_(prefixes.c.name, versions.c.number) > last)).all()
        yield from page
        if len(page) < _BATCH:
            return
        last = (page[-1].name, page[-1].number)


def _is_ready(database: Database, row: Row[Any]) -> bool:
    with database.reading() as connection:
        return connection.execute(select(versions.c.state).where(*_at(row))).scalar() == READY


def _named() -> Select[Any]:
    return (
        select(tenants.c.name.label("tenant"), prefixes.c.name.label("name"), versions.c.prefix_id, versions.c.number)
        .join_from(versions, prefixes, prefixes.c.id == versions.c.prefix_id)
        .join(tenants, tenants.c.id == prefixes.c.tenant_id)
    )


def _at(row: Row[Any]) -> tuple[Any, Any]:
    return versions.c.prefix_id == row.prefix_id, versions.c.number == row.number


def _batches(paths: list[str]) -> Iterator[list[str]]:
    return (paths[begin : begin + _BATCH] for begin in range(0, len(paths), _BATCH))
