"""Batched decoding behind prefixes, by transformers' own ``generate``: the oracle that every engine is held to.

Knows how rows become a left-padded batch; the answer of a row does not depend on its neighbours (guarantee 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import Cache, GenerationConfig, LogitsProcessor, LogitsProcessorList

from epigraph.contract import Decoding
from epigraph.frozen.cache import cache_for
from epigraph.frozen.inputs import fill_token, pad
from epigraph.frozen.model import FrozenModel
from epigraph.frozen.rows import Carried
from epigraph.virtual import VirtualTokens

Advance = Callable[[int], None]


def generate(
    frozen: FrozenModel,
    prompts: Sequence[Sequence[int]],
    prefixes: Carried,
    decoding: Decoding,
    *,
    batch_size: int = 64,
    advance: Advance = lambda _: None,
    processor: LogitsProcessor | None = None,
    **options: Any,
) -> list[list[int]]:
    """The new token ids of each prompt, its end token left out, in the order given.

    ``prefixes``: one for all rows, one a row, or None for the bare model. Rows are decoded in batches of similar
    length, and neighbours of one length stay neighbours; ``advance`` is told how many are done. ``processor`` changes
    the logits of every step; ``options`` go to transformers' ``GenerationConfig`` (sampling, say).
    ``cache_implementation="dynamic"`` decodes with transformers' own cache, in front of which virtual tokens are put
    at every step: the same answers, slower. So do the other caches that it names.
    """
    prefixes = carried_rows(frozen, prefixes)
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    answers: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        rows = rows_of(prefixes, numbers)
        config = _generation_config(frozen, decoding, options)
        for number, new in zip(
            numbers, _batch(frozen, [prompts[i] for i in numbers], rows, config, processor), strict=True
        ):
            answers[number] = new
        advance(len(numbers))
    return answers


def rows_of(tokens: Carried, numbers: Sequence[int]) -> Carried:
    """What these rows carry: the same for all, or each its own."""
    return tokens if tokens is None or isinstance(tokens, VirtualTokens) else [tokens[i] for i in numbers]


def carried_rows(frozen: FrozenModel, tokens: Carried) -> Carried:
    """Soft prompts in front as keys and values, each once and not once a batch; the same one stays the same prefix."""
    with torch.no_grad():
        if tokens is None or isinstance(tokens, VirtualTokens):
            return None if tokens is None else frozen.carried(tokens)
        distinct = {id(one): frozen.carried(one) for one in tokens if one is not None}
    return [None if one is None else distinct[id(one)] for one in tokens]


def _batch(
    frozen: FrozenModel,
    prompts: Sequence[Sequence[int]],
    prefixes: Carried,
    config: GenerationConfig,
    processor: LogitsProcessor | None,
) -> list[list[int]]:
    goes_on = frozen.kind == "causal"
    ids, mask = (x.to(frozen.device) for x in pad(prompts, fill_token(frozen.tokenizer), left=goes_on))
    stops = {config.eos_token_id} if isinstance(config.eos_token_id, int) else set(config.eos_token_id or ())
    with torch.inference_mode():
        copies = max(config.num_beams, config.num_return_sequences or 1)
        processors = LogitsProcessorList([] if processor is None else [processor])
        with frozen.bind(prefixes, copies=copies, sources=[len(prompt) for prompt in prompts]):
            out = frozen.model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=config,
                logits_processor=processors,
                **_cache(frozen, config, ids.shape[1]),
            )
    start = ids.shape[1] if goes_on else len(frozen.decoder_start)
    return [until_end(row, stops) for row in out[:, start:].tolist()]


def _cache(frozen: FrozenModel, config: GenerationConfig, num_tokens: int) -> dict[str, Cache]:
    """One that begins with the virtual tokens, unless another is asked for, or none, or it would not fit."""
    asked = config.use_cache is not False and config.cache_implementation is None
    # T5 counts its columns of keys to know distances, and would count virtual ones.
    if not asked or frozen.geometry.position_kind == "relative":
        return {}
    before = num_tokens if frozen.kind == "causal" else len(frozen.decoder_start)
    return {"past_key_values": cache_for(frozen.model.config, before + (config.max_new_tokens or 0))}


def _generation_config(frozen: FrozenModel, decoding: Decoding, options: dict[str, Any]) -> GenerationConfig:
    eos = frozen.tokenizer.eos_token_id
    settings: dict[str, Any] = {
        "do_sample": False,
        "num_beams": decoding.num_beams,
        "max_new_tokens": decoding.max_new_tokens,
        "min_new_tokens": decoding.min_new_tokens or None,
        "eos_token_id": eos,
        "pad_token_id": fill_token(frozen.tokenizer),
    }
    if frozen.kind == "encoder-decoder":
        settings["decoder_start_token_id"], *forced = frozen.decoder_start
        settings |= {"forced_bos_token_id": forced[0], "max_new_tokens": decoding.max_new_tokens + 1} if forced else {}
    if decoding.num_beams > 1:
        settings["length_penalty"] = decoding.length_penalty
    return GenerationConfig(**{**settings, **options})


def until_end(ids: list[int], stops: set[int]) -> list[int]:
    """New ids up to the first of ``stops``, which is left out."""
    end = next((i for i, token in enumerate(ids) if token in stops), len(ids))
    return ids[:end]
