"""All metrics of the E2E challenge in one scorer. It knows which module computes which; no file and no model."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from epigraph.tasks.base import Example, Scores
from epigraph.tasks.captions import score_captions
from epigraph.tasks.metrics import check_rows, score_generation, together
from epigraph.tasks.nist import score_nist
from epigraph.tasks.slots import score_slots

TEXT_METRICS = ("bleu", "chrf", "exact_match", "mean_length_words")
CAPTION_METRICS = ("meteor", "rouge_l", "cider")
SLOT_METRICS = ("ser", "ser_missing", "ser_wrong", "ser_added")
# In the order of the challenge's script, then ours.
METRICS = ("bleu", "nist", *CAPTION_METRICS, *SLOT_METRICS, "chrf", "exact_match", "mean_length_words")
# What a run may be chosen by: a slot error rate is better when lower.
BETTER_WHEN_HIGHER = ("bleu", "nist", *CAPTION_METRICS, "chrf", "exact_match")


def score_e2e(predictions: Sequence[str], examples: Sequence[Example], only: Collection[str] | None = None) -> Scores:
    """Scores of ``predictions``, one an example, by all :data:`METRICS` or ``only`` some.

    What cannot be computed is in ``missing`` with the reason and stops nothing else. Raises what
    :func:`~epigraph.tasks.metrics.score_generation` raises.
    """
    references = [[text.strip() for text in x.references] for x in examples]
    check_rows(predictions, references)
    predictions = [x.strip() for x in predictions]
    wanted = [x for x in METRICS if only is None or x in only]
    parts = []
    if not set(wanted).isdisjoint(TEXT_METRICS):
        parts.append(score_generation(predictions, references, wanted))
    if "nist" in wanted:
        parts.append(score_nist(predictions, references))
    if not set(wanted).isdisjoint(CAPTION_METRICS):
        parts.append(score_captions(predictions, references, wanted))
    if not set(wanted).isdisjoint(SLOT_METRICS):
        parts.append(score_slots(predictions, [x.source for x in examples], wanted))
    return together(parts, wanted, len(predictions))
