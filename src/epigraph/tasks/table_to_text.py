"""Tables into sentences: the E2E restaurants (Novikova et al. 2017) and the package's own cards.

It knows files and words for the two tasks; it knows no model and no tokenizer.
"""

from __future__ import annotations

from functools import partial
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from epigraph.errors import DataNotFound
from epigraph.tasks.base import Example, Task
from epigraph.tasks.e2e_metrics import BETTER_WHEN_HIGHER, score_e2e
from epigraph.tasks.fetch import SPLITS, find_file, found_files
from epigraph.tasks.metrics import score_texts
from epigraph.tasks.rows import read_rows

MAX_SOURCE_TOKENS = 128
MAX_TARGET_TOKENS = 100


def e2e() -> Task:
    """The E2E restaurants: 42,061 training texts for 4,862 tables, several references a table.

    The files are looked for in ``$EPIGRAPH_DATA/e2e``, then where ``epigraph data fetch e2e`` puts them; loading
    raises :class:`DataNotFound` where neither has them.
    """
    return Task(
        name="e2e",
        summary="E2E restaurants: a table of slots into one description (CC BY-SA 4.0)",
        instruction="Describe the restaurant in one sentence.",
        splits={split: partial(_load_e2e, split) for split in SPLITS},
        score=score_e2e,
        better_when_higher=BETTER_WHEN_HIGHER,
        max_source_tokens=MAX_SOURCE_TOKENS,
        max_target_tokens=MAX_TARGET_TOKENS,
        files=found_files("e2e", {split: f"{split}.jsonl.gz" for split in SPLITS}),
    )


def cards() -> Task:
    """The cards that come with the package: a few facts into one sentence, one reference or more a card."""
    return Task(
        name="cards",
        summary="cards: a few facts into one sentence; comes with the package",
        instruction="Say the facts of the card in one sentence.",
        splits={split: partial(_load_cards, split) for split in SPLITS},
        score=score_texts,
        max_source_tokens=MAX_SOURCE_TOKENS,
        max_target_tokens=MAX_TARGET_TOKENS,
        files={split: str(_cards_folder().joinpath(f"{split}.jsonl")) for split in SPLITS},
    )


def _load_e2e(split: str) -> list[Example]:
    return read_rows(find_file("e2e", f"{split}.jsonl.gz"))


def _load_cards(split: str) -> list[Example]:
    file = _cards_folder().joinpath(f"{split}.jsonl")
    if not file.is_file():
        raise DataNotFound(f"got no file {file.name} of the cards, expected it in the package; install epigraph again")
    with resources.as_file(file) as path:
        return read_rows(Path(path))


def _cards_folder() -> Traversable:
    return resources.files("epigraph.tasks").joinpath("cards")
