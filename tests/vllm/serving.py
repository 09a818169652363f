"""Stock vLLM with the connector, for tests: engines, requests that name prefixes, what transformers says to them."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor

from epigraph.engine.claim import PLACEHOLDER, Claim, salt_key, to_params
from epigraph.engine.shelf import Shelf
from epigraph.engine.vllm_request import transfer_config
from epigraph.frozen.inputs import pad
from epigraph.frozen.model import FrozenModel
from epigraph.virtual import VirtualTokens
from vllm import LLM, SamplingParams

BLOCK = 32
# Two logits closer than this are a tie, which either side may break.
TIE = 1e-3
AT_A_TIME = 32


@dataclass(kw_only=True)
class Served:
    """A running engine, the shelf it serves and the model as transformers runs it."""

    llm: LLM
    shelf: Shelf
    frozen: FrozenModel
    known: dict[str, VirtualTokens] = field(default_factory=dict)

    def tokens(self, name: str | None) -> VirtualTokens | None:
        """The prefix of that id, read once."""
        if name is None:
            return None
        if name not in self.known:
            self.known[name] = self.shelf.open(name).artifact.tokens
        return self.known[name]

    def ask(
        self,
        names: Sequence[str | None],
        texts: Sequence[Sequence[int]],
        num_new: int,
        *,
        changes: Mapping[int, Mapping[str, Any]] | None = None,
    ) -> list[tuple[list[int], str | None]]:
        """The new ids of each request and why it ended; ``changes`` are keys of the n-th request that differ."""
        asked = [request(self.shelf, name, ids, num_new) for name, ids in zip(names, texts, strict=True)]
        for number, change in (changes or {}).items():
            asked[number] = changed(*asked[number], change)
        found = self.llm.generate([x for x, _ in asked], [x for _, x in asked], use_tqdm=False)
        return [(list(one.outputs[0].token_ids), one.outputs[0].finish_reason) for one in found]

    def count(self, metric: str) -> float:
        """One of vLLM's own counters."""
        return sum(x.value for x in self.llm.get_metrics() if x.name == metric)


def request(
    shelf: Shelf, name: str | None, ids: Sequence[int], num_new: int, tenant: str = ""
) -> tuple[dict[str, Any], SamplingParams]:
    """What vLLM is asked: a text behind a prefix, or alone."""
    claim = None if name is None else shelf.claim(name, tenant=tenant)
    return claimed(claim, ids, num_new)


def claimed(claim: Claim | None, ids: Sequence[int], num_new: int) -> tuple[dict[str, Any], SamplingParams]:
    options: dict[str, Any] = {"temperature": 0, "max_tokens": num_new, "ignore_eos": True}
    if claim is None:
        return {"prompt_token_ids": list(ids)}, SamplingParams(**options)
    text = {
        "prompt_token_ids": [PLACEHOLDER] * claim.num_virtual_tokens + list(ids),
        "cache_salt": claim.salt(salt_key()),
    }
    return text, SamplingParams(**options, extra_args={"kv_transfer_params": to_params(claim)})


def changed(
    text: dict[str, Any], params: SamplingParams, change: Mapping[str, Any]
) -> tuple[dict[str, Any], SamplingParams]:
    """A request with other text keys, sampling options, or, under ``claim``, other fields of its claim."""
    text = text | {key: value for key, value in change.items() if key in ("prompt_token_ids", "cache_salt")}
    if "drop_salt" in change:
        text.pop("cache_salt", None)
    if "params" in change:
        params.extra_args = {"kv_transfer_params": change["params"]} if change["params"] is not None else None
    if "claim" in change:
        assert params.extra_args is not None
        fields = params.extra_args["kv_transfer_params"]["epigraph"] | change["claim"]
        params.extra_args = {"kv_transfer_params": {"epigraph": fields}}
    if "prompt_logprobs" in change:
        params.prompt_logprobs = change["prompt_logprobs"]
        params.skip_reading_prefix_cache = True
    return text, params


@contextmanager
def serving(
    model: Path, shelf: Path, frozen: FrozenModel, *, log: Path | None = None, **options: Any
) -> Iterator[Served]:
    """An engine over ``shelf``; it is gone afterwards. What its processes print goes into ``log``."""
    config = transfer_config(str(shelf), **options.pop("connector", {}))
    given: dict[str, Any] = {
        "dtype": "float32",
        "max_model_len": 512,
        "max_num_seqs": 64,
        "enforce_eager": True,
        "block_size": BLOCK,
        "disable_log_stats": False,
        "seed": 0,
    }
    with _written_to(log):
        llm = LLM(str(model), kv_transfer_config=config, **(given | options))
    try:
        yield Served(llm=llm, shelf=Shelf(shelf), frozen=frozen)
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()


@contextmanager
def _written_to(log: Path | None) -> Iterator[None]:
    """Processes that are started inside print into a file: pytest captures what is printed within one test alone."""
    if log is None:
        yield
        return
    kept = [os.dup(1), os.dup(2)]
    with log.open("ab") as file:
        try:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            yield
        finally:
            for number, old in enumerate(kept, 1):
                os.dup2(old, number)
                os.close(old)


def differences(
    served: Served, names: Sequence[str | None], texts: Sequence[Sequence[int]], got: Sequence[Sequence[int]]
) -> tuple[list[int], int]:
    """The requests whose answers are not transformers' own, and how many fell otherwise at a tie.

    Each answer is read once by the model behind its prefix: every token must be its likeliest there, or as likely but
    for a tie. (Guarantee 7, by the rule of guarantee 3.)
    """
    wrong, num_ties = [], 0
    # Texts of similar length together: nothing is computed for padding.
    order = sorted(range(len(names)), key=lambda i: len(texts[i]))
    for start in range(0, len(names), AT_A_TIME):
        some = order[start : start + AT_A_TIME]
        tokens = [served.tokens(names[i]) for i in some]
        logits_BTV = _logits(served.frozen, tokens, [texts[i] for i in some], [got[i] for i in some])
        for number, logits_TV in zip(some, logits_BTV, strict=True):
            said_T = logits_TV.gather(1, torch.tensor(list(got[number]))[:, None])[:, 0]
            gaps_T = logits_TV.max(-1).values - said_T
            num_ties += int(((gaps_T > 0) & (gaps_T < TIE)).sum())
            if bool((gaps_T >= TIE).any()):
                wrong.append(number)
    return sorted(wrong), num_ties


def _logits(
    frozen: FrozenModel,
    tokens: Sequence[VirtualTokens | None],
    texts: Sequence[Sequence[int]],
    new: Sequence[Sequence[int]],
) -> list[Tensor]:
    """``[new, V]`` for each row: what says each new token."""
    ids_BT, mask_BT = pad([[*ids, *more] for ids, more in zip(texts, new, strict=True)], 0, left=False)
    with torch.no_grad(), frozen.bind(tokens):
        logits_BTV: Tensor = frozen.model(input_ids=ids_BT, attention_mask=mask_BT).logits
    rows = zip(logits_BTV, texts, new, strict=True)
    return [logits_TV[len(ids) - 1 : len(ids) + len(more) - 1] for logits_TV, ids, more in rows]
