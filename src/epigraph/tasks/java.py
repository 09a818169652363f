"""Java programs of the extra ``e2e-metrics``: found, given a time limit, and always ended. It knows no metric.

pycocoevalcap's own drivers are not used: one writes into the folder that the package is installed in, the other keeps
its process until it is garbage-collected, never reads its errors, and has no time limit.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from epigraph.errors import MetricUnavailable

EXTRA = "epigraph[e2e-metrics]"
# Java before 18 reads and writes in the locale's encoding, and later ones still write in it.
_UTF_8 = ("-Dfile.encoding=UTF-8", "-Dsun.stdout.encoding=UTF-8", "-Dstdout.encoding=UTF-8")


def find_jar(name: str) -> Path:
    """A file of pycocoevalcap, named from its folder; raises :class:`MetricUnavailable` where it is not installed."""
    spec = importlib.util.find_spec("pycocoevalcap")
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder) / name).is_file():
            return path.resolve()
    raise MetricUnavailable(f"needs pycocoevalcap, which is not installed; run: pip install '{EXTRA}'")


def find_java() -> str:
    """The Java program, from JAVA_HOME or the PATH; raises :class:`MetricUnavailable` where there is none."""
    home = os.environ.get("JAVA_HOME")
    found = (home and shutil.which("java", path=str(Path(home) / "bin"))) or shutil.which("java")
    if not found:
        raise MetricUnavailable(
            "needs Java, which neither JAVA_HOME nor PATH has; install one, on Debian default-jre-headless"
        )
    return found


def run(arguments: Sequence[str], text: str, *, timeout_s: float) -> str:
    """What ``java arguments`` answers to ``text``; raises :class:`MetricUnavailable` where it fails or takes longer."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                _command(arguments),
                input=text.encode(),
                capture_output=True,
                timeout=timeout_s,
                cwd=folder,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise MetricUnavailable(f"Java did not finish in {timeout_s:.0f} s; try again on a quiet machine") from None
        except OSError as error:
            raise MetricUnavailable(f"Java could not be started: {error}; install it again") from None
    if done.returncode != 0:
        raise _failed(done.returncode, done.stderr)
    return done.stdout.decode()


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """A Java program that answers lines with lines. Ask one thing and read its answer before you ask the next: a
    program that is told more than it can answer into a full pipe waits for ever."""

    process: subprocess.Popen[bytes]
    errors: IO[bytes]

    def tell(self, line: str) -> None:
        """Send one line; raises :class:`MetricUnavailable` where the program has ended."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            raise self._ended() from None

    def hear(self) -> str:
        """The next line, without its end; raises :class:`MetricUnavailable` where the program has ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.endswith(b"\n"):
            raise self._ended()
        return line.decode().strip()

    def _ended(self) -> MetricUnavailable:
        code = self.process.wait()
        self.errors.seek(0)
        return _failed(code, self.errors.read())


@contextlib.contextmanager
def conversation(arguments: Sequence[str], *, timeout_s: float) -> Iterator[Conversation]:
    """Talk to ``java arguments``, which is killed at the end of the block, whatever ends it, or after ``timeout_s``."""
    # Errors go to a file: nobody reads that pipe, and a program blocks when it is full.
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                _command(arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, cwd=folder
            )
        except OSError as error:
            raise MetricUnavailable(f"Java could not be started: {error}; install it again") from None
        watchdog = threading.Timer(timeout_s, process.kill)
        watchdog.daemon = True
        watchdog.start()
        try:
            yield Conversation(process=process, errors=errors)
        finally:
            watchdog.cancel()
            process.kill()
            process.wait()
            _close(process)


def _command(arguments: Sequence[str]) -> list[str]:
    # One core is enough, and the collector that suits many would take them from whoever else measures here.
    return [find_java(), "-XX:+UseSerialGC", *_UTF_8, *arguments]


def _close(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        # Closing flushes, and what was left to say has nobody to hear it.
        with contextlib.suppress(OSError):
            pipe.close()


def _failed(code: int, errors: bytes) -> MetricUnavailable:
    lines = [x for x in errors.decode(errors="replace").splitlines() if x.strip()]
    said = lines[-1].strip()[:200] if lines else "nothing"
    how = "was stopped, by its time limit or from outside" if code < 0 else f"ended with code {code}"
    return MetricUnavailable(f"Java {how} and said: {said}; see that it runs, with 2 GB of memory free")
