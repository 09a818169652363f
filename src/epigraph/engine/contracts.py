"""The contracts of requests that leave an artifact's own out: raw text, and the bare model.

Knows contracts and tokenizers; it knows no engine and no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from epigraph.contract import TextContract
from epigraph.engine.base import Text
from epigraph.errors import BadValue
from epigraph.frozen.inputs import chat_template_hash

# Where nothing is to be cut off: the engine says how long a text may be.
_NO_LIMIT = 1_000_000


def raw_contract(contract: TextContract) -> TextContract:
    """The same contract without its template: the text goes in as it is, behind the start token if there is one."""
    if contract.is_placed:
        raise BadValue("the virtual tokens stand at places of the template, which raw text has none of; leave raw out")
    plain = {"input_template": "{source}", "chat_template_hash": None, "max_source_tokens": _NO_LIMIT}
    return contract.model_copy(update=plain)


def bare_contract(tokenizer: Any, text: Text) -> TextContract:
    """How the bare model is asked: turns by the chat template, other text as the tokenizer itself begins it."""
    has_turns = not isinstance(text, str | Mapping)
    return TextContract(
        input_template="{source}",
        bos=not has_turns and tokenizer.bos_token_id in tokenizer("a", verbose=False).input_ids[:1],
        eos=tokenizer.eos_token_id is not None,
        chat_template_hash=chat_template_hash(tokenizer) if has_turns else None,
        max_source_tokens=_NO_LIMIT,
    )
