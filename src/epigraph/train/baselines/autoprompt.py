"""Words of the vocabulary in the place of virtual tokens, searched for by gradient (AutoPrompt, Shin et al. 2020).

What it finds is an ordinary soft prompt whose rows are the model's own embeddings of those words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from epigraph.errors import BadValue
from epigraph.methods import initial
from epigraph.methods.base import Method
from epigraph.tasks.base import Example, Task
from epigraph.train.baselines.base import Baseline, BaselineConfig

if TYPE_CHECKING:
    from epigraph.contract import TextContract
    from epigraph.frozen.model import FrozenModel
    from epigraph.train.loop import Outcome
    from epigraph.train.prepare import Prepared
    from epigraph.train.recipe import Recipe

# Where neither the recipe nor the template says how many: as the authors have on LAMA.
DEFAULT_TRIGGERS = 5


class AutoPromptPart(BaselineConfig):
    """``[method]`` with ``name = "autoprompt"``.

    ``num_virtual_tokens`` is the number of trigger words; none takes as many as the template has places for, or 5.
    ``num_candidates`` are tried a step. ``initial_text`` is what the search starts from, repeated or cut; none is the
    tokenizer's mask token, as in the paper, and without one the task's instruction.
    """

    name: Literal["autoprompt"] = "autoprompt"
    num_virtual_tokens: Annotated[int, Field(ge=1, le=65_536)] | None = None
    num_candidates: Annotated[int, Field(ge=1, le=65_536)] = 10
    initial_text: str | None = None


def make(ready: Prepared) -> Method:
    """The triggers as the search begins. Raises :class:`BadValue` where a head would have to answer, where the model is
    trained beside it, and for more candidates than there are other words."""
    from epigraph.train.discrete import Triggers, words

    config, frozen, contract = ready.recipe.method, ready.frozen, ready.codec.contract
    assert isinstance(config, AutoPromptPart)
    if contract.layout in ("label", "tags"):
        raise BadValue(
            f"layout {contract.layout!r} is answered by a head, and method autoprompt searches for words in front of "
            "answers that are said; give an input template with [MASK], or use a model that says its answers"
        )
    if ready.recipe.training.base_lr is not None:
        raise BadValue("training.base_lr trains the model, and method autoprompt searches for words; leave it out")
    if config.num_candidates >= (num_words := len(words(frozen))):
        raise BadValue(
            f"method.num_candidates is {config.num_candidates}, expected less than {num_words}, "
            f"the words of {frozen.name}"
        )
    ids = _first_ids(frozen, config, ready.task.instruction)
    ids = initial.repeated(ids, contract.num_slots or config.num_virtual_tokens or DEFAULT_TRIGGERS)
    return Triggers(ids, frozen.embed(ids), num_candidates=config.num_candidates, placed=contract.is_placed)


def with_places(
    recipe: Recipe, task: Task, frozen: FrozenModel, contract: TextContract, examples: Sequence[Example]
) -> tuple[TextContract, Mapping[str, str]]:
    """The contract, with places in front of its template where the model reads both ways, as prompts have there."""
    del task, examples
    config = recipe.method
    assert isinstance(config, AutoPromptPart)
    if contract.is_placed or frozen.kind == "causal":
        return contract, {}
    count = config.num_virtual_tokens or DEFAULT_TRIGGERS
    return contract.model_copy(update={"input_template": f"{{{count}}}{contract.input_template}"}), {}


def search(*given: Any, **options: Any) -> Outcome:
    """:func:`epigraph.train.discrete.search`, which is imported when it is called."""
    from epigraph.train import discrete

    return discrete.search(*given, **options)


def tell(frozen: FrozenModel, method: Method) -> Mapping[str, Any]:
    """The words that were found, for the artifact's provenance."""
    from epigraph.train.discrete import found_words

    return found_words(frozen, method)


def _first_ids(frozen: FrozenModel, config: AutoPromptPart, instruction: str) -> Sequence[int]:
    tokenizer = frozen.tokenizer
    if config.initial_text is None and tokenizer.mask_token_id is not None:
        return [int(tokenizer.mask_token_id)]
    text = instruction if config.initial_text is None else config.initial_text
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return ids


AUTOPROMPT = Baseline(config=AutoPromptPart, make=make, text=with_places, loop=search, tells=tell)
