"""Teach one frozen language model many tasks, each a few hundred kilobytes of trained virtual tokens.

``epigraph.load(path)`` puts a trained artifact to work; see docs/python.md. Names are imported on first use, so that
``import epigraph`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from epigraph.contract import Decoding, TextContract
    from epigraph.errors import EpigraphError, UserError
    from epigraph.frozen.model import FrozenModel
    from epigraph.methods.prefix_tuning import PrefixTuning, PrefixTuningConfig
    from epigraph.train.module import TrainableModel
    from epigraph.tuned import Tuned
    from epigraph.virtual import Geometry, KVPrefix, LayerKV

__version__ = "0.1.0"

_HOMES = {
    "Decoding": "epigraph.contract",
    "EpigraphError": "epigraph.errors",
    "FrozenModel": "epigraph.frozen.model",
    "Geometry": "epigraph.virtual",
    "KVPrefix": "epigraph.virtual",
    "LayerKV": "epigraph.virtual",
    "PrefixTuning": "epigraph.methods.prefix_tuning",
    "PrefixTuningConfig": "epigraph.methods.prefix_tuning",
    "TextContract": "epigraph.contract",
    "TrainableModel": "epigraph.train.module",
    "Tuned": "epigraph.tuned",
    "UserError": "epigraph.errors",
}

__all__ = ["load", *_HOMES]


def load(path: str, **options: Any) -> Tuned:
    """The artifact at ``path`` (a file, or a run's folder) behind its base model; see :meth:`Tuned.load`."""
    from epigraph.tuned import Tuned

    return Tuned.load(path, **options)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'epigraph' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
