"""Fine-tuning: all of the model, or its top alone. (Li & Liang 2021, section 5.2: FINE-TUNE and FT-TOP2.)"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from epigraph.methods.base import Method
from epigraph.methods.weights import Weights
from epigraph.train.baselines.base import Baseline, BaselineConfig

if TYPE_CHECKING:
    from epigraph.frozen.model import FrozenModel
    from epigraph.train.prepare import Prepared


class FullPart(BaselineConfig):
    """``[method]`` with ``name = "full"``: every weight of the model."""

    name: Literal["full"] = "full"


class TopPart(BaselineConfig):
    """``[method]`` with ``name = "top"``: the last blocks, the norm behind them, the head and what is tied to it."""

    name: Literal["top"] = "top"
    num_layers: Annotated[int, Field(ge=1, le=1024)] = 2


def reopen(frozen: FrozenModel, config: FullPart | TopPart) -> Method:
    """The model's own weights. Raises :class:`BadValue` for more layers than there are."""
    from epigraph.frozen.grafts import all_weights, top_weights

    return Weights(all_weights(frozen) if isinstance(config, FullPart) else top_weights(frozen, config.num_layers))


def make(ready: Prepared) -> Method:
    """As :func:`reopen`, for a run."""
    assert isinstance(ready.recipe.method, FullPart | TopPart)
    return reopen(ready.frozen, ready.recipe.method)


FULL = Baseline(config=FullPart, make=make, reopen=reopen, exact=True)
TOP = Baseline(config=TopPart, make=make, reopen=reopen, exact=True)
