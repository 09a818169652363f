"""The text contract of a run: what the task asks for, as the kind of model reads it, with the recipe's changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from epigraph.contract import MASK, Decoding, Layout, Mask, Slots, TextContract, Words, pieces_of
from epigraph.errors import BadValue
from epigraph.frozen.inputs import SENTINEL, chat_template_hash
from epigraph.frozen.model import FrozenModel
from epigraph.methods.p_tuning import PTuningConfig
from epigraph.methods.prefix_tuning import PrefixTuningConfig
from epigraph.methods.prompt_tuning import PromptTuningConfig
from epigraph.tasks.base import Example, Task
from epigraph.train.baselines.autoprompt import AutoPromptPart
from epigraph.train.recipe import Recipe, VirtualPart

# P-Tuning without places in its template: as many virtual tokens in front as prompt-tuning has.
DEFAULT_SLOTS = 20


def text_for(
    recipe: Recipe, task: Task, frozen: FrozenModel, examples: Sequence[Example]
) -> tuple[TextContract, Mapping[str, str]]:
    """The run's text contract, and what every row has beside its own fields: what a baseline shows of ``examples``.

    Raises :class:`BadValue` as :func:`contract_for`.
    """
    contract, baseline = contract_for(recipe, task, frozen), recipe.baseline
    if baseline is None or baseline.text is None:
        return contract, {}
    return baseline.text(recipe, task, frozen, contract, examples)


def contract_for(recipe: Recipe, task: Task, frozen: FrozenModel) -> TextContract:
    """The task's text contract with the recipe's changes. Raises :class:`BadValue` for what does not go together.

    Start and end tokens stand where the tokenizer puts them by itself; virtual tokens that are trained as embeddings
    for a model that reads both ways get places in front of the template.
    """
    text = recipe.text
    template = text.input_template or task.input_template
    layout = text.layout or ("label" if text.pooling == "mask" else _layout(frozen, template))
    begins, ends = _edges(frozen)
    max_target = text.max_target_tokens or task.max_target_tokens
    chosen: dict[str, Any] = {
        "input_template": _with_slots(recipe, frozen, template if layout == "continuation" else template.rstrip("\n")),
        "target_template": _target_template(recipe, task, frozen),
        "layout": layout,
        "bos": begins if text.bos is None else text.bos,
        "ends_source": (ends and layout != "continuation") if text.ends_source is None else text.ends_source,
        "eos": (layout in ("continuation", "answer")) if text.eos is None else text.eos,
        "labels": task.labels if text.labels is None else text.labels,
        "label_words": task.label_words if text.label_words is None and text.labels is None else text.label_words or (),
        "pooling": text.pooling,
        "stop": text.stop,
        "max_source_tokens": text.max_source_tokens or task.max_source_tokens,
        "max_target_tokens": max_target,
        "decoding": Decoding(max_new_tokens=max_target),
        "chat_template_hash": chat_template_hash(frozen.tokenizer) if task.is_chat else None,
    }
    _refuse_silence(frozen, layout, chosen)
    try:
        contract = TextContract.model_validate(chosen)
    except ValidationError as wrong:
        raise BadValue(f"text: {wrong.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    _check(recipe, frozen, contract)
    return contract


def _target_template(recipe: Recipe, task: Task, frozen: FrozenModel) -> str:
    """The target's template, behind a sentinel where one is asked for. (Lester et al. 2021, section 3.2.)"""
    template = recipe.text.target_template or task.target_template
    if not recipe.text.target_sentinel:
        return template
    if frozen.kind != "encoder-decoder" or SENTINEL not in frozen.tokenizer.get_vocab():
        raise BadValue(
            f"text.target_sentinel is for encoder-decoders that were trained on missing spans and have the token "
            f"{SENTINEL} (T5's), {frozen.name} ({frozen.kind}) is none; leave it out"
        )
    return f"{SENTINEL}{template}"


