"""Python in a process of its own without the seconds that torch and transformers take to be imported.

A server has imported them and forks for everyone who asks. It has never imported us: what we import is imported as in
any process.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

# What is slow to import and nobody's of ours.
HEAVY = (
    "torch.distributed.fsdp",
    "accelerate",
    "transformers.generation.utils",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
)
_STARTED_S = 120


class Forked:
    """A process, asked and told as those of :mod:`subprocess` are; its outputs lie in files."""

    def __init__(self, answers: socket.socket, outputs: tempfile.TemporaryDirectory[str]) -> None:
        self._answers, self._outputs = answers, outputs
        self._lines = answers.makefile()
        self.pid = int(self._lines.readline())
        self.returncode: int | None = None

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait for the end; both outputs, the second empty where they were asked for as one."""
        if not select.select([self._answers], [], [], timeout)[0]:
            self.send_signal(signal.SIGKILL)
            raise TimeoutError(f"process {self.pid} ran for more than {timeout} s")
        self.returncode = int(self._lines.readline())
        out, err = (Path(self._outputs.name, name).read_text(encoding="utf-8") for name in ("out", "err"))
        self._lines.close()
        self._answers.close()
        self._outputs.cleanup()
        return out, err


class Forks:
    """The server, started when the first process is asked for."""

    def __init__(self, folder: Path) -> None:
        self._socket = folder / "socket"
        self._server: subprocess.Popen[bytes] | None = None

    def start(
        self,
        words: Sequence[str],
        *,
        folder: Path | None = None,
        environment: Mapping[str, str] = os.environ,
        as_one: bool = False,
    ) -> Forked:
        """``python words``, where ``words`` begin with ``-m MODULE``, ``-c CODE`` or the path of a script.

        It has one thread. ``as_one``: both outputs in the first, as a terminal shows them.
        """
        self._serve()
        outputs = tempfile.TemporaryDirectory(dir=self._socket.parent)
        asked = {
            "words": list(words),
            "folder": str(folder or Path.cwd()),
            "environment": dict(environment),
            "out": str(Path(outputs.name, "out")),
            "err": str(Path(outputs.name, "err")),
            "as_one": as_one,
        }
        answers = socket.socket(socket.AF_UNIX)
        answers.connect(str(self._socket))
        answers.sendall(json.dumps(asked).encode() + b"\n")
        return Forked(answers, outputs)

    def _serve(self) -> None:
        if self._server is None:
            command = [sys.executable, __file__, str(self._socket)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            self._server = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )
            assert self._server.stdout is not None
            assert select.select([self._server.stdout], [], [], _STARTED_S)[0], "the server of forks did not start"
            assert self._server.stdout.readline() == b"ready\n"

    def close(self) -> None:
        """The server ends when its input does."""
        if self._server is not None:
            self._server.communicate(timeout=_STARTED_S)


# The server


def serve(path: str) -> dict[str, Any] | None:
    """Fork for everyone who asks, until the input ends. Returns in the forks alone, with what was asked for."""
    for name in HEAVY:
        import_module(name)
    assert not any(name.partition(".")[0] == "epigraph" for name in sys.modules)
    gc.freeze()
    signal.signal(signal.SIGCHLD, reap)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(path)
        door.listen()
        print("ready", flush=True)
        while door in select.select([door, sys.stdin], [], [])[0]:
            answers, _ = door.accept()
            with answers:
                if os.fork() == 0:
                    return wait_for_it(answers)
    return None


def reap(*_: object) -> None:
    """Nobody waits for those that wait."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def wait_for_it(answers: socket.socket) -> dict[str, Any]:
    """Fork once more, and tell who asked the number of that process and how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    asked: dict[str, Any] = json.loads(answers.makefile().readline())
    pid = os.fork()
    if pid == 0:
        return asked
    answers.sendall(b"%d\n" % pid)
    _, status = os.waitpid(pid, 0)
    answers.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def become(asked: Mapping[str, Any]) -> None:
    """This process as if ``python words`` had started it."""
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(asked["out"], flags), 1)
    os.dup2(1 if asked["as_one"] else os.open(asked["err"], flags), 2)
    Path(asked["err"]).touch()
    first, *rest = asked["words"]
    sys.path[0] = asked["folder"] if first in ("-m", "-c") else str(Path(first).parent)
    sys.path[1:1] = [x for x in asked["environment"].get("PYTHONPATH", "").split(os.pathsep) if x]
    if first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "-c", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = [first, *rest]
        runpy.run_path(first, run_name="__main__")


def leave(code: object) -> NoReturn:
    """End as the interpreter does, but leave everything imported to the kernel: taking it apart takes seconds."""
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(code is not None) if not isinstance(code, int) else code & 0xFF)


def main() -> None:
    wanted = serve(sys.argv[1])
    if wanted is None:
        return
    try:
        become(wanted)
    except SystemExit as done:
        leave(done.code)
    except BaseException:
        traceback.print_exc()
        leave(1)
    leave(0)


if __name__ == "__main__":
    main()
