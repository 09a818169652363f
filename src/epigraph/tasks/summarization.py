"""Long texts into one line: emails into subjects (AESLC), BBC articles into a sentence (XSum), and first sentences.

It knows files and words for the tasks; it knows no model and no tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

from epigraph.errors import BadRows, BadValue, DataNotFound
from epigraph.tasks.base import Example, Loader, Task
from epigraph.tasks.faults import Fault, quoted, shown
from epigraph.tasks.fetch import SPLITS, find_file, found_files
from epigraph.tasks.lines import read_checked, read_records
from epigraph.tasks.rouge import BETTER_WHEN_HIGHER, HEADLINE, score_rouge

# Li & Liang 2021 cut sources to 512 tokens; 60 is from their code.
XSUM_SOURCE_TOKENS = 512
XSUM_TARGET_TOKENS = 60
# Ours: four in five emails and nearly all subjects are shorter, counted in tokens of SmolLM2.
AESLC_SOURCE_TOKENS = 256
AESLC_TARGET_TOKENS = 32

# Li & Liang 2021, appendix A.1.
WITHIN_NEWS_TOPICS = ("world", "uk", "business")

_FILES = {split: f"{split}.jsonl.gz" for split in SPLITS}
_TEXTS = ("document", "summary")
_HOW_TO_MAKE_XSUM = (
    "XSum's authors publish a list of article numbers by split and a script that collects the articles: write each as "
    "a line with document, summary and url (the BBC address, read by the tasks by topic), its validation split as dev"
)
# Anywhere: a web archive's address has the one that it copies behind its own.
_BBC_PATH = re.compile(r"\bbbc\.(?:co\.uk|com)/([^?#]*)", re.IGNORECASE)
_ARTICLE_NUMBER = re.compile(r"-?\d+$")
_END = re.compile(r"""([.!?…]+)["'”\u2019)\]]*(?=\s|$)""")
# Never the last word of a sentence: titles, initials and the like (J., U.S., e.g.).
_UNENDING = re.compile(
    "mr|mrs|ms|messrs|dr|prof|st|rev|hon|sgt|cpl|pte|capt|lt|col|gen|maj|cmdr|adm|insp|det|supt|gov|sen|rep|vs"
    r"|(?:.*\.)?(?!i$)[^\W\d_]"
)
# Abbreviations in front of a number, words elsewhere: "No. 10", "Jan. 5".
_BEFORE_NUMBERS = re.compile("nos?|fig|vol|pp|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec")


def aeslc() -> Task:
    """AESLC (Zhang & Tetreault 2019): the body of an Enron email into its subject; 14,436 to train on.

    The reference of ``train``, ``dev`` and ``test-original`` is the subject that the email had. ``test`` has the same
    emails as ``test-original`` with the subjects of three annotators as further references, so its scores are higher:
    say which of the two. The official dev has emails of the official test, which are left out of ``dev`` here.
    Loading raises :class:`DataNotFound` and :class:`BadRows`.
    """
    task = _task(
        name="aeslc",
        summary=(
            "AESLC: an email into its subject; references of test: the original subject and three people's, of "
            "test-original the original alone (CC BY-NC-SA 4.0)"
        ),
        splits={
            "train": partial(_load, "aeslc", "train"),
            "dev": _load_aeslc_dev,
            "test": _load_annotated,
            "test-original": partial(_load, "aeslc", "test"),
        },
        folder="aeslc",
    )
    return replace(
        task,
        instruction="Write the subject line of the email.",
        max_source_tokens=AESLC_SOURCE_TOKENS,
        max_target_tokens=AESLC_TARGET_TOKENS,
    )


def xsum_pool() -> Task:
    """Some of XSum's articles, pooled from public subsets and split by us: 2,601 for training, 615 for testing.

    Most rows are of the official test split, in all three of ours: no score is comparable with a published one.
    Loading raises :class:`DataNotFound` and :class:`BadRows`.
    """
    return _task(
        name="xsum-pool",
        summary=(
            "XSum articles from public subsets into one sentence, in OUR partition, mostly of the official test split: "
            "not comparable with published XSum numbers"
        ),
        splits={split: partial(_load, "xsum_pool", split) for split in SPLITS},
        folder="xsum_pool",
    )


