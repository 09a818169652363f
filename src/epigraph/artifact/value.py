"""What an artifact holds, and whether it may be used with a model. It knows no file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

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
        check_fingerprints(self, base_fingerprint, tokenizer_fingerprint, allow_base, self.allowed_bases)


class Trained(Protocol):
    """What was trained for one base and one tokenizer."""

    @property
    def base_name(self) -> str: ...  # noqa: D102
    @property
    def base_fingerprint(self) -> str: ...  # noqa: D102
    @property
    def tokenizer_fingerprint(self) -> str: ...  # noqa: D102


def check_fingerprints(
    trained: Trained, base: str, tokenizer: str, allow_base: str | None = None, allowed: Sequence[str] = ()
) -> None:
    """Raise :class:`WrongBase` or :class:`WrongTokenizer` unless these fingerprints are those of ``trained``'s, or the
    base's is among ``allowed`` or begins with ``allow_base``."""
    name = trained.base_name
    if base not in (trained.base_fingerprint, *allowed) and not _is_allowed(base, allow_base):
        given = "" if allow_base is None else f"; --allow-base {allow_base!r} is not this base"
        raise WrongBase(
            f"the base is {_short(base)}, expected {name} ({_short(trained.base_fingerprint)})"
            f"{given}; use {name}, or pass --allow-base {_short(base)} "
            "if you know that this base is a quantised twin of it"
        )
    if tokenizer != trained.tokenizer_fingerprint:
        raise WrongTokenizer(
            f"the tokenizer is {_short(tokenizer)}, expected {_short(trained.tokenizer_fingerprint)}, "
            f"that of {name}; use the tokenizer that comes with {name}"
        )


def _is_allowed(base: str, allow_base: str | None) -> bool:
    return allow_base is not None and len(allow_base) >= MIN_ALLOW_DIGITS and base.startswith(allow_base)


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
