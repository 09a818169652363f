"""Work that blocks, in threads beside the event loop: a few for looking things up, a few for long pushes.

It knows no database; that they are always the same threads keeps a database's connections few.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Aside:
    """``num_threads`` threads under one name."""

    def __init__(self, num_threads: int, name: str) -> None:
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix=f"epigraph-{name}")

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What ``work`` returns or raises. A caller that is cancelled leaves the thread to finish its work."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *args, **kwargs))

    def close(self) -> None:
        """Finish what was begun, and end."""
        self._threads.shutdown(wait=True, cancel_futures=True)
