"""The thread that a local engine's model runs in: requests join and leave between steps, and none waits for another.

It knows jobs and the model; requests, texts and the event loop are not its business.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import TypeVar

import torch
from torch import Tensor

from epigraph.engine.base import Counts
from epigraph.engine.drawing import Drawn, draw, draw_together
from epigraph.engine.grouped_jobs import answer_group, group_of
from epigraph.engine.jobs import NOT_NUMBERS, Event, Job, Said, heard
from epigraph.errors import EngineUnavailable, RequestFailed
from epigraph.frozen.model import FrozenModel
from epigraph.frozen.stepper import Row, Stepper

# Tokens that are read in one step, so that those who speak are not kept waiting by a long text.
DEFAULT_READ_TOKENS = 256

T = TypeVar("T")
Post = Callable[[Sequence[tuple[Job, Event]]], None]


@dataclass(kw_only=True, slots=True, eq=False)
class _Party:
    """A job whose rows are in the table; ``token`` is what they have to hear next, None while they read."""

    job: Job
    rows: list[Row]
    token: int | None = None


class Worker:
    """Answers jobs on one frozen model. ``post`` is called in the thread with what was said in a step.

    ``stepper`` None: the model cannot be stepped, and every job is answered by ``generate``.
    """

    def __init__(
        self,
        frozen: FrozenModel,
        stepper: Stepper | None,
        post: Post,
        *,
        max_rows: int,
        read_tokens: int = DEFAULT_READ_TOKENS,
    ) -> None:
        self._frozen = frozen
        self._stepper = stepper
        self._post = post
        self._max_rows = max_rows
        self._read_tokens = read_tokens
        self._inbox: SimpleQueue[Job | Callable[[], None] | None] = SimpleQueue()
        self._waiting: deque[Job] = deque()
        self._grouped: deque[Job] = deque()
        self._parties: list[_Party] = []
        self._group: list[Job] = []
        self._said: list[tuple[Job, Event]] = []
        self._is_closed = False
        # Nothing is put in behind the last look at what came in: it would be waited for in vain.
        self._door = Lock()
        self._is_over = False
        self.failure: BaseException | None = None
        self._thread = Thread(target=self._run, name="epigraph-model", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it answers."""
        return self._thread.is_alive() and not self._is_closed

    def counts(self) -> Counts:
        """The jobs that are being answered, and those that wait for room."""
        waiting = len(self._waiting) + len(self._grouped) + self._inbox.qsize()
        return Counts(running=len(self._parties) + len(self._group), waiting=waiting)

    def put(self, job: Job) -> None:
        """Have ``job`` answered. Raises :class:`EngineUnavailable` once the thread has ended."""
        self._let_in(job)

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Have ``function`` called between two steps, where nothing else uses the model. Raises as :meth:`put`."""
        done: Future[T] = Future()

        def called() -> None:
            if not done.set_running_or_notify_cancel():
                return
            try:
                done.set_result(function())
            except BaseException as wrong:
                done.set_exception(wrong)

        self._let_in(called)
        return done

    def wake(self) -> None:
        """Look at what was cancelled."""
        self._inbox.put(None)

    def close(self) -> None:
        """End all jobs and the thread."""
        self._is_closed = True
        self._inbox.put(None)
        self._thread.join()

    def _let_in(self, what: Job | Callable[[], None]) -> None:
        with self._door:
            if self._is_over:
                raise EngineUnavailable("the engine is closed; start another one")
            self._inbox.put(what)

    def _run(self) -> None:
        try:
            while not self._is_closed:
                self._take(wait=not (self._parties or self._waiting or self._grouped))
                self._step()
                self._answer_group()
        except BaseException as wrong:
            # Whoever waits must hear of it: a thread that ends in silence lets them wait for ever.
            self.failure = wrong
        finally:
            self._is_closed = True
            self._end_all()

    def _step(self) -> None:
        """What a step of the table does: who is there reads or speaks, once; who waits may come."""
        self._leave_cancelled()
        self._admit()
        self._read()
        self._speak()
        self._send()

    def _take(self, *, wait: bool) -> None:
        """Everything that came in; ``wait`` for something where there is nothing to do."""
        try:
            while True:
                self._receive(self._inbox.get(block=wait))
                wait = False
        except Empty:
            return

    def _receive(self, what: Job | Callable[[], None] | None) -> None:
        if isinstance(what, Job):
            (self._waiting if what.way == "step" else self._grouped).append(what)
        elif what is not None:
            what()

    def _admit(self) -> None:
        """Those who wait, in the order they came, while there is room for the first of them."""
        while self._stepper is not None and self._waiting:
            job = self._waiting[0]
            ids, num_new = job.encoded.ids, job.draw.decoding.max_new_tokens
            # Members of an ensemble may be of several lengths; each is asked for as the longest.
            longest = max(job.members, key=lambda x: 0 if x is None else x.num_virtual_tokens)
            if not self._stepper.has_room(longest, len(ids), num_new, job.num_rows):
                return
            self._waiting.popleft()
            party = _Party(job=job, rows=[])
            try:
                for tokens in job.members:
                    party.rows.append(self._stepper.admit(tokens, ids, num_new))
            except Exception as wrong:
                self._fail(party, wrong)
                continue
            self._parties.append(party)

    def _read(self) -> None:
        """As much text as one step reads, of those who came first."""
        asked: list[_Party] = []
        news: list[list[int]] = []
        left = self._read_tokens
        for party in self._parties:
            unread = party.rows[0].unread
            if not unread or (left < len(party.rows) and asked):
                continue
            count = min(len(unread), max(1, left // len(party.rows)))
            left -= count * len(party.rows)
            asked.append(party)
            news += [row.unread[:count] for row in party.rows]
            for row in party.rows:
                row.unread = row.unread[count:]
        if asked:
            self._forward(asked, news, lambda party: not party.rows[0].unread)

    def _speak(self) -> None:
        asked = [party for party in self._parties if party.token is not None]
        if asked:
            self._forward(asked, [[party.token or 0] for party in asked for _ in party.rows], lambda _: True)

    def _forward(self, parties: list[_Party], news: Sequence[Sequence[int]], speaks: Callable[[_Party], bool]) -> None:
        """One forward of the rows of ``parties``; those that ``speak`` say their next token."""
        assert self._stepper is not None
        try:
            logits_BV = self._stepper.step([row for party in parties for row in party.rows], news)
        except Exception as wrong:
            for party in parties:
                self._fail(party, RequestFailed(f"the model failed: {type(wrong).__name__}: {wrong}"))
            return
        first = 0
        alone: list[tuple[_Party, Tensor]] = []
        for party in parties:
            logits_NV = logits_BV[first : first + len(party.rows)]
            first += len(party.rows)
            if not speaks(party):
                continue
            if len(party.rows) == 1:
                alone.append((party, logits_NV[0]))
            else:
                assert party.job.mean != "majority", "votes are cast by generate()"
                self._hear(party, draw_together(party.job.draw, logits_NV, party.job.mean))
        if alone:
            rows = logits_BV if len(alone) == len(logits_BV) else torch.stack([x for _, x in alone])
            for (party, _), drawn in zip(alone, draw([x.job.draw for x, _ in alone], rows), strict=True):
                self._hear(party, drawn)

    def _hear(self, party: _Party, drawn: Drawn | None) -> None:
        """A party's next token, and whether it is its last."""
        job = party.job
        if drawn is None:
            self._fail(party, RequestFailed(NOT_NUMBERS))
            return
        event = heard(job, drawn)
        party.token = drawn.token
        self._said.append((job, event))
        if event.reason is not None:
            self._leave(party)

    def _leave(self, party: _Party) -> None:
        assert self._stepper is not None
        for row in party.rows:
            self._stepper.leave(row)
        party.rows = []
        if party in self._parties:
            self._parties.remove(party)

    def _leave_cancelled(self) -> None:
        for party in [party for party in self._parties if party.job.cancelled]:
            self._leave(party)
            self._said.append((party.job, Said(reason="cancelled")))
        for waiting in (self._waiting, self._grouped):
            for job in [job for job in waiting if job.cancelled]:
                waiting.remove(job)
                self._said.append((job, Said(reason="cancelled")))

    def _fail(self, party: _Party, wrong: Exception) -> None:
        self._leave(party)
        self._said.append((party.job, wrong))

    def _answer_group(self) -> None:
        """Those who are answered by generate(), as many at a time as go together; the table goes on meanwhile."""
        if not self._grouped:
            return
        self._group = group_of(self._grouped, self._max_rows)
        for job in self._group:
            self._grouped.remove(job)

        def between(said: Sequence[tuple[Job, Event]]) -> None:
            self._said += said
            self._take(wait=False)
            self._step()

        try:
            answer_group(self._frozen, self._group, between)
        finally:
            self._group = []
            self._send()

    def _send(self) -> None:
        if self._said:
            said, self._said = self._said, []
            self._post(said)

    def _end_all(self) -> None:
        """Everybody hears that it is over."""
        with self._door:
            self._is_over = True
        self._take(wait=False)
        left = [*(party.job for party in self._parties), *self._waiting, *self._grouped, *self._group]
        for job in left:
            over: Event = Said(reason="cancelled")
            if self.failure is not None:
                over = EngineUnavailable(f"the engine ended: {type(self.failure).__name__}: {self.failure}")
            self._said.append((job, over))
        self._parties, self._group = [], []
        self._waiting.clear()
        self._grouped.clear()
        self._send()
