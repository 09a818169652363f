"""LoRA through PEFT's own layers, in the loop that methods are trained in. (Hu et al. 2021.)"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from epigraph.methods.base import Method
from epigraph.methods.weights import Weights
from epigraph.train.baselines.base import Baseline, BaselineConfig

if TYPE_CHECKING:
    from epigraph.frozen.model import FrozenModel
    from epigraph.train.prepare import Prepared

Count = Annotated[int, Field(ge=1, le=1 << 40)]


class LoraPart(BaselineConfig):
    """``[method]`` with ``name = "lora"``.

    ``num_numbers`` in place of ``rank``: the rank that trains nearest to so many numbers. ``alpha``: twice the rank
    where none is given. ``targets``: the linear maps' own names; PEFT's choice for the model where none are given.
    """

    name: Literal["lora"] = "lora"
    rank: Annotated[int, Field(ge=1, le=4096)] = 8
    num_numbers: Count | None = None
    alpha: Annotated[int, Field(ge=1, le=65_536)] | None = None
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None


def reopen(frozen: FrozenModel, config: LoraPart) -> Method:
    """Low-rank maps that add nothing yet. Raises :class:`BadValue` without PEFT, and for a target that is none."""
    from epigraph.frozen.grafts import add_lora, lora_targets, rank_for

    targets = config.targets or lora_targets(frozen)
    rank = config.rank if config.num_numbers is None else rank_for(frozen, config.num_numbers, targets)
    return Weights(add_lora(frozen, rank, alpha=config.alpha or 2 * rank, targets=targets))


def make(ready: Prepared) -> Method:
    """As :func:`reopen`, for a run."""
    assert isinstance(ready.recipe.method, LoraPart)
    return reopen(ready.frozen, ready.recipe.method)


LORA = Baseline(config=LoraPart, make=make, reopen=reopen)
