"""The processes that train one run together: which one this is, and the few things they say to each other.

Knows process groups and tensors; does not know models, methods or recipes. Alone, nothing is sent.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from torch import Tensor, distributed, nn

from epigraph.errors import BadValue, EpigraphError, ProcessLost

T = TypeVar("T")

# The others wait this long for the main process, which decodes, scores with Java and writes files.
PATIENCE = timedelta(hours=3)


class Processes:
    """Process ``rank`` of ``num``; number 0 is the main one, which alone writes and speaks.

    Every method but :meth:`device` has to be called by all of them, in the same order.
    Where one has ended, what is sent to it raises :class:`ProcessLost`.
    """

    def __init__(self, *, rank: int = 0, num: int = 1, local_rank: int = 0) -> None:
        self.rank, self.num, self._local_rank = rank, num, local_rank
        # A failure that all know of goes up through all of them, and is not sent again.
        self._failed = False

    @property
    def is_main(self) -> bool:
        """This is the process that writes and speaks."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """The device of this process where the run was asked to be on ``name``: a GPU of its own."""
        return f"{name}:{self._local_rank}" if self.num > 1 and name == "cuda" else name

    def together(self, work: Callable[[], T]) -> T:
        """What ``work`` gives in this process; where it fails in one of them it fails in all."""
        if self.num == 1:
            return work()
        value, error = _tried(work)
        if self._failed and error is not None:
            raise error
        sent: list[Exception | None] = [None] * self.num
        with self._heard():
            distributed.all_gather_object(sent, self._told(error))
        self._raise(error, next((x for x in sent if x is not None), None))
        return value  # type: ignore[return-value]  # without an error there is one

    def from_main(self, work: Callable[[], T]) -> T:
        """What ``work`` gives in the main process, which alone does it; its failure is everybody's."""
        if self.num == 1:
            return work()
        value, error = _tried(work) if self.is_main else (None, None)
        if self._failed and error is not None:
            raise error
        sent = [(value, self._told(error))]
        with self._heard():
            distributed.broadcast_object_list(sent, device=torch.device("cpu"))
        self._raise(error, sent[0][1])
        return value if self.is_main else sent[0][0]  # type: ignore[return-value]

    def interleaved(self, own: Sequence[T]) -> list[T]:
        """The items of which each process has every ``num``-th, in order."""
        if self.num == 1:
            return list(own)
        parts: list[list[T]] = [[] for _ in range(self.num)]
        with self._heard():
            distributed.all_gather_object(parts, list(own))
        return [parts[i % self.num][i // self.num] for i in range(sum(map(len, parts)))]

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor becomes the sum over all processes, in place and in one message; the same bits everywhere."""
        if self.num == 1:
            return
        flat = torch.cat([x.detach().flatten() for x in tensors])
        with self._heard():
            distributed.all_reduce(flat)
        for x, part in zip(tensors, flat.split([x.numel() for x in tensors]), strict=True):
            x.copy_(part.view_as(x))

    def add_gradients(self, parameters: Iterable[nn.Parameter], numbers: Sequence[float]) -> list[float]:
        """Sum the gradients over all processes, and ``numbers`` beside them in the same message; returns those sums.

        A parameter that no process has a gradient for keeps none, so that the optimiser passes it over.
        """
        if self.num == 1:
            return list(numbers)
        trained = [x for x in parameters if x.requires_grad]
        gradients = [torch.zeros_like(x) if x.grad is None else x.grad for x in trained]
        has = torch.tensor([float(x.grad is not None) for x in trained], device=gradients[0].device)
        sums = torch.tensor(numbers, dtype=torch.float32, device=gradients[0].device)
        self.add([*gradients, has, sums])
        for x, gradient, count in zip(trained, gradients, has.tolist(), strict=True):
            x.grad = gradient if count else None
        return [float(x) for x in sums.tolist()]

    def same(self, tensors: Iterable[Tensor]) -> None:
        """Each tensor becomes the main process's, in place."""
        if self.num == 1:
            return
        with self._heard(), torch.no_grad():
            for x in tensors:
                distributed.broadcast(x, src=0)

    def _told(self, error: Exception | None) -> Exception | None:
        """``error`` as it is sent: what is ours as it is, anything else by its name."""
        if error is None or isinstance(error, EpigraphError):
            return error
        return ProcessLost(f"process {self.rank} of {self.num} failed: {type(error).__name__}: {error}")

    def _raise(self, own: Exception | None, first: Exception | None) -> None:
        if first is not None:
            self._failed = True
            raise own or first

    @contextlib.contextmanager
    def _heard(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as wrong:
            self._failed = True
            raise ProcessLost(
                f"one of {self.num} processes ended, and may have said why above; "
                "start the same command again, with --resume to go on from the last checkpoint"
            ) from wrong


# The run of one process.
ALONE = Processes()


@contextlib.contextmanager
def joined(device: str) -> Iterator[Processes]:
    """The processes that torchrun or ``accelerate launch`` started, with this one among them; else :data:`ALONE`.

    Tensors travel by NCCL on GPUs and by Gloo on a CPU, everything else by Gloo. Raises :class:`BadValue` where there
    is no GPU for each of them.
    """
    num = int(os.environ.get("WORLD_SIZE", "1"))
    if num == 1:
        yield ALONE
        return
    _check_device(device, num)
    on_cpu = device == "cpu"
    state = PartialState(cpu=on_cpu, backend="gloo" if on_cpu else "cpu:gloo,cuda:nccl", timeout=PATIENCE)
    yield Processes(rank=state.process_index, num=state.num_processes, local_rank=state.local_process_index)
    # Only after success: in the middle of a failure the others may not answer any more.
    state.destroy_process_group()


def _check_device(device: str, num: int) -> None:
    if device not in ("cpu", "cuda"):
        raise BadValue(f"--device: got {device!r} with {num} processes, expected cpu or cuda, of which each takes one")
    here, found = int(os.environ.get("LOCAL_WORLD_SIZE", num)), torch.cuda.device_count()
    if device == "cuda" and found < here:
        raise BadValue(
            f"--device: got cuda for {here} processes on a machine with {found} GPUs; start {found or 'none'}"
        )


def _tried(work: Callable[[], T]) -> tuple[T | None, Any]:
    try:
        return work(), None
    except Exception as error:
        return None, error
