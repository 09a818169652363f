"""What a checkpoint brings along besides weights, and what of it is left behind."""

from __future__ import annotations

import json
from pathlib import Path

from conftest import random_ids, save_tiny
from epigraph.contract import Decoding
from epigraph.frozen.generate import generate
from epigraph.frozen.model import FrozenModel


def test_a_models_own_way_to_decode_is_not_a_tasks(tmp_path: Path) -> None:
    """transformers fills in what nobody said: a checkpoint with a penalty would answer otherwise than it was asked."""
    ids, decoding = [random_ids(12, 0)], Decoding(max_new_tokens=24, min_new_tokens=24)
    plain = save_tiny(tmp_path / "plain")
    want = generate(FrozenModel.load(str(plain)), ids, None, decoding)
    file = plain / "generation_config.json"
    own = json.loads(file.read_text())
    token = want[0][0]
    changed = {"repetition_penalty": 1.8, "suppress_tokens": [token], "no_repeat_ngram_size": 1, "do_sample": True}
    file.write_text(json.dumps(own | changed))
    frozen = FrozenModel.load(str(plain))
    assert generate(frozen, ids, None, decoding) == want
    assert generate(frozen, ids, None, decoding, suppress_tokens=[token]) != want, "asked for, it counts"
    assert frozen.model.generation_config.eos_token_id == own["eos_token_id"]
