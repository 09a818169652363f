"""What a registry says of tenants, keys, prefixes and their versions, as values.

Pure data; it knows no database, no store and no network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from epigraph.errors import BadValue

Scope = Literal["use", "push", "manage", "admin"]
SCOPES: frozenset[Scope] = frozenset(get_args(Scope))
LATEST = "latest"
# The tenant of a laptop, where nobody else is.
LOCAL = "local"


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """One version of a prefix: whose, which, what was pinned when it was pushed, and what it is called now.

    ``number`` counts from 1 and is never used twice for a name, not even after a deletion. ``geometry`` is
    :func:`epigraph.virtual.geometry_digest`; fingerprints and hashes are 64 hexadecimal digits. ``created`` is in UTC;
    ``created_by`` is the id of a key, or a word of the caller's. ``scores`` are ``{split: {metric: value}}``, or what
    else was pushed as such.
    """

    tenant: str
    name: str
    number: int
    content_hash: str
    base_name: str
    base_fingerprint: str
    tokenizer_fingerprint: str
    geometry: str
    num_virtual_tokens: int
    num_bytes: int
    method: str
    kind: Literal["kv", "soft"]
    is_chat: bool
    created: datetime
    created_by: str
    aliases: tuple[str, ...]
    provenance: Mapping[str, Any]
    scores: Mapping[str, Any]

    @property
    def id(self) -> str:
        """What people and requests call it: ``tenant/name@3``."""
        return f"{self.prefix}@{self.number}"

    @property
    def prefix(self) -> str:
        """The prefix id without the version, as engines take it."""
        return f"{self.tenant}/{self.name}"

    @property
    def path(self) -> str:
        """Where its bytes lie below the store's address."""
        return path_of(self.tenant, self.name, self.number)


def path_of(tenant: str, name: str, number: int) -> str:
    """Where the bytes of a version lie below the store's address; engines look there (engine/shelf.py)."""
    return f"{tenant}/{name}/{number}.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """A prefix in a list: whose it is, what it is called, and how many versions can be used."""

    tenant: str
    name: str
    num_versions: int

    @property
    def prefix(self) -> str:
        """The prefix id, ``tenant/name``."""
        return f"{self.tenant}/{self.name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """A part of a list. ``next`` is what the following page begins after, empty at the end."""

    prefixes: tuple[Listed, ...]
    next: str

    @property
    def names(self) -> tuple[str, ...]:
        """The prefix ids, in order."""
        return tuple(x.prefix for x in self.prefixes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Quotas:
    """What a tenant may have and do; None is no limit.

    ``prefixes`` and ``bytes`` are kept by the registry, the others by each server. Raises :class:`BadValue` for numbers
    below 0.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None
    prefixes: int | None = None
    bytes: int | None = None

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None and not 0 <= value <= MAX_QUOTA:
                raise BadValue(f"quota {name} is {value}, expected 0 to {MAX_QUOTA:,}, or none")


MAX_QUOTA = (1 << 63) - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Tenant:
    """Whose prefixes they are, what it may have, and what it has now. ``num_bytes`` counts pushes on their way too."""

    name: str
    quotas: Quotas
    num_prefixes: int
    num_bytes: int
    created: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """All that is known of an API key; the secret itself is known to who got it and nobody else."""

    id: str
    tenant: str
    scopes: frozenset[Scope]
    created: datetime
    expires: datetime | None
    revoked: datetime | None
    note: str = ""

    def is_good(self, now: datetime | None = None) -> bool:
        """Whether it opens anything at that time, by default now."""
        return self.revoked is None and (self.expires is None or (now or datetime.now(UTC)) < self.expires)


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who made a request, by its key, and what it may do."""

    tenant: str
    key_id: str
    scopes: frozenset[Scope]
    quotas: Quotas


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One row of the record of who did what, when. ``number`` is None where it was about no one version."""

    id: int
    at: datetime
    tenant: str
    name: str
    number: int | None
    action: str
    by: str
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """What was looked at, and what was found to be wrong between the catalogue and the store.

    ``abandoned`` are pushes whose process died, ``undeleted`` deletions that were not finished, ``orphans`` paths of
    bytes that no version has, ``unfinished`` what a killed writer left: all these a repair takes away. ``missing`` are
    versions whose bytes are gone, ``changed`` those with other bytes than were pushed: these are only told.
    ``strangers`` are files that are nobody's here; they are left alone. ``miscounted`` are tenants whose sums were
    wrong, which a repair puts right.
    """

    num_versions: int
    num_bytes: int
    abandoned: tuple[str, ...] = ()
    undeleted: tuple[str, ...] = ()
    orphans: tuple[str, ...] = ()
    unfinished: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    strangers: tuple[str, ...] = ()
    miscounted: tuple[str, ...] = ()
    is_repaired: bool = False

    @property
    def is_clean(self) -> bool:
        """Nothing is wrong, or no longer."""
        lost = self.missing or self.changed
        left = self.abandoned or self.undeleted or self.orphans or self.unfinished or self.miscounted
        return not lost and (self.is_repaired or not left)
