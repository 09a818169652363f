"""What `epigraph inspect` does with each attack at a real terminal; ``python -m attacks.screen`` in tests/ prints JSON.

Each attack has a process of its own, forked from one that has imported the command, with a terminal as its input and
output. The JSON maps an attack to the exit code and to everything that reached the terminal.
"""

from __future__ import annotations

import json
import os
import pty
import sys
import tempfile
from pathlib import Path

import epigraph.artifact  # noqa: F401  (once here, and not again in every child)
from attacks.make import ATTACKS, Raw
from epigraph.cli import main as command


def at_a_terminal(words: list[str]) -> tuple[int, str]:
    """Exit code, and what a terminal was sent, of the command with these words."""
    child, terminal = pty.fork()
    if not child:
        code = 1
        try:
            command(words)
        except SystemExit as done:
            code = done.code if isinstance(done.code, int) else 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    said = b""
    with os.fdopen(terminal, "rb", buffering=0) as screen:
        try:
            while piece := screen.read(1 << 16):
                said += piece
        except OSError:
            # Linux says EIO where the other side has hung up.
            pass
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said.decode("utf-8", "backslashreplace")


def main() -> None:
    """Show every attack, and a sound file, and print what was seen."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Raw().write(folder / "sound.safetensors")
        seen = {"sound": at_a_terminal(["inspect", str(folder / "sound.safetensors")])}
        for attack, (_, make) in ATTACKS.items():
            make(folder / f"{attack}.safetensors")
            seen[attack] = at_a_terminal(["inspect", str(folder / f"{attack}.safetensors")])
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
