"""Data sets of the Hugging Face hub, turned into the very rows that our tasks read from files.

It knows ids, columns and what label numbers mean there; it does not know where files lie, nor what a task does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from types import MappingProxyType
from typing import Any

from epigraph.errors import ChecksumMismatch, FetchFailed
from epigraph.home import home

Row = Mapping[str, Any]
Converter = Callable[[Iterable[Row]], Iterator[dict[str, Any]]]

# Where the hub keeps its own conversion of sets that came with a script, which the library runs no more.
CONVERTED = "refs/convert/parquet"

_BOOLEANS = ("False", "True")
_WITHOUT_LABELS = "the hub's test rows have no labels"


@dataclass(frozen=True, kw_only=True, slots=True)
class HubSet:
    """One data set of the hub.

    ``files`` maps each of our files in ``folder`` to the hub's split it is made of, ``labels`` are the names that the
    hub's label numbers stand for, in their order; ``lacks`` says in words what a user might miss.
    """

    id: str
    folder: str
    files: Mapping[str, str]
    convert: Converter
    config: str | None = None
    labels: tuple[str, ...] = ()
    lacks: str = ""

    def rows(self, split: str, address: str | None = None) -> Iterator[dict[str, Any]]:
        """Our rows of the hub's ``split``; ``address`` is another id, or a folder that has the same files.

        Raises :class:`FetchFailed` where it cannot be had, and :class:`ChecksumMismatch` for other columns or labels.
        """
        table = read_table(address or self.id, self.config, split)
        names = table.labels.get("label", ())
        where = f"{address or self.id}, {split}"
        if self.labels and names and names != self.labels:
            raise ChecksumMismatch(f"{where}: got the labels {', '.join(names)}, expected {', '.join(self.labels)}")
        try:
            yield from self.convert(table.rows)
        except (KeyError, TypeError, IndexError) as error:
            raise ChecksumMismatch(
                f"{where}: got rows without what docs/data.md says they have ({type(error).__name__}: {error}), "
                "expected the hub's columns; nothing was kept"
            ) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """One split as the library gives it: its rows, and by column the names that label numbers stand for."""

    rows: Iterable[Row]
    labels: Mapping[str, tuple[str, ...]]


def read_table(address: str, config: str | None, split: str) -> Table:
    """A split of the hub's data set ``address``, or of a folder of JSON Lines, CSV or Parquet files.

    What comes from the hub is kept in ``$EPIGRAPH_HOME/hub``. Raises :class:`FetchFailed`.
    """
    try:
        import datasets
    except ImportError:
        raise FetchFailed(
            f"{address} is read by the library datasets, which is not installed; pip install 'epigraph[hub]', "
            "or set EPIGRAPH_DATA to a folder that has the files"
        ) from None
    try:
        loaded = _load(datasets.load_dataset, address, config, split)
    # Whatever the library, its file readers and the network raise, of which there is no list.
    except Exception as error:
        why = next(iter(str(error).splitlines()), "")[:200] or type(error).__name__
        raise FetchFailed(
            f"could not get {address}{f' ({config})' if config else ''}, split {split}: {why}; check the network, name "
            "a copy (an id or a folder) with --from, or set EPIGRAPH_DATA to a folder that has the files"
        ) from error
    named = {column: tuple(x.names) for column, x in loaded.features.items() if isinstance(x, datasets.ClassLabel)}
    return Table(rows=loaded, labels=named)


def _load(load_dataset: Callable[..., Any], address: str, config: str | None, split: str) -> Any:
    get = partial(load_dataset, address, config, split=split, cache_dir=str(home() / "hub"))
    try:
        return get()
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
    return get(revision=CONVERTED)


# Converters: the hub's rows in, ours out, in the same order.


def labelled(rows: Iterable[Row], *, fields: Sequence[str], values: Sequence[object]) -> Iterator[dict[str, Any]]:
    """The ``fields`` as they are, and for the number in ``label`` the one of ``values`` that it stands for."""
    for row in rows:
        yield {**{name: row[name] for name in fields}, "label": _value(row["label"], values)}


def wsc(rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    """SuperGLUE's WSC with the two spans in an object of their own, ``target``."""
    spans = ("span1_index", "span1_text", "span2_index", "span2_text")
    for row in rows:
        target = {name: row[name] for name in spans}
        label = _value(row["label"], (False, True))
        yield {"text": row["text"], "target": target, "idx": row["idx"], "label": label}


