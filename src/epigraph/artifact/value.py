"""What an artifact holds, and whether it may be used with a model. It knows no file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from epigraph.contract import TextContract
from epigraph.errors import GeometryMismatch, WrongBase, WrongTokenizer
from epigraph.virtual import Geometry, VirtualTokens

MIN_ALLOW_DIGITS = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """Trained virtual tokens with everything needed to use them correctly, and only on the right model.

    Fingerprints are 64 hexadecimal digits. ``method_config`` and ``provenance`` are plain JSON: dicts with string
    keys, lists, strings, finite numbers, booleans and None. ``allowed_bases`` are fingerprints of bases that someone
    found to be equivalent and wrote down. ``extra`` are named tensors of any shape that belong to the task, a head say.
    """

    tokens: VirtualTokens
    geometry: Geometry
    contract: TextContract
    base_name: str
    base_fingerprint: str
    tokenizer_fingerprint: str
    method: str
    method_config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    allowed_bases: tuple[str, ...] = ()
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def check_base(
        self,
        geometry: Geometry,
        base_fingerprint: str,
        tokenizer_fingerprint: str,
        allow_base: str | None = None,
    ) -> None:
        """Raise unless a model with this geometry, these weights and this tokenizer may use the artifact.

        ``allow_base`` admits other weights: it must be the running base's own fingerprint, its first 12 digits or
        more, so that it cannot admit a base that nobody looked at. It never admits another geometry or tokenizer.

        Raises :class:`GeometryMismatch`, :class:`WrongBase` or :class:`WrongTokenizer`.
        """
        difference = _first_difference(self.geometry, geometry)
        if difference is not None:
            raise GeometryMismatch(
                f"the artifact was trained for {self.base_name} ({_short(self.base_fingerprint)}), "
                f"which is built otherwise: {difference}; use {self.base_name}"
            )
        if base_fingerprint not in (self.base_fingerprint, *self.allowed_bases):
            self._check_allowed(base_fingerprint, allow_base)
        if tokenizer_fingerprint != self.tokenizer_fingerprint:
            raise WrongTokenizer(
                f"the tokenizer is {_short(tokenizer_fingerprint)}, expected {_short(self.tokenizer_fingerprint)}, "
                f"that of {self.base_name}; use the tokenizer that comes with {self.base_name}"
            )

    def _check_allowed(self, base_fingerprint: str, allow_base: str | None) -> None:
        if allow_base is not None and len(allow_base) >= MIN_ALLOW_DIGITS and base_fingerprint.startswith(allow_base):
            return
        given = "" if allow_base is None else f"; --allow-base {allow_base!r} is not this base"
        raise WrongBase(
            f"the base is {_short(base_fingerprint)}, expected {self.base_name} ({_short(self.base_fingerprint)})"
            f"{given}; use {self.base_name}, or pass --allow-base {_short(base_fingerprint)} "
            "if you know that this base is a quantised twin of it"
        )


def _short(fingerprint: str) -> str:
    return fingerprint[:MIN_ALLOW_DIGITS]


def _first_difference(trained: Geometry, model: Geometry) -> str | None:
    if set(trained.sites) != set(model.sites):
        return f"the model has {_listed(model.sites)}, expected {_listed(trained.sites)}"
    for site, layers in trained.sites.items():
        if len(layers) != len(model.sites[site]):
            return f"the model has {len(model.sites[site])} layers at {site}, expected {len(layers)}"
        for number, (want, got) in enumerate(zip(layers, model.sites[site], strict=True)):
            if want != got:
                return f"{site} layer {number} is {_words(got)}, expected {_words(want)}"
    for name in ("embedding_dim", "position_kind", "max_positions"):
        want, got = getattr(trained, name), getattr(model, name)
        if want != got:
            return f"{name} is {got}, expected {want}"
    return None


def _listed(sites: Mapping[Any, Any]) -> str:
    return ", ".join(sorted(sites))


def _words(layer: Any) -> str:
    return ", ".join(f"{x.name} {getattr(layer, x.name)}" for x in fields(layer))