def xsum() -> Task:
    """XSum (Narayan et al. 2018) in its official splits: BBC articles into the sentence that introduced them.

    Loading raises :class:`DataNotFound`, which says how to make the files, and :class:`BadRows`.
    """
    return _task(
        name="xsum",
        summary="XSum: a BBC article into one sentence, in the official splits (for research)",
        splits={split: partial(_load_xsum, split) for split in SPLITS},
        folder="xsum",
    )


def xsum_news_to_sports() -> Task:
    """XSum for extrapolation: trained on news articles, tested on sports ones (Li & Liang 2021, section 6.4).

    See :func:`topic` for what is news and what is sport. Raises as :func:`xsum` does.
    """
    return _by_topic(
        name="xsum-news-to-sports",
        summary="XSum for extrapolation: train and dev are the news articles of the official ones, test is sport",
        is_trained=lambda section, _: section == "news",
        is_tested=lambda section, _: section == "sport",
    )


def xsum_within_news() -> Task:
    """XSum for extrapolation: trained on world, UK and business news, tested on all other news.

    Li & Liang 2021, section 6.4 and appendix A.1. A news article whose address has no topic is in no split. See
    :func:`topic`. Raises as :func:`xsum` does.
    """
    return _by_topic(
        name="xsum-within-news",
        summary="XSum for extrapolation: train and dev are world, UK and business news, test is all other news",
        is_trained=lambda section, of: section == "news" and of in WITHIN_NEWS_TOPICS,
        is_tested=lambda section, of: section == "news" and of not in ("", *WITHIN_NEWS_TOPICS),
    )


TASKS: Mapping[str, Callable[[], Task]] = MappingProxyType(
    {
        "aeslc": aeslc,
        "xsum-pool": xsum_pool,
        "xsum": xsum,
        "xsum-news-to-sports": xsum_news_to_sports,
        "xsum-within-news": xsum_within_news,
    }
)


def topic(address: str) -> tuple[str, str]:
    """Section and topic that a BBC address names: ``("news", "world")``, ``("sport", "football")``, ``("news", "")``.

    The section is the first part of the path. The topic is the first word of the second part, without the article's
    number: ``/news/uk-england-kent-1234`` is ``uk``, and so is ``/news/uk-politics-1234``; ``/news/1234`` has none.
    Copies in a web archive are read by the address they copy. Raises :class:`BadValue` for what is no BBC address.
    """
    found = _BBC_PATH.search(address)
    section, second, *_ = [*(x for x in (found[1].lower() if found else "").split("/") if x), "", ""]
    if not section:
        raise BadValue(f"got the address {quoted(address)}, expected one such as http://www.bbc.co.uk/news/uk-1234")
    return section, _ARTICLE_NUMBER.sub("", second).split("-")[0]


def lead(text: str, num_sentences: int = 1) -> str:
    """The first sentences of ``text``, blanks evened out: the lead baseline of summarisation.

    A line break ends a sentence, and so does a full stop, question or exclamation mark in front of a blank, except
    after titles, initials and the like, in front of a small letter, or inside quotation marks that close in the same
    line. A line without any letter is left out, unless there is no other. Raises :class:`BadValue` for fewer than one.
    """
    if num_sentences < 1:
        raise BadValue(f"got {num_sentences} sentences of lead, expected 1 or more")
    lines = [line for line in text.splitlines() if any(x.isalpha() for x in line)] or text.splitlines()
    sentences = (sentence for line in lines for sentence in _sentences(line))
    return " ".join(" ".join(islice(sentences, num_sentences)).split())


def _sentences(line: str) -> Iterator[str]:
    start = 0
    for mark in _END.finditer(line):
        if _is_end(line, start, mark):
            yield line[start : mark.end()]
            start = mark.end()
    if line[start:].strip():
        yield line[start:]


