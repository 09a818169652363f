"""/v1/prefixes: to push, list, show, name, roll back, delete and share prefixes over HTTP.

What a key's tenant cannot see is not there; it knows no bytes of a prefix.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from epigraph.errors import BadValue, Forbidden
from epigraph.registry import LATEST, Caller, Entry, Version
from epigraph.server.documented import (
    Audit,
    Deleted,
    PrefixPage,
    Shares,
    VersionObject,
    VersionPage,
    refusals_of,
)
from epigraph.server.models import After, Limit, Part, Search, why_not
from epigraph.server.serving import Serving, caller_of, record_of, serving_of
from epigraph.server.uploads import push

_REFUSALS = refusals_of(400, 401, 403, 404, 413, 429, 500, 503)
router = APIRouter(prefix="/v1/prefixes", tags=["prefixes"], responses=_REFUSALS)

_BINARY = {
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    "required": True,
}
_MAX_SCORES = 8_192

AfterNumber = Annotated[int, Query(ge=0, le=1 << 31, description="The next of the page before.")]


class Meant(BaseModel):
    """The version that an alias is to mean: a number, or what another alias means now."""

    model_config = ConfigDict(extra="forbid", strict=True)

    version: Annotated[int, Field(ge=1, le=1 << 31)] | Part


class RolledBack(BaseModel):
    """Which alias goes back by one version."""

    model_config = ConfigDict(extra="forbid", strict=True)

    alias: Part = LATEST


@router.post(
    "",
    status_code=201,
    response_model=VersionObject,
    responses=refusals_of(409, 422, 507),
    openapi_extra={"requestBody": _BINARY},
)
async def upload(
    request: Request,
    name: Part,
    tenant: Annotated[Part | None, Query(description="By default the key's own.")] = None,
    alias: Annotated[list[Part] | None, Query(max_length=16, description="By default latest.")] = None,
    x_epigraph_scores: Annotated[str | None, Header(max_length=_MAX_SCORES, description="A JSON object.")] = None,
) -> dict[str, Any]:
    """A new version from the body, an artifact's bytes. It says whether this server could serve it."""
    serving, caller = serving_of(request), caller_of(request, "push", "admin")
    owner = caller.tenant if tenant is None else tenant
    if owner != caller.tenant and "admin" not in caller.scopes:
        raise Forbidden(f"the key is of tenant {caller.tenant}, and pushes for no other; leave tenant out")
    version = await push(
        serving,
        request.stream(),
        owner,
        name,
        by=caller.key_id,
        aliases=(LATEST,) if alias is None else alias,
        scores=_scores(x_epigraph_scores),
    )
    record_of(request).prefix = version.id
    return await _shown(serving, version)


@router.get("", response_model=PrefixPage)
async def listed(
    request: Request,
    search: Search = "",
    after: After = "",
    limit: Limit = 100,
    tenant: Annotated[Part | None, Query(description="For an admin: whose list. By default the key's own.")] = None,
) -> dict[str, Any]:
    """Own prefixes and shared ones, in the order of their ids."""
    serving, caller = serving_of(request), _reader(request)
    reader = tenant or caller.tenant
    if reader != caller.tenant and "admin" not in caller.scopes:
        raise Forbidden(f"the key is of tenant {caller.tenant}, and lists for no other; leave tenant out")
    found = await serving.lookups.run(serving.registry.list, reader, search=search, after=after, limit=limit)
    data = [
        {"id": x.prefix, "tenant": x.tenant, "name": x.name, "num_versions": x.num_versions} for x in found.prefixes
    ]
    return {"data": data, "next": found.next}


@router.get("/{tenant}/{name}", response_model=VersionObject)
async def show(request: Request, tenant: Part, name: Part) -> dict[str, Any]:
    """The version that ``latest`` means, with provenance and scores."""
    return await _show(request, tenant, name, LATEST)


