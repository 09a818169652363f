"""Ten thousand requests of two hundred tenants on the local engine: nobody ever hears somebody else's prefix."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from isolation import ask_all, furnish, served


@pytest.mark.slow
def test_ten_thousand_mixed_requests_of_two_hundred_tenants(tmp_path: Path) -> None:
    tenants = furnish(tmp_path, 200)
    with served(tmp_path, "--engine", "local") as url:
        asyncio.run(ask_all(url, tenants, 10_000, ensembles=True))
    assert tenants.wrong == []
    assert sum(tenants.found.values()) == 10_000
    assert set(tenants.found) >= {"own 200", "streamed 200", "base 200", "together 200", "foreign 404"}
