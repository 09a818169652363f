"""`epigraph bench serve --quick` on a tiny model and real vLLM: every part runs, and its record holds what it says."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vllm is not installed here", allow_module_level=True)

from epigraph.cli import main
from epigraph.report.performance import read, tables
from models import save_model

# vLLM's own warnings are not ours to mend.
pytestmark = pytest.mark.filterwarnings("default")


MODEL_NUMBERS = 3 * 2 * 2 * 32
PREFIX_BYTES = 10 * MODEL_NUMBERS * 4


def run(folder: Path, capfd: pytest.CaptureFixture[str], *parts: str) -> dict[str, Any]:
    """The parts of a record that the command wrote; what it printed is that record's tables."""
    model, file = save_model("llama", folder / "tiny"), folder / "serving.json"
    flags = [flag for part in parts for flag in ("--part", part)]
    with pytest.raises(SystemExit) as done:
        main(["bench", "serve", "--json", str(file), "--model", str(model), "--quick", *flags])
    said = capfd.readouterr()
    assert done.value.code == 0, said.err
    assert said.out == tables(read(file)) + "\n"
    record = json.loads(file.read_text())
    assert list(record["parts"]) == list(parts)
    assert record["versions"]["vllm"]
    return dict(record["parts"])


def test_own_prefixes_and_a_cache_that_is_too_small(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    parts = run(tmp_path, capfd, "own_prefixes", "small_cache")
    own, small = parts["own_prefixes"], parts["small_cache"]
    assert own["check"]["sampled"] == own["check"]["equal"] + own["check"]["but_for_a_tie"] == 4
    assert own["check"]["distinct"] == 4
    mine, theirs = own["tokens_a_second"].values()
    assert own["ratio_vs_bare"]["values"] == [mine["values"][0] / theirs["values"][0]]
    assert own["held_bytes"] == 8 * PREFIX_BYTES
    assert own["peak_bytes"] > own["held_bytes"]
    assert 0 < small["held_bytes"] <= small["cache_bytes"] == 2 * PREFIX_BYTES
    assert small["asked_for"] > small["held_prefixes"] == 2
    assert small["check"]["sampled"] == 4


@pytest.mark.slow
def test_the_other_parts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    parts = run(tmp_path, capfd, "num_prefixes", "first_token", "lora")
    curve = parts["num_prefixes"]
    assert [list(points) for points in curve.values()] == [["1", "8"]] * 2
    assert curve["uniform"]["1"]["asked_for"] == 1
    assert curve["uniform"]["1"]["held_bytes"] == PREFIX_BYTES
    seconds = parts["first_token"]["seconds"]
    assert list(seconds) == ["bare", "never seen", "seen", "seen, file looked at again"]
    adapters = parts["lora"]["max_loras"]["8"]
    assert "error" not in adapters
    assert adapters["prefixes_vs_adapters"]["median"] > 0