@router.get("/{tenant}/{name}/versions", response_model=VersionPage)
async def versions(
    request: Request, tenant: Part, name: Part, after: AfterNumber = 0, limit: Limit = 100
) -> dict[str, Any]:
    """All versions that can be used, in order."""
    serving = serving_of(request)
    await _seen(request, tenant, name)
    found = await serving.lookups.run(serving.registry.versions, tenant, name, after=after, limit=limit)
    shown = await serving.lookups.run(lambda: [_object(serving, x) for x in found])
    return {"data": shown, "next": found[-1].number if len(found) == limit else 0}


@router.get("/{tenant}/{name}/versions/{wanted}", response_model=VersionObject)
async def show_version(request: Request, tenant: Part, name: Part, wanted: Part) -> dict[str, Any]:
    """One version, by its number or an alias."""
    return await _show(request, tenant, name, wanted)


@router.put("/{tenant}/{name}/aliases/{alias}", response_model=VersionObject, responses=refusals_of(409))
async def set_alias(request: Request, tenant: Part, name: Part, alias: Part, body: Meant) -> dict[str, Any]:
    """Have an alias mean a version."""
    serving, caller = serving_of(request), await _manager(request, tenant, name)
    run = serving.lookups.run
    version = await run(serving.registry.set_alias, tenant, name, alias, body.version, by=caller.key_id)
    return await _shown(serving, version)


@router.delete("/{tenant}/{name}/aliases/{alias}", response_model=Deleted)
async def drop_alias(request: Request, tenant: Part, name: Part, alias: Part) -> dict[str, Any]:
    """Have an alias mean nothing; the version stays."""
    serving, caller = serving_of(request), await _manager(request, tenant, name)
    await serving.lookups.run(serving.registry.drop_alias, tenant, name, alias, by=caller.key_id)
    return {"deleted": 1}


@router.post("/{tenant}/{name}/rollback", response_model=VersionObject)
async def rollback(request: Request, tenant: Part, name: Part, body: RolledBack) -> dict[str, Any]:
    """Have an alias mean the version before the one that it means."""
    serving, caller = serving_of(request), await _manager(request, tenant, name)
    version = await serving.lookups.run(serving.registry.rollback, tenant, name, body.alias, by=caller.key_id)
    return await _shown(serving, version)


@router.delete("/{tenant}/{name}", response_model=Deleted)
async def delete(request: Request, tenant: Part, name: Part) -> dict[str, Any]:
    """All versions and aliases of a name; when the answer comes the bytes are gone."""
    serving, caller = serving_of(request), await _manager(request, tenant, name)
    count = await serving.pushes.run(serving.registry.delete, tenant, name, by=caller.key_id)
    return {"deleted": count}


@router.delete("/{tenant}/{name}/versions/{wanted}", response_model=Deleted)
async def delete_version(request: Request, tenant: Part, name: Part, wanted: Part) -> dict[str, Any]:
    """One version; when the answer comes its bytes are gone."""
    serving, caller = serving_of(request), await _manager(request, tenant, name)
    count = await serving.pushes.run(serving.registry.delete, tenant, name, wanted, by=caller.key_id)
    return {"deleted": count}


@router.get("/{tenant}/{name}/shares", response_model=Shares)
async def shares(request: Request, tenant: Part, name: Part) -> dict[str, Any]:
    """Who may use it beside its own tenant."""
    serving = serving_of(request)
    await _manager(request, tenant, name)
    return {"tenants": list(await serving.lookups.run(serving.registry.shares, tenant, name))}


@router.put("/{tenant}/{name}/shares/{reader}", response_model=Shares, responses=refusals_of(409))
async def share(request: Request, tenant: Part, name: Part, reader: Part) -> dict[str, Any]:
    """Let another tenant use it."""
    serving, caller = serving_of(request), await _manager(request, tenant, name)
    await serving.lookups.run(serving.registry.share, tenant, name, reader, by=caller.key_id)
    return {"tenants": list(await serving.lookups.run(serving.registry.shares, tenant, name))}