def _refuse_silence(frozen: FrozenModel, layout: Layout, chosen: Mapping[str, Any]) -> None:
    if frozen.kind not in ("masked", "encoder") or layout != "label" or chosen["labels"]:
        return
    if frozen.kind == "encoder":
        raise BadValue(
            f"{frozen.name} has no language-modelling head, so that it says no words; give text.labels for a head to "
            "choose from, and an input template without [MASK]"
        )
    raise BadValue(
        f"{frozen.name} is a masked model; give an input template with [MASK], where it says the answer, or "
        "text.labels for a head to choose from"
    )


def _layout(frozen: FrozenModel, template: str) -> Layout:
    match frozen.kind:
        case "causal":
            return "continuation"
        case "encoder-decoder":
            return "answer"
        case _:
            return "cloze" if MASK in template and frozen.kind == "masked" else "label"


def _edges(frozen: FrozenModel) -> tuple[bool, bool]:
    """Whether the tokenizer by itself puts a start token before a text, and an end token behind it."""
    names, ids = frozen.tokenizer, frozen.tokenizer("a").input_ids
    starts = {x for x in (names.bos_token_id, names.cls_token_id) if x is not None}
    ends = {x for x in (names.eos_token_id, names.sep_token_id) if x is not None}
    return ids[:1] != [] and ids[0] in starts, ids[-1:] != [] and ids[-1] in ends


def _with_slots(recipe: Recipe, frozen: FrozenModel, template: str) -> str:
    method = recipe.method
    count = None
    if isinstance(method, PTuningConfig):
        count = method.num_virtual_tokens or DEFAULT_SLOTS
    elif isinstance(method, PromptTuningConfig) and frozen.kind != "causal":
        count = method.num_virtual_tokens
    if TextContract.model_construct(input_template=template).is_placed:
        return template
    if isinstance(method, PrefixTuningConfig) and method.place == "infix-code":
        asked, brace, tail = template.rpartition("}")
        return f"{asked}{brace}{{{method.num_virtual_tokens}}}{tail}"
    return template if count is None else f"{{{count}}}{template}"


def _check(recipe: Recipe, frozen: FrozenModel, contract: TextContract) -> None:
    method = recipe.method
    given = "recipe.text.layout is" if recipe.text.layout else "the layout is"
    fits = {
        "causal": ("continuation",),
        "encoder-decoder": ("answer",),
        "masked": ("cloze", "label", "tags"),
        "encoder": ("label", "tags"),
    }[frozen.kind]
    if contract.layout not in fits:
        raise BadValue(
            f"{given} {contract.layout!r}, {frozen.name} ({frozen.kind}) can be asked by {' or '.join(fits)}"
        )
    reads_infix = isinstance(method, PrefixTuningConfig) and method.place == "infix-code"
    if reads_infix and frozen.kind == "causal":
        _check_infix(contract)
    if contract.num_slots and not reads_infix and isinstance(method, PrefixTuningConfig):
        raise BadValue(
            f"the template has places for {contract.num_slots} virtual tokens, and method {method.name} makes keys and "
            "values, which stand in front of everything; take the places out, or use method p-tuning"
        )
    count = num_virtual_tokens(recipe)
    if contract.num_slots and count == 0:
        raise BadValue(
            f"the template has places for {contract.num_slots} virtual tokens, and method {method.name} makes none; "
            "take the places out"
        )
    if contract.num_slots and count not in (None, contract.num_slots):
        raise BadValue(
            f"method.num_virtual_tokens is {count}, the template has places for {contract.num_slots}; make them equal"
        )


def num_virtual_tokens(recipe: Recipe) -> int | None:
    """How many the method was told to make; None: as many as there are places, 0: it makes none."""
    method = recipe.method
    return method.num_virtual_tokens if isinstance(method, VirtualPart | AutoPromptPart) else 0


def _check_infix(contract: TextContract) -> None:
    """An infix stands behind the whole source, and what says the answer's first token stands behind the infix."""
    *source, infix, tail = (None, *(x for x in pieces_of(contract.input_template) if not isinstance(x, Mask)))
    behind = isinstance(infix, Slots) and isinstance(tail, Words) and "{" not in tail.text
    if not behind or any(isinstance(piece, Slots) for piece in source):
        raise BadValue(
            f"input_template is {contract.input_template!r}, expected one place for the infix with text behind it, "
            "which says the answer's first token, like '{source}{10}\\n'"
        )
