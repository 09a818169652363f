"""How much of a text's attention goes to the virtual tokens, layer by layer and token by token.

Knows a model that attends eagerly and rows of token ids; does not know what the text says or who made the tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from epigraph.errors import BadValue
from epigraph.frozen.attention import seam_name
from epigraph.frozen.model import FrozenModel
from epigraph.virtual import Site, VirtualTokens

# By the kind of model, for each site: what transformers calls its weights, and the input whose tokens are the columns.
_NAMES: Mapping[str, Mapping[Site, tuple[str, str]]] = {
    "causal": {"decoder.self": ("attentions", "input_ids")},
    "masked": {"encoder.self": ("attentions", "input_ids")},
    "encoder": {"encoder.self": ("attentions", "input_ids")},
    "encoder-decoder": {
        "encoder.self": ("encoder_attentions", "input_ids"),
        "decoder.self": ("decoder_attentions", "decoder_input_ids"),
        "decoder.cross": ("cross_attentions", "input_ids"),
    },
}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SiteMass:
    """Shares of attention at one site, float64 on the CPU: ``virtual_LP [L, P]`` what each virtual token gets in each
    layer, ``text_L [L]`` what the text's own tokens get together. Each layer adds up to 1, but where a model's
    attention has a sink of its own."""

    virtual_LP: Tensor
    text_L: Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Mass:
    """The mass at every site that has virtual tokens, over ``num_rows`` texts of ``num_tokens`` tokens together."""

    sites: Mapping[Site, SiteMass]
    num_rows: int
    num_tokens: int


def attention_mass(frozen: FrozenModel, tokens: VirtualTokens, rows: Sequence[Sequence[int]]) -> Mass:
    """The mean softmax weight that the texts in ``rows`` (token ids) give each virtual token, layer by layer.

    The mean is over heads and over all text tokens of all rows, each of which counts the same, as queries; a decoder
    beside an encoder asks with its start token alone. Where a virtual token is hidden (a window) its weight is 0. Soft
    prompts are lowered first. A weight says what is looked at, not what that changes.
    Raises :class:`BadValue` for a model that was not loaded with ``attention_name="eager"`` and for texts without
    tokens, :class:`CannotLower`, and what :meth:`FrozenModel.bind` raises.
    """
    _check(frozen, rows)
    sums: dict[Site, Tensor] = {}
    num_queries: dict[Site, int] = {}
    with torch.no_grad():
        prefix = frozen.lower(tokens)
        # One row at a time: nothing is padded, so every query is a real token.
        for ids in rows:
            with frozen.bind(prefix, sources=[len(ids)]):
                for site, weights in _weights(frozen, ids, prefix.num_virtual_tokens):
                    sums[site] = sums.get(site, torch.zeros(())) + weights.sum(1)
                    num_queries[site] = num_queries.get(site, 0) + weights.shape[1]
    sites = {}
    for site in prefix.sites:
        mean_LC = sums[site] / num_queries[site]
        sites[site] = SiteMass(virtual_LP=mean_LC[:, :-1], text_L=mean_LC[:, -1])
    return Mass(sites=sites, num_rows=len(rows), num_tokens=sum(map(len, rows)))


def _check(frozen: FrozenModel, rows: Sequence[Sequence[int]]) -> None:
    attends_by = str(frozen.model.config._attn_implementation).removeprefix(seam_name(""))
    if attends_by != "eager":
        raise BadValue(
            f"attention is {attends_by!r}, which keeps its weights to itself, expected 'eager'; "
            "load the model with attention_name='eager'"
        )
    if not rows or not all(rows):
        got = "one without tokens" if rows else "none"
        raise BadValue(f"texts: got {got}, expected one or more, each of one token or more; leave empty ones out")


def _weights(frozen: FrozenModel, ids: Sequence[int], num_virtual_tokens: int) -> Iterator[tuple[Site, Tensor]]:
    """For each site ``[L, T, P + 1]``, the mean over heads; the last column is the text's own tokens together."""
    inputs = {"input_ids": torch.tensor([list(ids)], device=frozen.device)}
    if frozen.kind == "encoder-decoder":
        inputs["decoder_input_ids"] = torch.tensor([[frozen.model.config.decoder_start_token_id]], device=frozen.device)
    output = frozen.model(**inputs, use_cache=False, output_attentions=True)
    for site, (name, columns) in _NAMES[frozen.kind].items():
        num_text = inputs[columns].shape[1]
        layers = [_split(x_1NTC[0].double().mean(0).cpu(), num_text, num_virtual_tokens) for x_1NTC in output[name]]
        yield site, torch.stack(layers)


def _split(weights_TC: Tensor, num_text: int, num_virtual_tokens: int) -> Tensor:
    virtual_TP = weights_TC[:, :-num_text]
    # A layer without virtual tokens has no columns for them.
    missing = num_virtual_tokens - virtual_TP.shape[1]
    virtual_TP = torch.nn.functional.pad(virtual_TP, (missing, 0))
    return torch.cat([virtual_TP, weights_TC[:, -num_text:].sum(1, keepdim=True)], dim=1)
