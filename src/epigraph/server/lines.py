"""The log: one line of JSON for each request and each of the server's own events, never with text or a secret in it.

It knows the names of what is logged; it knows no request.
"""

from __future__ import annotations

import json
import logging
import traceback
from datetime import UTC, datetime
from typing import IO, Any

LOGGER = logging.getLogger("epigraph.server")

_MOST_CAUSES = 5
_MOST_FRAMES = 12


class JsonLines(logging.Formatter):
    """Of our own records the fields, of other libraries' the message; of an exception its kind and where, since what
    it says may be a client's text."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": at, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[1] is not None:
            line |= told(record.exc_info[1])
        return json.dumps(line, ensure_ascii=True, separators=(",", ":"), default=str)


def log_to(stream: IO[str]) -> None:
    """Write our lines and the web server's warnings to ``stream`` from now on."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    for name, level in (("epigraph.server", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


def log(event: str, level: int = logging.INFO, **fields: Any) -> None:
    """One line, its fields that are None left out."""
    LOGGER.log(level, event, extra={"fields": {name: value for name, value in fields.items() if value is not None}})


def told(error: BaseException) -> dict[str, Any]:
    """What the log says of an error: its kind and the places it went through, and those of its cause."""
    chain: list[dict[str, Any]] = []
    one: BaseException | None = error
    while one is not None and len(chain) < _MOST_CAUSES:
        frames = traceback.extract_tb(one.__traceback__)[-_MOST_FRAMES:]
        chain.append({"error": type(one).__name__, "at": [f"{x.filename}:{x.lineno} {x.name}" for x in frames]})
        one = one.__cause__
    return {"errors": chain}
