"""Answers without a model: the most frequent one of training, or the first sentence of the source.

What any score has to be above before it says something.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from epigraph.errors import BadHeader, BadValue
from epigraph.methods.bare import Bare
from epigraph.methods.base import Method
from epigraph.tasks.base import Example, Task
from epigraph.tasks.summarization import lead
from epigraph.train.baselines.base import Baseline, BaselineConfig, Fields

if TYPE_CHECKING:
    from epigraph.contract import TextContract
    from epigraph.frozen.model import FrozenModel
    from epigraph.train.prepare import Prepared
    from epigraph.train.recipe import Recipe

# The most frequent answer itself, or its place among a row's own candidates.
ANSWER, PLACE = "majority_answer", "majority_place"


class MajorityPart(BaselineConfig):
    """``[method]`` with ``name = "majority"``: the most frequent training reference, whatever the row."""

    name: Literal["majority"] = "majority"


class LeadPart(BaselineConfig):
    """``[method]`` with ``name = "lead"``: the first sentence of the row's source."""

    name: Literal["lead"] = "lead"


def make(ready: Prepared) -> Method:
    """Nothing is trained."""
    del ready
    return Bare()


def with_majority(
    recipe: Recipe, task: Task, frozen: FrozenModel, contract: TextContract, examples: Sequence[Example]
) -> tuple[TextContract, Mapping[str, str]]:
    """The contract as it is, and the answer to every row; where rows have candidates of their own, its place there.

    Of equally frequent ones the first in alphabetical order.
    """
    del recipe, task, frozen
    if all(example.candidates for example in examples):
        places = (x.candidates.index(text) for x in examples for text in x.references if text in x.candidates)
        return contract, {PLACE: str(_most_frequent(places))}
    return contract, {ANSWER: str(_most_frequent(text for x in examples for text in x.references))}


def say_majority(fields: Fields, example: Example) -> str:
    """The most frequent answer of training. Raises :class:`BadHeader` for a file that has none for such a row."""
    if ANSWER in fields:
        return fields[ANSWER]
    place = fields.get(PLACE, "")
    if not place.isdecimal() or not example.candidates:
        raise BadHeader("the file has no answer for a row of this task; run method majority on it again")
    return example.candidates[min(int(place), len(example.candidates) - 1)]


def with_lead(
    recipe: Recipe, task: Task, frozen: FrozenModel, contract: TextContract, examples: Sequence[Example]
) -> tuple[TextContract, Mapping[str, str]]:
    """The contract as it is. Raises :class:`BadValue` for a task whose answers are chosen and not written."""
    del recipe, frozen
    if contract.labels or task.candidates or any(example.candidates for example in examples):
        raise BadValue(
            f"method lead answers with a sentence of the source, and answers of {task.name} are one of a few; "
            "use method majority"
        )
    return contract, {}


def say_lead(fields: Fields, example: Example) -> str:
    """The first sentence of the source."""
    del fields
    return lead(example.source)


def _most_frequent(values: Iterable[str | int]) -> str | int:
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))


MAJORITY = Baseline(config=MajorityPart, make=make, trains=False, text=with_majority, says=say_majority)
LEAD = Baseline(config=LeadPart, make=make, trains=False, text=with_lead, says=say_lead)
