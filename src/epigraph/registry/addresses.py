"""Where the catalogue and the store are, where nobody says so. It opens neither."""

from __future__ import annotations

import os

from epigraph.home import home


def catalogue_address(given: str | None = None) -> str:
    """``given``, else ``$EPIGRAPH_CATALOGUE``, else an SQLite file below ``$EPIGRAPH_HOME``."""
    return given or os.environ.get("EPIGRAPH_CATALOGUE") or str(home() / "registry" / "catalogue.sqlite")


def store_address(given: str | None = None) -> str:
    """``given``, else ``$EPIGRAPH_STORE``, else a folder below ``$EPIGRAPH_HOME``."""
    return given or os.environ.get("EPIGRAPH_STORE") or str(home() / "registry" / "prefixes")
