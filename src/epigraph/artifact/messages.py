"""How a message shows what a hostile file or the system said: short, on one line, printable."""

from __future__ import annotations


def shown(value: object, most: int = 80) -> str:
    """``value`` as something that can be printed, whatever a hostile file wrote; cut after ``most`` characters."""
    text = str(value)
    text = text[:most] + ("..." if len(text) > most else "")
    return "".join(x if x.isprintable() else f"\\x{ord(x):02x}" for x in text)


def reason(error: OSError | ValueError) -> str:
    """What went wrong, without the path, which the message around it names already."""
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