def _is_end(line: str, start: int, mark: re.Match[str]) -> bool:
    """Whether the sentence from ``start`` ends at ``mark``, which is one that could end it."""
    sentence, after = line[start : mark.end()], line[mark.end() :].lstrip()
    if not after:
        return True
    # "1. Retention", "a) ...": what has no word in it is a number of a list.
    if after[0].islower() or not re.search(r"[^\W\d_]{2}", sentence) or _is_quote_open(sentence, after):
        return False
    if mark[1] != ".":
        return True
    *_, word = re.split(r"[\s\"'“\u2018(\[]", line[start : mark.start()].lower())
    return not (_UNENDING.fullmatch(word) or (after[0].isdigit() and _BEFORE_NUMBERS.fullmatch(word)))


def _is_quote_open(sentence: str, after: str) -> bool:
    """Whether a quotation mark is open at the end of ``sentence``, and closes in what comes ``after``."""
    straight = sentence.count('"') % 2 == 1 and '"' in after
    return straight or (sentence.count("“") > sentence.count("”") and "”" in after)


def _task(*, name: str, summary: str, splits: Mapping[str, Loader], folder: str) -> Task:
    """A task as those of XSum are."""
    return Task(
        name=name,
        summary=summary,
        instruction="Summarise the article in one sentence.",
        splits=splits,
        score=score_rouge,
        headline=HEADLINE,
        better_when_higher=BETTER_WHEN_HIGHER,
        max_source_tokens=XSUM_SOURCE_TOKENS,
        max_target_tokens=XSUM_TARGET_TOKENS,
        files=found_files(folder, _FILES),
    )


def _by_topic(
    *, name: str, summary: str, is_trained: Callable[[str, str], bool], is_tested: Callable[[str, str], bool]
) -> Task:
    """A task whose training and development topics are not its test topics.

    Test articles come from all official splits: a user of the authors' files counts 20,418 of them within news, which
    is more than the official test split has.
    """
    return _task(
        name=name,
        summary=summary,
        splits={
            "train": partial(_load_topics, ("train",), is_trained),
            "dev": partial(_load_topics, ("dev",), is_trained),
            "test": partial(_load_topics, SPLITS, is_tested),
        },
        folder="xsum",
    )


def _load(folder: str, split: str) -> list[Example]:
    return _examples(read_records(find_file(folder, _FILES[split]), _TEXTS))


def _load_xsum(split: str) -> list[Example]:
    return _examples(read_records(_find_xsum(split), _TEXTS))


def _load_topics(splits: Iterable[str], is_wanted: Callable[[str, str], bool]) -> list[Example]:
    return [example for split in splits for example in _of_topics(_find_xsum(split), is_wanted)]


def _of_topics(path: Path, is_wanted: Callable[[str, str], bool]) -> list[Example]:
    rows = read_records(path, (*_TEXTS, "url"))
    try:
        return _examples(row for row in rows if is_wanted(*topic(row["url"])))
    except BadValue as error:
        raise BadRows(f"{path}: {error}") from error


def _find_xsum(split: str) -> Path:
    try:
        return find_file("xsum", _FILES[split])
    except DataNotFound as error:
        raise DataNotFound(f"{error}. {_HOW_TO_MAKE_XSUM}") from error


def _examples(rows: Iterable[Mapping[str, str]]) -> list[Example]:
    return [Example(source=row["document"], references=(row["summary"],)) for row in rows]


def _load_aeslc_dev() -> list[Example]:
    tested = {x.source for x in _load("aeslc", "test")}
    return [x for x in _load("aeslc", "dev") if x.source not in tested]


def _load_annotated() -> list[Example]:
    further = _extra_references(find_file("aeslc", _FILES["test"]))
    pairs = zip(_load("aeslc", "test"), further, strict=True)
    return [replace(x, references=(*x.references, *texts)) for x, texts in pairs]


def _extra_references(path: Path) -> list[tuple[str, ...]]:
    """The annotators' subjects, row by row; the rows' other fields have been looked at already."""
    rows = read_checked(path, "an object with extra_references", _extra_faults)
    return [tuple(row["extra_references"]) for row in rows]


def _extra_faults(row: Mapping[str, Any]) -> Iterator[Fault]:
    texts = row.get("extra_references")
    if not isinstance(texts, list) or not all(isinstance(x, str) and x.strip() for x in texts):
        yield Fault(where="field extra_references", got=shown(texts), expected="a list of texts")
