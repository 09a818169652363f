"""What prefixes, versions, tenants and aliases may be called: the same word everywhere, and a safe path below a folder.

Patterns and one check; it knows nothing that is called so.
"""

from __future__ import annotations

import re

from epigraph.errors import BadName

# No part begins with a dot, so that a path of parts leads out of nothing.
PART = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"
PATH = rf"{PART}(/{PART}){{0,7}}"


def check_part(what: str, name: str) -> None:
    """Raise :class:`BadName` unless ``name`` is one part; ``what`` is what messages call it, "the tenant" say."""
    if not re.fullmatch(PART, name):
        raise BadName(
            f"{what} is {name[:200]!r}, expected 1 to 128 letters, digits, '.', '_' and '-', the first of them a "
            "letter, a digit or '_'"
        )
