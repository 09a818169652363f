"""/v1/tenants and /v1/keys: who there is, what he may have, and the keys to it.

A key can never make, renew or take away one that may more than itself; it knows no prefix.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from epigraph.errors import BadKey, BadValue, Forbidden
from epigraph.names import PART
from epigraph.registry import Caller, Key, Quotas, Scope, Tenant
from epigraph.server.documented import Deleted, KeyObject, Keys, NewKey, TenantObject, TenantPage, refusals_of
from epigraph.server.models import Limit, Part
from epigraph.server.serving import caller_of, serving_of

_REFUSALS = refusals_of(400, 401, 403, 404, 413, 500, 503)
router = APIRouter(prefix="/v1", responses=_REFUSALS)

_YEARS_S = 10 * 366 * 24 * 3600
Quota = Annotated[int, Field(ge=0, le=(1 << 63) - 1)]
KeyId = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class QuotasBody(_Body):
    """What a tenant may have; null or left out is no limit."""

    requests_per_minute: Quota | None = None
    tokens_per_minute: Quota | None = None
    concurrent: Quota | None = None
    prefixes: Quota | None = None
    bytes: Quota | None = None

    def quotas(self) -> Quotas:
        """As the registry has them."""
        return Quotas(**self.model_dump())


class NewTenant(_Body):
    """A tenant that is not there yet."""

    name: Part
    quotas: QuotasBody = QuotasBody()


class WantedKey(_Body):
    """A key that is not there yet; ``tenant`` is by default the caller's own."""

    tenant: Part | None = None
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=4)]
    expires_in_seconds: Annotated[int, Field(ge=1, le=_YEARS_S)] | None = None
    note: Annotated[str, Field(max_length=256)] = ""


class Rotation(_Body):
    """How long the old secret stays good beside the new one."""

    grace_seconds: Annotated[int, Field(ge=0, le=_YEARS_S)] = 0


@router.get("/tenants", response_model=TenantPage, tags=["tenants"])
async def tenants(
    request: Request, after: Annotated[str, Query(pattern=rf"^({PART})?$")] = "", limit: Limit = 100
) -> dict[str, Any]:
    """All of them, in the order of their names."""
    serving = serving_of(request)
    caller_of(request, "admin")
    found = await serving.lookups.run(serving.registry.tenants.list, after=after, limit=limit)
    return {"data": [_tenant(x) for x in found], "next": found[-1].name if len(found) == limit else ""}


@router.post("/tenants", status_code=201, response_model=TenantObject, responses=refusals_of(409), tags=["tenants"])
async def add_tenant(request: Request, body: NewTenant) -> dict[str, Any]:
    """A new one."""
    serving, caller = serving_of(request), caller_of(request, "admin")
    add = serving.registry.tenants.add
    return _tenant(await serving.lookups.run(add, body.name, body.quotas.quotas(), by=caller.key_id))


@router.get("/tenants/{name}", response_model=TenantObject, tags=["tenants"])
async def tenant(request: Request, name: Part) -> dict[str, Any]:
    """One; a key with ``manage`` sees its own."""
    serving, caller = serving_of(request), caller_of(request, "manage", "admin")
    _check_own(caller, name)
    return _tenant(await serving.lookups.run(serving.registry.tenants.get, name))


@router.put("/tenants/{name}/quotas", response_model=TenantObject, tags=["tenants"])
async def set_quotas(request: Request, name: Part, body: QuotasBody) -> dict[str, Any]:
    """All its quotas anew; from the next request on they count."""
    serving, caller = serving_of(request), caller_of(request, "admin")
    change = serving.registry.tenants.set_quotas
    return _tenant(await serving.lookups.run(change, name, body.quotas(), by=caller.key_id))


@router.delete("/tenants/{name}", response_model=Deleted, tags=["tenants"])
async def remove_tenant(request: Request, name: Part) -> dict[str, Any]:
    """With its keys and prefixes, which are deleted for real."""
    serving, caller = serving_of(request), caller_of(request, "admin")
    return {"deleted": await serving.pushes.run(serving.registry.tenants.remove, name, by=caller.key_id)}


