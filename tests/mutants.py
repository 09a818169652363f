"""Would the tests notice? Break the seam on purpose, one way at a time, and run the tests that should fail.

Run `make test-mutants`, or this file with words of the mutants to run. Each mutant is a copy of the tree with one line
changed; one that survives is an error.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Mutant:
    """What goes wrong, the file it goes wrong in, the line before and after, and the tests that should say so."""

    what: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...] = ("tests/test_silent_failures.py", "tests/test_attention.py")


def mutant(what: str, file: str, before: str, after: str, *tests: str) -> Mutant:
    return Mutant(what=what, file=file, before=before, after=after, **({"tests": tests} if tests else {}))


FAMILIES, PLACED, CHOOSE = "tests/test_families.py", "tests/test_placed.py", "tests/test_choose.py"
LABELS, HEADS, JOINT = "tests/test_labels.py", "tests/test_heads.py", "tests/test_joint.py"
INFIX = (FAMILIES, "-k", "infix")
PACKING, GROUPED, LIKELIHOOD = "tests/test_packing.py", "tests/test_grouped.py", "tests/test_likelihood.py"
CACHE, PARALLEL = "tests/test_cache.py", ("tests/test_parallel.py", "-k", "two_processes_train_what_one_does")
MUTANTS = (
    # One prefix a row
    mutant(
        "every row gets the first user's prefix", "frozen/rows.py", "x[self.row_of]) for", "x[self.row_of * 0]) for"
    ),
    mutant("prefixes are padded at the end", "frozen/rows.py", "(0, 0, 0, 0, missing, 0)", "(0, 0, 0, 0, 0, missing)"),
    mutant("beams are forgotten", "frozen/rows.py", "[distinct[id(one)][0]] * copies", "[distinct[id(one)][0]]"),
    mutant(
        "texts before their beams get their neighbours' prefixes",
        "frozen/rows.py",
        "self.row_of.tolist()[:: self.copies]",
        "self.row_of.tolist()[:num_rows]",
        PLACED,
        "-k",
        "beams",
    ),
    # The mask
    mutant(
        "the mask is inverted", "frozen/attention.py", "            return seen_BTP\n", "            return ~seen_BTP\n"
    ),
    mutant("a windowed mask is inverted", "frozen/attention.py", "return seen_BTP & (near", "return ~seen_BTP & (near"),
    mutant(
        "padding of prefixes is seen",
        "frozen/attention.py",
        "            return seen_BTP\n",
        "            return seen_BTP | True\n",
    ),
    mutant("always is ignored", "frozen/attention.py", "| rows.pick(rows.always_U)[:, None, None])", "& True)"),
    mutant("the window is off by one", "frozen/attention.py", "[:, None, :] < window", "[:, None, :] <= window"),
    mutant("text sees what follows", "frozen/attention.py", "(ones.tril() if hides else ones)", "ones"),
    mutant(
        "causal from the end",
        "frozen/attention.py",
        "ones.tril()",
        "ones.tril(shape.num_columns - shape.num_queries)",
    ),
    # Packed rows
    mutant("packed rows forget windows", "frozen/packing.py", "sees = sees.triu(1 - window)", "sees = sees", PACKING),
    mutant(
        "padding is packed too",
        "frozen/packing.py",
        "mask.flatten().nonzero()",
        "(mask + 1).flatten().nonzero()",
        PACKING,
    ),
    mutant(
        "packed rows have one row of positions",
        "frozen/packing.py",
        '"position_ids": self.packed(positions_BT)',
        '"position_ids": torch.arange(len(self.place_S))[None]',
        PACKING,
    ),
    mutant(
        "what mixes neighbours is packed",
        "frozen/scored.py",
        "packed_SV.shape == padded_SV.shape and bool(",
        "True or bool(",
        PACKING,
    ),
    mutant(
        "heads attend to another group's keys",
        "frozen/grouped.py",
        "query.unflatten(1, (num_groups, -1))",
        "query.unflatten(1, (-1, num_groups)).transpose(1, 2)",
        PACKING,
        GROUPED,
    ),
    mutant("the right token is pushed down", "frozen/likelihood.py", "target, -grad)", "target, grad)", LIKELIHOOD),
    # A cache that begins with the prefix
    mutant(
        "beams keep their texts",
        "frozen/cache.py",
        "text_BKCH.copy_(text_BKCH.index_select(0, beam_idx.to(text_BKCH.device)))",
        "pass",
        CACHE,
    ),
    # Several processes
    mutant("every process takes every row", "train/batches.py", "slice(rank, None, num)", "slice(None)", *PARALLEL),
    mutant("gradients stay at home", "train/parallel.py", "distributed.all_reduce(flat)", "pass", *PARALLEL),
    # An infix
    mutant(
        "the source sees the infix",
        "frozen/attention.py",
        "(self._asks() | ~rows.pick(rows.late_U)[:, None])",
        "(self._asks() | True)",
        *INFIX,
    ),
    mutant("the infix is seen a token late", "frozen/attention.py", "[:, None] - 1\n", "[:, None]\n", *INFIX),
    # Sites
    mutant(
        "an encoder gets the decoder's prefix",
        "frozen/rows.py",
        "layers = prefix.sites.get(site)",
        'layers = prefix.sites.get("decoder.self" if site == "encoder.self" else site)',
        FAMILIES,
        "-k",
        "site or encoder_prefix",
    ),
    mutant(
        "nothing enters where a decoder reads its encoder",
        "frozen/rows.py",
        "layers = prefix.sites.get(site)",
        'layers = prefix.sites.get(site) if site != "decoder.cross" else None',
        FAMILIES,
        "-k",
        "site or step",
    ),
    mutant(
        "T5's bias moves with the virtual tokens",
        "frozen/attention.py",
        "nn.functional.pad(bias, (num_virtual, 0))",
        "nn.functional.pad(bias, (0, num_virtual))",
        FAMILIES,
        "-k",
        "t5 and (alone or as_long)",
    ),
    # Positions
    mutant(
        "text starts at 0",
        "frozen/model.py",
        " + rows.pick(rows.start_U)[:, None]",
        " + 0 * rows.pick(rows.start_U)[:, None]",
    ),
    mutant(
        "positions of RoBERTa are counted from 0",
        "frozen/model.py",
        "positions + self.position_offset",
        "positions",
        PLACED,
        "-k",
        "words or table",
    ),
    mutant(
        "the rows of a table that padding takes are counted",
        "frozen/geometry.py",
        "length - _padding_offset(model)",
        "length",
        PLACED,
        "-k",
        "table",
    ),
    # Virtual tokens in the text
    mutant(
        "slots are filled in the wrong order",
        "frozen/placed.py",
        "torch.where(slots_BT, ids_BT - FIRST_SLOT, 0)",
        "torch.where(slots_BT, longest - 1 - (ids_BT - FIRST_SLOT), 0)",
        PLACED,
        "-k",
        "words or number",
    ),
    mutant(
        "slots are filled with the first user's prompt",
        "frozen/placed.py",
        "prompts_UPE[number_B[:, None], place_BT]",
        "prompts_UPE[number_B[:, None] * 0, place_BT]",
        PLACED,
        "-k",
        "words",
    ),
    # Answers
    mutant(
        "a word of several tokens is averaged where it is summed",
        "frozen/answers.py",
        'sums_B / batch.said_BA.sum(1) if frozen.kind == "masked" else sums_B',
        "sums_B / sums_B.new_zeros(len(sums_B)).index_add(0, row_S, torch.ones_like(said_S))",
        LABELS,
        "-k",
        "likeliest",
    ),
    mutant(
        "words at masks are summed where they are averaged",
        "frozen/answers.py",
        'sums_B / batch.said_BA.sum(1) if frozen.kind == "masked" else sums_B',
        "sums_B",
        LABELS,
        "-k",
        "likeliest",
    ),
    mutant(
        "a head's mean counts virtual tokens",
        "frozen/answers.py",
        "batch.mask_BT.bool() & (batch.ids_BT < FIRST_SLOT)",
        "batch.mask_BT.bool()",
        HEADS,
        "-k",
        "by_hand",
    ),
    mutant(
        "the means of an ensemble are exchanged",
        "frozen/ensemble.py",
        'if self.mean == "geometric" else',
        'if self.mean != "geometric" else',
        "tests/test_ensemble.py",
        "-k",
        "averaged_by_hand and llama",
    ),
    mutant(
        "probabilities of choices are multiplied where they are added",
        "frozen/ensemble.py",
        "scores_MBN.logsumexp(0).argmax(1)",
        "scores_MBN.sum(0).argmax(1)",
        CHOOSE,
        "-k",
        "by_hand or functions",
    ),
    mutant(
        "a tie goes to a choice that nobody made",
        "frozen/ensemble.py",
        "mean_BN.masked_fill(~tied, -torch.inf).argmax(1)",
        "mean_BN.argmax(1)",
        CHOOSE,
        "-k",
        "majority or tie",
    ),
    # Training and threads
    mutant("checkpointing never happens", "frozen/recompute.py", "        layer.training = on\n", ""),
    mutant("another thread is silently bare", "frozen/model.py", "if rows is None and self._bindings:", "if False:"),
    mutant(
        "the base moves by the virtual tokens' learning rate",
        "train/loop.py",
        '"share": rates[part] / lr',
        '"share": 1.0',
        JOINT,
        "-k",
        "rate",
    ),
    mutant(
        "a joint artifact is pinned to the base that it began with",
        "frozen/saving.py",
        "    frozen.fingerprint = fingerprint(resolve(str(folder)))\n",
        "",
        JOINT,
        "-k",
        "pinned",
    ),
)


def main(words: list[str]) -> int:
    chosen = [one for one in MUTANTS if not words or any(word in one.what for word in words)]
    survivors = [one for one in chosen if not caught(one)]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants caught")
    return len(survivors)


def caught(one: Mutant) -> bool:
    """Whether some test fails on the tree with that line changed."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for part in ("src", "tests"):
            shutil.copytree(ROOT / part, tree / part)
        shutil.copy(ROOT / "pyproject.toml", tree)
        path = tree / "src" / "epigraph" / one.file
        text = path.read_text()
        count = text.count(one.before)
        assert count == 1, f"{one.what}: the line is in {one.file} {count} times, expected once"
        path.write_text(text.replace(one.before, one.after))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *one.tests]
        environment = {**os.environ, "PYTHONPATH": str(tree / "src")}
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    failed = next((line for line in done.stdout.splitlines() if line.startswith("FAILED")), "no test failed")
    print(f"{one.what}: {failed.split(' - ')[0]}", flush=True)
    return done.returncode == 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
