"""generate(): what it hands to forward, how it lays out beams, and what it gives back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from facts import FAMILIES, WINDOWS, fact, ids, tiny, watch

pytestmark = pytest.mark.parametrize("family", FAMILIES)
OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "no cache": {"use_cache": False},
    "beams": {"num_beams": 3},
    "static cache": {"cache_implementation": "static"},
}
LENGTHS, NEW = (7, 4), 4


def generated(family: str, **options: Any) -> tuple[Tensor, list[dict[str, Any]]]:
    """``[B, T]`` answers to two left-padded rows, and the keyword arguments of each forward."""
    model, forwards = tiny(family), []

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert not args
        forwards.append(dict(kwargs))

    model.register_forward_pre_hook(enter, with_kwargs=True)
    mask = torch.tensor([[0] * (LENGTHS[0] - n) + [1] * n for n in LENGTHS])
    settings: dict[str, Any] = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        out = model.generate(input_ids=ids(2, LENGTHS[0]) * mask, attention_mask=mask, **{**settings, **options})
    return out, forwards


@pytest.mark.parametrize("kind", OPTIONS)
@fact(
    "generate ({kind}) calls the model once a token, by input_ids, and says where its tokens stand: by position_ids or "
    "by a two-dimensional mask",
    used_in="frozen/model.py",
    purpose="let every row start behind its own prefix",
)
def test_generate_says_where_tokens_stand(family: str, kind: str) -> None:
    _, forwards = generated(family, **OPTIONS[kind])
    assert len(forwards) == NEW
    for step, given in enumerate(forwards):
        num_rows, num_tokens = given["input_ids"].shape
        assert num_rows == 2 * OPTIONS[kind].get("num_beams", 1)
        where = given.get("position_ids")
        if where is None:
            mask = given["attention_mask"]
            assert mask.ndim == 2
            where = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -num_tokens:]
        last = torch.tensor(LENGTHS).repeat_interleave(num_rows // 2) - 1 + step
        assert torch.equal(where[:, -1].expand(num_rows), last)
        assert num_tokens == (LENGTHS[0] + step if kind == "no cache" or step == 0 else 1)


@pytest.mark.parametrize("name", ["num_beams", "num_return_sequences"])
@fact(
    "the copies of a row under {name} lie side by side",
    used_in="frozen/generate.py",
    purpose="bind copies of a row's prefix",
)
def test_copies_lie_side_by_side(family: str, name: str) -> None:
    sampling = {"do_sample": True} if name == "num_return_sequences" else {}
    out, forwards = generated(family, **{name: 3}, **sampling)
    first = forwards[0]["input_ids"]
    assert first.shape[0] == 6
    assert torch.equal(first[0::3], first[2::3])
    assert torch.equal(first[0::3], first[1::3])
    assert not torch.equal(first[0], first[3])
    if sampling:
        assert torch.equal(out[:, : LENGTHS[0]], first)


@fact(
    "generate gives each row its prompt, then the new tokens, and fills with the pad token behind an end token",
    used_in="frozen/generate.py",
    purpose="cut answers out",
)
def test_answers_follow_the_prompt(family: str) -> None:
    out, forwards = generated(family)
    prompt = forwards[0]["input_ids"]
    assert torch.equal(out[:, : LENGTHS[0]], prompt)
    assert out.shape[1] == LENGTHS[0] + NEW
    end = int(out[0, LENGTHS[0]])
    stopped, _ = generated(family, eos_token_id=[end, 2], min_new_tokens=None)
    assert int(stopped[0, LENGTHS[0]]) == end
    assert stopped[0, LENGTHS[0] + 1 :].tolist() == [0] * (stopped.shape[1] - LENGTHS[0] - 1)


@fact(
    "GenerationConfig takes the options that epigraph sets, and generate goes by it",
    used_in="frozen/generate.py",
    purpose="decode as the text contract says",
)
def test_generation_config(family: str) -> None:
    from transformers import GenerationConfig

    config = GenerationConfig(
        do_sample=False,
        num_beams=2,
        max_new_tokens=3,
        min_new_tokens=None,
        eos_token_id=None,
        pad_token_id=0,
        length_penalty=0.5,
    )
    assert config.num_beams == 2
    assert (config.num_return_sequences or 1) == 1
    with torch.no_grad():
        out = tiny(family).generate(
            input_ids=ids(1, 4), attention_mask=torch.ones(1, 4).long(), generation_config=config
        )
    assert out.shape[1] <= 7
    beam_1 = GenerationConfig(do_sample=False, max_new_tokens=3, num_beams=1)
    assert max(beam_1.num_beams, beam_1.num_return_sequences or 1) == 1


@fact(
    "generate shows a logits processor the tokens and the scores of all rows in their order, after its own processors, "
    "and takes the tokens that the answer names",
    used_in="frozen/ensemble.py and frozen/generate.py",
    purpose="give the copies of a row one distribution",
)
def test_a_logits_processor_has_the_last_word(family: str) -> None:
    from transformers import LogitsProcessor, LogitsProcessorList

    seen: list[tuple[torch.Size, Tensor]] = []

    class Named(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            seen.append((input_ids.shape, scores))
            named = torch.full_like(scores, -torch.inf)
            named[torch.arange(len(scores)), torch.arange(len(scores)) + 5] = 0.0
            return named

    out, _ = generated(family, logits_processor=LogitsProcessorList([Named()]), eos_token_id=3)
    assert out[:, LENGTHS[0] :].tolist() == [[5] * NEW, [6] * NEW]
    assert [shape for shape, _ in seen] == [(2, LENGTHS[0] + step) for step in range(NEW)]
    # min_new_tokens forbids the end token, which is one of generate's own processors.
    assert all(bool((scores[:, 3] == -torch.inf).all()) for _, scores in seen)


@fact(
    "DynamicCache(config) has a DynamicLayer for each layer of {family} without a window and another kind for the "
    "rest, and a DynamicLayer is set up by lazy_initialization(keys, values), gives back what update() returns, and "
    "tells masks and positions by get_seq_length()",
    used_in="frozen/cache.py",
    purpose="let a layer's keys begin with the virtual ones, unseen by the model's own masks",
)
def test_layers_of_a_cache(family: str) -> None:
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    model, tokens = tiny(family), ids(1, 3)
    cache = DynamicCache(config=model.config)
    windows = WINDOWS.get(family, [None, None])
    assert [type(layer) is DynamicLayer for layer in cache.layers] == [window is None for window in windows]
    begun: list[int] = []

    class Longer(DynamicLayer):
        """Begins with two columns of zeros, and does not count them."""

        def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
            begun.append(key_states.shape[2])
            super().lazy_initialization(key_states, value_states)

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            keys, values = super().update(key_states, value_states, *args, **kwargs)
            return nn.functional.pad(keys, (0, 0, 2, 0)), nn.functional.pad(values, (0, 0, 2, 0))

        def get_seq_length(self) -> int:
            return self.keys.shape[2] if self.is_initialized else 0

    cache.layers = [Longer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    calls = watch(model)
    with torch.no_grad():
        for begin, length in ((0, 2), (2, 1)):
            mask = torch.ones(1, begin + length, dtype=torch.long)
            new = tokens[:, begin : begin + length]
            model(input_ids=new, attention_mask=mask, past_key_values=cache, use_cache=True)
    assert begun == [2] * windows.count(None)
    longer = [call for call, window in zip(calls, windows * 2, strict=True) if window is None]
    assert [call.key.shape[2] for call in longer] == [4] * windows.count(None) + [5] * windows.count(None)
    for call in longer:
        assert call.mask is None or call.mask.shape[-1] == call.key.shape[2] - 2
    assert cache.get_seq_length() == 3
