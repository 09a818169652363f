"""How a model calls its attention: through the registry, with what, and what attention makes of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from facts import ATTENTIONS, FAMILIES, SMALL, WIDE, WINDOWS, attended, fact, ids, inner, plain, tiny, version, watch

pytestmark = pytest.mark.parametrize("family", FAMILIES)
SEAM = "frozen/attention.py"


@pytest.mark.parametrize("attention", ATTENTIONS)
@fact(
    "every attention module of {family} calls the function registered under the name that was set, once a forward",
    used_in=SEAM,
    purpose="put virtual keys in",
)
def test_registered_function_is_called(family: str, attention: str) -> None:
    calls = attended(tiny(family, attention), attention, input_ids=ids(1, 5))
    assert len({call.module for call in calls}) == len(calls) == 2


@fact(
    "{family} hands unknown keyword arguments of its forward down to attention",
    used_in=f"{SEAM} and frozen/model.py",
    purpose="carry a forward's prefixes to its layers",
)
def test_keyword_arguments_travel_down(family: str) -> None:
    token = object()
    calls = attended(tiny(family), input_ids=ids(1, 5), epigraph_run=token)
    assert [call.options.get("epigraph_run") for call in calls] == [token, token]


@fact(
    "{family} gives attention its query as [B, N, T, H], keys and values as [B, K, C, H] with K key-value heads",
    used_in=f"{SEAM} and frozen/geometry.py",
    purpose="measure the geometry and join virtual keys of K heads",
)
def test_shapes(family: str) -> None:
    heads, width = (4, 8) if family == "gpt2" else (2, 16)
    for call in attended(tiny(family), input_ids=ids(3, 5)):
        assert call.query.shape == (3, 4, 5, width)
        assert call.key.shape == call.value.shape == (3, heads, 5, width)


@fact(
    "{family} rotates keys before attention, by position_ids where they are given",
    used_in="frozen/model.py",
    purpose="let text start behind its prefix, and read a text's keys as virtual ones",
)
def test_keys_stand_at_their_positions(family: str) -> None:
    tokens, later = ids(1, 6), torch.arange(7, 13)[None]
    moved = attended(tiny(family), input_ids=tokens, position_ids=later)[0].key
    whole = attended(tiny(family), input_ids=torch.cat([ids(1, 7, seed=1), tokens], dim=1))[0].key
    assert torch.allclose(moved, whole[:, :, 7:], atol=1e-5)
    assert not torch.allclose(moved, attended(tiny(family), input_ids=tokens)[0].key, atol=1e-3)


@fact(
    "{family} puts what its cache holds before the new keys, and then calls attention",
    used_in=SEAM,
    purpose="put virtual keys before cached ones",
)
def test_cached_keys_come_first(family: str) -> None:
    model, tokens = tiny(family), ids(1, 4)
    calls = watch(model)
    with torch.no_grad():
        first = model(input_ids=tokens[:, :3], use_cache=True)
        model(input_ids=tokens[:, 3:], past_key_values=first.past_key_values, use_cache=True)
    for before, after in zip(calls[:2], calls[2:], strict=True):
        assert after.key.shape[2] == 4
        assert torch.equal(after.key[:, :, :3], before.key)


@fact(
    "{family} tells attention a layer's window as sliding_window, and nothing or None where there is none",
    used_in=f"{SEAM} and frozen/geometry.py",
    purpose="find each layer's window",
)
def test_windows_are_told(family: str) -> None:
    calls = attended(tiny(family), input_ids=ids(1, 5))
    assert [call.options.get("sliding_window") for call in calls] == WINDOWS.get(family, [None, None])


@pytest.mark.parametrize("attention", ATTENTIONS)
@fact(
    "{attention} attention of {family} takes more columns than the text has, with a mask over them, and is plain "
    "softmax over the columns that the mask shows",
    used_in=SEAM,
    purpose="put virtual keys in front and widen the mask",
)
def test_attention_takes_more_columns(family: str, attention: str) -> None:
    tokens = ids(2, 5)
    call = attended(tiny(family, attention), attention, input_ids=tokens)[-1]
    extra = torch.randn(2, call.key.shape[1], 3, call.key.shape[3], generator=torch.Generator().manual_seed(1))
    key, value = (torch.cat([x, y], dim=2) for x, y in ((extra, call.key), (extra + 1, call.value)))
    # Not causal on purpose: only the mask may decide.
    seen = torch.rand(2, 1, 5, 8, generator=torch.Generator().manual_seed(2)) < 0.6
    seen[..., 0] = True
    mask = seen if attention == "sdpa" else torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float).min)
    out = inner(call.module, attention)(call.module, call.query, key, value, mask, **call.options)[0]
    assert torch.allclose(out, plain(call.query, key, value, seen, call.options.get("scaling")), atol=1e-5)


@fact(
    "eager attention of {family} gives its softmax weights beside its output, [B, N, T, C] over all columns it was "
    "given",
    used_in="frozen/mass.py",
    purpose="measure the attention that virtual tokens get",
)
def test_eager_attention_gives_its_weights(family: str) -> None:
    call = attended(tiny(family, "eager"), "eager", input_ids=ids(2, 5))[-1]
    extra = torch.randn(2, call.key.shape[1], 3, call.key.shape[3], generator=torch.Generator().manual_seed(1))
    key, value = (torch.cat([x, y], dim=2) for x, y in ((extra, call.key), (extra, call.value)))
    columns = torch.eye(8).expand(2, key.shape[1], 8, 8)
    out, weights = inner(call.module, "eager")(call.module, call.query, key, value, None, **call.options)
    # With unit vectors for values, attention gives its weights.
    want = plain(call.query, key, columns, torch.ones(8, dtype=torch.bool), call.options.get("scaling"))
    assert weights.shape == (2, call.query.shape[1], 5, 8)
    assert torch.allclose(weights, want.transpose(1, 2), atol=1e-5)
    assert out.shape == call.output[0].shape


@fact(
    "output_attentions=True makes {family} hand out, layer by layer, what the registered function gave beside its "
    "output",
    used_in="frozen/mass.py",
    purpose="measure the attention that virtual tokens get",
)
def test_weights_are_handed_out(family: str) -> None:
    model = tiny(family, "eager")
    calls = watch(model, "eager")
    with torch.no_grad():
        given = model(input_ids=ids(1, 5), use_cache=False, output_attentions=True).attentions
    assert len(given) == len(calls) == 2
    for weights, call in zip(given, calls, strict=True):
        assert torch.equal(weights, call.output[1])


@fact(
    "sdpa without a mask is causal from the first column on, and one query sees every column",
    used_in=SEAM,
    purpose="know what a missing mask means when virtual columns are added",
)
def test_no_mask_is_causal_from_the_first_column(family: str) -> None:
    call = attended(tiny(family), input_ids=ids(1, 6))[-1]
    attend, scaling = inner(call.module, "sdpa"), call.options.get("scaling")
    several, one = call.query[:, :, :4], call.query[:, :, :1]
    seen = torch.ones(4, 6, dtype=torch.bool).tril()
    out = attend(call.module, several, call.key, call.value, None, **call.options)[0]
    assert torch.allclose(out, plain(several, call.key, call.value, seen, scaling), atol=1e-5)
    out = attend(call.module, one, call.key, call.value, None, **call.options)[0]
    assert torch.allclose(out, plain(one, call.key, call.value, torch.ones(1, 6, dtype=torch.bool), scaling), atol=1e-5)


@fact(
    "a causal attention module says is_causal or nothing, and that of an encoder says False",
    used_in=SEAM,
    purpose="refuse models whose tokens see what follows",
)
def test_causal_modules_say_so(family: str) -> None:
    call = attended(tiny(family), input_ids=ids(1, 2))[0]
    assert told(call.options, call.module) is True
    call = attended(encoder(), input_ids=ids(1, 2))[0]
    assert call.mask is not None or told(call.options, call.module) is False


def told(options: dict[str, Any], module: nn.Module) -> bool:
    given = options.get("is_causal")
    return bool(getattr(module, "is_causal", True) if given is None else given)


def encoder() -> Any:
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(BertConfig(**SMALL, intermediate_size=WIDE["intermediate_size"])).eval()


@fact(
    "set_attn_implementation raises ValueError or ImportError for an attention that it does not know",
    used_in=SEAM,
    purpose="refuse models that cannot attend through the seam",
)
def test_unknown_attention_is_refused(family: str) -> None:
    model = tiny(family)
    with pytest.raises((ValueError, ImportError)):
        model.set_attn_implementation("no_such_attention")
    assert model.config._attn_implementation == "sdpa", version()
