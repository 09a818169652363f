"""A push: a number, then bytes, then everybody sees it. A process that dies on the way leaves nothing that is seen."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from epigraph import artifact
from epigraph.errors import BadValue, CatalogueUnavailable, PrefixNotFound, StoreUnavailable
from epigraph.names import check_part
from epigraph.registry import lookup, rows
from epigraph.registry.database import Database
from epigraph.registry.marks import check_store
from epigraph.registry.records import Version, path_of
from epigraph.registry.refs import check_alias, check_words
from epigraph.registry.rows import Facts, Place
from epigraph.registry.store import Store, hash_file
from epigraph.virtual import geometry_digest

MAX_SCORES_CHARS = 1 << 16


def push(
    database: Database,
    store: Store,
    tenant: str,
    name: str,
    path: str | os.PathLike[str],
    *,
    by: str,
    aliases: Sequence[str],
    scores: Mapping[str, Any],
) -> Version:
    """As :meth:`epigraph.registry.Registry.push`."""
    check_part("the tenant", tenant)
    check_part("the prefix", name)
    check_words("by", by)
    for alias in aliases:
        check_alias(alias)
    source = artifact.find(path)
    facts = replace(_facts(source), scores=_checked_scores(scores))
    check_store(database, store)
    place = database.write(rows.begin, tenant, name, facts, by)
    try:
        store.put(source, path_of(tenant, name, place.number), facts.file_hash, facts.num_bytes)
    except BaseException:
        _take_back(database, store, tenant, name, place)
        raise
    try:
        database.write(rows.make_ready, tenant, name, place, aliases, by)
    except PrefixNotFound:
        _take_back(database, store, tenant, name, place)
        raise PrefixNotFound(
            f"{tenant}/{name}@{place.number} was deleted while it was pushed; push it again if it is still wanted"
        ) from None
    # Where the database goes away just now, nobody knows whether it took the last step: the bytes stay, and what is
    # to be done is found by verify.
    with database.reading() as connection:
        return lookup.get(connection, tenant, name, place.number)


def _facts(source: Path) -> Facts:
    """What is pinned of a file, once it has been read and checked in full."""
    file_hash, num_bytes = hash_file(source)
    content, header, _ = artifact.read(source)
    return Facts(
        content_hash=header.content_hash,
        file_hash=file_hash,
        num_bytes=num_bytes,
        base_name=content.base_name,
        base_fingerprint=content.base_fingerprint,
        tokenizer_fingerprint=content.tokenizer_fingerprint,
        geometry=geometry_digest(content.geometry),
        num_virtual_tokens=content.tokens.num_virtual_tokens,
        method=content.method,
        kind=header.kind,
        is_chat=content.contract.is_chat,
        provenance=dict(content.provenance),
        scores={},
    )


def _checked_scores(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The scores as JSON keeps them. Raises :class:`BadValue` for what JSON cannot say, or for too much."""
    try:
        said = json.dumps(dict(scores), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadValue(f"the scores are no JSON ({error}), expected an object of numbers") from None
    if len(said) > MAX_SCORES_CHARS:
        raise BadValue(f"the scores have {len(said):,} characters, expected at most {MAX_SCORES_CHARS:,}")
    kept: dict[str, Any] = json.loads(said)
    return kept


def _take_back(database: Database, store: Store, tenant: str, name: str, place: Place) -> None:
    """As far as it goes: what is left of a push that failed, verify takes away."""
    with contextlib.suppress(CatalogueUnavailable, StoreUnavailable):
        # First the row: from now on it cannot become ready, whatever is still on its way to the store.
        database.write(_withdrawn, tenant, name, place)
        store.delete([path_of(tenant, name, place.number)])
        database.write(rows.forget, place.prefix_id, [place.number])


def _withdrawn(connection: Any, tenant: str, name: str, place: Place) -> None:
    with contextlib.suppress(PrefixNotFound):
        rows.withdraw(connection, rows.lock_prefix(connection, tenant, name), [place.number])
