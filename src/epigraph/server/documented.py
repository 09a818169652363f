"""What the routes answer with, as OpenAPI tells it. Pure data; the answers themselves are made elsewhere, and tests
hold them to this."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Told(BaseModel):
    """What went wrong: ``code`` is the name of an error in docs/errors.md, ``param`` the field it is about."""

    message: str
    type: str
    code: str
    param: str | None


class Refused(BaseModel):
    """Every answer that is no success."""

    error: Told


_WORDS = {
    400: "The request is wrong: a field, a name, a text that is too long for the model.",
    401: "No API key, or none that is good.",
    403: "The key is not for this.",
    404: "No such prefix, tenant or key, or none that the key's tenant may use.",
    409: "There is one of that name already.",
    413: "Over one of the server's limits.",
    422: "Understood, and it does not go together: another base, a broken file, what the engine cannot serve.",
    429: "Over the tenant's quota; Retry-After says when to ask again.",
    500: "Our mistake; the log has the reason under the request's id.",
    503: "Not now: too many wait, the server is shutting down, or its database is away.",
    507: "No room for the upload.",
}


def refusals_of(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """These statuses, all with the same body."""
    return {status: {"model": Refused, "description": _WORDS[status]} for status in statuses}


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class Usage(_Open):
    """Tokens; ``prompt_tokens_details.virtual_tokens`` are among ``prompt_tokens``."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]


class CompletionChoice(_Open):
    """One answer."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: str | None


class CompletionAnswer(_Open):
    """As OpenAI has it."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage


class ChatMessage(_Open):
    """The answer's turn."""

    role: str
    content: str
    refusal: str | None


class ChatChoice(_Open):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: dict[str, Any] | None
    finish_reason: str | None


class ChatAnswer(_Open):
    """As OpenAI has it."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


COMPLETION_ANSWER, CHAT_ANSWER = CompletionAnswer, ChatAnswer


def answers_of(model: type[BaseModel]) -> dict[str, Any]:
    """A whole answer, or with ``stream`` its server-sent events."""
    events = {"schema": {"type": "string", "description": "Events with a JSON object each, then data: [DONE]"}}
    return {"model": model, "description": "The answer.", "content": {"text/event-stream": events}}


class ModelObject(_Open):
    """A prefix, or the base."""

    id: str
    object: str
    created: int
    owned_by: str


class ModelPage(BaseModel):
    """The base and what the caller may use. ``next`` is what to give as ``after``, empty at the end."""

    object: str
    data: list[ModelObject]
    has_more: bool
    next: str


class VersionObject(BaseModel):
    """One version of a prefix. ``servable`` says whether this server's engine runs its base, ``reason`` why not."""

    id: str
    tenant: str
    name: str
    version: int
    content_hash: str
    base_name: str
    base_fingerprint: str
    tokenizer_fingerprint: str
    geometry: str
    num_virtual_tokens: int
    num_bytes: int
    method: str
    kind: str
    is_chat: bool
    created: str
    created_by: str
    aliases: list[str]
    provenance: dict[str, Any]
    scores: dict[str, Any]
    servable: bool
    reason: str | None


class VersionPage(BaseModel):
    """Versions, the newest last. ``next`` is what to give as ``after``, 0 at the end."""

    data: list[VersionObject]
    next: int


class PrefixObject(BaseModel):
    """A prefix in a list."""

    id: str
    tenant: str
    name: str
    num_versions: int


class PrefixPage(BaseModel):
    """``next`` is what to give as ``after``, empty at the end."""

    data: list[PrefixObject]
    next: str


class Deleted(BaseModel):
    """How many versions, shares or keys are gone."""

    deleted: int


class Shares(BaseModel):
    """The tenants that may use a prefix beside its own."""

    tenants: list[str]


class AuditEntry(BaseModel):
    """Who did what when."""

    id: int
    at: str
    tenant: str
    name: str
    version: int | None
    action: str
    by: str
    detail: dict[str, Any]


class Audit(BaseModel):
    """``next`` is what to give as ``after``, 0 at the end."""

    data: list[AuditEntry]
    next: int


class TenantObject(BaseModel):
    """A tenant, what it may have and has."""

    name: str
    quotas: dict[str, int | None]
    num_prefixes: int
    num_bytes: int
    created: str


class TenantPage(BaseModel):
    """``next`` is what to give as ``after``, empty at the end."""

    data: list[TenantObject]
    next: str


class KeyObject(BaseModel):
    """A key without its secret. ``expires`` and ``revoked`` are times, or null."""

    id: str
    tenant: str
    scopes: list[str]
    created: str
    expires: str | None
    revoked: str | None
    note: str


class NewKey(KeyObject):
    """A key with its secret, which is said this once."""

    secret: str


class Keys(BaseModel):
    """All of a tenant's."""

    data: list[KeyObject]


class Health(BaseModel):
    """What the server can do now; ``reason`` is null where all is well."""

    status: str
    reason: str | None
