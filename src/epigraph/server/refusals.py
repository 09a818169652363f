"""Errors as a client sees them: one table from the error tree to HTTP statuses, and OpenAI's shape of a body.

It knows no request. docs/serving.md lists the statuses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from epigraph import errors
from epigraph.errors import QuotaExceeded, UserError

UNEXPECTED = 500


class NotNow(errors.EngineUnavailable):
    """This server takes no more for now, and says why in its own words."""


# What can only happen where something is trained or fetched: from a server it is our mistake.
_NEVER_HERE = (
    errors.ModelNotFound,
    errors.UnsupportedModel,
    errors.FetchFailed,
    errors.ChecksumMismatch,
    errors.TaskNotFound,
    errors.DataNotFound,
    errors.RecordsNotFound,
    errors.BadRows,
    errors.UnknownFormat,
    errors.TooFewExamples,
    errors.CountMismatch,
    errors.MetricUnavailable,
    errors.AlreadyBound,
    errors.BatchMismatch,
    errors.LostBinding,
    errors.ReentrantCheckpointing,
    errors.OutputExists,
    errors.TrainingFailed,
    errors.NothingToResume,
    errors.ResumeMismatch,
    errors.RunInUse,
    errors.ProcessLost,
    errors.Interrupted,
    errors.CatalogueTooNew,
)
_BY_STATUS: Mapping[int, tuple[type[UserError], ...]] = {
    400: (errors.UnknownKey, errors.BadValue, errors.BadName, errors.BadClaim, errors.SaltMismatch, errors.TextTooLong),
    401: (errors.BadKey,),
    403: (errors.Forbidden,),
    404: (errors.PrefixNotFound, errors.TenantNotFound),
    409: (errors.AlreadyThere,),
    413: (errors.RequestTooLarge, errors.TooLarge),
    422: (
        errors.ContractMismatch,
        errors.GeometryMismatch,
        errors.SharedLayers,
        errors.CannotLower,
        errors.CannotServe,
        errors.NotAnArtifact,
        errors.Truncated,
        errors.BadHeader,
        errors.UnknownVersion,
        errors.BadTensor,
        errors.ContentMismatch,
        errors.WrongBase,
        errors.WrongTokenizer,
    ),
    429: (errors.QuotaExceeded,),
    500: (errors.RequestFailed, *_NEVER_HERE),
    503: (errors.EngineUnavailable, errors.CatalogueUnavailable, errors.StoreUnavailable),
    507: (errors.CannotWrite,),
}
STATUSES: Mapping[type[UserError], int] = {leaf: status for status, all_of in _BY_STATUS.items() for leaf in all_of}

# Their own words may tell of addresses and machines, which are no client's affair; the log has them.
_IN_OTHER_WORDS: Mapping[type[UserError], str] = {
    errors.RequestFailed: "the engine gave up on the request; ask again",
    errors.EngineUnavailable: "the engine does not answer; ask again in a moment",
    errors.CatalogueUnavailable: "the catalogue of prefixes does not answer; ask again in a moment",
    errors.StoreUnavailable: "the store of prefixes does not answer; ask again in a moment",
    errors.CannotWrite: "the server has no room for it; ask again later",
}
_RETRY_SECONDS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """What is sent in an answer's place. ``is_ours``: its cause belongs into the log."""

    status: int
    message: str
    code: str
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    is_ours: bool = False

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's shape."""
        told = {"message": self.message, "type": type_of(self.status), "code": self.code, "param": self.param}
        return {"error": told}


def refusal_of(error: BaseException, request_id: str, param: str | None = None) -> Refusal:
    """How ``error`` is told to a client: a :class:`UserError` in its words, anything else by the request's id alone."""
    kind = next((x for x in type(error).__mro__ if x in STATUSES), None)
    if kind is None or kind in _NEVER_HERE:
        return unexpected(request_id)
    status = STATUSES[kind]
    return Refusal(
        status=status,
        message=str(error) if isinstance(error, NotNow) else _IN_OTHER_WORDS.get(kind, str(error)),
        code=kind.__name__,
        param=param,
        headers=dict(_headers(error, status)),
        is_ours=status >= UNEXPECTED and not isinstance(error, NotNow),
    )


def unexpected(request_id: str) -> Refusal:
    """Our mistake: the log has the cause under the request's id."""
    message = f"something went wrong in the server; its log has the reason under request {request_id}"
    return Refusal(status=UNEXPECTED, message=message, code="InternalError", is_ours=True)


def type_of(status: int) -> str:
    """OpenAI's word for a kind of errors."""
    named = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
    return named.get(status, "server_error" if status >= UNEXPECTED else "invalid_request_error")


def _headers(error: BaseException, status: int) -> Iterator[tuple[str, str]]:
    if isinstance(error, QuotaExceeded):
        yield "Retry-After", str(max(1, math.ceil(error.retry_after)))
    if status == 503:
        yield "Retry-After", str(_RETRY_SECONDS)
    if status == 401:
        yield "WWW-Authenticate", "Bearer"
    if status == 413:
        # What is left of the body is not read.
        yield "Connection", "close"
