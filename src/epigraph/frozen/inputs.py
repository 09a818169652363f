"""Text to token ids and back, by a text contract: the same ids in training, evaluation and serving.

Knows tokenizers and templates; does not know models or methods. Legend: B batch, T text tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from epigraph.contract import Mask, Slots, TextContract
from epigraph.errors import BadValue
from epigraph.frozen.filling import Filler, Part

# Virtual token j of a placed prompt is the id FIRST_SLOT + j, which no vocabulary reaches and no text can spell.
FIRST_SLOT = 1 << 30
# What an encoder-decoder that was trained on missing spans reads in the place of the first one.
SENTINEL = "<extra_id_0>"


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """One row of token ids.

    ``scored[t]``: the loss counts token t of a continuation; in other layouts, the answer is read at token t (a mask,
    the first token of a word to tag). ``answer``: what is to be said or chosen, where that is not in ``ids`` itself:
    the ids of a target, or the numbers of labels. ``truncated``: words were cut off.
    """

    ids: tuple[int, ...]
    scored: tuple[bool, ...]
    truncated: bool = False
    answer: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One turn of a conversation, as chat templates take it."""

    role: str
    content: str


class Codec:
    """A tokenizer under a text contract; docs/templates.md says for every layout which ids it makes.

    ``fields`` are what every row has beside its own, whole; a row's own field of that name is not looked at.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, contract: TextContract, fields: Mapping[str, str] | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.contract = contract
        self.fields = dict(fields or {})
        self._filler = Filler(tokenizer, contract)
        self._says = contract.layout in ("continuation", "answer", "cloze")
        self._ends = contract.eos and contract.layout in ("continuation", "answer")
        if self._ends and tokenizer.eos_token_id is None:
            raise BadValue("the contract ends targets with the tokenizer's end token, but it has none; set eos = false")
        if contract.is_chat and chat_template_hash(tokenizer) != contract.chat_template_hash:
            raise BadValue(
                "the tokenizer's chat template is not the one the contract was made with "
                f"(got {chat_template_hash(tokenizer)[:12]}, expected {str(contract.chat_template_hash)[:12]})"
            )
        self._mask = self._mask_id() if contract.has_mask and contract.layout != "continuation" else None
        self._label_of = self._label_words() if self._says else {}

    def source(self, fields: Mapping[str, str]) -> Encoded:
        """What is read when a row is asked, its longest field shortened until ``max_source_tokens`` hold the text.

        Neither virtual tokens nor masks count there. A cloze has one mask. Raises :class:`BadValue`.
        """
        return self._source(fields, num_masks=1)

    def pair(self, fields: Mapping[str, str], target: str) -> Encoded:
        """What is read, with the answer that is to be given; a label where the contract has labels.

        A continuation has the target and its end token behind the source, scored; the other layouts have it in
        ``answer``. Raises :class:`BadValue` for what is no label, and for tags that are not as many as the words.
        """
        match self.contract.layout:
            case "tags":
                return self._tagged(fields, target.split())
            case "label":
                return replace(self.source(fields), answer=(self._number(target),))
        ids, is_cut = self._target(target)
        if self.contract.layout == "cloze":
            made = self.cloze(fields, ids)
        elif self.contract.layout == "answer":
            made = replace(self.source(fields), answer=tuple(ids))
        else:
            source = self.source(fields)
            made = replace(source, ids=(*source.ids, *ids), scored=(*source.scored, *[True] * len(ids)))
        return replace(made, truncated=made.truncated or is_cut)

    def cloze(self, fields: Mapping[str, str], answer: str | Sequence[int]) -> Encoded:
        """The source with as many masks, scored, as ``answer`` has ids: a candidate's text, or its ids."""
        assert self.contract.layout == "cloze"
        ids = self.candidate(answer) if isinstance(answer, str) else tuple(answer)
        if not ids:
            raise BadValue(f"the answer {answer!r} has no tokens to say at the mask; give it words")
        return replace(self._source(fields, num_masks=len(ids)), answer=ids)

    def candidate(self, text: str) -> tuple[int, ...]:
        """The ids of an answer as it would be said, without the end token: of a label's word where there are labels.

        Raises :class:`BadValue` for what is no label, has no tokens, or more than ``max_target_tokens``.
        """
        ids, most = self._filler.target(self._spoken(text)), self.contract.max_target_tokens - self._ends
        if not 0 < len(ids) <= most:
            raise BadValue(
                f"the answer {text[:80]!r} has {len(ids)} tokens, expected 1 to {most}; "
                "give it words, or raise max_target_tokens"
            )
        return tuple(ids)

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
                new = self._filler.ids(text)
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
                ids += self._filler.ids(self._rest(asked, done)) + self._filler.ids(self._rest(answered, asked))
                done = answered
        ids += self._filler.ids(self._rest(self._rendered(turns, ask=True), done))
        limit = self.contract.max_source_tokens
        return Encoded(ids=tuple(ids[-limit:]), scored=(False,) * min(len(ids), limit), truncated=len(ids) > limit)

    def text(self, ids: Sequence[int]) -> str:
        """Generated ids as text: special tokens dropped, cut at the first stop string, outer blanks stripped.

        The word of a label is given as the label; with labels, any other text is an illegal answer, given as it is.
        """
        text = self._text(ids)
        return self._label_of.get(text, text)

    def _text(self, ids: Sequence[int]) -> str:
        text = str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
        for stop in self.contract.stop:
            text = text.split(stop, 1)[0]
        return text.strip()

    def _source(self, fields: Mapping[str, str], *, num_masks: int) -> Encoded:
        start, end = self._edges()
        limit = self.contract.max_source_tokens - len(start) - len(end)
        parts, truncated = self._filler.source(fields, limit, self.fields)
        laid = [self._laid(part, num_masks) for part in parts]
        ids = (*start, *(token for tokens, _ in laid for token in tokens), *end)
        scored = (*[False] * len(start), *(counts for _, marks in laid for counts in marks), *[False] * len(end))
        return Encoded(ids=ids, scored=scored, truncated=truncated)

    def _laid(self, part: Part, num_masks: int) -> tuple[Sequence[int], Sequence[bool]]:
        match part.piece:
            case Slots(first=first, count=count):
                return range(FIRST_SLOT + first, FIRST_SLOT + first + count), [False] * count
            case Mask():
                assert self._mask is not None
                # An encoder beside a decoder has its mask in the text, and its answer elsewhere.
                return [self._mask] * num_masks, [self.contract.layout != "answer"] * num_masks
            case _:
                return part.ids, [place in part.starts for place in range(len(part.ids))]

    def _target(self, target: str) -> tuple[list[int], bool]:
        """The ids that are said, with the end token if the contract has it, and whether they were cut."""
        ids = self._filler.target(self._spoken(target))
        limit = self.contract.max_target_tokens - self._ends
        end = [int(self.tokenizer.eos_token_id)] if self._ends else []
        return ids[:limit] + end, len(ids) > limit

    def _tagged(self, fields: Mapping[str, str], tags: Sequence[str]) -> Encoded:
        source = self.source(fields)
        num_words = len(fields["source"].split())
        if len(tags) != num_words:
            raise BadValue(f"{len(tags)} tags for {num_words} words; a row needs one tag a word, with blanks between")
        return replace(source, answer=tuple(self._number(tag) for tag in tags)[: sum(source.scored)])

    def _number(self, label: str) -> int:
        if label not in self.contract.labels:
            some = ", ".join(repr(x) for x in self.contract.labels[:20])
            raise BadValue(f"the target {label[:80]!r} is no label, expected one of {some}; see labels")
        return self.contract.labels.index(label)

    def _spoken(self, target: str) -> str:
        if not self.contract.labels:
            return target
        return (self.contract.label_words or self.contract.labels)[self._number(target)]

    def _label_words(self) -> dict[str, str]:
        """From what the ids of a label's word read as to the label."""
        found: dict[str, str] = {}
        for label in self.contract.labels:
            text = self._text(self.candidate(label))
            if text in found:
                raise BadValue(f"the labels {found[text]!r} and {label!r} are the same tokens; give other label_words")
            found[text] = label
        return found

    def _edges(self) -> tuple[list[int], list[int]]:
        """The tokens before and behind the source: a BERT calls them its class and separator tokens."""
        names, start, end = self.tokenizer, list[int](), list[int]()
        if self.contract.bos:
            token = names.cls_token_id if names.bos_token_id is None else names.bos_token_id
            if token is None:
                raise BadValue("the contract starts with the tokenizer's start token, but it has none; set bos = false")
            start = [int(token)]
        if self.contract.ends_source:
            token = names.sep_token_id if names.eos_token_id is None else names.eos_token_id
            if token is None:
                raise BadValue(
                    "the contract ends sources with an end token, but there is none; set ends_source = false"
                )
            end = [int(token)]
        return start, end

    def _mask_id(self) -> int:
        if self.contract.layout == "answer":
            sentinel = self.tokenizer.get_vocab().get(SENTINEL)
            if sentinel is not None:
                return int(sentinel)
        if self.tokenizer.mask_token_id is None:
            raise BadValue(
                "input_template has [MASK], but the tokenizer has no mask token; use another layout or model"
            )
        return int(self.tokenizer.mask_token_id)

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
