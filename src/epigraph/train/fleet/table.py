"""How a fleet's users ended, one record a user, out of what every worker left in the place. It knows records only."""

from __future__ import annotations

import json
from typing import Any

from epigraph.train.fleet.claims import DONE, FAILED
from epigraph.train.fleet.place import Place

USERS_FILE = "users.jsonl"


def users_of(place: Place) -> list[dict[str, Any]]:
    """A record of every user that ended, by id: ``id``, ``user``, ``how``, then numbers, or error and reason."""
    found = []
    for how in (DONE, FAILED):
        for name, data in place.read_all(how).items():
            found.append({"id": name.removesuffix(".json"), "how": how, **json.loads(data)})
    return sorted(found, key=lambda x: (x["id"], x["how"]))


def write_users(place: Place) -> list[dict[str, Any]]:
    """Write :func:`users_of` to ``users.jsonl``, a line a user; returns them. Raises :class:`CannotWrite`."""
    users = users_of(place)
    place.write(USERS_FILE, b"".join(json.dumps(x, ensure_ascii=False).encode() + b"\n" for x in users))
    return users


def summary_of(users: list[dict[str, Any]]) -> dict[str, Any]:
    """What is said of them together: how many, their steps and tokens, the mean of every development score."""
    done = [x for x in users if x["how"] == DONE]
    names = sorted({name for x in done for name in x["dev"]})
    dev = {name: [x["dev"][name] for x in done if name in x["dev"]] for name in names}
    return {
        "done": len(done),
        "failed": len(users) - len(done),
        "steps": sum(x["steps"] for x in done),
        "tokens": sum(x["tokens"] for x in done),
        "stored_bytes": sum(x["stored_bytes"] for x in done),
        "dev": {name: sum(values) / len(values) for name, values in dev.items()},
        "failures": [{key: x[key] for key in ("user", "error", "reason")} for x in users if x["how"] == FAILED],
    }