@router.delete("/{tenant}/{name}/shares/{reader}", response_model=Deleted)
async def unshare(request: Request, tenant: Part, name: Part, reader: Part) -> dict[str, Any]:
    """Let it no longer."""
    serving, caller = serving_of(request), await _manager(request, tenant, name)
    await serving.lookups.run(serving.registry.unshare, tenant, name, reader, by=caller.key_id)
    return {"deleted": 1}


@router.get("/{tenant}/{name}/audit", response_model=Audit)
async def audit(
    request: Request, tenant: Part, name: Part, after: AfterNumber = 0, limit: Limit = 100
) -> dict[str, Any]:
    """Who did what to it when, deletions included."""
    serving, caller = serving_of(request), caller_of(request, "manage", "admin")
    if not _may_manage(caller, tenant):
        raise Forbidden(f"the record of {tenant}'s prefixes is that tenant's; use a key of its")
    found = await serving.lookups.run(serving.registry.audit, tenant, name=name, after=after, limit=limit)
    return {"data": [_entry(x) for x in found], "next": found[-1].id if len(found) == limit else 0}


def _reader(request: Request) -> Caller:
    return caller_of(request, "use", "push", "manage", "admin")


def _may_manage(caller: Caller, tenant: str) -> bool:
    return "admin" in caller.scopes or (tenant == caller.tenant and "manage" in caller.scopes)


async def _seen(request: Request, tenant: str, name: str, wanted: str = "") -> Version | None:
    """What a reader sees of a foreign prefix; None where it is his own, and the registry itself says what is there."""
    serving, caller = serving_of(request), _reader(request)
    if tenant == caller.tenant or "admin" in caller.scopes:
        return None
    ref = f"{tenant}/{name}@{wanted}" if wanted else f"{tenant}/{name}"
    return await serving.lookups.run(serving.registry.resolve, caller.tenant, ref)


async def _manager(request: Request, tenant: str, name: str) -> Caller:
    """Who may change a prefix. What he cannot even see is not there; what he can see and not change is forbidden."""
    caller = caller_of(request, "manage", "admin")
    if not _may_manage(caller, tenant):
        await _seen(request, tenant, name)
        raise Forbidden(f"{tenant}/{name} is another tenant's, who alone changes it")
    return caller


async def _show(request: Request, tenant: str, name: str, wanted: str) -> dict[str, Any]:
    serving = serving_of(request)
    version = await _seen(request, tenant, name, wanted)
    if version is None:
        version = await serving.lookups.run(serving.registry.get, tenant, name, wanted)
    return await _shown(serving, version)


async def _shown(serving: Serving, version: Version) -> dict[str, Any]:
    return await serving.lookups.run(_object, serving, version)


def _object(serving: Serving, version: Version) -> dict[str, Any]:
    reason = why_not(serving, version)
    plain = {
        name: getattr(version, name)
        for name in VersionObject.model_fields
        if name not in ("version", "created", "aliases", "servable", "reason")
    }
    return {
        **plain,
        "version": version.number,
        "created": version.created.isoformat(),
        "aliases": list(version.aliases),
        "servable": reason is None,
        "reason": reason,
    }


def _entry(entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "at": entry.at.isoformat(),
        "tenant": entry.tenant,
        "name": entry.name,
        "version": entry.number,
        "action": entry.action,
        "by": entry.by,
        "detail": dict(entry.detail),
    }


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _scores(given: str | None) -> Mapping[str, Any] | None:
    if given is None:
        return None
    try:
        scores = json.loads(given, parse_constant=_refuse_constant)
        # Half a character cannot be written, and no database keeps a zero.
        written = json.dumps(scores, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        scores, written = None, b""
    if not isinstance(scores, dict) or rb"\u0000" in written:
        raise BadValue("X-Epigraph-Scores is no JSON object; send one, {SPLIT: {METRIC: VALUE}}")
    return scores
