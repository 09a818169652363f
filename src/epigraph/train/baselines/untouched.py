"""The model as it is, asked under the task's text contract: what every method has to beat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from epigraph.errors import BadValue
from epigraph.methods.bare import Bare
from epigraph.methods.base import Method
from epigraph.train.baselines.base import Baseline, BaselineConfig

if TYPE_CHECKING:
    from epigraph.train.prepare import Prepared


class UntouchedPart(BaselineConfig):
    """``[method]`` with ``name = "untouched"``: no step is taken."""

    name: Literal["untouched"] = "untouched"


def make(ready: Prepared) -> Method:
    """Nothing. Raises :class:`BadValue` where a head would have to answer, which nobody trained."""
    layout = ready.codec.contract.layout
    if layout in ("label", "tags"):
        raise BadValue(
            f"layout {layout!r} is answered by a head, and method untouched trains none; use method linear-probe"
        )
    return Bare()


UNTOUCHED = Baseline(config=UntouchedPart, make=make, trains=False)
