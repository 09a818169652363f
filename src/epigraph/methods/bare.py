"""No virtual tokens at all: what is trained stands beside them, a head (a linear probe) or the base (fine-tuning).

What the methods are measured against. It makes no artifact. It knows no model.
"""

from __future__ import annotations

from epigraph.methods.base import Method


class Bare(Method):
    """A method that makes nothing: set ``head`` or ``base``, and a run trains that."""

    def forward(self) -> None:
        """Nothing is carried: the bare model."""
        return
