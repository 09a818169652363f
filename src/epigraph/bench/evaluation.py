"""What development scores cost beside the training that they guard: the loss of the rows, and their decoded answers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

from epigraph.bench.clock import ratios, seconds, spread
from epigraph.bench.job import Job
from epigraph.frozen.generate import generate
from epigraph.train.evaluate import question
from epigraph.train.loop import dev_loss

REPEATS = 3
STEPS = 7
# Rows that are decoded, one batch.
DECODED = 64


def evaluation(job: Job, advance: Callable[[], None]) -> dict[str, Any]:
    """Seconds of an epoch, of a development loss and of decoding, from our cache and from transformers' in turns."""
    side, ready = job.ours(), job.ready
    method, frozen = side.method, ready.frozen
    steps = [seconds(partial(side.step, batch), job.device) for batch in job.batches()[:STEPS]]
    advance()
    losses = [seconds(partial(dev_loss, frozen, ready.dev_rows, method), job.device) for _ in range(REPEATS)]
    advance()
    asked = [question(ready.codec, x).ids for x in ready.task.load("dev")[:DECODED]]
    decode = partial(generate, frozen, asked, method.fold(), ready.codec.contract.decoding)
    ours, theirs = [], []
    answers = decode()
    for _ in range(REPEATS):
        ours.append(seconds(decode, job.device))
        theirs.append(seconds(partial(decode, cache_implementation="dynamic"), job.device))
        advance()
    num_steps = math.ceil(len(ready.rows) / job.batch_size)
    return {
        "epoch_seconds": statistics.median(steps) * num_steps,
        "steps": num_steps,
        "dev_loss_seconds": spread(losses),
        "dev_rows": len(ready.dev_rows),
        "decoding_seconds": spread(ours),
        "decoded_rows": len(asked),
        "decoded_tokens": sum(map(len, answers)),
        "times_as_long_with_transformers_cache": ratios(theirs, ours),
    }
