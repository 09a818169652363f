"""The desk of an engine: nothing is answered from what a worker does not hold, nor from a file seen too long ago.

A state machine plays the engine around it: requests come, are scheduled, wait and end; files are deleted, replaced and
put back; workers lag a step behind and answer late.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from epigraph.engine.claim import Claim
from epigraph.engine.desk import Desk, Matched, Refused, Slip, Wait, key_of

RECHECK = 3.0
CACHE = 60
NUM_WORKERS = 2


def claim(number: int, num_virtual_tokens: int = 10, tenant: str = "") -> Claim:
    digest = f"{number:064x}"
    return Claim(
        prefix=f"p{number}",
        tenant=tenant,
        num_virtual_tokens=num_virtual_tokens,
        content_hash=digest,
        geometry=digest,
    )


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def desk(clock: Clock | None = None, **other: Any) -> Desk:
    options = {"bytes_per_token": 1, "cache_bytes": CACHE, "recheck_seconds": RECHECK, "num_workers": 1} | other
    return Desk(clock=clock or Clock(), **options)


def told(found: Desk, wrong: str = "", num_workers: int = 1) -> Slip:
    """One step: what was ordered is answered by so many workers."""
    slip = found.slip()
    found.answered(dict.fromkeys(slip.orders, (num_workers, wrong)))
    return slip


def test_a_prefix_is_fetched_once_and_claimed_afterwards() -> None:
    found = desk()
    found.came("a", claim(1))
    found.came("b", claim(1, tenant="other"))
    assert found.matched("a", 0) == Wait()
    assert found.matched("b", 0) == Wait()
    assert told(found).orders == [key_of(claim(1))]
    assert found.matched("a", 0) == Matched(num_tokens=10)
    assert found.matched("b", 8) == Matched(num_tokens=2)
    assert found.matched("b", 32) == Matched(num_tokens=0), "blocks of its own cover the prefix and more"
    assert not told(found).orders


def test_a_request_of_the_bare_model_gets_nothing_and_an_unknown_one_is_refused() -> None:
    found = desk()
    found.came("bare", None)
    assert found.matched("bare", 0) == Matched(num_tokens=0)
    assert isinstance(found.matched("nobody", 0), Refused)
    found.came("bad", None, "it is wrong")
    assert found.matched("bad", 0) == Refused(reason="it is wrong")


def test_one_worker_that_finds_it_bad_is_enough_and_everybody_drops_it() -> None:
    found = desk(num_workers=2)
    found.came("a", claim(1))
    found.matched("a", 0)
    key = key_of(claim(1))
    assert found.slip().orders == [key]
    found.answered({key: (1, "")})
    assert found.matched("a", 0) == Wait(), "the other worker has not said anything"
    found.answered({key: (1, "broken")})
    assert found.matched("a", 0) == Refused(reason="broken")
    assert found.slip().drops == [key]
    assert found.num_bytes == 0


def test_a_file_is_looked_at_again_when_the_last_look_is_old_and_before_that_without_waiting() -> None:
    clock = Clock()
    found = desk(clock)
    found.came("a", claim(1))
    found.matched("a", 0)
    told(found)
    clock.now += RECHECK * 0.6
    found.came("b", claim(1))
    assert found.matched("b", 0) == Matched(num_tokens=10), "served while it is looked at again"
    assert told(found, wrong="deleted").orders == [key_of(claim(1))]
    found.came("c", claim(1))
    assert found.matched("c", 0) == Refused(reason="deleted")
    clock.now += RECHECK * 2
    found.came("d", claim(1))
    assert found.matched("d", 0) == Wait(), "it may be there again"
    told(found)
    assert found.matched("d", 0) == Matched(num_tokens=10)


def test_with_no_patience_every_request_has_its_file_looked_at_and_none_waits_for_ever() -> None:
    clock = Clock()
    found = desk(clock, recheck_seconds=0.0)
    for name in ("a", "b"):
        clock.now += 1
        found.came(name, claim(1))
        assert found.matched(name, 0) == Wait()
        assert told(found).orders == [key_of(claim(1))]
        clock.now += 1
        assert found.matched(name, 0) == Matched(num_tokens=10)


def test_the_least_lately_used_goes_first_and_what_this_step_needs_stays() -> None:
    found = desk(cache_bytes=20)
    for number in (1, 2):
        found.came(str(number), claim(number))
        found.matched(str(number), 0)
        told(found)
    assert found.taken("1") == key_of(claim(1))
    found.came("3", claim(3))
    assert found.matched("3", 0) == Wait()
    slip = told(found)
    assert (slip.drops, slip.orders) == ([key_of(claim(2))], [key_of(claim(3))])
    # All that is held is needed at this step, so that the fourth has to wait for the next.
    found.taken("1")
    found.taken("3")
    found.came("4", claim(4))
    assert found.matched("4", 0) == Wait()
    assert told(found) == Slip()
    assert found.matched("4", 0) == Wait()
    assert told(found).drops == [key_of(claim(1))]


def test_a_prefix_larger_than_the_cache_is_refused_by_name() -> None:
    found = desk()
    found.came("big", claim(1, num_virtual_tokens=CACHE + 1))
    answer = found.matched("big", 0)
    assert answer == Refused(reason="prefix p1 takes 61 bytes, the engine holds 60 in all; raise cache_bytes")


def test_thousands_of_names_that_are_not_there_leave_nothing_behind() -> None:
    found = desk()
    for number in range(5_000):
        found.came("x", claim(number))
        found.matched("x", 0)
        told(found, wrong="no such prefix")
        assert isinstance(found.matched("x", 0), Refused)
    assert len(found._books) <= 4_096
    assert found.num_bytes == 0


class Engine(RuleBasedStateMachine):
    """An engine with two workers that lag behind, around a desk."""

    requests = Bundle("requests")

    @initialize()
    def begin(self) -> None:
        self.clock = Clock()
        self.desk = desk(self.clock, num_workers=NUM_WORKERS)
        self.files = dict.fromkeys(range(8), True)
        self.gone_since = dict.fromkeys(range(8), float("-inf"))
        self.waiting: dict[str, tuple[int, float]] = {}
        self.held: list[set[Claim]] = [set() for _ in range(NUM_WORKERS)]
        # What was told and not yet done, by worker: slips with the loads of the same step.
        self.todo: list[deque[tuple[Slip, list[Claim]]]] = [deque() for _ in range(NUM_WORKERS)]
        self.looking: list[dict[Claim, str]] = [{} for _ in range(NUM_WORKERS)]
        self.loads: list[Claim] = []
        self.count = 0

    @rule(number=st.integers(0, 7))
    def come(self, number: int) -> None:
        self.count += 1
        name = f"r{self.count}"
        self.desk.came(name, claim(number, num_virtual_tokens=8 + number))
        self.waiting[name] = (number, self.clock.now)

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.5, 7.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(number=st.integers(0, 7))
    def delete(self, number: int) -> None:
        self.files[number] = False
        self.gone_since[number] = self.clock.now

    @rule(number=st.integers(0, 7))
    def put_back(self, number: int) -> None:
        self.files[number] = True
        self.gone_since[number] = float("-inf")

    @rule(most=st.integers(1, 6), local=st.sampled_from([0, 4, 32]))
    def schedule(self, most: int, local: int) -> None:
        for name in list(self.waiting)[:most]:
            number, came = self.waiting[name]
            answer = self.desk.matched(name, local)
            if isinstance(answer, Wait):
                continue
            del self.waiting[name]
            if isinstance(answer, Refused):
                assert not (self.files[number] and self.gone_since[number] == float("-inf")) or self.was_gone(number)
            else:
                assert answer == Matched(num_tokens=max(0, 8 + number - local))
                long_gone = not self.files[number] and self.gone_since[number] < came - RECHECK
                assert not long_gone, "answered from a file that was deleted too long before the request came"
                if answer.num_tokens:
                    self.loads.append(self.desk.taken(name))
            self.desk.went(name)
        self.step()

    def was_gone(self, number: int) -> bool:
        return number in self.ever_gone

    @property
    def ever_gone(self) -> set[int]:
        self._ever = getattr(self, "_ever", set())
        return self._ever

    def step(self) -> None:
        slip, loads = self.desk.slip(), self.loads
        self.loads = []
        for todo in self.todo:
            todo.append((slip, loads))

    @rule(worker=st.integers(0, NUM_WORKERS - 1))
    def work(self, worker: int) -> None:
        if not self.todo[worker]:
            return
        slip, loads = self.todo[worker].popleft()
        for key in slip.drops:
            self.held[worker].discard(key)
        for key in slip.orders:
            number = int(key.prefix[1:])
            assert key not in self.looking[worker], "asked twice at once"
            if not self.files[number]:
                self.ever_gone.add(number)
            self.looking[worker][key] = "" if self.files[number] else "deleted"
        assert set(loads) <= self.held[worker], "a worker is to write what it does not hold"

    @rule(worker=st.integers(0, NUM_WORKERS - 1))
    def answer(self, worker: int) -> None:
        found = self.looking[worker]
        self.looking[worker] = {}
        self.held[worker] |= {key for key, wrong in found.items() if not wrong}
        self.desk.answered({key: (1, wrong) for key, wrong in found.items()})

    @invariant()
    def bounded(self) -> None:
        if not hasattr(self, "desk"):
            return
        assert self.desk.num_bytes <= CACHE
        for held, looking, todo in zip(self.held, self.looking, self.todo, strict=True):
            if not todo:
                assert sum(key.num_virtual_tokens for key in held | set(looking)) <= CACHE

    def teardown(self) -> None:
        if not hasattr(self, "desk"):
            return
        for _ in range(200):
            if not self.waiting:
                return
            self.schedule(6, 0)
            for worker in range(NUM_WORKERS):
                while self.todo[worker]:
                    self.work(worker)
                self.answer(worker)
        pytest.fail(f"{len(self.waiting)} requests wait for ever")


Engine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestEngine = Engine.TestCase
