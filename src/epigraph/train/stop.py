"""Ctrl-C and the like: the first asks a run to stop after its step, the second stops it at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether somebody asked for a stop: ``asked`` is the signal that came here, and what counts is ``signal``.

    Alone they are the same. Of several processes each has its own ``asked``, at a moment of its own: they add up their
    :meth:`flags` with the gradients of a step, so that all of them :meth:`hear` of it after the same step.
    """

    def __init__(self, *, alone: bool = True) -> None:
        self.asked: int | None = None
        self._alone = alone
        self._heard: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def signal(self) -> int | None:
        """The signal that ends the run after this step; None where it goes on."""
        return self.asked if self._alone else self._heard

    def flags(self) -> list[float]:
        """One number for each of :data:`SIGNALS`: 1 for the one that came here."""
        return [float(self.asked == number) for number in SIGNALS]

    def hear(self, flags: Sequence[float]) -> None:
        """Take in the sums of all processes' flags."""
        self._heard = next((number for number, count in zip(SIGNALS, flags, strict=True) if count), self._heard)


@contextlib.contextmanager
def on_signals(notice: Callable[[str], None], *, alone: bool = True) -> Iterator[Stop]:
    """While inside, the first SIGINT or SIGTERM sets the stop and is told to ``notice``; the next acts as ever.

    Outside the main thread, where Python takes no signals, the stop is never set.
    """
    stop = Stop(alone=alone)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    earlier = {number: signal.getsignal(number) or signal.SIG_DFL for number in SIGNALS}

    def give_back() -> None:
        for number, handler in earlier.items():
            signal.signal(number, handler)

    def ask(number: int, _: FrameType | None) -> None:
        stop.asked = number
        give_back()
        notice("stopping after this step; once more: at once, leaving the last checkpoint")

    for number in SIGNALS:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        give_back()
