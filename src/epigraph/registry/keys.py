"""API keys: made, told apart, replaced, revoked. Their secrets are given out once and kept by nobody.

Each function is a part of one transaction. It knows no request.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, Select, func, insert, or_, select, update

from epigraph.errors import BadKey, BadValue
from epigraph.registry import rows
from epigraph.registry.records import SCOPES, Caller, Key, Quotas, Scope
from epigraph.registry.refs import check_words, is_name
from epigraph.registry.schema import api_keys, tenants

SECRET_BYTES = 32
MAX_KEYS = 1000
QUOTAS = tuple(Quotas.__slots__)

_FORM = re.compile(r"epk_(?P<id>[0-9a-f]{16})_[A-Za-z0-9_-]{43}")
_NOBODYS = hashlib.sha256(b"").hexdigest()
_WORDS = "the API key is missing, unknown, expired or revoked; send one that is good"


def make(
    connection: Connection, tenant: str, scopes: Collection[Scope], expires: datetime | None, note: str, by: str
) -> tuple[Key, str]:
    """A new key of a tenant, and its secret. Raises :class:`TenantNotFound` and :class:`BadValue`."""
    _check(scopes, expires, note)
    owner = rows.lock_tenant(connection, tenant)
    count = select(func.count()).where(api_keys.c.tenant_id == owner.id, api_keys.c.revoked.is_(None))
    if connection.execute(count).scalar_one() >= MAX_KEYS:
        raise BadValue(f"tenant {tenant} has {MAX_KEYS} keys; revoke those that nobody uses")
    key_id = secrets.token_hex(8)
    secret = f"epk_{key_id}_{secrets.token_urlsafe(SECRET_BYTES)}"
    row = {"id": key_id, "tenant_id": owner.id, "hash": _hash(secret), "scopes": ",".join(sorted(scopes))}
    row |= {"note": note, "created": rows.now(), "expires": expires, "revoked": None}
    connection.execute(insert(api_keys).values(row))
    rows.note(connection, tenant, "", "make-key", by, key=key_id, scopes=sorted(scopes))
    return get(connection, key_id), secret


def rotate(connection: Connection, key_id: str, grace: timedelta, by: str) -> tuple[Key, str]:
    """A key that takes the place of another, which is good for ``grace`` more. Raises :class:`BadKey`."""
    if grace < timedelta(0):
        raise BadValue(f"the grace is {grace}, expected 0 or more")
    old = get(connection, key_id)
    rows.lock_tenant(connection, old.tenant)
    old = get(connection, key_id)
    if not old.is_good(rows.now()):
        raise BadKey(f"key {key_id} is expired or revoked, expected one that is good; make a new one")
    ends = rows.now() + grace
    last = ends if old.expires is None else min(ends, old.expires)
    connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(expires=last))
    rows.note(connection, old.tenant, "", "rotate-key", by, key=key_id)
    return make(connection, old.tenant, old.scopes, old.expires, old.note, by)


def revoke(connection: Connection, key_id: str, by: str) -> Key:
    """The key, which opens nothing any more. Raises :class:`BadKey`."""
    tenant = get(connection, key_id).tenant
    rows.lock_tenant(connection, tenant)
    at = (api_keys.c.id == key_id, api_keys.c.revoked.is_(None))
    if connection.execute(update(api_keys).where(*at).values(revoked=rows.now())).rowcount:
        rows.note(connection, tenant, "", "revoke-key", by, key=key_id)
    return get(connection, key_id)


def get(connection: Connection, key_id: str) -> Key:
    """The key of that id, good or not, of a tenant that is there. Raises :class:`BadKey`."""
    row = connection.execute(_told().where(api_keys.c.id == key_id)).one_or_none() if is_name(key_id) else None
    if row is None:
        raise BadKey(f"no key {key_id[:40]!r} of a tenant that is here; look at the list of its keys")
    return _key(row)


def of_tenant(connection: Connection, tenant: str) -> tuple[Key, ...]:
    """All keys of a tenant, good or not, in the order in which they were made."""
    query = _told().where(tenants.c.name == tenant).order_by(api_keys.c.created, api_keys.c.id)
    return tuple(_key(row) for row in connection.execute(query))


def any_admin(connection: Connection) -> bool:
    """Whether there is a key that opens everything."""
    query = _told().where(
        api_keys.c.scopes.contains("admin"),
        api_keys.c.revoked.is_(None),
        or_(api_keys.c.expires.is_(None), api_keys.c.expires > rows.now()),
    )
    return connection.execute(query.limit(1)).first() is not None


def who(connection: Connection, secret: str) -> Caller:
    """Whose the secret is. Raises :class:`BadKey`, in the same words whatever is wrong with it.

    A plain SHA-256 is enough, and costs a request nothing: slow hashes protect passwords that can be guessed, and
    nobody guesses 32 random bytes, whatever the speed.
    """
    form = _FORM.fullmatch(secret)
    row = None
    if form is not None:
        row = connection.execute(_told().where(api_keys.c.id == form["id"])).one_or_none()
    is_it = hmac.compare_digest(_hash(secret), _NOBODYS if row is None else row.hash)
    if row is None or not is_it or not (key := _key(row)).is_good(rows.now()):
        raise BadKey(_WORDS)
    quotas = Quotas(**{name: row._mapping[name] for name in QUOTAS})
    return Caller(tenant=key.tenant, key_id=key.id, scopes=key.scopes, quotas=quotas)


def _told() -> Select[Any]:
    return (
        select(api_keys, tenants.c.name.label("tenant"), *(tenants.c[name] for name in QUOTAS))
        .join_from(api_keys, tenants, tenants.c.id == api_keys.c.tenant_id)
        .where(tenants.c.removed.is_(None))
    )


def _key(row: Row[Any]) -> Key:
    scopes = frozenset(scope for scope in SCOPES if scope in row.scopes.split(","))
    told = {name: row._mapping[name] for name in ("id", "tenant", "created", "expires", "revoked", "note")}
    return Key(**told, scopes=scopes)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()


def _check(scopes: Collection[Scope], expires: datetime | None, note: str) -> None:
    known = ", ".join(sorted(SCOPES))
    if not scopes or not set(scopes) <= SCOPES:
        raise BadValue(f"the scopes are {', '.join(sorted(scopes))[:200] or 'none'}; expected some of {known}")
    if expires is not None and (expires.tzinfo is None or expires <= rows.now()):
        raise BadValue(f"the key would end at {expires}, expected a later time than now, with its zone")
    check_words("the note", note)
