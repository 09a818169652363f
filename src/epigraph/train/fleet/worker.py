"""A worker of a fleet: takes waiting users, trains them together, leaves each one's artifact, and takes the next.

Any number of workers, here and elsewhere, share a place; each does what nobody else does. What a user needs (rows, text
contract, state) is read when he comes in, and is gone when he leaves.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from epigraph.errors import BadValue, CannotWrite, Interrupted, UserError
from epigraph.frozen.model import FrozenModel
from epigraph.methods.base import Method
from epigraph.tasks.users import user_id
from epigraph.train.build import make_method
from epigraph.train.fleet.claims import FAILED, Claims
from epigraph.train.fleet.member import Member
from epigraph.train.fleet.order import Order, Progress, check_recipe
from epigraph.train.fleet.place import Place
from epigraph.train.fleet.room import Room, room_for
from epigraph.train.fleet.runs import Runs
from epigraph.train.fleet.together import Together
from epigraph.train.folder import STEPS, check_same_recipe
from epigraph.train.prepare import Prepared, draw, load_base, own_labels, precision_of, prepare_on
from epigraph.train.record import append_lines
from epigraph.train.result import write_result
from epigraph.train.run import identity
from epigraph.train.stop import Stop, on_signals

FLEET = "fleet.json"
SAVE_SECONDS = 60.0
# Saving may take this share of the time.
SAVE_SHARE = 0.05


def work(
    order: Order,
    *,
    report: Callable[[Progress], None] = lambda _: None,
    notice: Callable[[str], None] = lambda _: None,
) -> Progress:
    """Train users until all have ended, here or in other workers; returns how far it is then.

    Raises :class:`BadValue` for a recipe that no fleet can train and for more users at a time than fit,
    :class:`ResumeMismatch` for a place that another fleet was begun in, :class:`CannotWrite`, and
    :class:`Interrupted` once Ctrl-C or SIGTERM has stopped it and all that runs is saved.
    """
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="epigraph-fleet-")))
        place = Place(order.out)
        stop = stack.enter_context(on_signals(notice))
        claims = stack.enter_context(Claims(place, order.lease_seconds))
        return _Worker(order, place, claims, Runs(place, scratch), stop, report).run()


@dataclass(kw_only=True, slots=True)
class _Running:
    """A user at work: the claim's number, and the steps after which his run was taken up."""

    member: Member
    number: int
    resumed_at: tuple[int, ...]
    saved_step: int = 0


