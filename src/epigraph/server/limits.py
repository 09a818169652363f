"""What one server takes from anybody, whatever a tenant may have. Pure data; it knows no request."""

from __future__ import annotations

from dataclasses import dataclass, fields

from epigraph.errors import BadValue

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The most of each thing. ``source_tokens`` is a request's own text before any template, ``new_tokens`` one answer,
    ``choices`` the answers of one request, ``members`` the prefixes of an ensemble, ``seconds`` one request from its
    key to its last byte, ``waiting`` the engine's queue, ``grace_seconds`` what running answers get at a shutdown,
    ``body_seconds`` without a byte of a body.

    Raises :class:`BadValue` for what is not above 0.
    """

    body_bytes: int = 2 << 20
    upload_bytes: int = 256 << 20
    source_tokens: int = 16_384
    new_tokens: int = 4_096
    choices: int = 16
    members: int = 8
    beams: int = 16
    seconds: float = 300.0
    waiting: int = 1_024
    grace_seconds: float = 30.0
    body_seconds: float = 30.0

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if not value > 0:
                raise BadValue(f"the limit {one.name} is {value}, expected more than 0")