@router.get("/keys", response_model=Keys, tags=["keys"])
async def keys(request: Request, tenant: Part | None = None) -> dict[str, Any]:
    """A tenant's keys, by default the caller's own tenant's."""
    serving, caller = serving_of(request), caller_of(request, "manage", "admin")
    owner = tenant or caller.tenant
    _check_own(caller, owner)
    return {"data": [_key(x) for x in await serving.lookups.run(serving.registry.tenants.keys, owner)]}


@router.post("/keys", status_code=201, response_model=NewKey, tags=["keys"])
async def make_key(request: Request, body: WantedKey) -> dict[str, Any]:
    """A new key; its secret is in this answer and nowhere else."""
    serving, caller = serving_of(request), caller_of(request, "manage", "admin")
    owner = body.tenant or caller.tenant
    _check_own(caller, owner)
    _check_scopes(caller, body.scopes)
    seconds = body.expires_in_seconds
    key, secret = await serving.lookups.run(
        serving.registry.tenants.make_key,
        owner,
        scopes=frozenset(body.scopes),
        expires=None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds),
        note=body.note,
        by=caller.key_id,
    )
    return {**_key(key), "secret": secret}


@router.post("/keys/{key_id}/rotate", response_model=NewKey, tags=["keys"])
async def rotate(request: Request, key_id: KeyId, body: Rotation) -> dict[str, Any]:
    """A new secret in an old key's place."""
    serving, caller = serving_of(request), await _owner(request, key_id)
    grace = timedelta(seconds=body.grace_seconds)
    try:
        key, secret = await serving.lookups.run(serving.registry.tenants.rotate, key_id, grace=grace, by=caller.key_id)
    except BadKey as wrong:
        # Of the key in the path, and not of the one that came with the request.
        raise BadValue(str(wrong)) from None
    return {**_key(key), "secret": secret}


@router.delete("/keys/{key_id}", response_model=KeyObject, tags=["keys"])
async def revoke(request: Request, key_id: KeyId) -> dict[str, Any]:
    """From now on it opens nothing."""
    serving, caller = serving_of(request), await _owner(request, key_id)
    return _key(await serving.lookups.run(serving.registry.tenants.revoke, key_id, by=caller.key_id))


async def _owner(request: Request, key_id: str) -> Caller:
    """Who may change that key: one of its tenant that may all that it may, or an admin."""
    serving, caller = serving_of(request), caller_of(request, "manage", "admin")
    try:
        key = await serving.lookups.run(serving.registry.tenants.key, key_id)
    except BadKey:
        raise _no_key(key_id) from None
    if not _may(caller, key.tenant):
        raise _no_key(key_id)
    _check_scopes(caller, key.scopes)
    return caller


def _no_key(key_id: str) -> BadValue:
    """The same words for a key that is not there and for another tenant's."""
    return BadValue(f"there is no key {key_id[:40]!r} that this key may change; look at the list of keys")


def _may(caller: Caller, tenant: str) -> bool:
    return "admin" in caller.scopes or tenant == caller.tenant


def _check_own(caller: Caller, tenant: str) -> None:
    if not _may(caller, tenant):
        raise Forbidden(f"the key is of tenant {caller.tenant} and for that one alone; use an admin's key")


def _check_scopes(caller: Caller, scopes: Iterable[Scope]) -> None:
    more = set(scopes) - caller.scopes
    if more and "admin" not in caller.scopes:
        raise Forbidden(f"the key itself may not {', '.join(sorted(more))}, so it gives and takes no key that may")


def _tenant(tenant: Tenant) -> dict[str, Any]:
    quotas = {name: getattr(tenant.quotas, name) for name in QuotasBody.model_fields}
    sums = {"num_prefixes": tenant.num_prefixes, "num_bytes": tenant.num_bytes}
    return {"name": tenant.name, "quotas": quotas, **sums, "created": tenant.created.isoformat()}


def _key(key: Key) -> dict[str, Any]:
    times = {name: getattr(key, name) for name in ("created", "expires", "revoked")}
    return {
        "id": key.id,
        "tenant": key.tenant,
        "scopes": sorted(key.scopes),
        "note": key.note,
        **{name: at and at.isoformat() for name, at in times.items()},
    }
