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
    from epigraph.methods.prompt_tuning import PromptTuning, PromptTuningConfig
    from epigraph.train.module import TrainableModel
    from epigraph.tuned import Tuned
    from epigraph.virtual import Geometry, KVPrefix, LayerKV, SoftPrompt

__version__ = "0.1.0"

__all__ = [
    "Decoding",
    "EpigraphError",
    "FrozenModel",
    "Geometry",
    "KVPrefix",
    "LayerKV",
    "PrefixTuning",
    "PrefixTuningConfig",
    "PromptTuning",
    "PromptTuningConfig",
    "SoftPrompt",
    "TextContract",
    "TrainableModel",
    "Tuned",
    "UserError",
    "load",
]

_HOMES = {
    "contract": ("Decoding", "TextContract"),
    "errors": ("EpigraphError", "UserError"),
    "frozen.model": ("FrozenModel",),
    "methods.prefix_tuning": ("PrefixTuning", "PrefixTuningConfig"),
    "methods.prompt_tuning": ("PromptTuning", "PromptTuningConfig"),
    "train.module": ("TrainableModel",),
    "tuned": ("Tuned",),
    "virtual": ("Geometry", "KVPrefix", "LayerKV", "SoftPrompt"),
}


def load(path: str, **options: Any) -> Tuned:
    """The artifact at ``path`` (a file, or a run's folder) behind its base model; see :meth:`Tuned.load`."""
    from epigraph.tuned import Tuned

    return Tuned.load(path, **options)


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"epigraph.{module}"), name)
    raise AttributeError(f"module 'epigraph' has no attribute {name!r}")
