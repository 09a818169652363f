"""Would the tests notice? Break the seam on purpose, one way at a time, and run the tests that should fail.

Run `make test-mutants`. Each mutant is a copy of the tree with one line changed; one that survives is an error.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = ("tests/test_silent_failures.py", "tests/test_attention.py")
# What goes wrong, the file of frozen/ it goes wrong in, and the line before and after.
MUTANTS = (
    ("every row gets the first user's prefix", "attention.py", "else x[self.row_of])", "else x[self.row_of * 0])"),
    ("the mask is inverted", "attention.py", "            return real_B1P\n", "            return ~real_B1P\n"),
    ("a windowed mask is inverted", "attention.py", "return real_B1P & (", "return ~real_B1P & ("),
    (
        "padding of prefixes is seen",
        "attention.py",
        "            return real_B1P\n",
        "            return real_B1P | True\n",
    ),
    ("prefixes are padded at the end", "attention.py", "(0, 0, 0, 0, missing, 0)", "(0, 0, 0, 0, 0, missing)"),
    ("always is ignored", "attention.py", "| rows.pick(rows.always_U)[:, None, None])", "& True)"),
    ("the window is off by one", "attention.py", "[:, None, :] < window", "[:, None, :] <= window"),
    ("text sees what follows", "attention.py", "(ones.tril() if num_queries > 1 else ones)", "ones"),
    ("causal from the end", "attention.py", "ones.tril()", "ones.tril(num_columns - num_queries)"),
    ("text starts at 0", "model.py", " + rows.pick(rows.start_U)[:, None]", " + 0 * rows.pick(rows.start_U)[:, None]"),
    ("checkpointing never happens", "model.py", "            layer.training = on\n", ""),
    ("beams are forgotten", "model.py", "[distinct[id(one)][0]] * copies", "[distinct[id(one)][0]]"),
    ("another thread is silently bare", "model.py", "if rows is None and self._bindings:", "if False:"),
)


def main() -> int:
    survivors = [what for what, *change in MUTANTS if not caught(what, *change)]
    print(f"{len(MUTANTS) - len(survivors)} of {len(MUTANTS)} mutants caught")
    return len(survivors)


def caught(what: str, file: str, before: str, after: str) -> bool:
    """Whether some test fails on the tree with that line changed."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for part in ("src", "tests"):
            shutil.copytree(ROOT / part, tree / part)
        shutil.copy(ROOT / "pyproject.toml", tree)
        path = tree / "src" / "epigraph" / "frozen" / file
        text = path.read_text()
        assert text.count(before) == 1, f"{what}: the line is there {text.count(before)} times, expected once"
        path.write_text(text.replace(before, after))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *TESTS]
        environment = {**os.environ, "PYTHONPATH": str(tree / "src")}
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    failed = next((line for line in done.stdout.splitlines() if line.startswith("FAILED")), "no test failed")
    print(f"{what}: {failed.split(' - ')[0]}", flush=True)
    return done.returncode == 1


if __name__ == "__main__":
    sys.exit(main())
