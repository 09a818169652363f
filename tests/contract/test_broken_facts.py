"""A broken fact is named: transformers is altered, one way at a time, and the fact about it says so in its sentence."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import transformers
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, GenerationMixin, LlamaForCausalLM, masking_utils
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel, LlamaRotaryEmbedding
from transformers.utils import logging

import test_fact_calls as calls
import test_fact_files as files
import test_fact_forward as forward
import test_fact_generate as generate
import test_fact_masks as masks
import test_fact_names as names
from facts import BrokenFact, fact

Patch = pytest.MonkeyPatch
Change = Callable[[Any], Any]


def around(patch: Patch, owner: Any, name: str, change: Change) -> None:
    """Replace ``owner.name`` by what ``change`` makes of it."""
    patch.setattr(owner, name, change(getattr(owner, name)))


def without(*dropped: str) -> Change:
    """The same function, blind to some keyword arguments."""
    return lambda old: (
        lambda *args, **kwargs: old(*args, **{name: x for name, x in kwargs.items() if name not in dropped})
    )


def forget_arguments(patch: Patch) -> None:
    around(patch, LlamaModel, "forward", without("epigraph_run"))


def ignore_positions(patch: Patch) -> None:
    around(
        patch, LlamaRotaryEmbedding, "forward", lambda old: lambda self, x, position_ids: old(self, x, position_ids * 0)
    )


def never_causal(patch: Patch) -> None:
    old = ALL_ATTENTION_FUNCTIONS["sdpa"]
    blind = {"sdpa": lambda *args, **kwargs: old(*args, **{**kwargs, "is_causal": False})}
    patch.setattr(AttentionInterface, "_global_mapping", AttentionInterface._global_mapping | blind)


def cut_columns(patch: Patch) -> None:
    def cut(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any) -> Any:
        n = query.shape[2]
        shown = None if mask is None else mask[..., :n]
        return old(module, query, key[:, :, :n], value[:, :, :n], shown, **options)

    old = ALL_ATTENTION_FUNCTIONS["sdpa"]
    patch.setattr(AttentionInterface, "_global_mapping", AttentionInterface._global_mapping | {"sdpa": cut})


def keep_weights(patch: Patch) -> None:
    def kept(old: Any) -> Any:
        return lambda *args, **kwargs: (old(*args, **kwargs)[0], None)

    around(patch, modeling_llama, "eager_attention_forward", kept)


def hide_windows(patch: Patch) -> None:
    around(
        patch,
        AttentionInterface,
        "get_interface",
        lambda old: lambda *args, **kwargs: without("sliding_window")(old(*args, **kwargs)),
    )


def masks_by(kind: str, change: Change) -> Callable[[Patch], None]:
    def patched(patch: Patch) -> None:
        made = {kind: change(AttentionMaskInterface._global_mapping[kind])}
        patch.setattr(AttentionMaskInterface, "_global_mapping", AttentionMaskInterface._global_mapping | made)

    return patched


def inverted(old: Any) -> Any:
    def mask(*args: Any, **kwargs: Any) -> Any:
        made = old(*args, **kwargs)
        return None if made is None else ~made

    return mask


def wider_windows(patch: Patch) -> None:
    around(patch, masking_utils, "sliding_window_overlay", lambda old: lambda window: old(window + 1))


def tile_beams(patch: Patch) -> None:
    def tiled(expand_size: int = 1, input_ids: Any = None, **kwargs: Any) -> Any:
        kwargs = {name: x.repeat(expand_size, 1) if isinstance(x, Tensor) else x for name, x in kwargs.items()}
        return input_ids.repeat(expand_size, 1), {x: y for x, y in kwargs.items() if x != "is_encoder_decoder"}

    patch.setattr(GenerationMixin, "_expand_inputs_for_generation", staticmethod(tiled))


def lose_positions(patch: Patch) -> None:
    around(
        patch,
        GenerationMixin,
        "prepare_inputs_for_generation",
        lambda old: lambda *args, **kwargs: without("position_ids", "attention_mask")(dict)(**old(*args, **kwargs)),
    )


def rename_flag(patch: Patch) -> None:
    patch.setattr(
        LlamaDecoderLayer, "gradient_checkpointing", property(lambda _: False, lambda *_: None), raising=False
    )


# What is altered, the fact that must notice, its arguments, and words of its sentence.
ALTERED: dict[str, tuple[Callable[[Patch], None], Callable[..., None], dict[str, Any], str]] = {
    "arguments are forgotten": (
        forget_arguments,
        calls.test_keyword_arguments_travel_down,
        {"family": "llama"},
        "llama hands unknown keyword arguments of its forward down to attention; epigraph uses it in "
        "frozen/attention.py and frozen/model.py to carry a forward's prefixes to its layers",
    ),
    "positions are ignored": (
        ignore_positions,
        calls.test_keys_stand_at_their_positions,
        {"family": "llama"},
        "llama rotates keys before attention, by position_ids where they are given",
    ),
    "no mask is not causal": (
        never_causal,
        calls.test_no_mask_is_causal_from_the_first_column,
        {"family": "llama"},
        "sdpa without a mask is causal from the first column on",
    ),
    "columns are cut to the text": (
        cut_columns,
        calls.test_attention_takes_more_columns,
        {"family": "llama", "attention": "sdpa"},
        "sdpa attention of llama takes more columns than the text has",
    ),
    "weights are kept back": (
        keep_weights,
        calls.test_eager_attention_gives_its_weights,
        {"family": "llama"},
        "eager attention of llama gives its softmax weights beside its output",
    ),
    "weights are not asked for": (
        lambda patch: around(patch, LlamaModel, "forward", without("output_attentions")),
        calls.test_weights_are_handed_out,
        {"family": "llama"},
        "output_attentions=True makes llama hand out, layer by layer, what the registered function gave",
    ),
    "windows have another name": (
        hide_windows,
        calls.test_windows_are_told,
        {"family": "mistral"},
        "mistral tells attention a layer's window as sliding_window",
    ),
    "masks are inverted": (
        masks_by("sdpa", inverted),
        masks.test_sdpa_masks_are_boolean,
        {"family": "llama"},
        "sdpa gets a boolean mask in which True is seen",
    ),
    "eager masks are boolean": (
        masks_by("eager", lambda _: masking_utils.sdpa_mask),
        masks.test_eager_masks_are_additive,
        {"family": "gpt2"},
        "eager gets an additive mask",
    ),
    "windows are wider": (
        wider_windows,
        masks.test_who_sees_whom,
        {"family": "gemma3_text", "attention": "sdpa"},
        "the sdpa mask of gemma3_text shows each token itself, .* at a distance below the window",
    ),
    "beams are tiled": (
        tile_beams,
        generate.test_copies_lie_side_by_side,
        {"family": "llama", "name": "num_beams"},
        "the copies of a row under num_beams lie side by side",
    ),
    "generate tells no positions": (
        lose_positions,
        generate.test_generate_says_where_tokens_stand,
        {"family": "llama", "kind": "greedy"},
        r"generate \(greedy\) calls the model once a token, by input_ids, and says where its tokens stand",
    ),
    "the checkpointing flag has another name": (
        rename_flag,
        forward.test_layers_checkpoint_by_their_own_flags,
        {"family": "llama"},
        "each layer of llama is a GradientCheckpointingLayer",
    ),
    "the head cannot be found": (
        lambda patch: patch.setattr(LlamaForCausalLM, "get_output_embeddings", lambda _: None),
        forward.test_the_head_sees_every_token,
        {"family": "llama"},
        r"get_output_embeddings\(\) is called with \[B, T, D\]",
    ),
    "a name is gone": (
        lambda patch: patch.delattr("transformers.modeling_layers.GradientCheckpointingLayer"),
        names.test_imported_name,
        {
            "file": "frozen/model.py",
            "source": "transformers.modeling_layers",
            "name": "GradientCheckpointingLayer",
        },
        "transformers.modeling_layers has GradientCheckpointingLayer; epigraph uses it in frozen/model.py to be imp",
    ),
    "noise stays on": (
        lambda patch: patch.setattr(logging, "set_verbosity_error", lambda: None),
        files.test_noise_can_be_turned_off,
        {},
        "transformers.utils.logging turns bars and warnings off and on",
    ),
}


@pytest.mark.parametrize("what", ALTERED)
def test_a_broken_fact_is_named(what: str, monkeypatch: Patch) -> None:
    alter, about, arguments, words = ALTERED[what]
    about(**arguments)
    alter(monkeypatch)
    start = f"transformers {re.escape(transformers.__version__)}: it does not hold any more that "
    with pytest.raises(BrokenFact, match=f"^{start}{words}") as caught:
        about(**arguments)
    assert "\n" not in str(caught.value)


def test_facts_name_files_that_are_there() -> None:
    """And every file of frozen/ that imports transformers has a fact of its own, beside that its imports are there."""
    modules = (calls, files, forward, generate, masks, names)
    used = " and ".join(x.used_in for module in modules for x in vars(module).values() if hasattr(x, "used_in"))
    named = set(re.findall(r"[\w/]+\.py", used))
    assert all((names.SOURCE / file).is_file() for file in named)
    assert {file for file, _, _ in names.imported()} <= named


def test_the_sentence_of_a_broken_fact() -> None:
    @fact("{family} has two layers", used_in="frozen/geometry.py", purpose="count them")
    def broken(family: str) -> None:
        raise ValueError(f"{family} has three\nand more lines")

    with pytest.raises(BrokenFact) as caught:
        broken(family="llama")
    assert str(caught.value) == (
        f"transformers {transformers.__version__}: it does not hold any more that llama has two layers; epigraph uses "
        "it in frozen/geometry.py to count them (ValueError: llama has three)"
    )
