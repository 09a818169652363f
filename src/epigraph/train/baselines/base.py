"""What a baseline is to a run: its table of a recipe, and what it does otherwise than a maker of virtual tokens.

The recipe reads this package, so no module of it may import transformers when it is imported: frozen/ inside functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from epigraph.methods.bare import Bare
from epigraph.methods.base import Method

if TYPE_CHECKING:
    from epigraph.contract import TextContract
    from epigraph.frozen.model import FrozenModel
    from epigraph.tasks.base import Example, Task
    from epigraph.train.loop import Outcome
    from epigraph.train.prepare import Prepared
    from epigraph.train.recipe import Recipe

Fields = Mapping[str, str]


class BaselineConfig(BaseModel):
    """A baseline's ``[method]`` table; each has a literal ``name``."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def bare(frozen: FrozenModel, config: Any) -> Method:
    """Nothing is put into the model and nothing in it is trained."""
    del frozen, config
    return Bare()


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """One baseline.

    ``make`` gives what a run trains. It may put modules into ``ready.frozen``; a method whose forward is None leaves a
    kept file (:mod:`epigraph.train.kept`), one that makes virtual tokens an artifact. ``reopen`` makes the same on
    another copy of the base, into which the kept file's tensors go next.
    ``trains`` False: no step is taken, and no head stands beside it. ``exact``: it trains the base's own weights, so
    that the base is loaded in float32.
    ``text`` may change the contract that the task asks for, given the training examples; its second value are the
    fields that every row has beside its own, in training and ever after. ``says`` answers a row without the model,
    from the fields that were kept. ``loop`` trains in the place of :func:`epigraph.train.loop.train`, with the same
    arguments. ``tells`` is what an artifact's provenance says of the method that was trained, beside all else.
    """

    config: type[BaselineConfig]
    make: Callable[[Prepared], Method]
    reopen: Callable[[FrozenModel, Any], Method] = bare
    trains: bool = True
    exact: bool = False
    text: Callable[[Recipe, Task, FrozenModel, TextContract, Sequence[Example]], tuple[TextContract, Fields]] | None = (
        None
    )
    says: Callable[[Fields, Example], str] | None = None
    loop: Callable[..., Outcome] | None = None
    tells: Callable[[FrozenModel, Method], Mapping[str, Any]] | None = None
