"""Several tasks trained as one: each source begins with its task's name, and scores are told apart by it.

It knows the tasks that it is made of by what every task has; it reads no file and knows no model.

T5's form of many tasks for one model (Raffel et al. 2020, section 2.4), which multi-task model tuning has (Lester et
al. 2021, section 3). Here it differs: T5 draws examples of a task in proportion to its size up to a limit; here every
row of every task comes once an epoch.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import zip_longest

import numpy as np

from epigraph.errors import BadValue
from epigraph.tasks.base import Example, Scores, Task
from epigraph.tasks.bootstrap import INTERVAL_VARIANT, Floats, Summed

JOINT = "+"
MEAN = "mean"

_FIELD = re.compile(r"\{([a-z][a-z0-9_]*)\}")
_PLACE = re.compile(r" *\{[0-9]+\}")
_MASK = "[MASK]"
# What a row was before it was mixed in. No template can ask for a name with a dot.
_TASK, _SOURCE = "mixture.task", "mixture.source"


def mixture(parts: Sequence[Task]) -> Task:
    """One task of all ``parts``, with the splits that every part has; rows of the parts take turns.

    A source is the part's name, a colon and the part's own template filled. Scores are ``PART.METRIC`` for each metric
    of each part, and ``mean``, that of the parts' headlines. Raises :class:`BadValue` for fewer than two parts, for the
    same part twice, and by name for a part that is a conversation or whose answers are ranked and not said.
    """
    names = [part.name for part in parts]
    twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if len(parts) < 2 or twice is not None:
        got = f"{twice} twice" if twice is not None else f"{JOINT.join(names)!r} alone"
        raise BadValue(f"a mixture is several tasks joined by {JOINT}, got {got}; name each once")
    for part in parts:
        _refuse_ranked(part)
    _check_targets(parts)
    return Task(
        name=JOINT.join(names),
        summary=f"{', '.join(names)} trained as one; a source begins with its task's name",
        instruction="Do the task that is named first.",
        splits={split: partial(_load, parts, split) for split in parts[0].splits if _all_have(parts, split)},
        score=partial(_score, parts={part.name: part for part in parts}),
        headline=MEAN,
        better_when_higher=(MEAN, *(f"{part.name}.{x}" for part in parts for x in part.better_when_higher)),
        target_template=parts[0].target_template,
        max_source_tokens=max(part.max_source_tokens for part in parts),
        max_target_tokens=max(part.max_target_tokens for part in parts),
        files={f"{part.name}/{called}": file for part in parts for called, file in part.files.items()},
    )


def _all_have(parts: Sequence[Task], split: str) -> bool:
    return all(split in part.splits for part in parts)


def _refuse_ranked(part: Task) -> None:
    wrong = {
        "chooses among labels, which are ranked": part.labels,
        "chooses among candidates, which are ranked": part.candidates,
        f"has {_MASK} in its template": _MASK in part.input_template,
        "is made of conversations": part.is_chat,
    }
    for why, is_so in wrong.items():
        if is_so:
            raise BadValue(f"{part.name} {why}; a mixture takes tasks whose answers are said: leave it out")


def _check_targets(parts: Sequence[Task]) -> None:
    for part in parts[1:]:
        if part.target_template != parts[0].target_template:
            raise BadValue(
                f"{part.name} has the target template {part.target_template!r}, expected that of {parts[0].name}, "
                f"{parts[0].target_template!r}: a mixture has one"
            )
        if part.headline not in part.better_when_higher:
            raise BadValue(f"{part.name} goes by {part.headline}, of which less is better; leave it out")


def _load(parts: Sequence[Task], split: str) -> list[Example]:
    """The first rows are of all parts, so that a limit leaves some of each."""
    turns = zip_longest(*([_mixed(part, x) for x in part.load(split)] for part in parts))
    return [example for turn in turns for example in turn if example is not None]


def _mixed(part: Task, example: Example) -> Example:
    if example.candidates:
        raise BadValue(f"{part.name} has rows with candidates, which are ranked; leave it out of the mixture")
    texts = {**example.further, "source": example.source}
    # In one pass, so that what is filled in is never looked at again.
    words = _FIELD.sub(lambda match: texts[match.group(1)], _PLACE.sub("", part.input_template))
    further = {**example.further, _TASK: part.name, _SOURCE: example.source}
    return replace(example, source=f"{part.name}: {words.strip()}", further=further)


def _apart(example: Example) -> Example:
    """The row as its part had it."""
    further = {name: text for name, text in example.further.items() if name not in (_TASK, _SOURCE)}
    return replace(example, source=example.further[_SOURCE], further=further)


# Scoring


def _score(
    predictions: Sequence[str],
    examples: Sequence[Example],
    only: Collection[str] | None = None,
    *,
    parts: Mapping[str, Task],
) -> Scores:
    numbers: dict[str, list[int]] = {name: [] for name in parts}
    for number, example in enumerate(examples):
        numbers[example.further[_TASK]].append(number)
    found = {
        name: part.score(
            [predictions[i] for i in numbers[name]], [_apart(examples[i]) for i in numbers[name]], _of(part, only)
        )
        for name, part in parts.items()
        if numbers[name]
    }
    return _with_mean(_joined(found, len(predictions)), parts, only)


def _of(part: Task, only: Collection[str] | None) -> list[str] | None:
    """The part's own metrics among ``only``, and its headline for the mean."""
    if only is None:
        return None
    asked = [x.removeprefix(f"{part.name}.") for x in only if x.startswith(f"{part.name}.")]
    return [*dict.fromkeys([*asked, *([part.headline] if MEAN in only else [])])]


