"""Scores to be pushed with an artifact: from a file, or from the records of the run that trained it.

It knows the records and no registry.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from epigraph.errors import BadValue, RecordsNotFound

MAX_FILE_BYTES = 1 << 20


def scores_beside(path: Path) -> dict[str, dict[str, float]]:
    """``{split: {metric: value}}`` of the artifact itself, as ``epigraph evaluate`` left them in the run's folder.

    Empty for a file that is no run's, or was not evaluated. Raises :class:`BadRows` for records that break their form.
    """
    from epigraph.report.records import read_run

    folder = path if path.is_dir() else path.parent
    try:
        evaluations = read_run(folder).evaluations
    except RecordsNotFound:
        return {}
    return {x.split: dict(x.scores) for x in evaluations if x.name == "after"}


def scores_in(path: Path) -> dict[str, Any]:
    """What a JSON file says: the record of ``epigraph evaluate --json``, as ``{split: {metric: value}}``, or an object
    of one's own, as it is. Raises :class:`BadValue`."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise BadValue(f"{path} has over {MAX_FILE_BYTES:,} bytes, expected scores")
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        why = (isinstance(error, OSError) and error.strerror) or error
        raise BadValue(f"{path} cannot be read as scores: {why}; give a JSON object") from error
    if not isinstance(said, dict):
        raise BadValue(f"{path} holds a {type(said).__name__}, expected a JSON object of scores")
    if isinstance(said.get("scores"), dict) and isinstance(said.get("split"), str):
        return {said["split"]: said["scores"]}
    return said
