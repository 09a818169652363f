"""Workers of a fleet as processes: one that does as it is told, many that race, and those killed while writing."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from epigraph.train.fleet.claims import Claims
from epigraph.train.fleet.place import Place

SIZE = 1 << 16


def serve(address: str, lease_seconds: str, machine: str) -> None:
    """Call the methods named on the input, one JSON list a line, until it ends."""
    with Claims(Place(address), float(lease_seconds), machine=machine or None) as claims:
        print(json.dumps(claims.worker), flush=True)
        for line in sys.stdin:
            method, *given = json.loads(line)
            print(json.dumps(getattr(claims, method)(*given)), flush=True)


def race(address: str, num_processes: str, num_ids: str) -> None:
    """Processes that all take all ids, each in an order of its own; a line a process tells what it got."""
    begun, begin = os.pipe()
    ended, end = os.pipe()
    took, tell = os.pipe()
    children = []
    for seed in range(int(num_processes)):
        child = os.fork()
        if child == 0:
            os.close(begin)
            os.close(end)
            # Half of them side by side, so that they meet at every id.
            order = random.Random(max(0, seed - 3)).sample(range(int(num_ids)), int(num_ids))
            take_all(address, order, (begun, tell, ended))
            os._exit(0)
        children.append(child)
    os.close(begin)
    os.close(tell)
    # What a worker holds is free as soon as it leaves: nobody does before all have tried.
    with os.fdopen(took) as lines:
        for _ in children:
            print(lines.readline(), end="")
        os.close(end)
    for child in children:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def take_all(address: str, numbers: list[int], pipes: tuple[int, int, int]) -> None:
    """``pipes``: one to read from until everybody has been started, one to tell, one to read from until all have."""
    begun, tell, ended = pipes
    with Claims(Place(address)) as claims:
        claims.open_ids([])
        os.read(begun, 1)
        took = [name for name in (f"user-{x}" for x in numbers) if claims.take(name)]
        # One write a line: lines of several processes do not mix.
        os.write(tell, json.dumps(took).encode() + b"\n")
        os.read(ended, 1)


def killed(address: str, rounds: str) -> None:
    """Processes that create file after file, each killed at a random moment."""
    for number in range(int(rounds)):
        child = os.fork()
        if child == 0:
            place = Place(address)
            for file in range(10**6):
                place.create(f"claims/{number}-{file}", whole(f"{number}-{file}"))
        time.sleep(random.uniform(0.001, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    print(len(list(Path(address, "claims").iterdir())))


def whole(name: str) -> bytes:
    """What the file of that name holds when it is whole."""
    return name.encode() * (SIZE // len(name))


if __name__ == "__main__":
    {"serve": serve, "race": race, "killed": killed}[sys.argv[1]](*sys.argv[2:])