@dataclass(slots=True)
class _Worker:
    order: Order
    place: Place
    claims: Claims
    runs: Runs
    stop: Stop
    report: Callable[[Progress], None]
    names: Mapping[str, str] = field(init=False)
    progress: Progress = field(init=False)
    waiting: deque[str] = field(init=False, default_factory=deque)
    running: dict[str, _Running] = field(init=False, default_factory=dict)
    together: Together | None = field(init=False, default=None)
    frozen: FrozenModel = field(init=False)
    precision: str = field(init=False)
    start: float = field(init=False)
    looked: float = field(init=False, default=-1e9)
    saved: float = field(init=False)
    pause: float = field(init=False, default=SAVE_SECONDS)

    def run(self) -> Progress:
        order = self.order
        self.names = {user_id(name): name for name in order.users.names}
        self.progress = Progress(total=len(self.names))
        check_recipe(order.recipe)
        self.precision = precision_of(order.recipe, order.device)
        self.frozen = load_base(order.recipe, self.precision, order.device)
        self._agree()
        if order.retry_failed:
            for user in self.place.names(FAILED):
                self.claims.retry(user.removesuffix(".json"))
        self.start = self.saved = time.monotonic()
        while not self._is_over():
            self._fill()
            if self.running:
                self._step()
            elif not self.waiting:
                self._wait()
            self._told()
        return self.progress

    def _agree(self) -> None:
        """All workers of a place train the same: the first one says what, and the others compare."""
        recipe = self.order.recipe.model_dump(mode="json", exclude={"data": {"train", "dev"}, "model": True})
        wanted = {
            **recipe,
            "model": self.frozen.name,
            "precision": self.precision,
            "base": self.frozen.fingerprint,
            "tokenizer": self.frozen.tokenizer_fingerprint,
        }
        if not self.place.create(FLEET, json.dumps(wanted, indent=1).encode()):
            found = self.place.read(FLEET)
            check_same_recipe(self.order.out, json.loads(found or b"{}"), wanted)

    def _is_over(self) -> bool:
        if self.stop:
            self._interrupted()
        return not self.running and self.progress.done + self.progress.failed >= self.progress.total

    def _fill(self) -> None:
        """Let users in while there is room."""
        self._look()
        while (self.together is None or self.together.has_room) and not self.stop:
            if not self.waiting and not self._look(at_once=not self.running):
                return
            user = self.waiting.popleft()
            if self.claims.take(user):
                self._enter(user)

    def _look(self, *, at_once: bool = False) -> bool:
        """Who is waiting and who has ended, not more often than the lease asks for; whether anybody is waiting."""
        now, every = time.monotonic(), self.order.lease_seconds / 8
        if (at_once and now - self.looked > min(0.2, every)) or now - self.looked > every:
            self.looked = now
            ended = self.claims.ended()
            hows = [ended[user] for user in self.names if user in ended]
            self.progress.done, self.progress.failed = hows.count("done"), hows.count("failed")
            free = [user for user in self.claims.open_ids(self.names, ended) if user not in self.running]
            # Workers begin at different users, so that they seldom want the same one.
            turn = int.from_bytes(self.claims.worker.encode()[-4:], "big") % max(1, len(free))
            self.waiting = deque(free[turn:] + free[:turn])
        return bool(self.waiting)

    def _enter(self, user: str) -> None:
        name, number = self.names[user], self.claims.number(user)
        done = self.runs.ended(user)
        if done is not None:
            self._ended(user, done)
            return
        try:
            ready = self._prepared(name)
            together = self._together(ready)
            begin = self.runs.begin(user, number, identity(ready))
            member = together.enter(user, ready, None if begin is None else begin.state)
        except CannotWrite:
            raise
        except UserError as wrong:
            if self.together is None and isinstance(wrong, BadValue):
                # Nobody could be trained so.
                self.claims.release(user)
                raise
            self._set_aside(user, wrong)
            return
        resumed_at = () if begin is None else (*begin.resumed_at, begin.state.position.step)
        self.running[user] = _Running(member=member, number=number, resumed_at=resumed_at, saved_step=member.at.step)
        if member.is_done:
            self._finish(user)

    def _prepared(self, name: str) -> Prepared:
        recipe = self.order.recipe
        task = self.order.users.task(name, own_labels(recipe))
        files = {key: task.files.get(key) for key in ("train", "dev")}
        data = recipe.data.model_copy(update={key: None if x is None else Path(x) for key, x in files.items()})
        own = recipe.model_copy(update={"data": data})
        return prepare_on(self.frozen, own, task, draw(own, task), precision=self.precision)

    def _together(self, ready: Prepared) -> Together:
        if self.together is None:
            method = make_method(ready)
            room: Room = room_for(ready, method, active=self.order.active, num_rows=self.order.num_rows)
            self.together = Together(ready, method, room=room.active, num_rows=room.num_rows)
        return self.together

    def _step(self) -> None:
        assert self.together is not None
        before = {user: x.member.at for user, x in self.running.items()}
        failed = self.together.step()
        for user, at in before.items():
            self.progress.steps += 1
            self.progress.tokens += self.running[user].member.at.tokens - at.tokens
        for user, wrong in failed.items():
            del self.running[user]
            self._set_aside(user, wrong)
        for user in [user for user, x in self.running.items() if x.member.is_done]:
            self._finish(user)
        self._save()

    def _finish(self, user: str) -> None:
        """Leave the artifact of a user whose run is over, unless he was lost to another worker meanwhile."""
        assert self.together is not None
        x = self.running.pop(user)
        try:
            if self.claims.holds(user):
                self._ended(user, self._result(user, x, self.together.result(x.member)))
        except CannotWrite:
            raise
        except UserError as wrong:
            # Numbers that are none, from the last step of all: an artifact never has them.
            self._set_aside(user, wrong)
        self.together.leave(x.member)

    def _result(self, user: str, x: _Running, method: Method) -> dict[str, Any]:
        """Write what a user's run leaves; its summary."""
        folder = self.runs.local(user, x.number)
        append_lines(folder / STEPS, x.member.records)
        summary = write_result(x.member.ready, method, x.member.outcome(), x.resumed_at, folder)
        self.runs.finish(user, x.number)
        return summary

    def _ended(self, user: str, summary: Mapping[str, Any]) -> None:
        keys = ("steps", "kept_step", "dev", "stopped_early", "tokens", "seconds", "stored_bytes", "content_hash")
        if self.claims.finish(user, "done", {"user": self.names[user], **{key: summary[key] for key in keys}}):
            self.progress.done += 1
            self.progress.trained += 1

    def _set_aside(self, user: str, wrong: UserError) -> None:
        self.runs.drop(user)
        said = {"user": self.names[user], "error": type(wrong).__name__, "reason": str(wrong)}
        if self.claims.finish(user, "failed", said):
            self.progress.failed += 1

    def _save(self, *, at_once: bool = False) -> None:
        """Save everybody whose checkpoint is due: by his steps where the recipe counts them, else by the clock."""
        every, now = self.order.recipe.training.checkpoint_every, time.monotonic()
        by_clock = every is None and now - self.saved >= self.pause
        for user, x in self.running.items():
            step = x.member.at.step
            due = at_once or by_clock or bool(every and step % every == 0)
            if due and every != 0 and step > x.saved_step and self.claims.holds(user):
                assert self.together is not None
                self.runs.save(user, x.number, x.member.records, self.together.state(x.member), x.resumed_at)
                x.member.records.clear()
                x.saved_step = step
        if by_clock or at_once:
            self.saved = time.monotonic()
            self.pause = max(SAVE_SECONDS, (self.saved - now) / SAVE_SHARE)

    def _interrupted(self) -> None:
        self._save(at_once=True)
        for user in self.running:
            self.claims.release(user)
        self._told()
        assert self.stop.signal is not None
        raise Interrupted(
            f"stopped with {self.progress.done:,} of {self.progress.total:,} users done and {len(self.running):,} on "
            "their way, which are saved; go on with the same command",
            signal=self.stop.signal,
        )

    def _wait(self) -> None:
        """Others have all that is left: they end it, or are found dead."""
        time.sleep(min(0.5, self.order.lease_seconds / 16))
        self._look(at_once=True)

    def _told(self) -> None:
        self.progress.running = len(self.running)
        self.progress.seconds = time.monotonic() - self.start
        self.report(self.progress)
