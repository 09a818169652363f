"""The run folders of a fleet's users in a place: where a user's run is while it runs, and where it goes once it ended.

A folder is one of `epigraph train`: recipe, records, checkpoints, then artifact and summary. While a run runs it is
``running/ID.NUMBER``, the number being the claim's, so that no two workers ever write to one folder, not even where
one of them was taken for dead and was not. Then it becomes ``users/ID``, once.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from epigraph.errors import NothingToResume, ResumeMismatch
from epigraph.train import checkpoint
from epigraph.train.checkpoint import Checkpoint
from epigraph.train.fleet.place import Place
from epigraph.train.folder import RECIPE, STEPS, SUMMARY, check_same, is_complete, read_json
from epigraph.train.record import Lines, append_lines, said_plainly, write_json
from epigraph.train.state import State

RUNNING, USERS = "running", "users"


class Runs:
    """Run folders in ``place``; where that is no folder of this machine, they are written in ``scratch`` and sent."""

    def __init__(self, place: Place, scratch: Path) -> None:
        self._place = place
        self._scratch = scratch

    def ended(self, user: str) -> dict[str, Any] | None:
        """The summary of a run that ended, and whose end was not told to anybody; None where there is none."""
        folder = self._local(f"{USERS}/{user}")
        if not self._place.is_local:
            if self._place.read(f"{USERS}/{user}/{SUMMARY}") is None:
                return None
            self._place.fetch(f"{USERS}/{user}", folder)
        return read_json(folder, SUMMARY) if is_complete(folder) else None

    def begin(self, user: str, number: int, identity: Mapping[str, Any]) -> Checkpoint | None:
        """Make the folder of a run under claim ``number``; the checkpoint of an earlier claim that it goes on from.

        Only a run that was begun with the same recipe, rows and model is gone on with.
        """
        folder = self._local(_running(user, number))
        with said_plainly(folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        write_json(folder / RECIPE, identity)
        for earlier in self._numbers(user):
            if earlier < number and (found := self._gone_on(user, earlier, identity, folder)) is not None:
                return found
        return None

    def save(
        self,
        user: str,
        number: int,
        records: Iterable[Mapping[str, Any]],
        state: State,
        resumed_at: tuple[int, ...],
    ) -> None:
        """Keep a state, and the records up to it."""
        folder = self._local(_running(user, number))
        append_lines(folder / STEPS, records)
        checkpoint.write(folder, state, resumed_at)
        self._place.publish(folder, _running(user, number))

    def finish(self, user: str, number: int) -> None:
        """Let the run's folder be the user's, unless somebody was first; then take away what is left of others."""
        folder = self._local(_running(user, number))
        if self._place.is_local:
            target = self._place.path(f"{USERS}/{user}")
            with said_plainly(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    # A folder replaces none that holds something.
                    folder.replace(target)
                except OSError:
                    if not is_complete(target):
                        raise
        else:
            self._place.publish(folder, f"{USERS}/{user}")
        self.drop(user)

    def drop(self, user: str) -> None:
        """Take away what runs of a user left that did not end."""
        for number in self._numbers(user):
            shutil.rmtree(self._local(_running(user, number)), ignore_errors=True)
            self._place.remove(_running(user, number))
        if not self._place.is_local:
            shutil.rmtree(self._local(f"{USERS}/{user}"), ignore_errors=True)

    def _gone_on(self, user: str, earlier: int, identity: Mapping[str, Any], folder: Path) -> Checkpoint | None:
        other = self._local(_running(user, earlier))
        self._place.fetch(_running(user, earlier), other)
        try:
            check_same(other, identity)
            found = checkpoint.latest(other)
        except (NothingToResume, ResumeMismatch):
            return None
        if found is None:
            return None
        if (other / STEPS).exists():
            shutil.copyfile(other / STEPS, folder / STEPS)
            Lines(folder / STEPS, resumed_at=found.state.position.step).close()
        # So that what was saved is there under this claim, too.
        checkpoint.write(folder, found.state, found.resumed_at)
        return found

    def _numbers(self, user: str) -> list[int]:
        """The claims under which a user's run was begun and did not end, the latest first."""
        parts = (name.rpartition(".") for name in self._place.names(RUNNING))
        return sorted((int(number) for name, _, number in parts if name == user and number.isdecimal()), reverse=True)

    def _local(self, name: str) -> Path:
        return self._place.path(name) if self._place.is_local else self._scratch / name

    def local(self, user: str, number: int) -> Path:
        """The run's folder on this machine."""
        return self._local(_running(user, number))


def _running(user: str, number: int) -> str:
    return f"{RUNNING}/{user}.{number:06d}"
