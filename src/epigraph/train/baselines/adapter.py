"""Adapters: a small module behind every block, the model itself frozen. (Houlsby et al. 2019; Li & Liang 2021, 5.2.)"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from epigraph.methods.base import Method
from epigraph.methods.weights import Weights
from epigraph.train.baselines.base import Baseline, BaselineConfig

if TYPE_CHECKING:
    from epigraph.frozen.model import FrozenModel
    from epigraph.train.prepare import Prepared


class AdapterPart(BaselineConfig):
    """``[method]`` with ``name = "adapter"``: as wide as ``bottleneck``, else ``share`` of the model's parameters."""

    name: Literal["adapter"] = "adapter"
    share: Annotated[float, Field(gt=0, le=1)] = 0.03
    bottleneck: Annotated[int, Field(ge=1, le=65_536)] | None = None


def reopen(frozen: FrozenModel, config: AdapterPart) -> Method:
    """Adapters that add nothing yet."""
    from epigraph.frozen.grafts import add_adapters, bottleneck_for

    return Weights(add_adapters(frozen, config.bottleneck or bottleneck_for(frozen, config.share)))


def make(ready: Prepared) -> Method:
    """As :func:`reopen`, for a run."""
    assert isinstance(ready.recipe.method, AdapterPart)
    return reopen(ready.frozen, ready.recipe.method)


ADAPTER = Baseline(config=AdapterPart, make=make, reopen=reopen)
