"""Ctrl-C and the like: the first asks a run to stop after its step, the second stops it at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether somebody asked for a stop."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextlib.contextmanager
def on_signals(notice: Callable[[str], None]) -> Iterator[Stop]:
    """While inside, the first SIGINT or SIGTERM sets the stop and is told to ``notice``; the next acts as ever.

    Outside the main thread, where Python takes no signals, the stop is never set.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    earlier = {number: signal.getsignal(number) or signal.SIG_DFL for number in SIGNALS}

    def give_back() -> None:
        for number, handler in earlier.items():
            signal.signal(number, handler)

    def ask(number: int, _: FrameType | None) -> None:
        stop.signal = number
        give_back()
        notice("stopping after this step; once more: at once, leaving the last checkpoint")

    for number in SIGNALS:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        give_back()
