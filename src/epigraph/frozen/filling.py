"""Templates filled by a row, as token ids: piece by piece, cut to a length, with no special tokens but the template's.

Knows tokenizers and templates; does not know what is learnt or asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from epigraph.contract import Mask, Piece, TextContract, Words, filled, pieces_of
from epigraph.errors import BadValue


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A piece of a template with the ids of its words; those at ``starts`` begin a word that gets a tag."""

    piece: Piece
    ids: tuple[int, ...] = ()
    starts: tuple[int, ...] = ()


class Filler:
    """The templates of a text contract under a tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, contract: TextContract) -> None:
        self.tokenizer = tokenizer
        self.contract = contract
        self._pieces, self._blank = _pieces(contract), _blank(contract)
        # Contracts of the first kind keep the ids they have always had: in those any text may hold special tokens.
        is_guarded = contract.layout != "continuation" or contract.is_placed or contract.has_mask
        self._special = _special_tokens(tokenizer) if is_guarded else {}
        # The unknown token stands for characters that the vocabulary lacks: any text may come out with it.
        self._refused = frozenset(self._special.values()) - {tokenizer.unk_token_id}
        longest_first = sorted(self._special, key=len, reverse=True)
        self._pattern = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if self._special else None

    def source(
        self, fields: Mapping[str, str], limit: int, constant: Mapping[str, str] | None = None
    ) -> tuple[list[Part], bool]:
        """The input template's pieces with at most ``limit`` text tokens, and whether words had to be cut off.

        ``constant`` fields stand in every row as they are: they are never cut, and no row has others of their names.
        """
        constant = constant or {}
        try:
            parts = self._parts({**fields, **constant})
        except KeyError as missing:
            raise BadValue(
                f"the input template asks for the field {missing}, the row has {', '.join(fields) or 'none'}; "
                "use an artifact or a template that was made for such rows"
            ) from None
        if _num_text(parts) <= limit:
            return parts, False
        return self._shortened(fields, constant, limit), True

    def target(self, text: str) -> list[int]:
        """The ids of the target template filled with ``text``, and of the blank before the mask if that is its."""
        return self._words(self._blank + self.contract.target_template, {"target": text})

    def ids(self, text: str) -> list[int]:
        """The ids of a text as the tokenizer makes them; raises :class:`BadValue` for half a character."""
        try:
            text.encode()
        except UnicodeEncodeError as wrong:
            raise BadValue(
                f"the text is not valid Unicode: half a character at place {wrong.start + 1}; give UTF-8 text"
            ) from None
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return ids

    def _parts(self, fields: Mapping[str, str]) -> list[Part]:
        return [self._part(piece, fields) for piece in self._pieces]

    def _part(self, piece: Piece, fields: Mapping[str, str]) -> Part:
        if not isinstance(piece, Words):
            return Part(piece=piece)
        if self.contract.layout == "tags" and "{source}" in piece.text:
            return self._tagged(piece, fields)
        return Part(piece=piece, ids=tuple(self._words(piece.text, fields)))

    def _tagged(self, piece: Words, fields: Mapping[str, str]) -> Part:
        # Each word is tokenised apart, so that it surely has a first token of its own.
        before, _, after = piece.text.partition("{source}")
        ids, starts = self._words(before.rstrip(" "), fields), list[int]()
        for number, word in enumerate(fields["source"].split()):
            new = self._unspecial(f" {word}" if number or before.endswith(" ") else word)
            if not new:
                raise BadValue(f"the tokenizer makes nothing of the word {word!r}, which is to get a tag; take it out")
            starts.append(len(ids))
            ids += new
        return Part(piece=piece, ids=(*ids, *self._words(after, fields)), starts=tuple(starts))

    def _words(self, template: str, fields: Mapping[str, str]) -> list[int]:
        """The ids of words with fields in them; special tokens that stand in the template itself are such."""
        if self._pattern is None:
            return self.ids(filled(template, fields))
        ids: list[int] = []
        texts = self._pattern.split(template)
        for number, text in enumerate(texts):
            if number % 2:
                ids.append(self._special[text])
            elif text.strip(" ") or len(texts) == 1:
                # As around a slot: blanks right before a special token, and blanks alone, belong to nothing.
                is_last = number + 1 == len(texts)
                ids += self._unspecial(filled(text if is_last else text.rstrip(" "), fields))
        return ids

    def _unspecial(self, text: str) -> list[int]:
        ids = [token for part in self._broken(text) for token in self.ids(part)]
        if found := self._refused.intersection(ids):
            name = self.tokenizer.convert_ids_to_tokens(min(found))
            raise BadValue(f"a field holds {name!r}, a special token of the tokenizer, which is no text; take it out")
        return ids

    def _broken(self, text: str) -> Iterator[str]:
        """``text``, cut behind the first character of everything in it that spells a special token.

        Not ``split_special_tokens``: that sets a flag of the tokenizer, which all threads share, and vocabularies of
        whole texts (T5's) have their special tokens among their words, where they are found all the same.
        """
        while self._pattern is not None and (found := self._pattern.search(text)):
            yield text[: found.start() + 1]
            text = text[found.start() + 1 :]
        yield text

    def _shortened(self, fields: Mapping[str, str], constant: Mapping[str, str], limit: int) -> list[Part]:
        """With the longest field that the template names cut until the rest fits; with that empty, the next one too."""
        named = [name for name in fields if f"{{{name}}}" in self.contract.input_template]
        for name in sorted(named, key=lambda name: -len(fields[name])):
            parts = self._cut(fields, name, constant, limit)
            if _num_text(parts):
                return parts
            fields = {**fields, name: ""}
        raise BadValue(f"max_source_tokens is {limit}: the input template alone is longer; raise it")

    def _cut(self, fields: Mapping[str, str], name: str, constant: Mapping[str, str], limit: int) -> list[Part]:
        """With as much of the field ``name`` as fits; nothing where not even the rest does."""
        is_words = self.contract.layout == "tags" and name == "source"
        units: Sequence[str] = fields[name].split() if is_words else fields[name]
        low, high, best = 0, len(units), list[Part]()
        while low <= high:
            middle = (low + high) // 2
            parts = self._parts({**fields, name: (" " if is_words else "").join(units[:middle]), **constant})
            if _num_text(parts) <= limit:
                low, best = middle + 1, parts
            else:
                high = middle - 1
        return best


def _pieces(contract: TextContract) -> Sequence[Piece]:
    """The pieces that are read: a decoder that goes on with the text reads up to the mask."""
    pieces = pieces_of(contract.input_template)
    masks = [number for number, piece in enumerate(pieces) if isinstance(piece, Mask)]
    return pieces[: masks[0]] if masks and contract.layout == "continuation" else pieces


def _blank(contract: TextContract) -> str:
    """The blank before the mask, where the answer is said right there and does not begin with one by itself."""
    is_said_there = contract.layout in ("continuation", "cloze") and not contract.target_template.startswith(" ")
    has_blank = any(isinstance(x, Mask) and x.after_blank for x in pieces_of(contract.input_template))
    return " " if is_said_there and has_blank else ""


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    named = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return {str(text): int(number) for text, number in {**dict(named), **added}.items() if text}


def _num_text(parts: Sequence[Part]) -> int:
    return sum(len(part.ids) for part in parts)
