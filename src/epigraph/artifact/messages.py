"""How a message shows what a hostile file or the system said: short, on one line, printable."""

from __future__ import annotations

from pydantic_core import ErrorDetails


def shown(value: object, most: int = 80) -> str:
    """``value`` as something that can be printed, whatever a hostile file wrote; cut after ``most`` characters."""
    text = str(value)
    text = text[:most] + ("..." if len(text) > most else "")
    return "".join(x if x.isprintable() else f"\\x{ord(x):02x}" for x in text)


def reason(error: OSError | ValueError) -> str:
    """What went wrong, without the path, which the message around it names already."""
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def explained(error: ErrorDetails) -> str:
    """One finding of a model as place, what was expected, and what stands there if that is short enough to say."""
    place = ".".join(str(x) for x in error["loc"])
    found = error["input"]
    is_short = isinstance(found, (str, int, float)) and error["type"] != "extra_forbidden"
    got = f", got {shown(repr(found), 40)}" if is_short else ""
    return (f"{shown(place)}: " if place else "") + shown(error["msg"].removeprefix("Value error, "), 200) + got
