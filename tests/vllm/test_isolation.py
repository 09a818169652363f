"""Ten thousand requests of two hundred tenants on vLLM: nobody ever hears somebody else's prefix."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from isolation import ask_all, furnish, served


@pytest.mark.slow
def test_ten_thousand_mixed_requests_of_two_hundred_tenants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    tenants = furnish(tmp_path, 200)
    options = (
        "block_size=32",
        "max_model_len=128",
        "enforce_eager=true",
        "dtype=float32",
        "gpu_memory_utilization=0.3",
    )
    with served(tmp_path, "--engine", "vllm", *(x for y in options for x in ("--engine-option", y))) as url:
        asyncio.run(ask_all(url, tenants, 10_000, ensembles=False))
    assert tenants.wrong == []
    assert sum(tenants.found.values()) == 10_000
    assert set(tenants.found) >= {"own 200", "streamed 200", "base 200", "foreign 404"}
