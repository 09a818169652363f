"""A few solved examples in front of every question, and no training (Brown et al. 2020, section 2).

The examples are one text, the same in every row: the field ``{shots}``, with which the input template begins.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, ValidationError

from epigraph.contract import MASK, TextContract, filled
from epigraph.errors import BadValue
from epigraph.methods.bare import Bare
from epigraph.methods.base import Method
from epigraph.tasks.base import Example, Task
from epigraph.train.baselines.base import Baseline, BaselineConfig

if TYPE_CHECKING:
    from epigraph.frozen.model import FrozenModel
    from epigraph.train.prepare import Prepared
    from epigraph.train.recipe import Recipe

SHOTS = "shots"
BETWEEN = "\n\n"


class InContextPart(BaselineConfig):
    """``[method]`` with ``name = "in-context"``: as many of ``num_examples`` training pairs as the model holds."""

    name: Literal["in-context"] = "in-context"
    num_examples: Annotated[int, Field(ge=1, le=1_024)] = 5


def make(ready: Prepared) -> Method:
    """Nothing: the examples are in the text."""
    del ready
    return Bare()


def with_shots(
    recipe: Recipe, task: Task, frozen: FrozenModel, contract: TextContract, examples: Sequence[Example]
) -> tuple[TextContract, Mapping[str, str]]:
    """The contract with room for the examples, and the field that has them.

    Pairs are drawn by the seed, of different sources, and where the contract has labels from the classes in turn; one
    that is too long for the room is passed over. The model's positions are shared out: at least half of them, or
    ``max_source_tokens`` if that is less, are the row's own. Without labels or candidates an answer ends with the line
    (with a blank line, where a target has line breaks).
    Raises :class:`BadValue` for rows that cannot be shown, and where not one example fits.
    """
    config = recipe.method
    assert isinstance(config, InContextPart)
    _check(contract)
    most = _most_source_tokens(frozen, contract)
    room = most - min(contract.max_source_tokens, most // 2)
    shots = _fitting(frozen, (shot(contract, x) for x in drawn(contract, examples, recipe.training.seed)), room)
    chosen = list(islice(shots, config.num_examples))
    if not chosen:
        raise BadValue(
            f"none of {len(examples)} training examples fits into {room} tokens, which is what {frozen.name} has "
            "for them beside a row; lower text.max_source_tokens"
        )
    ends = () if contract.labels or task.candidates else ("\n" if _are_lines(examples) else BETWEEN,)
    changed = {
        "input_template": f"{{{SHOTS}}}{contract.input_template}",
        "max_source_tokens": most,
        "stop": (*contract.stop, *ends),
    }
    try:
        made = TextContract.model_validate({**contract.model_dump(), **changed})
    except ValidationError as wrong:
        raise BadValue(f"text: {wrong.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    return made, {SHOTS: "".join(f"{text}{BETWEEN}" for text in chosen)}


def shot(contract: TextContract, example: Example) -> str:
    """``example`` as the contract writes it, answered; its label by the label's word."""
    fields = {**example.further, "source": example.source}
    said = example.references[0]
    if contract.label_words:
        said = contract.label_words[contract.labels.index(said)]
    said = contract.target_text(said)
    asked, mask, rest = contract.input_template.partition(MASK)
    before = filled(asked, fields)
    if mask:
        # As in a row: the blank before the mask is said once.
        before = before.rstrip(" ") if said.startswith(" ") else before
    elif contract.layout != "continuation" and not before[-1:].isspace():
        # An encoder's source has no end of its own where the answer could begin.
        before += "\n"
    return f"{before}{said}{filled(rest, fields)}".strip()


def drawn(contract: TextContract, examples: Sequence[Example], seed: int) -> Iterator[Example]:
    """All examples in the order of the draw, each source once; with labels, one of each class, and again."""
    generator = random.Random(seed)
    first: dict[str, Example] = {}
    for example in generator.sample(list(examples), len(examples)):
        first.setdefault(example.source, example)
    if not contract.labels:
        yield from first.values()
        return
    queues = [[x for x in first.values() if x.references[0] == label] for label in contract.labels]
    generator.shuffle(queues)
    for number in range(max(map(len, queues))):
        yield from (queue[number] for queue in queues if number < len(queue))


def _fitting(frozen: FrozenModel, shots: Iterator[str], room: int) -> Iterator[str]:
    for text in shots:
        length = len(frozen.tokenizer(f"{text}{BETWEEN}", add_special_tokens=False, verbose=False).input_ids)
        if length <= room:
            room -= length
            yield text


def _most_source_tokens(frozen: FrozenModel, contract: TextContract) -> int:
    """What the model has positions for, the answer left out where it stands in the same text."""
    config = frozen.model.config.get_text_config()
    held = frozen.geometry.max_positions or getattr(config, "max_position_embeddings", None)
    if held is None:
        # Positions that cannot run out (T5's): as long as what it was trained on.
        held = max(512, 2 * contract.max_source_tokens)
    return max(2, int(held) - (0 if contract.layout == "answer" else contract.max_target_tokens))


def _are_lines(examples: Sequence[Example]) -> bool:
    return not any("\n" in reference for example in examples for reference in example.references)


def _check(contract: TextContract) -> None:
    if contract.is_chat:
        raise BadValue("in-context examples are written by a template, and the rows are conversations; use plain rows")
    if contract.layout in ("label", "tags"):
        raise BadValue(
            f"layout {contract.layout!r} is answered by a head, which nothing trains in context; use a model that says "
            "its answers, or method linear-probe"
        )
    if f"{{{SHOTS}}}" in contract.input_template:
        raise BadValue(f"input_template has a field {{{SHOTS}}}, where in-context puts its examples; rename it")


IN_CONTEXT = Baseline(config=InContextPart, make=make, trains=False, text=with_shots)
