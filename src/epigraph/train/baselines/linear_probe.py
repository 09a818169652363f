"""A linear probe: a head on the states of the encoder as it is, alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from epigraph.errors import BadValue
from epigraph.methods.bare import Bare
from epigraph.methods.base import Method
from epigraph.train.baselines.base import Baseline, BaselineConfig

if TYPE_CHECKING:
    from epigraph.train.prepare import Prepared


class LinearProbePart(BaselineConfig):
    """``[method]`` with ``name = "linear-probe"``; ``training.lr`` is the head's."""

    name: Literal["linear-probe"] = "linear-probe"


def make(ready: Prepared) -> Method:
    """Nothing beside the head. Raises :class:`BadValue` where the answer is said, and no head gives it."""
    layout = ready.codec.contract.layout
    if layout not in ("label", "tags"):
        raise BadValue(
            f"method linear-probe trains a head, and in layout {layout!r} the model says the answer itself; give an "
            "encoder and text.labels, or use method untouched"
        )
    return Bare()


LINEAR_PROBE = Baseline(config=LinearProbePart, make=make)
