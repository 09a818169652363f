"""On models that know English, every site and every method learns: beyond what three seeds leave to chance."""

from __future__ import annotations

import os

import pytest

from conftest import benchmark

sites = benchmark("encoder_decoders")
interval = benchmark("intervals").interval

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("EPIGRAPH_DATA" not in os.environ, reason="E2E, which may not be shipped: set EPIGRAPH_DATA"),
]


@pytest.mark.parametrize("model", sites.MODELS)
def test_every_method_beats_the_untouched_model(model: str) -> None:
    runs = list(sites.measured(model))
    print("\n" + sites.markdown(model, runs))
    for name, rows in sites.by_system(runs).items():
        mean, half = interval([row["dev_loss"] for row in rows])
        assert mean + half < rows[0]["untouched"], name
