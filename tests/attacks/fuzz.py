"""Coverage-guided fuzzing of the reader with atheris; ``python -m attacks.fuzz --seconds 600`` in tests/.

Seeds are sound files and every small attack. A third of the changes are atheris's own, to bytes; the others know the
format: they make another sound artifact, change the header's JSON, the table or the numbers, and put lengths, offsets,
canonical form and content hash right again, so that what they broke is reached. A crash is anything but an artifact or
an ``ArtifactError``; an error that is not one short printable line; a file that is accepted and not sound; and a
reading of more than a second of the processor or of ``MOST_MIB`` of memory. libFuzzer keeps the input of a crash as
``crash-HASH`` in ``--crashes``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

from attacks import MOST_MIB, MOST_SECONDS

LARGEST_INPUT = 1 << 15


# The reader under the fuzzer


def _finite(numbers: Any) -> Any:
    assert bool(numbers.isfinite().all())
    return numbers


class Watched:
    """Reads one input after another and keeps count; raises where the reader did what it must not."""

    def __init__(self, path: Path, record: Path) -> None:
        self.path, self.record = path, record
        self.refused: Counter[str] = Counter()
        self.said: set[str] = set()
        self.accepted = 0
        self.slowest, self.most_mib = 0.0, 0.0
        self._written = 0.0

    def __call__(self, data: bytes) -> None:
        self.path.write_bytes(data)
        # The high-water mark of memory goes back to what is in use now.
        Path("/proc/self/clear_refs").write_text("5")
        before, start = _peak_mib(), time.process_time()
        self._read()
        seconds, mib = time.process_time() - start, _peak_mib() - before
        self.slowest, self.most_mib = max(self.slowest, seconds), max(self.most_mib, mib)
        assert seconds < MOST_SECONDS, f"took {seconds:.2f} s of the processor"
        assert mib < MOST_MIB, f"took {mib:.0f} MiB"
        if time.monotonic() - self._written > 2:
            self.write()

    def _read(self) -> None:
        from epigraph.artifact import inspect, load
        from epigraph.errors import ArtifactError

        try:
            artifact = load(self.path)
        except ArtifactError as error:
            line = str(error)
            assert line.isprintable(), line
            assert len(line) < 600 + len(str(self.path)), line
            self.refused[type(error).__name__] += 1
            self.said.add(re.sub(r"'.*?'|\d+|[0-9a-f]{12}", "*", line.removeprefix(str(self.path)))[:60])
            return
        artifact.tokens.check(artifact.geometry)
        artifact.tokens.map(_finite)
        json.dumps(inspect(self.path), allow_nan=False)
        self.accepted += 1

    def write(self) -> None:
        """Put the counts where the parent process finds them."""
        self._written = time.monotonic()
        found = {
            "accepted": self.accepted,
            "refused": dict(sorted(self.refused.items())),
            "distinct_messages": len(self.said),
            "slowest_seconds": round(self.slowest, 3),
            "most_mib": round(self.most_mib, 1),
        }
        temporary = self.record.with_suffix(".new")
        temporary.write_text(json.dumps(found), encoding="utf-8")
        temporary.replace(self.record)


def _peak_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split(maxsplit=1)[0]) / 1024


def fuzz_here(folder: Path, words: list[str]) -> None:
    """Run libFuzzer in this process; it does not come back."""
    import atheris

    # Before anything else imports them: what is imported already is not watched.
    with atheris.instrument_imports(include=["epigraph.artifact", "epigraph.contract", "epigraph.virtual"]):
        import epigraph.artifact  # noqa: F401
    from attacks.mutate import mutated

    # A reading that asks for a gigabyte fails with MemoryError and is kept, before the machine has to give it.
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), resource.RLIM_INFINITY))
    watched = Watched(folder / "input.safetensors", folder / "counts.json")
    atheris.Setup(
        words,
        watched,
        custom_mutator=lambda data, most, seed: mutated(data, most, seed, atheris.Mutate),
        internal_libfuzzer=True,
    )
    atheris.Fuzz()


# The process around it


def run(seconds: int, crashes: Path, seed: int) -> dict[str, Any]:
    """Fuzz for ``seconds``; what was seen."""
    from attacks.mutate import write_seeds

    crashes.mkdir(parents=True, exist_ok=True)
    known = set(os.listdir(crashes))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "seeds").mkdir()
        num_seeds = write_seeds(folder / "seeds")
        flags = [f"-max_total_time={seconds}", f"-max_len={LARGEST_INPUT}", f"-seed={seed}", "-print_final_stats=1"]
        flags += [f"-artifact_prefix={crashes}/", "-rss_limit_mb=4096", "-timeout=30"]
        words = [sys.executable, "-m", "attacks.fuzz", "--inside", str(folder), *flags, str(folder / "seeds")]
        lines: list[str] = []
        with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            for line in process.stderr:
                sys.stderr.write(line)
                lines.append(line)
        counts = json.loads((folder / "counts.json").read_text())
    said = "".join(lines)
    return {
        "seconds": seconds,
        "seeds": num_seeds,
        "inputs": int([0, *re.findall(r"number_of_executed_units: (\d+)", said)][-1]),
        "edges": int([0, *re.findall(r"cov: (\d+)", said)][-1]),
        "exit_code": process.returncode,
        "crashes": len(set(os.listdir(crashes)) - known),
        **counts,
        "machine": {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), "atheris": metadata.version("atheris")},
    }


def line(record: dict[str, Any]) -> str:
    """The record as docs/security.md shows it."""
    refused = ", ".join(f"{count:,} `{name}`" for name, count in record["refused"].items())
    return (
        f"{record['seconds'] // 60} minutes on one core from {record['seeds']} seeds: {record['inputs']:,} inputs, "
        f"{record['edges']:,} edges of the reader's code, {record['distinct_messages']:,} different messages; "
        f"{record['accepted']:,} accepted as sound, refused: {refused}. Slowest {record['slowest_seconds']:.2f} s, "
        f"most memory {record['most_mib']:.0f} MiB. Crashes: {record['crashes']}."
    )


def main() -> None:
    """Fuzz and print what was seen; exit with 1 if anything was found."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=int, default=600)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument(
        "--crashes", type=Path, default=Path("build/crashes"), help="folder for inputs that broke the reader"
    )
    options.add_argument("--json", type=Path, help="where to write the record")
    given = options.parse_args()
    record = run(given.seconds, given.crashes, given.seed)
    print(line(record))
    if given.json:
        temporary = given.json.with_name(f".{given.json.name}.{os.getpid()}")
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        temporary.replace(given.json)
    sys.exit(1 if record["crashes"] or record["exit_code"] else 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        fuzz_here(Path(sys.argv[2]), [sys.argv[0], *sys.argv[3:]])
    else:
        main()
