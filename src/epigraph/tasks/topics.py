"""News into headlines, one topic at a time (AG News, Zhang et al. 2015), so that topics never trained on can be asked.

It knows files and words for the tasks; it knows no model and no tokenizer. Prefix-Tuning's extrapolation (Li & Liang
2021, section 6.3) is news to sports and topic to topic on XSum; this is its shape on other news, and no published
scores go with it: set one topic's artifact, asked about another by ``--task``, beside one trained there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from epigraph.tasks.base import Example, Task
from epigraph.tasks.classification import AGNEWS_FILES, TOPICS, read_news
from epigraph.tasks.fetch import SPLITS, found_files
from epigraph.tasks.rouge import BETTER_WHEN_HIGHER, HEADLINE, score_rouge

# The name of a topic's task ends in this.
TOPIC_NAMES: Mapping[str, str] = MappingProxyType(
    {topic.lower().replace("/", "-"): topic for topic in TOPICS},
)


def agnews_titles(topic: str | None = None) -> Task:
    """Descriptions of AG News as sources, titles as references; of one ``topic`` alone, or of all four for None.

    Splits are those of the classification task ``agnews``: a tenth of the training rows, told by their descriptions,
    is held out for development. What the set has of HTML in its texts is left there. Loading raises
    :class:`DataNotFound` and :class:`BadRows`.
    """
    name, which = ("agnews-titles", "all topics") if topic is None else (f"agnews-titles-{topic}", TOPIC_NAMES[topic])
    return Task(
        name=name,
        summary=f"AG News, {which}: the title of a news item from its text; dev is a fixed tenth of train",
        instruction="Write the headline of the news.",
        splits={split: partial(_load, topic, split) for split in SPLITS},
        score=score_rouge,
        headline=HEADLINE,
        better_when_higher=BETTER_WHEN_HIGHER,
        max_source_tokens=256,
        max_target_tokens=48,
        files=found_files("agnews", AGNEWS_FILES),
    )


TASKS: Mapping[str, Callable[[], Task]] = MappingProxyType(
    {"agnews-titles": agnews_titles, **{f"agnews-titles-{x}": partial(agnews_titles, x) for x in TOPIC_NAMES}}
)


def _load(topic: str | None, split: str) -> list[Example]:
    wanted = TOPICS if topic is None else (TOPIC_NAMES[topic],)
    return [Example(source=text, references=(title,)) for title, text, label in read_news(split) if label in wanted]
