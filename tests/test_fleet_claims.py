"""Claims of several workers in one place: one has an id, whoever is killed, stopped, slow or cut off meanwhile."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

import fleet_worker
from epigraph.errors import CannotWrite
from epigraph.train.fleet.claims import Claims, How
from epigraph.train.fleet.lives import this_machine
from epigraph.train.fleet.place import Place

LEASE = 20.0
# Of real processes, in seconds of the wall.
SHORT = 1.6


class Time:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Far(Place):
    """A place in memory, and the way to it: cut, slow, or one on which the answer is lost."""

    def __init__(self, address: str, clock: Time) -> None:
        super().__init__(address)
        self.clock = clock
        self.is_cut = self.loses_an_answer = False
        self.delays = [0.0, 0.0]
        self.asked: Counter[str] = Counter()
        # What happens on the way there, and on the way back.
        self.before: dict[str, Callable[[], object]] = {}
        self.after: dict[str, Callable[[], object]] = {}

    def _go(self, method: str, name: str, *given: Any) -> Any:
        if self.is_cut:
            raise CannotWrite(f"{name}: no way there")
        self.asked[f"{method} {name.partition('/')[0]}"] += 1
        (there, back), self.delays = self.delays, [0.0, 0.0]
        self.clock.now += there
        self.before.pop(f"{method} {name}", bool)()
        answer = getattr(super(), method)(name, *given)
        self.after.pop(f"{method} {name}", bool)()
        self.clock.now += back
        if self.loses_an_answer and method in ("write", "create"):
            self.loses_an_answer = False
            raise CannotWrite(f"{name}: no answer")
        return answer

    def read(self, name: str) -> bytes | None:
        found: bytes | None = self._go("read", name)
        return found

    def write(self, name: str, data: bytes) -> None:
        self._go("write", name, data)

    def create(self, name: str, data: bytes) -> bool:
        return bool(self._go("create", name, data))

    def names(self, folder: str) -> list[str]:
        return list(self._go("names", folder))

    def delete(self, name: str) -> None:
        self._go("delete", name)


class Sky:
    """Workers without threads or locks, far from one place and from each other."""

    def __init__(self) -> None:
        self.clock, self.address = Time(), f"memory://{uuid.uuid4().hex}"

    def far(self) -> Far:
        return Far(self.address, self.clock)

    def worker(self, far: Far | None = None, ahead: float = 0.0) -> Claims:
        claims = Claims(far or self.far(), LEASE, clock=lambda: self.clock.now + ahead, machine="")
        claims.beat()
        return claims

    def wait(self, seconds: float, *beating: Claims) -> None:
        for _ in range(8):
            self.clock.now += seconds / 8
            for claims in beating:
                assert claims.beat()


@pytest.fixture
def sky() -> Sky:
    return Sky()


@pytest.fixture(params=["folder", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(tmp_path if request.param == "folder" else f"memory://{uuid.uuid4().hex}")


# One takes what another has not


def test_an_id_is_taken_given_back_and_ended_once(place: Place) -> None:
    with Claims(place) as one, Claims(place) as two:
        assert one.open_ids(["b", "a"]) == ["b", "a"]
        assert one.take("a")
        assert not two.take("a")
        assert not one.take("a")
        assert (one.holds("a"), two.holds("a")) == (True, False)
        assert two.open_ids(["b", "a"]) == one.open_ids(["b", "a"]) == ["b"]
        one.release("a")
        one.release("a")
        assert not one.holds("a")
        assert two.take("a")
        assert not one.finish("a", "done", {})
        assert two.finish("a", "done", {"loss": 1.5})
        assert not two.finish("a", "failed", {})
        assert not two.holds("a")
        assert one.ended() == {"a": "done"}
        assert not one.take("a")
        assert one.open_ids(["b", "a"]) == ["b"]
        record = json.loads(place.read("done/a.json") or b"")
        assert record == {"loss": 1.5, "worker": two.worker, "claim": 3}


def test_what_failed_can_be_tried_again_while_its_worker_lives(place: Place) -> None:
    with Claims(place) as one, Claims(place) as two:
        assert one.take("a")
        assert one.finish("a", "failed", {"why": "nan"})
        assert two.ended() == {"a": "failed"}
        assert not two.take("a")
        two.retry("a")
        assert two.open_ids(["a"]) == ["a"]
        assert two.take("a")
        assert two.finish("a", "done", {})


def test_who_ended_in_order_is_not_waited_for(place: Place) -> None:
    with Claims(place) as one:
        assert one.take("a")
    with Claims(place) as two:
        assert two.take("a")
        assert not one.take("b")
        assert not one.holds("a")


def test_an_id_that_ended_between_look_and_take_is_left_alone(sky: Sky) -> None:
    one, two = sky.worker(), sky.worker()
    assert two.open_ids(["a"]) == ["a"]
    assert one.take("a")
    assert one.finish("a", "failed", {})
    assert not two.take("a")
    assert not two.take("a")
    one.retry("a")
    assert one.open_ids(["a"]) == two.open_ids(["a"]) == ["a"]
    assert one.take("a")
    assert not two.take("a")


def test_ids_with_dots_and_numbers_are_themselves(place: Place) -> None:
    with Claims(place) as one, Claims(place) as two:
        assert all(one.take(x) for x in ("a", "a.000001", "a.json"))
        place.write("claims/README.txt", b"what a person put there")
        assert two.open_ids(["a", "a.000001", "a.000002", "a.json"]) == ["a.000002"]
        assert one.finish("a.json", "done", {})
        assert two.ended() == {"a.json": "done"}


def test_a_poll_reads_no_file_a_user(sky: Sky) -> None:
    ids = [f"u{x}" for x in range(500)]
    one, far = sky.worker(), sky.far()
    for name in ids[:100]:
        assert one.take(name)
    for name in ids[:80]:
        assert one.finish(name, "done", {})
    two = sky.worker(far)
    assert two.open_ids(ids) == ids[100:]
    assert far.asked["read claims"] == 20
    far.asked.clear()
    assert two.open_ids(ids) == ids[100:]
    assert dict(far.asked) == {"names claims": 1, "names workers": 1, "read workers": 2} | {
        f"names {x}": 1 for x in ("done", "failed")
    }
    far.asked.clear()
    assert two.take("u400")
    assert dict(far.asked) == {"create claims": 1, "read done": 1, "read failed": 1}
    far.asked.clear()
    assert two.holds("u400")
    assert dict(far.asked) == {"read claims": 1}


# Leases, by the clock of the test


def test_the_dead_are_given_a_whole_lease_from_when_they_were_seen(sky: Sky) -> None:
    one = sky.worker(ahead=1e6)
    assert one.take("a")
    sky.wait(LEASE * 10)
    two = sky.worker()
    assert not two.take("a")
    sky.wait(LEASE * 0.9, two)
    assert not two.take("a")
    sky.wait(LEASE * 0.2, two)
    assert two.open_ids(["a"]) == ["a"]
    assert two.take("a")
    assert not one.holds("a")


def test_the_living_are_not_taken_for_dead(sky: Sky) -> None:
    one, two = sky.worker(), sky.worker()
    assert one.take("a")
    for _ in range(5):
        sky.wait(LEASE * 0.9, one, two)
        assert two.open_ids(["a"]) == []
        assert one.holds("a")


def test_one_cut_off_keeps_its_ids_for_a_lease_and_comes_back_under_another_name(sky: Sky) -> None:
    far = sky.far()
    one, two = sky.worker(far), sky.worker()
    name = one.worker
    assert one.take("a")
    two.open_ids([])
    far.is_cut = True
    sky.wait(LEASE * 0.9, two)
    assert not one.beat()
    assert one.holds("a")
    sky.wait(LEASE * 0.2, two)
    assert not one.holds("a")
    assert two.take("a")
    far.is_cut = False
    assert one.beat()
    assert one.worker != name
    assert not one.holds("a")
    assert not one.finish("a", "done", {})
    assert not one.take("a")
    assert one.take("b")
    assert one.holds("b")
    assert two.open_ids(["a", "b"]) == []


def test_one_whose_clock_stood_still_while_it_slept_finds_out_all_the_same(sky: Sky) -> None:
    asleep, two = Claims(sky.far(), LEASE, clock=Time(), machine=""), sky.worker()
    assert asleep.take("a")
    assert two.open_ids(["a"]) == []
    sky.wait(LEASE, two)
    assert asleep.holds("a")
    assert two.take("a")
    assert not asleep.holds("a")
    assert not asleep.finish("a", "failed", {})
    assert two.finish("a", "done", {})


def test_nobody_watched_and_yet_a_life_that_ran_out_is_over(sky: Sky) -> None:
    one = sky.worker()
    assert one.take("a")
    sky.wait(LEASE)
    assert not one.holds("a")
    assert one.open_ids(["a"]) == ["a"]
    assert one.take("a")
    assert one.holds("a")


def test_a_claim_that_took_longer_than_a_lease_is_none(sky: Sky) -> None:
    far = sky.far()
    one = sky.worker(far)
    far.after["create claims/a.000001"] = lambda: sky.wait(LEASE)
    assert not one.take("a")
    assert not one.holds("a")
    assert one.take("a")


def test_what_another_said_of_the_end_stands(sky: Sky) -> None:
    one = sky.worker()
    assert one.take("a")
    assert sky.far().create("failed/a.json", b"{}")
    assert not one.finish("a", "done", {})
    assert one.ended() == {"a": "failed"}


@pytest.mark.parametrize("delays", [[LEASE * 0.8, 0.0], [0.0, LEASE * 0.8]])
def test_a_beat_that_comes_too_late_does_not_count(sky: Sky, delays: list[float]) -> None:
    far = sky.far()
    one, two = sky.worker(far), sky.worker()
    assert one.take("a")
    sky.wait(LEASE * 0.5, two)
    far.delays = delays
    assert not one.beat()
    assert not one.holds("a")


@pytest.mark.parametrize("on_the_way", ["there", "back"])
def test_a_number_is_as_old_as_its_reader_knows_for_sure(sky: Sky, on_the_way: str) -> None:
    far = sky.far()
    one, two = sky.worker(), sky.worker(far)
    assert one.take("a")
    read = f"read workers/{one.worker}.json"
    if on_the_way == "there":
        far.before[read] = lambda: sky.wait(LEASE * 0.8, one, two)
    else:
        assert two.open_ids(["a"]) == []
        far.after[read] = lambda: sky.wait(LEASE * 1.1, one, two)
    assert two.open_ids(["a"]) == []
    assert not far.before
    assert not far.after
    sky.wait(LEASE * 0.9, two)
    assert one.holds("a")
    assert not two.take("a")


def test_a_beat_lengthens_a_life_from_when_it_began(sky: Sky) -> None:
    far = sky.far()
    one = sky.worker(far)
    assert one.take("a")
    far.delays = [0.0, LEASE * 0.8]
    assert one.beat()
    assert one.holds("a")
    sky.wait(LEASE * 0.3)
    assert not one.holds("a")


@pytest.mark.parametrize("what", ["take", "finish", "release"])
def test_an_answer_that_is_lost_loses_no_id(sky: Sky, what: str) -> None:
    far = sky.far()
    one, two = sky.worker(far), sky.worker()
    one.open_ids([])
    if what != "take":
        assert one.take("a")
    act: Callable[[], Any] = {
        "take": lambda: one.take("a"),
        "finish": lambda: one.finish("a", "done", {}),
        "release": lambda: one.release("a"),
    }[what]
    far.loses_an_answer = True
    with pytest.raises(CannotWrite):
        act()
    if what == "release":
        assert two.take("a")
        return
    assert not two.take("a")
    if what == "take":
        assert one.open_ids(["a"]) == ["a"]
    assert act() is True
    assert two.open_ids(["a"]) == []


def test_a_start_without_a_way_there_is_said(sky: Sky) -> None:
    far = sky.far()
    far.is_cut = True
    with pytest.raises(CannotWrite, match="no way there"), Claims(far, LEASE):
        pass


def test_the_thread_beats(tmp_path: Path) -> None:
    with Claims(Place(tmp_path), SHORT / 4, machine="") as one, Claims(Place(tmp_path), SHORT / 4, machine="") as two:
        assert one.take("a")
        until = time.monotonic() + SHORT
        while time.monotonic() < until:
            assert two.open_ids(["a"]) == []
            time.sleep(SHORT / 20)
        assert one.holds("a")
        assert json.loads(Place(tmp_path).read(f"workers/{one.worker}.json") or b"")["beat"] > 8


# Processes


class Process:
    """A worker of its own: methods of :class:`Claims` by name."""

    def __init__(self, address: Path, lease_seconds: float, machine: str) -> None:
        command = [sys.executable, fleet_worker.__file__, "serve", str(address), str(lease_seconds), machine]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.worker = self._answer()

    def __call__(self, *words: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)
        if number == signal.SIGKILL:
            self._process.wait()

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
        self._process.communicate(timeout=30)

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def start(lease_seconds: float = 60.0, machine: str = "") -> Process:
        started.append(Process(tmp_path, lease_seconds, machine))
        return started[-1]

    yield start
    for process in started:
        process.close()


def test_of_many_processes_one_gets_each_id(tmp_path: Path) -> None:
    command = [sys.executable, fleet_worker.__file__, "race", str(tmp_path), "8", "200"]
    told = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=120).stdout
    took = [json.loads(x) for x in told.splitlines()]
    assert sorted(x for own in took for x in own) == sorted(f"user-{x}" for x in range(200))
    # They did race.
    assert len(took) == 8
    assert sum(map(bool, took)) > 1
    with Claims(Place(tmp_path)) as after:
        assert len(after.open_ids(f"user-{x}" for x in range(200))) == 200


def test_a_killed_process_of_this_machine_is_not_waited_for(tmp_path: Path, start: Callable[..., Process]) -> None:
    process = start()
    assert process("take", "a")
    assert process("take", "b")
    assert process("finish", "b", "done", {})
    with Claims(Place(tmp_path)) as claims:
        assert claims.open_ids(["a", "b"]) == []
        process.send(signal.SIGKILL)
        assert claims.open_ids(["a", "b"]) == ["a"]
        assert claims.take("a")


def test_a_killed_process_of_another_machine_has_a_lease(tmp_path: Path, start: Callable[..., Process]) -> None:
    assert this_machine()
    process = start(SHORT, machine="another")
    assert process("take", "a")
    with Claims(Place(tmp_path), SHORT) as claims:
        process.send(signal.SIGKILL)
        begun = time.monotonic()
        while not claims.take("a"):
            time.sleep(0.02)
        assert SHORT * 0.7 < time.monotonic() - begun < SHORT * 4


def test_locks_that_keep_nobody_out_are_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a file system that knows no locks and does not say so.
    monkeypatch.setattr("filelock._unix.lock_fd_nonblocking", lambda descriptor: True)
    with Claims(Place(tmp_path)) as one, Claims(Place(tmp_path)) as two:
        assert one.take("a")
        assert two.open_ids(["a"]) == []
        assert not two.take("a")


def test_one_that_was_stopped_too_long_finds_out(tmp_path: Path, start: Callable[..., Process]) -> None:
    late = start(SHORT)
    assert late("take", "a")
    assert late("take", "b")
    assert late("holds", "a")
    late.send(signal.SIGSTOP)
    with Claims(Place(tmp_path), SHORT) as claims:
        assert claims.open_ids(["a", "b"]) == []
        begun = time.monotonic()
        while not claims.take("a"):
            time.sleep(0.02)
        assert time.monotonic() - begun > SHORT * 0.7
        assert claims.finish("a", "done", {"by": "the other"})
        late.send(signal.SIGCONT)
        assert late("holds", "a") is False
        assert late("finish", "a", "done", {"by": "the late one"}) is False
        # Also of what nobody took meanwhile.
        assert late("holds", "b") is False
        assert json.loads(Place(tmp_path).read("done/a.json") or b"")["by"] == "the other"
        assert late("open_ids", ["a", "b", "c"]) == ["b", "c"]
        assert late("take", "c")


# Everything at once

IDS = ["a", "b"]
SLOWNESS = st.sampled_from([0.0, 0.0, 4.0, 9.0, 19.5, 21.0])
SECONDS = st.sampled_from([0.5, 4.0, 9.0, 19.5, 20.0, 21.0, 45.0])


class Fleet(RuleBasedStateMachine):
    """Workers whose clocks agree on nothing but the length of a second, on ways of every kind."""

    workers = Bundle("workers")

    def __init__(self) -> None:
        super().__init__()
        self.sky = Sky()
        self.alive: list[tuple[Claims, Far]] = []
        self.done: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()

    @rule(target=workers, ahead=st.sampled_from([0.0, -1e3, 1e6]))
    def start_another(self, ahead: float) -> tuple[Claims, Far]:
        assume(len(self.alive) < 4)
        return self.start(ahead)

    def start(self, ahead: float) -> tuple[Claims, Far]:
        far = self.sky.far()
        self.alive.append((self.sky.worker(far, ahead), far))
        return self.alive[-1]

    @initialize(target=workers)
    def start_two(self) -> Any:
        return multiple(self.start(0.0), self.start(1e6))

    @rule(seconds=SECONDS)
    def wait(self, seconds: float) -> None:
        self.sky.clock.now += seconds

    @rule(seconds=SECONDS)
    def wait_while_all_beat(self, seconds: float) -> None:
        for _ in range(4):
            self.sky.clock.now += seconds / 4
            for claims, _ in self.alive:
                claims.beat()

    @rule(worker=workers, seconds=SECONDS)
    def wait_while_the_others_go_on(self, worker: tuple[Claims, Far], seconds: float) -> None:
        for _ in range(4):
            self.sky.clock.now += seconds / 4
            for claims, far in self.alive:
                if claims is not worker[0] and not far.is_cut:
                    claims.beat()
                    self._answer((claims, far), lambda claims: claims.open_ids(IDS) and claims.take(IDS[0]))

    @rule(worker=workers, there=SLOWNESS, back=SLOWNESS)
    def beat(self, worker: tuple[Claims, Far], there: float, back: float) -> None:
        claims, far = worker
        file = f"write workers/{claims.worker}.json"
        far.before[file] = lambda: self.wait_while_the_others_go_on(worker, there)
        far.after[file] = lambda: self.wait_while_the_others_go_on(worker, back)
        claims.beat()
        far.before.clear()
        far.after.clear()

    @rule(worker=workers)
    def look(self, worker: tuple[Claims, Far]) -> None:
        claims, far = worker
        if not far.is_cut:
            found = claims.open_ids(IDS)
            assert not claims.ended().keys() & set(found)
            assert not any(claims.holds(name) for name in found)

    @rule(worker=workers, name=st.sampled_from(IDS))
    def take(self, worker: tuple[Claims, Far], name: str) -> None:
        self._answer(worker, lambda claims: claims.take(name))

    @rule(worker=workers, name=st.sampled_from(IDS))
    def release(self, worker: tuple[Claims, Far], name: str) -> None:
        self._answer(worker, lambda claims: claims.release(name))
        assert not worker[0].holds(name)

    @rule(worker=workers, name=st.sampled_from(IDS), how=st.sampled_from(["done", "done", "failed"]))
    def finish(self, worker: tuple[Claims, Far], name: str, how: How) -> None:
        held = worker[0].holds(name)
        if self._answer(worker, lambda claims: claims.finish(name, how, {})):
            assert held
            assert not self.done[name]
            assert not self.failed[name]
            (self.done if how == "done" else self.failed)[name] += 1

    @rule(name=st.sampled_from(IDS))
    def retry(self, name: str) -> None:
        Claims(self.sky.far(), LEASE, clock=self.sky.clock, machine="").retry(name)
        self.failed[name] = 0

    @rule(worker=workers)
    def cut_or_mend(self, worker: tuple[Claims, Far]) -> None:
        worker[1].is_cut = not worker[1].is_cut

    @rule(worker=workers, there=SECONDS, back=SECONDS)
    def be_slow_once(self, worker: tuple[Claims, Far], there: float, back: float) -> None:
        worker[1].delays = [there, back]

    @rule(worker=workers)
    def lose_an_answer(self, worker: tuple[Claims, Far]) -> None:
        worker[1].loses_an_answer = True

    @rule(worker=consumes(workers), in_order=st.booleans())
    def leave(self, worker: tuple[Claims, Far], in_order: bool) -> None:
        if in_order:
            worker[0].end()
            assert not any(worker[0].holds(name) for name in IDS)
        self.alive.remove(worker)

    @invariant()
    def nobody_believes_to_hold_what_another_does(self) -> None:
        """Also among those who cannot ask: the lease alone keeps them apart."""
        for name in IDS:
            assert sum(self._believes(claims, far, name) for claims, far in self.alive) <= 1

    def teardown(self) -> None:
        """Whatever happened: two leases later, every id that has not ended can be taken."""
        last = self.sky.worker()
        for _ in range(2):
            last.open_ids(IDS)
            self.sky.wait(LEASE * 1.1, last)
        left = [name for name in IDS if name not in last.ended()]
        assert last.open_ids(IDS) == left
        assert all(last.take(name) and last.holds(name) for name in left)

    def _believes(self, claims: Claims, far: Far, name: str) -> bool:
        before, far.is_cut = far.is_cut, True
        try:
            return claims.holds(name)
        finally:
            far.is_cut = before

    def _answer(self, worker: tuple[Claims, Far], act: Callable[[Claims], object]) -> object:
        try:
            return act(worker[0])
        except CannotWrite:
            return None


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=120, stateful_step_count=30, deadline=None)
