"""The contracts of requests that leave an artifact's own out: raw text, and the bare model.

Knows contracts and tokenizers; it knows no engine and no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from epigraph.contract import TextContract
from epigraph.engine.base import Text
from epigraph.errors import BadValue, CannotServe
from epigraph.frozen.geometry import Kind
from epigraph.frozen.inputs import chat_template_hash

# Where nothing is to be cut off: the engine says how long a text may be.
_NO_LIMIT = 1_000_000


def raw_contract(contract: TextContract) -> TextContract:
    """The same contract without its template: the text goes in as it is, behind the start token if there is one."""
    if contract.is_placed:
        raise BadValue("the virtual tokens stand at places of the template, which raw text has none of; leave raw out")
    plain = {"input_template": "{source}", "chat_template_hash": None, "max_source_tokens": _NO_LIMIT}
    return contract.model_copy(update=plain)


def bare_contract(tokenizer: Any, text: Text, kind: Kind = "causal") -> TextContract:
    """How the bare model is asked: turns by the chat template, other text as the tokenizer itself begins it.

    An encoder beside a decoder reads text as its tokenizer ends it. Raises :class:`CannotServe` for an encoder alone.
    """
    has_turns = not isinstance(text, str | Mapping)
    ids = tokenizer("a", verbose=False).input_ids
    begins = not has_turns and tokenizer.bos_token_id in ids[:1]
    plain: dict[str, Any] = {"input_template": "{source}", "bos": begins, "max_source_tokens": _NO_LIMIT}
    if kind == "encoder-decoder":
        return TextContract(**plain, layout="answer", ends_source=tokenizer.eos_token_id in ids[-1:])
    if kind != "causal":
        raise CannotServe("the bare model is an encoder, which answers nothing by itself; name a prefix")
    has_end = tokenizer.eos_token_id is not None
    template = chat_template_hash(tokenizer) if has_turns else None
    return TextContract(**plain, eos=has_end, chat_template_hash=template)


def stopping(contract: TextContract, stop: tuple[str, ...]) -> TextContract:
    """The same contract with these stop texts beside its own."""
    return contract.model_copy(update={"stop": (*contract.stop, *stop)}) if stop else contract
