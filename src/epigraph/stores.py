"""How a file system of fsspec's is opened here: nothing remembered, and none that is away waited for by the minute."""

from __future__ import annotations

from typing import Any

import fsspec

_CONNECT_SECONDS = 5


def options_for(address: str) -> dict[str, Any]:
    """What fsspec is given beside ``address``; a client's own settings of S3, in fsspec's configuration, stay."""
    told: dict[str, Any] = {"use_listings_cache": False}
    if address.startswith(("s3://", "s3a://")) and "config_kwargs" not in fsspec.config.conf.get("s3", {}):
        told["config_kwargs"] = {"connect_timeout": _CONNECT_SECONDS, "retries": {"max_attempts": 2}}
    return told