def multirc(rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    """SuperGLUE's MultiRC: the hub has a row an answer, we one a passage, with its questions and their answers."""
    for number, of_passage in groupby(rows, key=lambda row: row["idx"]["paragraph"]):
        answers = list(of_passage)
        by_question = groupby(answers, key=lambda row: row["idx"]["question"])
        questions = [_question(idx, list(some)) for idx, some in by_question]
        yield {"idx": number, "passage": {"text": answers[0]["paragraph"], "questions": questions}}


def _question(idx: int, rows: Sequence[Row]) -> dict[str, Any]:
    answers = [
        {"text": row["answer"], "idx": row["idx"]["answer"], "label": _value(row["label"], (0, 1))} for row in rows
    ]
    return {"question": rows[0]["question"], "answers": answers, "idx": idx}


def record(rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    """SuperGLUE's ReCoRD: the hub has a row a query, we one a passage. Our spans end on their last character.

    The hub's answers are texts: here every entity of that text is an answer.
    """
    for number, of_passage in groupby(rows, key=lambda row: row["idx"]["passage"]):
        queries = list(of_passage)
        spans = queries[0]["entity_spans"]
        entities = [
            {"start": start, "end": end - 1, "text": text}
            for text, start, end in zip(spans["text"], spans["start"], spans["end"], strict=True)
        ]
        qas = [
            {
                "query": row["query"],
                "answers": [x for x in entities if x["text"] in row["answers"]],
                "idx": row["idx"]["query"],
            }
            for row in queries
        ]
        places = [{"start": x["start"], "end": x["end"]} for x in entities]
        yield {"passage": {"text": queries[0]["passage"], "entities": places}, "qas": qas, "idx": number}


def squad(rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    """SQuAD 1.1 with answers as a list of objects."""
    for row in rows:
        found = zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
        answers = [{"text": text, "answer_start": start} for text, start in found]
        yield {**{name: row[name] for name in ("id", "title", "context", "question")}, "answers": answers}


def xsum(rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    """XSum, which has no addresses on the hub. Rows without a document or a summary are left out."""
    for row in rows:
        if row["document"].strip() and row["summary"].strip():
            yield {name: row[name] for name in ("id", "document", "summary")}


def aeslc(rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    """AESLC, which on the hub has neither ids nor the subjects that annotators wrote."""
    for number, row in enumerate(rows):
        yield {"id": str(number), "document": row["email_body"], "summary": row["subject_line"]}


def _value(number: object, values: Sequence[object]) -> object:
    # A row without a label has -1, which would be the last of them.
    if not isinstance(number, int) or not 0 <= number < len(values):
        raise ChecksumMismatch(f"got the label {number!r:.60}, expected 0 to {len(values) - 1}; nothing was kept")
    return values[number]


def _superglue(name: str, config: str, convert: Converter, labels: tuple[str, ...] = _BOOLEANS) -> HubSet:
    files = MappingProxyType({f"{name}/train.jsonl.gz": "train", f"{name}/val.jsonl.gz": "validation"})
    return HubSet(
        id="aps/super_glue",
        config=config,
        folder="superglue",
        files=files,
        convert=convert,
        labels=labels,
        lacks="FewGLUE's 32 rows are not part of SuperGLUE",
    )


_PAIR = ("premise", "hypothesis", "idx")
_WIC = ("word", "sentence1", "sentence2", "start1", "start2", "end1", "end2", "idx")
_COPA = ("premise", "choice1", "choice2", "question", "idx")
_CB = ("entailment", "contradiction", "neutral")
_RTE = ("entailment", "not_entailment")
_TRAIN_DEV = MappingProxyType({"train.jsonl.gz": "train", "dev.jsonl.gz": "validation"})
_ALL = MappingProxyType({**_TRAIN_DEV, "test.jsonl.gz": "test"})
_YES_NO = (False, True)

# By the name of the task that reads them.
HUB: Mapping[str, HubSet] = MappingProxyType(
    {
        "boolq": _superglue("BoolQ", "boolq", partial(labelled, fields=("question", "passage", "idx"), values=_YES_NO)),
        "cb": _superglue("CB", "cb", partial(labelled, fields=_PAIR, values=_CB), _CB),
        "copa": _superglue("COPA", "copa", partial(labelled, fields=_COPA, values=(0, 1)), ("choice1", "choice2")),
        "multirc": _superglue("MultiRC", "multirc", multirc),
        "record": _superglue("ReCoRD", "record", record, ()),
        "rte": _superglue("RTE", "rte", partial(labelled, fields=_PAIR, values=_RTE), _RTE),
        "wic": _superglue("WiC", "wic", partial(labelled, fields=_WIC, values=_YES_NO)),
        "wsc": _superglue("WSC", "wsc.fixed", wsc),
        "squad": HubSet(
            id="rajpurkar/squad",
            folder="squad",
            files=MappingProxyType({"dev.jsonl.gz": "validation"}),
            convert=squad,
            lacks="our training part; the task reads no other",
        ),
        "xsum": HubSet(
            id="EdinburghNLP/xsum",
            folder="xsum",
            files=_ALL,
            convert=xsum,
            lacks="the articles' addresses, which the tasks by topic need, and articles without text",
        ),
        "aeslc": HubSet(
            id="Yale-LILY/aeslc",
            folder="aeslc",
            files=_ALL,
            convert=aeslc,
            lacks="the subjects that annotators wrote, which the split test needs and the others do not",
        ),
        "mrpc": HubSet(
            id="nyu-mll/glue",
            config="mrpc",
            folder="mrpc",
            files=_ALL,
            convert=partial(labelled, fields=("sentence1", "sentence2"), values=(0, 1)),
            labels=("not_equivalent", "equivalent"),
        ),
        "qqp": HubSet(
            id="nyu-mll/glue",
            config="qqp",
            folder="qqp",
            files=_TRAIN_DEV,
            convert=partial(labelled, fields=("question1", "question2"), values=(0, 1)),
            labels=("not_duplicate", "duplicate"),
            lacks=_WITHOUT_LABELS,
        ),
        "sst2": HubSet(
            id="stanfordnlp/sst2",
            folder="sst2",
            files=_TRAIN_DEV,
            convert=partial(labelled, fields=("sentence",), values=(0, 1)),
            labels=("negative", "positive"),
            lacks=_WITHOUT_LABELS,
        ),
    }
)

# Which of them gives a file that was not found, by folder and file.
FILES: Mapping[str, str] = MappingProxyType(
    {f"{source.folder}/{file}": name for name, source in HUB.items() for file in source.files}
)
