"""Many users' prefixes: a catalogue of tenants, versions, aliases and keys in a database, and a store of their bytes.

It knows no engine and no server; docs/registry.md says what it promises.
"""

from epigraph.registry.records import (
    LATEST,
    LOCAL,
    SCOPES,
    Caller,
    Entry,
    Findings,
    Key,
    Listed,
    Page,
    Quotas,
    Scope,
    Tenant,
    Version,
)
from epigraph.registry.registry import Registry
from epigraph.registry.tenants import Tenants

__all__ = [
    "LATEST",
    "LOCAL",
    "SCOPES",
    "Caller",
    "Entry",
    "Findings",
    "Key",
    "Listed",
    "Page",
    "Quotas",
    "Registry",
    "Scope",
    "Tenant",
    "Tenants",
    "Version",
]
