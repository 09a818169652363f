"""Where fetched models and data lie. It knows one folder and nothing of what is in it."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """``$EPIGRAPH_HOME``, or ``~/.cache/epigraph``. The folder may not exist yet."""
    return Path(os.environ.get("EPIGRAPH_HOME") or "~/.cache/epigraph").expanduser().absolute()
