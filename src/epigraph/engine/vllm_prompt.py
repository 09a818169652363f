"""A request as vLLM takes it: ids behind placeholders, or ids with embeddings at slots; its salt; how it decodes.

Plain values; nothing of vLLM is imported. Legend: S all tokens of a prompt, P virtual tokens, E width of embeddings.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from epigraph.contract import Decoding
from epigraph.engine.base import Request
from epigraph.engine.claim import PLACEHOLDER, Claim, to_params
from epigraph.engine.vllm_request import prompt_of
from epigraph.errors import BadValue, CannotServe, GeometryMismatch, TextTooLong
from epigraph.frozen.inputs import FIRST_SLOT
from epigraph.virtual import SoftPrompt


@dataclass(frozen=True, kw_only=True, slots=True)
class Width:
    """What embeddings must be for the engine's model: ``embedding_dim`` wide, and finite in ``dtype``.

    ``layers_read_ids``: they would not be all of a token.
    """

    embedding_dim: int
    dtype: torch.dtype
    layers_read_ids: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """``value`` is what vLLM makes its input of, from embeddings too where it has ``prompt_embeds``; ``params`` go
    beside it as ``kv_transfer_params``."""

    value: dict[str, Any]
    num_tokens: int
    params: dict[str, Any] | None = None


def behind(claim: Claim, ids: Sequence[int], key: bytes) -> Prompt:
    """The text ``ids`` behind the keys and values of ``claim``."""
    value = {"prompt_token_ids": prompt_of(claim, ids), "cache_salt": claim.salt(key)}
    return Prompt(value=value, num_tokens=len(value["prompt_token_ids"]), params=to_params(claim))


def alone(ids: Sequence[int], tenant: str, key: bytes) -> Prompt:
    """The text ``ids`` for the bare model; a tenant's shares nothing with others'."""
    value: dict[str, Any] = {"prompt_token_ids": list(ids)}
    if tenant:
        value["cache_salt"] = _salt(key, ["bare", tenant])
    return Prompt(value=value, num_tokens=len(ids))


def around(claim: Claim, prompt: SoftPrompt, ids: Sequence[int], width: Width, key: bytes) -> Prompt:
    """The text ``ids`` with the virtual tokens of ``prompt`` at its slots: ids where it has words, else embeddings.

    Raises :class:`GeometryMismatch` where they are not the slots' or not the model's, and :class:`CannotServe`. Both
    must be found here: what does not fit would end the engine and not the request.
    """
    numbers = [x - FIRST_SLOT for x in ids if x >= FIRST_SLOT]
    if sorted(numbers) != list(range(prompt.num_virtual_tokens)):
        raise GeometryMismatch(
            f"the text has {len(numbers)} slots for the {prompt.num_virtual_tokens} virtual tokens of {claim.label}; "
            "ask with the template that they were trained with"
        )
    rows_PE = _fitting(claim, prompt, width)
    at = torch.tensor([x >= FIRST_SLOT for x in ids])
    embeddings_SE = torch.zeros(len(ids), width.embedding_dim, dtype=width.dtype)
    embeddings_SE[at] = rows_PE[numbers]
    value = {
        "prompt_embeds": embeddings_SE,
        # vLLM looks the words up itself, with the scale that its model has.
        "prompt_token_ids": [PLACEHOLDER if x >= FIRST_SLOT else x for x in ids],
        "is_token_ids": (~at).tolist(),
        "cache_salt": _salt(key, ["placed", claim.model_dump()]),
    }
    return Prompt(value=value, num_tokens=len(ids))


def _fitting(claim: Claim, prompt: SoftPrompt, width: Width) -> torch.Tensor:
    if width.layers_read_ids:
        raise CannotServe(
            f"the virtual tokens of {claim.label} are embeddings, and the model gives its layers embeddings of token "
            "ids, which they have none of; use method prefix-tuning"
        )
    got = prompt.embeddings_PE.shape[1]
    if got != width.embedding_dim:
        raise GeometryMismatch(
            f"the virtual tokens of {claim.label} are {got} wide, the engine takes embeddings of "
            f"{width.embedding_dim}; use the model that they were trained for, or the local engine"
        )
    rows_PE = prompt.embeddings_PE.to(width.dtype)
    if not rows_PE.isfinite().all():
        raise CannotServe(
            f"the virtual tokens of {claim.label} have numbers beyond the largest of "
            f"{str(width.dtype).removeprefix('torch.')}; start the engine with dtype bfloat16 or float32"
        )
    return rows_PE


def settings(decoding: Decoding, request: Request, end_token: int | None, prompt: Prompt) -> dict[str, Any]:
    """The arguments of vLLM's ``SamplingParams``. Stop texts are not among them: the front end knows them exactly."""
    sampling = request.sampling
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logprobs": request.logprobs,
        "seed": sampling.seed,
        "max_tokens": decoding.max_new_tokens,
        "min_tokens": min(decoding.min_new_tokens, decoding.max_new_tokens),
        # The contract's end token alone: a model's own settings may name others, at which the local path goes on.
        "ignore_eos": True,
        "stop_token_ids": [] if end_token is None else [end_token],
        "detokenize": False,
        "extra_args": None if prompt.params is None else {"kv_transfer_params": prompt.params},
    }


def check_room(prompt: Prompt, decoding: Decoding, limit: int) -> None:
    """Raise :class:`TextTooLong` where the answer would be cut off by the engine and not by its own length."""
    total = prompt.num_tokens + decoding.max_new_tokens
    if total > limit:
        raise TextTooLong(
            f"the prompt has {prompt.num_tokens} tokens, virtual ones included, and the answer up to "
            f"{decoding.max_new_tokens}: {total} of {limit} that the engine has room for; shorten the text, ask for "
            "fewer new tokens, or start the engine with a larger max_model_len"
        )


def refuse_nothing(ids: Sequence[int]) -> None:
    """Raise :class:`BadValue` for a text without tokens."""
    if not ids:
        raise BadValue("the text has no tokens, so there is nothing to answer; give words")


def _salt(key: bytes, what: list[Any]) -> str:
    message = json.dumps(what, sort_keys=True, separators=(",", ":")).encode()
    return "epigraph-own-1." + hmac.new(key, b"epigraph own salt 1\n" + message, hashlib.sha256).hexdigest()
