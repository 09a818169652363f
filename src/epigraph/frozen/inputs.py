"""Text to token ids and back, by a text contract: the same ids in training, evaluation and serving.

Knows tokenizers and templates; does not know models or methods. Legend: B batch, T text tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from epigraph.contract import TextContract
from epigraph.errors import BadValue


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """One row of token ids; ``scored[t]`` says whether the loss counts token t. ``truncated``: words were cut off."""

    ids: tuple[int, ...]
    scored: tuple[bool, ...]
    truncated: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One turn of a conversation, as chat templates take it."""

    role: str
    content: str


class Codec:
    """A tokenizer under a text contract."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, contract: TextContract) -> None:
        self.tokenizer = tokenizer
        self.contract = contract
        if contract.eos and tokenizer.eos_token_id is None:
            raise BadValue("the contract ends targets with the tokenizer's end token, but it has none; set eos = false")
        if contract.is_chat and chat_template_hash(tokenizer) != contract.chat_template_hash:
            raise BadValue(
                "the tokenizer's chat template is not the one the contract was made with "
                f"(got {chat_template_hash(tokenizer)[:12]}, expected {str(contract.chat_template_hash)[:12]})"
            )

    def source(self, fields: Mapping[str, str]) -> Encoded:
        """The ids of a filled input template, its longest field shortened until they fit ``max_source_tokens``."""
        try:
            text = self.contract.source_text(fields)
        except KeyError as missing:
            raise BadValue(
                f"the input template asks for the field {missing}, the row has {', '.join(fields) or 'none'}; "
                "use an artifact or a template that was made for such rows"
            ) from None
        ids = self._ids(text)
        limit = self.contract.max_source_tokens - self.contract.bos
        truncated = len(ids) > limit
        if truncated:
            ids = self._shortened(fields, limit)
        start = [self._bos()] if self.contract.bos else []
        return Encoded(ids=(*start, *ids), scored=(False,) * (len(start) + len(ids)), truncated=truncated)

    def pair(self, fields: Mapping[str, str], target: str) -> Encoded:
        """Source and target, tokenised apart and joined; the target and its end token are scored."""
        source = self.source(fields)
        ids = self._ids(self.contract.target_text(target))
        limit = self.contract.max_target_tokens - self.contract.eos
        truncated = source.truncated or len(ids) > limit
        ids = ids[:limit]
        if self.contract.eos:
            ids = [*ids, int(self.tokenizer.eos_token_id)]
        return Encoded(ids=(*source.ids, *ids), scored=(*source.scored, *[True] * len(ids)), truncated=truncated)

    def chat(self, turns: Sequence[Message]) -> Encoded:
        """A conversation under the chat template; assistant turns are scored, each tokenised apart as in serving."""
        ids: list[int] = []
        scored: list[bool] = []
        done = ""
        for number, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            asked = self._rendered(turns[:number], ask=True)
            answered = self._rendered(turns[: number + 1], ask=False)
            for text, counts in ((self._rest(asked, done), False), (self._rest(answered, asked), True)):
                new = self._ids(text)
                ids += new
                scored += [counts] * len(new)
            done = answered
        limit = self.contract.max_source_tokens + self.contract.max_target_tokens
        # A conversation that is too long loses its beginning: the last answer is what it is for.
        return Encoded(ids=tuple(ids[-limit:]), scored=tuple(scored[-limit:]), truncated=len(ids) > limit)

    def question(self, turns: Sequence[Message]) -> Encoded:
        """The ids that ask for the next assistant turn, equal to those :meth:`chat` put before it."""
        done, ids = "", list[int]()
        for number, turn in enumerate(turns):
            if turn.role == "assistant":
                asked = self._rendered(turns[:number], ask=True)
                answered = self._rendered(turns[: number + 1], ask=False)
                ids += self._ids(self._rest(asked, done)) + self._ids(self._rest(answered, asked))
                done = answered
        ids += self._ids(self._rest(self._rendered(turns, ask=True), done))
        limit = self.contract.max_source_tokens
        return Encoded(ids=tuple(ids[-limit:]), scored=(False,) * min(len(ids), limit), truncated=len(ids) > limit)

    def text(self, ids: Sequence[int]) -> str:
        """Generated ids as text: special tokens dropped, cut at the first stop string, outer blanks stripped."""
        text = str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
        for stop in self.contract.stop:
            text = text.split(stop, 1)[0]
        return text.strip()

    def _ids(self, text: str) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as wrong:
            raise BadValue(
                f"the text is not valid Unicode: half a character at place {wrong.start + 1}; give UTF-8 text"
            ) from None
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return ids

    def _bos(self) -> int:
        if self.tokenizer.bos_token_id is None:
            raise BadValue("the contract starts with the tokenizer's start token, but it has none; set bos = false")
        return int(self.tokenizer.bos_token_id)

    def _shortened(self, fields: Mapping[str, str], limit: int) -> list[int]:
        longest = max(fields, key=lambda name: len(fields[name]))
        low, high, best = 0, len(fields[longest]), list[int]()
        while low <= high:
            middle = (low + high) // 2
            ids = self._ids(self.contract.source_text({**fields, longest: fields[longest][:middle]}))
            if len(ids) <= limit:
                low, best = middle + 1, ids
            else:
                high = middle - 1
        if not best:
            raise BadValue(f"max_source_tokens is {limit}: the input template alone is longer; raise it")
        return best

    def _rendered(self, turns: Sequence[Message], *, ask: bool) -> str:
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask))

    def _rest(self, text: str, done: str) -> str:
        if not text.startswith(done):
            raise BadValue(
                "the chat template rewrites earlier turns when later ones are added, so training and serving "
                "could not see the same ids; use plain source and target rows"
            )
        return text[len(done) :]


def chat_template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """64 hex digits over the tokenizer's chat template; raises :class:`BadValue` when it has none."""
    template = tokenizer.chat_template
    if not isinstance(template, str):
        raise BadValue("the rows are conversations, but the model's tokenizer has no chat template")
    return hashlib.sha256(template.encode()).hexdigest()


def pad(rows: Sequence[Sequence[int]], fill: int, *, left: bool) -> tuple[Tensor, Tensor]:
    """Ids and mask, each ``[B, T]`` int64, of rows padded to the longest."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), fill)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        where = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[number, where] = torch.tensor(row)
        mask[number, where] = 1
    return ids, mask


def fill_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """A token id to pad with; masked everywhere, so any will do."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0)


def frequent_ids(tokenizer: PreTrainedTokenizerBase, count: int) -> list[int]:
    """The ``count`` most frequent tokens' ids, by their place in the vocabulary; special and unused tokens left out.

    Byte-pair merges and SentencePiece vocabularies stand in order of frequency, so that the lowest ids are the most
    frequent. (Lester et al. 2021, section 3.2, footnote 7.)
    """
    left_out = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    words = tokenizer.convert_ids_to_tokens(list(range(min(len(tokenizer), count + len(left_out) + 1_000))))
    kept = [i for i, word in enumerate(words) if i not in left_out and not str(word).startswith("[unused")]
    return kept[:count]
