"""Development scores: the loss, and the metric that the recipe chooses by, which takes decoding.

Knows a prepared run and its processes; does not know what becomes of a score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from epigraph.errors import MetricUnavailable
from epigraph.frozen.ask import ask
from epigraph.methods.base import Method
from epigraph.tasks.base import Example
from epigraph.train.evaluate import answerable, fields, question
from epigraph.train.loop import dev_loss
from epigraph.train.loss import head_of
from epigraph.train.prepare import Prepared


def dev_score(ready: Prepared) -> Callable[[Method], dict[str, float]]:
    """What scores a method on the development rows, in all processes alike.

    Each process reads and decodes some of the rows, and the main one scores what all of them said. Raises
    :class:`MetricUnavailable`, at once and not after the first part of the training.
    """
    metric, processes = ready.recipe.training.dev_metric, ready.processes
    examples: Sequence[Example] = ()
    if metric != "loss":
        examples = ready.dev_examples
        processes.from_main(lambda: _value(ready, [examples[0].references[0]], examples[:1]))

    def score(method: Method) -> dict[str, float]:
        values = {"loss": dev_loss(ready.frozen, ready.dev_rows, method, processes=processes)}
        if examples:
            predictions = _predictions(ready, method, examples)
            values[metric] = processes.from_main(lambda: _value(ready, predictions, examples))
        return values

    return score


def _value(ready: Prepared, predictions: Sequence[str], examples: Sequence[Example]) -> float:
    metric = ready.recipe.training.dev_metric
    scores = ready.task.score(predictions, examples, (metric,))
    if metric in scores.missing:
        raise MetricUnavailable(
            f"training.dev_metric: {metric} cannot be computed here: {scores.missing[metric]}; "
            "or choose by another metric"
        )
    return scores.values[metric]


def _predictions(ready: Prepared, method: Method, examples: Sequence[Example]) -> list[str]:
    """What the model answers to all examples, of which each process asks some."""
    processes = ready.processes
    # A sharded model runs in all processes or in none, and answers of other rows may be longer.
    is_shared_out = not ready.recipe.training.shard_base
    own = examples[processes.rank :: processes.num] if is_shared_out else examples
    _, candidates = answerable(ready.codec, ready.task, examples)
    said = ask(
        ready.frozen,
        ready.codec,
        [question(ready.codec, example) for example in own],
        [fields(example) for example in own],
        method.fold(),
        head=head_of(method),
        candidates=candidates,
        own=[example.candidates for example in own],
        decode=None if method.foreign is None else method.foreign.generate,
    ).texts
    return processes.interleaved(said) if is_shared_out else said
