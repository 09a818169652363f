"""A request's text as the token ids that its contract makes of it, the same as in training and in Tuned.

Knows contracts and tokenizers; it knows no engine and no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from epigraph.contract import TextContract
from epigraph.engine.base import Text
from epigraph.errors import BadValue
from epigraph.frozen.inputs import Codec, Encoded, Message, chat_template_hash

# Where nothing is to be cut off: the engine says how long a text may be.
_NO_LIMIT = 1_000_000


def encoded(codec: Codec, text: Text) -> Encoded:
    """The ids that ask for an answer to ``text``. Raises :class:`BadValue` for one that the contract is not for."""
    if codec.contract.is_chat:
        if isinstance(text, Mapping):
            raise BadValue("the artifact was trained on conversations, got fields; give a string or turns")
        turns = [{"role": "user", "content": text}] if isinstance(text, str) else text
        return codec.question([_message(turn) for turn in turns])
    if not isinstance(text, str | Mapping):
        raise BadValue("the artifact was trained on plain text, got a conversation; give a string")
    return codec.source({"source": text} if isinstance(text, str) else text)


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


def _message(turn: Mapping[str, str]) -> Message:
    try:
        return Message(role=turn["role"], content=turn["content"])
    except KeyError as missing:
        raise BadValue(f"a turn has no {missing}, expected role and content") from None
