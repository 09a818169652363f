"""Examples before and after, side by side: which are shown, and how much of each. It knows no page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from epigraph.report.records import Evaluation, ExampleRecord

NUM_SHOWN = 10
MAX_REFERENCES = 5
MAX_GLANCE = 240
MAX_KEPT = 2000

Fields = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Clipped:
    """A text and its beginning: ``glance`` is shown at once, ``kept`` on request. Lengths count characters."""

    glance: str
    kept: str
    length: int

    @property
    def is_clipped(self) -> bool:
        """Whether the glance is not the whole text."""
        return len(self.glance) < self.length


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """One source, what it should become, and what the model made of it; None where nothing was recorded."""

    source: Clipped
    fields: Fields | None
    references: tuple[Clipped, ...]
    before: Clipped | None
    after: Clipped | None


def comparisons(before: Evaluation | None, after: Evaluation | None, limit: int = NUM_SHOWN) -> tuple[Comparison, ...]:
    """``limit`` examples spread evenly over the recorded ones, so that nobody picked them; paired by their source."""
    lead, other = (after, before) if after is not None and after.examples else (before, None)
    if lead is None:
        return ()
    found = {x.source: x for x in reversed(other.examples)} if other is not None else {}
    rows = []
    for example in spread(lead.examples, limit):
        pair = (found.get(example.source), example) if lead is after else (example, None)
        rows.append(_comparison(example, *pair))
    return tuple(rows)


def spread(examples: Sequence[ExampleRecord], limit: int) -> list[ExampleRecord]:
    """At most ``limit`` of ``examples`` at even distances, the first and the last among them."""
    if len(examples) <= limit:
        return list(examples)
    if limit == 1:
        return [examples[0]]
    return [examples[round(place * (len(examples) - 1) / (limit - 1))] for place in range(limit)]


def source_fields(source: str) -> Fields | None:
    """A source of the form ``key : value | key : value`` as its pairs; None for any other text."""
    pairs = [part.partition(" : ") for part in source.strip().split(" | ")]
    if any(not colon or not key.strip() or not value.strip() or len(key) > 40 for key, colon, value in pairs):
        return None
    return tuple((key.strip(), value.strip()) for key, _, value in pairs)


def clipped(text: str, glance: int = MAX_GLANCE, kept: int = MAX_KEPT) -> Clipped:
    """``text`` with a beginning of about ``glance`` characters that ends between words; ``kept`` bounds the rest."""
    text = text.strip()
    # Hiding a last line or two would cost the reader more than it saves.
    if len(text) <= glance * 5 // 4:
        return Clipped(glance=text, kept=text, length=len(text))
    start = text[:glance]
    whole_words = start.rsplit(None, 1)[0] if not text[glance].isspace() else start.rstrip()
    # One endless word has no gap near the end to stop at.
    return Clipped(glance=whole_words if len(whole_words) > glance // 2 else start, kept=text[:kept], length=len(text))


def _comparison(example: ExampleRecord, before: ExampleRecord | None, after: ExampleRecord | None) -> Comparison:
    fields = source_fields(example.source)
    return Comparison(
        source=clipped(example.source),
        # A card is shown whole, so a long source is shown as text, which can be clipped.
        fields=fields if len(example.source) <= MAX_KEPT else None,
        references=tuple(clipped(x) for x in example.references[:MAX_REFERENCES]),
        before=clipped(before.prediction) if before is not None else None,
        after=clipped(after.prediction) if after is not None else None,
    )
