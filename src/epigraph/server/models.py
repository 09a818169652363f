"""GET /v1/models: the base, and the prefixes that the caller may use, under the names that requests give as ``model``.

It lists what the registry says; it knows no engine beyond its base.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import StringConstraints

from epigraph.errors import UserError
from epigraph.names import PART
from epigraph.registry import Listed, Version
from epigraph.server.documented import ModelObject, ModelPage, refusals_of
from epigraph.server.serving import Serving, caller_of, serving_of

router = APIRouter(prefix="/v1", tags=["models"])

Part = Annotated[str, StringConstraints(pattern=rf"^{PART}$")]
After = Annotated[str, Query(pattern=rf"^({PART}/{PART})?$", description="The next of the page before.")]
Limit = Annotated[int, Query(ge=1, le=1_000)]
Search = Annotated[str, Query(pattern=r"^[A-Za-z0-9._-]{0,128}$", description="A part of the name.")]

_REFUSALS = refusals_of(400, 401, 403, 500, 503)


@router.get("/models", response_model=ModelPage, responses=_REFUSALS)
async def models(request: Request, search: Search = "", after: After = "", limit: Limit = 100) -> dict[str, Any]:
    """The base on the first page, then prefixes in the order of their ids."""
    serving, caller = serving_of(request), caller_of(request, "use", "push", "manage", "admin")
    found = await serving.lookups.run(serving.registry.list, caller.tenant, search=search, after=after, limit=limit)
    base = [] if after or search not in serving.base.name else [_base(serving)]
    data = [*base, *(_listed(x) for x in found.prefixes)]
    return {"object": "list", "data": data, "has_more": bool(found.next), "next": found.next}


@router.get("/models/{model:path}", response_model=ModelObject, responses={**_REFUSALS, **refusals_of(404, 422)})
async def model(request: Request, model: str) -> dict[str, Any]:
    """One of them: the base, or a prefix in the version that the name means now."""
    serving, caller = serving_of(request), caller_of(request, "use", "push", "manage", "admin")
    if model == serving.base.name:
        return _base(serving)
    version = await serving.lookups.run(serving.registry.resolve, caller.tenant, model)
    reason = await serving.lookups.run(why_not, serving, version)
    return {
        **_object(model, int(version.created.timestamp()), version.tenant),
        "version": version.number,
        "aliases": list(version.aliases),
        "base": version.base_name,
        "method": version.method,
        "num_virtual_tokens": version.num_virtual_tokens,
        "is_chat": version.is_chat,
        "servable": reason is None,
        "reason": reason,
    }


def why_not(serving: Serving, version: Version) -> str | None:
    """Why this server's engine cannot serve a version, None where it can."""
    try:
        serving.chooser.check_base(version)
    except UserError as wrong:
        return str(wrong)
    return None


def _base(serving: Serving) -> dict[str, Any]:
    base = serving.base
    return {**_object(base.name, 0, "base"), "fingerprint": base.fingerprint}


def _listed(found: Listed) -> dict[str, Any]:
    # When it was made is a version's, and a list asks for none.
    return {**_object(found.prefix, 0, found.tenant), "num_versions": found.num_versions}


def _object(name: str, created: int, owner: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": owner}
