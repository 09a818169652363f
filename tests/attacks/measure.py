"""What each attack costs to refuse; ``python -m attacks.measure --json FILE`` in tests/ writes the record.

Each attack is made in one process and read in others, forked from one that has imported the reader and used it once.
Time: from the call of ``load`` to its error, on the wall and of the processor, the slowest of ``--runs``. Memory: by
how much the call raised the process's largest resident set (getrusage), and the peak of what Python allocated in it
(tracemalloc, in a run of its own, since it slows things). The pages of libraries that a fresh process touches for the
first time count as well: about 14 MiB where tensors are checked.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import tempfile
import time
import traceback
import tracemalloc
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from attacks import MOST_MIB, MOST_SECONDS
from attacks.make import ATTACKS, Raw
from attacks.moving import MOVING, load_while, write_sound
from epigraph.artifact import Artifact, load

Read = Callable[[], Artifact]


def in_child(work: Callable[[], Any]) -> Any:
    """What ``work`` returns, as JSON, out of a process of its own."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writing, json.dumps(work()).encode())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return json.loads(said)


def refusal(read: Read) -> dict[str, Any]:
    """Error, seconds and MiB of one reading; the error is "none" where nothing was refused."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, processor = time.perf_counter(), time.process_time()
    error = _error(read)
    seconds = {"seconds": time.perf_counter() - wall, "processor_seconds": time.process_time() - processor}
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"error": error, **seconds, "resident_mib": grown / 1024}


def allocations(read: Read) -> float:
    """MiB that Python had allocated at most during one reading."""
    tracemalloc.start()
    _error(read)
    return tracemalloc.get_traced_memory()[1] / (1 << 20)


def _error(read: Read) -> str:
    try:
        read()
    except Exception as error:
        # Any other kind is what the tests are to see.
        return type(error).__name__
    return "none"


def measured(make: Callable[[Path], None], read: Callable[[Path], Artifact], path: Path, runs: int) -> dict[str, Any]:
    """One attack, made anew for every reading, in children: making it must leave no memory that reading could use."""
    found, traced = [], 0.0
    for run in range(runs + 1):
        there = path.parent / str(run) / path.name
        there.parent.mkdir(exist_ok=True)
        in_child(lambda there=there: make(there))
        if run < runs:
            found.append(in_child(lambda there=there: refusal(lambda: read(there))))
        else:
            traced = in_child(lambda there=there: allocations(lambda: read(there)))
    worst = {name: max(x[name] for x in found) for name in ("seconds", "processor_seconds", "resident_mib")}
    rounded = {name: round(value, 4) for name, value in (worst | {"python_mib": traced}).items()}
    return {"error": " or ".join(sorted({x["error"] for x in found})), **rounded}


def measure_all(folder: Path, runs: int) -> dict[str, dict[str, Any]]:
    """Every attack by name; files in ``folder``, which is left full."""
    sound = folder / "sound.safetensors"
    Raw().write(sound)
    load(sound)
    still = {name: (make, load) for name, (_, make) in ATTACKS.items()}
    moving = {
        name: (write_sound, lambda path, change=change: load_while(path, change))
        for name, (_, change) in MOVING.items()
    }
    return {
        name: measured(make, read, folder / f"{name}.safetensors", runs)
        for name, (make, read) in (still | moving).items()
    }


def table(record: Mapping[str, Any]) -> str:
    """The record as docs/security.md shows it: a row an error, and all of them below."""
    attacks = record["attacks"]
    kinds = sorted({x["error"] for x in attacks.values()})
    lines = ["| refused as | attacks | slowest | most memory |", "|---|---|---|---|"]
    for kind in kinds:
        lines.append(_row(f"`{kind}`", {name: x for name, x in attacks.items() if x["error"] == kind}))
    return "\n".join([*lines, _row("all", attacks)])


def mib(attack: Mapping[str, Any]) -> float:
    """The larger of the two measures of memory."""
    return float(max(attack["resident_mib"], attack["python_mib"]))


def _row(title: str, attacks: Mapping[str, Mapping[str, Any]]) -> str:
    slowest = max(attacks, key=lambda name: attacks[name]["seconds"])
    largest = max(attacks, key=lambda name: mib(attacks[name]))
    return (
        f"| {title} | {len(attacks)} | {1000 * attacks[slowest]['seconds']:.1f} ms, `{slowest}` "
        f"| {mib(attacks[largest]):.0f} MiB, `{largest}` |"
    )


def main() -> None:
    """Measure, print the table, write the record."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--json", type=Path, help="where to write the record")
    options.add_argument("--runs", type=int, default=3, help="readings of each attack; the slowest counts")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        attacks = measure_all(Path(folder), given.runs)
    record = {
        "most_seconds": MOST_SECONDS,
        "most_mib": MOST_MIB,
        "runs": given.runs,
        "machine": {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in ("epigraph", "torch", "pydantic")},
        "attacks": attacks,
    }
    for name, x in sorted(attacks.items(), key=lambda item: -item[1]["seconds"]):
        print(f"{name:40} {x['error']:16} {x['seconds']:7.3f} s {mib(x):7.1f} MiB")
    print(table(record))
    if given.json:
        temporary = given.json.with_name(f".{given.json.name}.{os.getpid()}")
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        temporary.replace(given.json)


if __name__ == "__main__":
    main()
