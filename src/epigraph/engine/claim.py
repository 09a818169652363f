"""A request's claim to a prefix: what it names, how it travels beside the text, and the salt that goes with it.

Pure data and one keyed hash; it opens no file and knows no engine. docs/vllm.md specifies the request.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from epigraph.artifact.header import MAX_VIRTUAL_TOKENS
from epigraph.errors import BadClaim, SaltMismatch
from epigraph.names import PART, PATH

# Stands P times in front of the text where an engine wants token ids; it is never read as a token.
PLACEHOLDER = 0
# The one key that Epigraph uses of the parameters an engine hands to its connector.
KEY = "epigraph"
MAX_TENANT = 256

_SALT_BEGINS = "epigraph-1."

_Path = Annotated[str, Field(pattern=rf"^{PATH}$")]
_Part = Annotated[str, Field(pattern=rf"^({PART})?$")]
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Claim(BaseModel):
    """The prefix that a request names: whose, which, in which version, with which content.

    ``prefix`` is a prefix id, its parts joined by slashes; ``version`` and ``tenant`` may be empty. ``content_hash``
    and ``geometry`` (:func:`geometry_digest`) pin the artifact, so that a file that was replaced is not used.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    prefix: _Path
    version: _Part = ""
    tenant: Annotated[str, Field(max_length=MAX_TENANT)] = ""
    num_virtual_tokens: Annotated[int, Field(ge=1, le=MAX_VIRTUAL_TOKENS)]
    content_hash: _Digest
    geometry: _Digest

    def __hash__(self) -> int:
        # Claims are keys of every step: a string's hash is remembered, a model's is not.
        return hash(self.content_hash)

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"{self.prefix}@{self.version}" if self.version else self.prefix

    def salt(self, key: bytes) -> str:
        """The cache salt of requests with this claim: HMAC-SHA256 over all of it, so that nothing else shares blocks.

        Without ``key`` anybody can work it out; with one, only who has the key can name a prefix.
        """
        message = json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":")).encode()
        return _SALT_BEGINS + hmac.new(key, b"epigraph salt 1\n" + message, hashlib.sha256).hexdigest()

    def check_salt(self, salt: str | None, key: bytes) -> None:
        """Raise :class:`SaltMismatch` unless ``salt`` is this claim's under ``key``; neither is in the message."""
        if salt is None or not hmac.compare_digest(salt.encode(), self.salt(key).encode()):
            raise SaltMismatch(
                f"the cache salt is {'missing' if salt is None else 'another'}, expected that of prefix {self.label}"
                f"{f' of tenant {self.tenant}' if self.tenant else ''}; "
                f"make the request anew, with the EPIGRAPH_SALT_KEY of the engine"
            )


def check_id(prefix: str, version: str = "", tenant: str = "") -> None:
    """Raise :class:`BadClaim` for what is no prefix id, version or tenant: an id might be a path to somewhere else."""
    if not re.fullmatch(PATH, prefix) or not re.fullmatch(f"({PART})?", version):
        raise BadClaim(
            f"{(prefix, version)} is no prefix id and version, expected letters, digits, '.', '_' and '-', in parts "
            "joined by '/' that begin with a letter, a digit or '_'"
        )
    if len(tenant) > MAX_TENANT:
        raise BadClaim(f"the tenant's name has {len(tenant)} characters, expected at most {MAX_TENANT}")


def salt_key() -> bytes:
    """The key of salts, from the environment; empty where none is set."""
    return os.environ.get("EPIGRAPH_SALT_KEY", "").encode()


def is_salt(salt: str | None) -> bool:
    """Whether it looks like a salt that only a request with a claim has."""
    return salt is not None and salt.startswith(_SALT_BEGINS)


def to_params(claim: Claim) -> dict[str, Any]:
    """The ``kv_transfer_params`` of a request with this claim."""
    return {KEY: claim.model_dump()}


def from_params(params: Mapping[str, Any] | None, salt: str | None) -> Claim | None:
    """The claim in a request's ``kv_transfer_params``, None for a request of the bare model.

    Raises :class:`BadClaim` for parameters that are not quite a claim, and for a salt of ours without one: neither may
    pass for a request of the bare model.
    """
    if not params:
        if is_salt(salt):
            raise BadClaim("the request has a prefix's cache salt and names no prefix; send its kv_transfer_params too")
        return None
    if set(params) != {KEY}:
        raise BadClaim(f"kv_transfer_params has {', '.join(map(repr, params))}, expected {KEY!r} alone")
    try:
        return Claim.model_validate(params[KEY])
    except ValidationError as wrong:
        first = wrong.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(x) for x in (KEY, *first["loc"]))
        raise BadClaim(f"kv_transfer_params: {place}: {first['msg']}; make the request anew") from None


def check_placeholders(claim: Claim, token_ids: Sequence[int] | None) -> None:
    """Raise :class:`BadClaim` unless the text begins with a placeholder for each virtual token and goes on behind."""
    want = claim.num_virtual_tokens
    if token_ids is None:
        raise BadClaim(f"prefix {claim.label} needs a text of token ids, got embeddings; send prompt token ids")
    if len(token_ids) <= want or any(x != PLACEHOLDER for x in token_ids[:want]):
        raise BadClaim(
            f"the text does not begin with {want} placeholders ({PLACEHOLDER}) for the virtual tokens of "
            f"{claim.label} and at least one token behind them; make the request anew"
        )
