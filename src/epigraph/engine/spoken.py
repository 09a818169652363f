"""An answer's tokens as text while they come: only what can no longer change is given out.

The whole is always ``Codec.text`` of all ids; it knows contracts and tokenizers, and no engine.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from epigraph.frozen.inputs import Codec

# Half a character, which the next token may make whole.
_UNFINISHED = "\ufffd"
# A token of one byte: what a run of them reads as is known at its end.
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class Spoken:
    """The text of one answer. ``stopped``: a stop text came, and nothing that follows can change the answer."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._ids: list[int] = []
        self._given = ""
        # What is settled of the ids before ``_read``; those from ``_start`` on are read again with new ones, since what
        # a token reads as depends on whether it is the first.
        self._text = ""
        self._start = self._read = 0
        self.stopped = False
        # Where blanks before punctuation are taken away at the end, no text is settled before.
        self._waits = bool(getattr(codec.tokenizer, "clean_up_tokenization_spaces", False))

    def add(self, ids: Sequence[int]) -> str:
        """The text that is settled by these further ids, beyond what was given out."""
        self._ids += ids
        if self._waits and not self._codec.contract.stop:
            return ""
        text = self._settled_text()
        pending = pending_length(text, self._codec.contract.stop)
        cut = _cut(text, self._codec.contract.stop)
        self.stopped = len(cut) < len(text) and not pending
        return "" if self._waits else self._beyond(cut[: len(text) - pending].strip())

    def finish(self) -> str:
        """The rest of the text."""
        return self._beyond(self._codec.text(self._ids))

    def _beyond(self, text: str) -> str:
        new, self._given = text[len(self._given) :], max(text, self._given, key=len)
        return new

    def _settled_text(self) -> str:
        tokenizer, end = self._codec.tokenizer, len(self._ids)
        while end > self._read and _BYTE.fullmatch(str(tokenizer.convert_ids_to_tokens(self._ids[end - 1]))):
            end -= 1
        new = self._decoded(self._start, end)[len(self._decoded(self._start, self._read)) :]
        if new.endswith(_UNFINISHED):
            return self._text + new.rstrip(_UNFINISHED)
        self._text += new
        if self._decoded(self._read, end):
            self._start = self._read
        self._read = end
        return self._text

    def _decoded(self, start: int, end: int) -> str:
        return str(self._codec.tokenizer.decode(self._ids[start:end], skip_special_tokens=True))


def pending_length(text: str, stops: Sequence[str]) -> int:
    """The length of the longest end of ``text`` that some stop text begins with and goes on from."""
    most = max((len(stop) - 1 for stop in stops), default=0)
    return next(
        (length for length in range(min(most, len(text)), 0, -1) if _is_begun(text[-length:], stops)),
        0,
    )


def _is_begun(end: str, stops: Sequence[str]) -> bool:
    return any(len(stop) > len(end) and stop.startswith(end) for stop in stops)


def _cut(text: str, stops: Sequence[str]) -> str:
    # One after the other, as Codec.text cuts: a stop text that another one has cut into does not count.
    for stop in stops:
        text = text.split(stop, 1)[0]
    return text
