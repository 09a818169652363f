"""On models that know English, every site and every method learns: beyond what three seeds leave to chance."""

from __future__ import annotations

import pytest

from conftest import benchmark

sites = benchmark("encoder_decoders")
interval = benchmark("intervals").interval

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("epigraph_data")]


@pytest.mark.parametrize("model", sites.MODELS)
def test_every_method_beats_the_untouched_model(model: str) -> None:
    runs = list(sites.measured(model))
    print("\n" + sites.markdown(model, runs))
    for name, rows in sites.by_system(runs).items():
        mean, half = interval([row["dev_loss"] for row in rows])
        assert mean + half < rows[0]["untouched"], name
