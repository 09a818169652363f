"""Sound files that must not be used with the model at hand, one function each; nothing in the file itself is wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

from attacks.make import ONE, Raw
from epigraph.errors import BadValue, GeometryMismatch, UserError, WrongBase, WrongTokenizer
from epigraph.virtual import Geometry

Change = Callable[[dict[str, Any]], None]
MISFITS: dict[str, tuple[type[UserError], Change]] = {}


class Base(Protocol):
    """What a running model says of itself."""

    geometry: Geometry

    @property
    def fingerprint(self) -> str: ...

    @property
    def tokenizer_fingerprint(self) -> str: ...


def refused_as(error: type[UserError]) -> Callable[[Change], Change]:
    """Register a change to a fitting header with the one error that must refuse it."""

    def register(change: Change) -> Change:
        MISFITS[change.__name__] = (error, change)
        return change

    return register


def fitting(base: Base) -> Raw:
    """A sound artifact, without tensors yet, that ``base`` may use."""
    raw = Raw()
    raw.fields["geometry"] = dataclasses.asdict(base.geometry)
    raw.fields["base"]["fingerprint"] = base.fingerprint
    raw.fields["tokenizer"]["fingerprint"] = base.tokenizer_fingerprint
    raw.fields["contract"]["eos"] = True
    return raw


def with_tensors(raw: Raw) -> Raw:
    """``raw`` with every tensor that its geometry has."""
    raw.tensors = {}
    num_tokens = raw.fields["num_virtual_tokens"]
    for site, layers in raw.fields["geometry"]["sites"].items():
        for number, layer in enumerate(layers):
            shape = [num_tokens, layer["num_kv_heads"], layer["head_dim"]]
            data = ONE * (shape[0] * shape[1] * shape[2])
            raw.tensors |= {f"{site}.{number:03d}.{kind}": ("F32", shape, data) for kind in ("keys", "values")}
    return raw


def _layers(fields: dict[str, Any]) -> list[dict[str, Any]]:
    layers: list[dict[str, Any]] = list(fields["geometry"]["sites"]["decoder.self"])
    fields["geometry"]["sites"]["decoder.self"] = layers
    return layers


@refused_as(WrongBase)
def another_base(fields: dict[str, Any]) -> None:
    """Trained for other weights of the same architecture: it would load, run and mean nothing."""
    fields["base"]["fingerprint"] = "c" * 64


@refused_as(WrongBase)
def base_of_the_same_twelve_digits(fields: dict[str, Any]) -> None:
    """A fingerprint that is equal as far as a message shows it."""
    known = fields["base"]["fingerprint"]
    fields["base"]["fingerprint"] = known[:12] + ("0" if known[12] != "0" else "1") * 52


@refused_as(WrongBase)
def another_base_on_record(fields: dict[str, Any]) -> None:
    """A list of admitted bases that the running one is not on."""
    fields["base"]["fingerprint"] = "c" * 64
    fields["also_allowed_bases"] = ["d" * 64, "e" * 64]


@refused_as(WrongTokenizer)
def another_tokenizer(fields: dict[str, Any]) -> None:
    """Trained with other token ids: every word would be another."""
    fields["tokenizer"]["fingerprint"] = "c" * 64


@refused_as(GeometryMismatch)
def heads_of_another_width(fields: dict[str, Any]) -> None:
    """Heads twice as wide."""
    for layer in _layers(fields):
        layer["head_dim"] *= 2


@refused_as(GeometryMismatch)
def another_number_of_heads(fields: dict[str, Any]) -> None:
    """One key-value head less: broadcasting would hide it."""
    for layer in _layers(fields):
        layer["num_kv_heads"] -= 1


@refused_as(GeometryMismatch)
def heads_traded_for_width(fields: dict[str, Any]) -> None:
    """Half the heads of twice the width: the same number of numbers."""
    for layer in _layers(fields):
        layer |= {"num_kv_heads": layer["num_kv_heads"] // 2, "head_dim": layer["head_dim"] * 2}


@refused_as(GeometryMismatch)
def one_layer_more(fields: dict[str, Any]) -> None:
    """A layer that the model does not have."""
    layers = _layers(fields)
    layers.append(layers[0])


@refused_as(GeometryMismatch)
def one_layer_less(fields: dict[str, Any]) -> None:
    """No virtual tokens for the last layer, which would run bare."""
    _layers(fields).pop()


@refused_as(GeometryMismatch)
def another_window(fields: dict[str, Any]) -> None:
    """A window in a layer that sees everything."""
    _layers(fields)[0]["window"] = 8


@refused_as(GeometryMismatch)
def another_site(fields: dict[str, Any]) -> None:
    """The same layers for a cross-attention that the model does not have."""
    fields["geometry"]["sites"] = {"decoder.cross": fields["geometry"]["sites"]["decoder.self"]}


@refused_as(GeometryMismatch)
def one_site_more(fields: dict[str, Any]) -> None:
    """The right site and one more."""
    fields["geometry"]["sites"]["encoder.self"] = fields["geometry"]["sites"]["decoder.self"]


@refused_as(GeometryMismatch)
def another_position_kind(fields: dict[str, Any]) -> None:
    """Keys without a rotation for a model that rotates."""
    fields["geometry"]["position_kind"] = "none"


@refused_as(GeometryMismatch)
def another_embedding_width(fields: dict[str, Any]) -> None:
    """Embeddings one wider."""
    fields["geometry"]["embedding_dim"] += 1


@refused_as(BadValue)
def template_that_asks_for_more(fields: dict[str, Any]) -> None:
    """A template with a field that no caller gives: it must not be filled from anywhere else."""
    fields["contract"]["input_template"] = "{source} {password}"


@refused_as(BadValue)
def template_of_another_chat(fields: dict[str, Any]) -> None:
    """A conversation under a chat template that the tokenizer does not have."""
    fields["contract"]["chat_template_hash"] = "c" * 64


@refused_as(BadValue)
def template_longer_than_its_limit(fields: dict[str, Any]) -> None:
    """A template of 500 tokens in a source of at most five: nothing of the source would be left."""
    fields["contract"] |= {"input_template": "x" * 500 + "{source}", "max_source_tokens": 5}
