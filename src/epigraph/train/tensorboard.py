"""A run's records as TensorBoard curves: the extra ``tensorboard``, asked for by ``training.tensorboard = true``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from epigraph.errors import BadValue


def board_class() -> Any:
    """torch's ``SummaryWriter``; raises :class:`BadValue` where the extra is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise BadValue(
            "training.tensorboard: the package tensorboard is not installed; "
            "run: pip install 'epigraph[tensorboard]', or leave training.tensorboard out"
        ) from None
    return SummaryWriter


class Board:
    """Writes events to ``folder``; steps after ``resumed_at`` that an earlier process wrote are not shown."""

    def __init__(self, folder: Path, *, resumed_at: int = 0) -> None:
        self._writer = board_class()(str(folder), purge_step=resumed_at + 1 if resumed_at else None)

    def write(self, record: Mapping[str, Any]) -> None:
        """One record of :func:`epigraph.train.loop.train`: ``train/<name>``, or ``dev/<metric>``."""
        dev = record.get("dev")
        values = {name: x for name, x in record.items() if name not in ("step", "seconds")} if dev is None else dev
        for name, value in values.items():
            self._writer.add_scalar(f"{'train' if dev is None else 'dev'}/{name}", value, record["step"])

    def close(self) -> None:
        """No more records."""
        self._writer.close()