def _joined(found: Mapping[str, Scores], num_examples: int) -> Scores:
    """Every score by the name of its part and its own."""
    return Scores(
        values={f"{part}.{name}": value for part, x in found.items() for name, value in x.values.items()},
        intervals={f"{part}.{name}": pair for part, x in found.items() for name, pair in x.intervals.items()},
        variants={f"{part}.{name}": words for part, x in found.items() for name, words in x.variants.items()},
        missing={f"{part}.{name}": why for part, x in found.items() for name, why in x.missing.items()},
        summed={f"{part}.{name}": summed for part, x in found.items() for name, summed in x.summed.items()},
        num_examples=num_examples,
    )


def _with_mean(scores: Scores, parts: Mapping[str, Task], only: Collection[str] | None) -> Scores:
    headlines = [f"{name}.{part.headline}" for name, part in parts.items()]
    wanted = [*headlines, MEAN] if only is None else only
    known = {**scores.values, **scores.missing}
    missing = {**scores.missing, **{x: _absent(x) for x in wanted if x not in known and x != MEAN}}
    values, intervals, summed = dict(scores.values), dict(scores.intervals), dict(scores.summed)
    if MEAN in wanted:
        lacking = [x for x in headlines if x not in values]
        if lacking:
            missing[MEAN] = f"without {', '.join(lacking)} there is no mean of all headlines; give rows of every part"
        elif all(x in summed for x in headlines):
            summed[MEAN] = mean_of([summed[x] for x in headlines])
            values[MEAN], intervals[MEAN] = summed[MEAN].estimate()
        else:
            values[MEAN] = sum(values[x] for x in headlines) / len(headlines)
    variants = {**scores.variants, MEAN: _variant(headlines, has_interval=MEAN in summed)}
    kept = {x for x in (*values, *missing) if only is None or x in only}
    return Scores(
        values={x: value for x, value in values.items() if x in kept},
        intervals={x: interval for x, interval in intervals.items() if x in kept},
        variants={x: words for x, words in variants.items() if x in kept and x in values},
        missing={x: why for x, why in missing.items() if x in kept},
        summed={x: metric for x, metric in summed.items() if x in kept},
        num_examples=scores.num_examples,
    )


def _absent(metric: str) -> str:
    part = metric.partition(".")[0]
    return f"there is no row of {part} among these, or {part} has no such metric; score more rows"


def _variant(headlines: Sequence[str], *, has_interval: bool) -> str:
    interval = (
        f"{INTERVAL_VARIANT}, of all parts together; a part that a draw has no row of is left out of that draw's mean"
        if has_interval
        else "no interval, since one of them is no sum over rows"
    )
    return f"mean of {', '.join(headlines)}, each task with the same weight; {interval}"


def mean_of(metrics: Sequence[Summed]) -> Summed:
    """The mean of metrics, each over rows of its own: a metric whose rows are those of all, in columns of their own."""
    widths = [metric.statistics.shape[1] for metric in metrics]
    # The last columns count the rows of each.
    statistics = np.zeros((sum(len(x.statistics) for x in metrics), sum(widths) + len(metrics)))
    row = column = 0
    for number, metric in enumerate(metrics):
        rows, columns = metric.statistics.shape
        statistics[row : row + rows, column : column + columns] = metric.statistics
        statistics[row : row + rows, sum(widths) + number] = 1.0
        row, column = row + rows, column + columns
    return Summed(statistics=statistics, finish=partial(_finish, metrics=metrics))


def _finish(totals: Floats, *, metrics: Sequence[Summed]) -> Floats:
    """The mean over the metrics that have rows of sums ``[..., K]``."""
    edges = np.cumsum([metric.statistics.shape[1] for metric in metrics])
    *blocks, counts = np.split(totals, edges, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.stack([metric.finish(block) for metric, block in zip(metrics, blocks, strict=True)], axis=-1)
    has_rows = counts > 0
    return np.asarray(np.where(has_rows, values, 0.0).sum(axis=-1) / has_rows.sum(axis=-1))
