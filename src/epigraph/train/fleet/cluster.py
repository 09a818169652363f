"""The workers of a fleet placed on a Ray cluster: the same workers, which meet in the fleet's place and nowhere else.

Ray starts them and tells of their end; whose turn it is, they settle by claims, as anywhere.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from epigraph.errors import BadValue, RunError
from epigraph.train.fleet.claims import DONE, FAILED
from epigraph.train.fleet.order import Order, Progress, order_from
from epigraph.train.fleet.place import Place
from epigraph.train.fleet.worker import work

# Between two looks at the place.
LOOK_SECONDS = 1.0
CONNECT_SECONDS = 10.0


def work_on(
    address: str,
    given: Mapping[str, Any],
    *,
    num_workers: int,
    report: Callable[[Progress], None] = lambda _: None,
) -> Progress:
    """Train the users of ``given`` (what :func:`order_from` takes) in ``num_workers`` Ray tasks; as :func:`work`.

    Every node sees the rows and the place under the same address, and has Epigraph installed. A worker that dies, with
    its node or alone, is not started again: the others take its users over. Raises :class:`BadValue` without Ray, or
    where none is at ``address``, what the first worker raised where none came to an end, and :class:`RunError` where
    all of them died.
    """
    ray = _connected(address)
    order = order_from(given)
    try:
        remote = ray.remote(num_cpus=1, num_gpus=float(order.device.startswith("cuda")), max_retries=0)(_work)
        tasks = [remote.remote(dict(given)) for _ in range(num_workers)]
        try:
            return _followed(ray, tasks, order, report)
        except BaseException:
            # As Ctrl-C does: each saves what runs, and gives it back.
            for task in tasks:
                ray.cancel(task)
            ray.wait(tasks, num_returns=len(tasks), timeout=order.lease_seconds)
            raise
    finally:
        ray.shutdown()


def _work(given: dict[str, Any]) -> Progress:
    return work(order_from(given))


def _connected(address: str) -> Any:
    try:
        import ray
    except ImportError:
        raise BadValue("--ray: ray is not installed; pip install 'epigraph[ray]'") from None
    _refuse_silence(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as wrong:
        raise _no_cluster(address, str(wrong).splitlines()[0]) from None
    return ray


def _refuse_silence(address: str) -> None:
    """Raise where nothing listens at ``HOST:PORT``, for which Ray itself waits for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as wrong:
        raise _no_cluster(address, wrong.strerror or str(wrong)) from None


def _no_cluster(address: str, why: str) -> BadValue:
    return BadValue(
        f"--ray: no cluster answers at {address!r}: {why}; start one (`ray start --head`) and give its address, or "
        "'local' for one of this machine's own"
    )


def _followed(ray: Any, tasks: list[Any], order: Order, report: Callable[[Progress], None]) -> Progress:
    """Tell how far all of them are until the last has ended; what they did together."""
    place, start = Place(order.out), time.monotonic()
    total, left = Progress(total=len(order.users.names)), list(tasks)
    before = _ended(place)
    while left:
        _, left = ray.wait(left, num_returns=len(left), timeout=LOOK_SECONDS)
        done, failed = _ended(place)
        total.done, total.failed, total.seconds = done, failed, time.monotonic() - start
        total.trained, total.running = done - before[0], len(left)
        report(total)
    faults = [fault for task in tasks if (fault := _fault(ray, task, total)) is not None]
    if len(faults) == len(tasks):
        raise faults[0]
    if total.done + total.failed < total.total:
        raise RunError("all workers ended before all users had; give the command again")
    return total


def _fault(ray: Any, task: Any, total: Progress) -> Exception | None:
    """Why a worker did not come to an end; where it did, what it did is added."""
    try:
        found: Progress = ray.get(task)
    except ray.exceptions.RayTaskError as wrong:
        cause: Exception = wrong.cause or wrong
        return cause
    except ray.exceptions.RayError as wrong:
        return RunError(f"a worker was lost: {str(wrong).splitlines()[0]}; give the command again")
    total.steps += found.steps
    total.tokens += found.tokens
    return None


def _ended(place: Place) -> tuple[int, int]:
    return len(place.names(DONE)), len(place.names(FAILED))
