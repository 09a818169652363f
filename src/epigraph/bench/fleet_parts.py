"""The parts of the fleet's bench that compare: users together, one run on the same batches, and each user alone.

Rounds are short and take turns, the first side changing, so that what else a machine does meets all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from epigraph.bench.clock import extra_bytes, ratios, seconds, spread
from epigraph.bench.fleet_job import Job
from epigraph.bench.fleet_sides import Alone, Batched, Fleet, Side
from epigraph.train.build import make_method
from epigraph.train.fleet.room import DEFAULT_ROWS, room_for
from epigraph.train.fleet.stack import bytes_per_user

Advance = Callable[[], None]
Part = dict[str, Any]
# Users whose runs alone stand for everybody's where there are too many to run them all.
ALONE_USERS = 4


def overhead(job: Job, advance: Advance) -> Part:
    """A: one example a user and step, by a fleet, by one single run on the same batches, and by each user alone.

    The users' losses and prefixes in the fleet are compared with those alone.
    """
    users = job.users(job.sizes.num_users, batch_size=1)
    method = make_method(users[0])
    fleet, batched, alone = sides = (Fleet(users, method, len(users)), Batched(users, method), Alone(users, method))
    took = _in_turns(job, sides, advance)
    speed = {side.name: [len(users) * job.sizes.steps / x for x in took[side.name]] for side in sides}
    read = {side.tokens() for side in sides}
    assert len(read) == 1, f"sides read {sorted(read)} tokens"
    pairs = zip(fleet.losses(), alone.losses(), strict=True)
    prefixes = zip(fleet.prefixes(), alone.prefixes(), strict=True)
    return {
        "ratio_vs_batched": ratios(speed[fleet.name], speed[batched.name]),
        "ratio_vs_solo": ratios(speed[fleet.name], speed[alone.name]),
        "examples_a_second": {name: spread(x) for name, x in speed.items()},
        "users": len(users),
        "tokens": read.pop(),
        "largest_loss_difference": max(abs(x - y) for one, other in pairs for x, y in zip(one, other, strict=True)),
        "largest_prefix_difference": max(float((one - other).norm() / other.norm()) for one, other in prefixes),
        "user_bytes": bytes_per_user(method, users[0].recipe.training.optimizer),
        "extra_bytes": {side.name: extra_bytes(partial(side.take, 1), job.device) for side in sides},
    }


def users(job: Job, advance: Advance) -> Part:
    """B: on a GPU, more and more users at once, beside users alone, several rows a user and step."""
    if job.device.type != "cuda":
        return {
            "skipped": f"more users at once are worth their while on a GPU, and this ran on {job.device}: "
            "two processor cores are full with one user's rows; give --device cuda"
        }
    return {str(number): point(job, number, advance) for number in job.sizes.at_once}


def point(job: Job, number: int, advance: Advance) -> Part:
    """So many users at once, and some of them alone."""
    batch_size, rows = job.sizes.batch_size, DEFAULT_ROWS.get(job.device.type, DEFAULT_ROWS["cpu"])
    users = job.users(number, batch_size)
    method = make_method(users[0])
    # Refuses more users than there is memory for.
    room = room_for(users[0], method, active=number, num_rows=rows)
    fleet, alone = Fleet(users, method, rows), Alone(users[:ALONE_USERS], method)
    took = _in_turns(job, (fleet, alone), advance)
    speed = {
        name: [num * batch_size * job.sizes.steps / x for x in took[name]]
        for name, num in ((fleet.name, number), (alone.name, len(users[:ALONE_USERS])))
    }
    return {
        "ratio_vs_solo": ratios(speed[fleet.name], speed[alone.name]),
        "examples_a_second": {name: spread(x) for name, x in speed.items()},
        "rows_a_pass": rows,
        "passes_a_step": math.ceil(number * batch_size / rows),
        "users_bytes": number * room.user_bytes,
        "extra_bytes": extra_bytes(partial(fleet.take, 1), job.device),
    }


def _in_turns(job: Job, sides: Sequence[Side], advance: Advance) -> dict[str, list[float]]:
    """Seconds of every round of each side, after a step to warm up."""
    took: dict[str, list[float]] = {side.name: [] for side in sides}
    for side in sides:
        side.take(1)
    for number in range(job.sizes.rounds):
        first = number % len(sides)
        for side in [*sides[first:], *sides[:first]]:
            took[side.name].append(seconds(partial(side.take, job.sizes.steps), job.device))
        advance()
    return took
