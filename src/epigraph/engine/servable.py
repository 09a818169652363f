"""What an engine without the seam can serve exactly: keys and values in front of the text, seen as the model sees text.

Everything else is refused by name. It knows no engine; training asks it, too, so that nobody learns it afterwards.
"""

from __future__ import annotations

from epigraph.contract import TextContract
from epigraph.engine.base import Request
from epigraph.errors import CannotServe
from epigraph.virtual import Geometry, KVPrefix, SoftPrompt, VirtualTokens

_LOCAL = "use epigraph generate or the local engine"


def refuse_unservable(tokens: VirtualTokens, geometry: Geometry) -> None:
    """Raise :class:`CannotServe` unless paged keys and values stand for ``tokens`` exactly."""
    if not geometry.is_causal:
        raise CannotServe(f"the model is not a decoder of its own, which is all that vLLM takes prefixes in; {_LOCAL}")
    if isinstance(tokens, SoftPrompt):
        if tokens.placed:
            raise CannotServe("the virtual tokens stand inside the text; send the request as embeddings (docs/vllm.md)")
        raise CannotServe("the virtual tokens are embeddings; make keys and values of them with epigraph lower")
    _refuse_unservable_keys(tokens, geometry)


def _refuse_unservable_keys(tokens: KVPrefix, geometry: Geometry) -> None:
    if tokens.visibility == "answer":
        raise CannotServe(f"the virtual tokens are an infix, seen by some of the text only; {_LOCAL}")
    if tokens.visibility == "always" and geometry.has_windows:
        raise CannotServe(
            "visibility is 'always' and the model has layers with a window, where the engine lets a token forget what "
            f"it is far from; train with method.visibility = 'window', or {_LOCAL}"
        )
    if tokens.text_start != tokens.num_virtual_tokens:
        raise CannotServe(
            f"text starts at position {tokens.text_start}, the engine starts it at {tokens.num_virtual_tokens}, "
            f"behind the virtual tokens; {_LOCAL}"
        )
    empty = [number for layers in tokens.sites.values() for number, layer in enumerate(layers) if layer is None]
    if empty:
        raise CannotServe(
            f"layer {empty[0]} has no keys and values, and the engine gives every layer the same tokens; {_LOCAL}"
        )


def refuse_unservable_contract(contract: TextContract) -> None:
    """Raise :class:`CannotServe` unless answers to this contract are text that the model says behind a source."""
    if contract.layout != "continuation":
        raise CannotServe(f"layout is {contract.layout!r}, expected 'continuation', a text that goes on; {_LOCAL}")
    if contract.labels:
        raise CannotServe(f"the answer is chosen among {len(contract.labels)} labels by their likelihood; {_LOCAL}")
    if contract.decoding.num_beams > 1:
        raise CannotServe(
            f"the task decodes with {contract.decoding.num_beams} beams; ask for greedy decoding (num_beams = 1) or "
            f"{_LOCAL}"
        )


def refuse_ensemble(request: Request) -> None:
    """Raise :class:`CannotServe` for several prefixes at once: each row of the engine's batch draws for itself."""
    if request.others:
        names = "+".join([str(request.prefix), *(x.prefix for x in request.others)])
        raise CannotServe(f"{names} is an ensemble, whose members must take one token together; {_LOCAL}")
