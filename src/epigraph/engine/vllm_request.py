"""What stock vLLM is told: the configuration under which it serves prefixes, and one request to its server as JSON.

Plain values; nothing of vLLM is imported, so that a client needs none. docs/vllm.md shows both.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from epigraph.contract import Decoding
from epigraph.engine import claim as claims
from epigraph.engine.base import GREEDY, Sampling
from epigraph.engine.claim import PLACEHOLDER, Claim
from epigraph.errors import BadValue, CannotServe

DEFAULT_CACHE_BYTES = 1 << 30
DEFAULT_RECHECK_SECONDS = 1.0


def transfer_config(
    prefixes: str | os.PathLike[str],
    *,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
    recheck_seconds: float = DEFAULT_RECHECK_SECONDS,
    allow_base: str | None = None,
) -> dict[str, Any]:
    """The value of vLLM's ``--kv-transfer-config``.

    ``prefixes`` is the folder or fsspec address that artifacts are served from, ``cache_bytes`` how much of them a
    worker holds, ``recheck_seconds`` how old the last look at an artifact's file may be when it is used, ``allow_base``
    the fingerprint of a base with other weights to admit.
    """
    if cache_bytes < 1:
        raise BadValue(f"cache_bytes is {cache_bytes}, expected 1 or more")
    if not 0 <= recheck_seconds < float("inf"):
        raise BadValue(f"recheck_seconds is {recheck_seconds}, expected 0 or more")
    return {
        "kv_connector": "PrefixConnector",
        "kv_connector_module_path": "epigraph.engine.vllm_connector",
        "kv_role": "kv_consumer",
        # A prefix that could not be had ends its request; the other policy would answer without it.
        "kv_load_failure_policy": "fail",
        "kv_connector_extra_config": {
            "prefixes": os.fspath(prefixes),
            "cache_bytes": cache_bytes,
            "recheck_seconds": recheck_seconds,
            "allow_base": allow_base,
        },
    }


def read_options(config: Any) -> dict[str, Any]:
    """What :func:`transfer_config` put beside the connector, from vLLM's own configuration of it.

    Raises :class:`CannotServe` for one that somebody wrote otherwise.
    """
    given = dict(config.kv_connector_extra_config)
    known = {
        "prefixes": None,
        "cache_bytes": DEFAULT_CACHE_BYTES,
        "recheck_seconds": DEFAULT_RECHECK_SECONDS,
        "allow_base": None,
    }
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise CannotServe(f"kv_connector_extra_config has {unknown[0]!r}, expected {', '.join(known)}")
    if not given.get("prefixes"):
        raise CannotServe("kv_connector_extra_config has no prefixes: give the folder or fsspec address of artifacts")
    if config.kv_load_failure_policy != "fail":
        raise CannotServe(
            f"kv_load_failure_policy is {config.kv_load_failure_policy!r}, expected 'fail': a prefix that could not be "
            "loaded would be answered without it"
        )
    for name in ("cache_bytes", "recheck_seconds"):
        value = given.get(name)
        if value is not None and (type(value) not in (int, float) or not 0 <= value < float("inf")):
            raise CannotServe(f"{name} is {value!r}, expected a number of 0 or more")
    return known | {name: value for name, value in given.items() if value is not None}


def prompt_of(claim: Claim, token_ids: Sequence[int]) -> list[int]:
    """The ids of a text with a placeholder in front for each virtual token of ``claim``."""
    return [PLACEHOLDER] * claim.num_virtual_tokens + list(token_ids)


def completion_body(
    claim: Claim,
    token_ids: Sequence[int],
    decoding: Decoding,
    key: bytes,
    *,
    stop: Sequence[str] = (),
    end_token: int | None = None,
    sampling: Sampling = GREEDY,
) -> dict[str, Any]:
    """The body of a POST to ``/v1/completions`` of ``vllm serve``: this text behind this prefix.

    ``token_ids`` are the text's own, ``key`` is that of salts. ``stop`` texts and the ``end_token`` are those of the
    contract and the tokenizer: nothing else ends the answer before its length. Raises :class:`BadValue` for beams.
    """
    if decoding.num_beams > 1:
        raise BadValue(f"decoding has {decoding.num_beams} beams, expected 1, which is all that a request can ask for")
    return {
        "prompt": prompt_of(claim, token_ids),
        "cache_salt": claim.salt(key),
        "kv_transfer_params": claims.to_params(claim),
        "max_tokens": decoding.max_new_tokens,
        "min_tokens": min(decoding.min_new_tokens, decoding.max_new_tokens),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        **({} if sampling.seed is None else {"seed": sampling.seed}),
        # Where a request is silent the server takes what the checkpoint's authors advise (generation_config.json).
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "stop": list(stop),
        # The contract's end token alone: a model's own settings may name others.
        "ignore_eos": True,
        "stop_token_ids": [] if end_token is None else [end_token],
    }
