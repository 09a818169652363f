"""Several workers: heads dealt out by rank, and the answers of one.

Stages of a pipeline are not here: the CPU build of vLLM 0.32.0 fails at two of them without any connector.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from epigraph.frozen.model import FrozenModel
from models import drawn, put, save_model
from serving import differences, serving
from test_guarantee import mixed

LENGTHS = [1, 10, 33, 70]


@pytest.mark.slow
def test_two_workers_answer_as_one(tmp_path: Path) -> None:
    model = save_model("llama", tmp_path / "model")
    frozen = FrozenModel.load(str(model))
    names = [put(frozen, tmp_path / "shelf", f"p{n}", drawn(frozen.geometry, n, n)) for n in LENGTHS]
    asked, texts = mixed(names, 5, 32)
    with serving(model, tmp_path / "shelf", frozen, tensor_parallel_size=2) as served:
        got = served.ask(asked, texts, 12)
        # One that is refused by every worker ends once.
        refused = served.ask([*names, names[0]], texts[:5], 4, changes={2: {"cache_salt": "wrong"}})
    wrong, _ = differences(served, asked, texts, [new for new, _ in got])
    assert not wrong
    assert [reason for _, reason in refused] == ["length", "length", "error", "length", "length"]
