"""Quotas: the arithmetic against a slow twin, and over HTTP with Retry-After taken at its word."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epigraph.errors import Forbidden, QuotaExceeded, RequestTooLarge
from epigraph.registry import Caller, Quotas
from epigraph.server.limits import Limits
from epigraph.server.quotas import Admission, Turnstile
from serving_app import App, events_of, furnished, serving_app, wait_until

LIMITS = Limits(seconds=20, waiting=20)


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def caller(tenant: str = "ann", **quotas: int) -> Caller:
    return Caller(tenant=tenant, key_id="k", scopes=frozenset(("use",)), quotas=Quotas(**quotas))


def admit(turnstile: Turnstile, who: Caller, num_answers: int = 1, seconds: float = 30) -> Admission:
    return turnstile.admit(who, num_answers=num_answers, seconds=seconds)


def test_requests_refill_evenly() -> None:
    clock = Clock()
    turnstile, who = Turnstile(clock=clock), caller(requests_per_minute=6)
    for _ in range(6):
        admit(turnstile, who).leave()
    with pytest.raises(QuotaExceeded, match="has had its 6 requests a minute; ask again in 10 s") as refused:
        admit(turnstile, who)
    assert refused.value.retry_after == pytest.approx(10)
    clock.now += 10
    admit(turnstile, who)
    with pytest.raises(QuotaExceeded):
        admit(turnstile, who)
    # Never more than a minute's worth, however long nobody asked.
    clock.now += 3_600
    for _ in range(6):
        admit(turnstile, who)
    with pytest.raises(QuotaExceeded):
        admit(turnstile, who)


def test_tokens_may_be_owed_and_are_paid_back_first() -> None:
    clock = Clock()
    turnstile, who = Turnstile(clock=clock), caller(tokens_per_minute=60)
    admission = admit(turnstile, who)
    admission.spend(100)
    with pytest.raises(QuotaExceeded, match="60 tokens a minute") as refused:
        admit(turnstile, who)
    assert refused.value.retry_after == pytest.approx(41)
    clock.now += 41
    admit(turnstile, who)


def test_answers_at_once_are_given_back_when_they_end_or_must_have_ended() -> None:
    clock = Clock()
    turnstile, who = Turnstile(clock=clock), caller(concurrent=3)
    first = admit(turnstile, who, 2, seconds=30)
    clock.now += 5
    second = admit(turnstile, who, 1, seconds=30)
    with pytest.raises(QuotaExceeded, match="3 answers at once") as refused:
        admit(turnstile, who, 2)
    # After 25 more seconds both of the first have ended, one way or another.
    assert refused.value.retry_after == pytest.approx(25)
    second.leave()
    second.leave()
    admit(turnstile, who, 1)
    first.leave()
    admit(turnstile, who, 2)
    with pytest.raises(RequestTooLarge, match="asks for 4 answers at once, tenant ann may have 3"):
        admit(turnstile, who, 4)


@pytest.mark.parametrize("name", ["requests_per_minute", "tokens_per_minute", "concurrent"])
def test_a_quota_of_nothing_is_no_matter_of_waiting(name: str) -> None:
    with pytest.raises(Forbidden, match="a quota of its is 0"):
        admit(Turnstile(), caller(**{name: 0}))


def test_tenants_do_not_spend_each_others() -> None:
    turnstile = Turnstile(clock=Clock())
    admit(turnstile, caller("ann", requests_per_minute=1))
    admit(turnstile, caller("bob", requests_per_minute=1))
    with pytest.raises(QuotaExceeded):
        admit(turnstile, caller("ann", requests_per_minute=1))


def test_another_quota_counts_from_the_next_request_on() -> None:
    clock = Clock()
    turnstile = Turnstile(clock=clock)
    for _ in range(10):
        admit(turnstile, caller(requests_per_minute=10))
    with pytest.raises(QuotaExceeded):
        admit(turnstile, caller(requests_per_minute=10))
    admit(turnstile, caller())
    admit(turnstile, caller(requests_per_minute=5))
    # Less than what was left is what is left.
    clock.now += 600
    for _ in range(5):
        admit(turnstile, caller(requests_per_minute=5))
    with pytest.raises(QuotaExceeded):
        admit(turnstile, caller(requests_per_minute=5))


def test_refusals_are_told_by_quota() -> None:
    told: list[str] = []
    turnstile = Turnstile(clock=Clock(), refused=told.append)
    who = caller(requests_per_minute=1, concurrent=5)
    admit(turnstile, who)
    with pytest.raises(QuotaExceeded):
        admit(turnstile, who)
    assert told == ["requests"]


def test_the_numbers_of_tenants_that_went_are_forgotten() -> None:
    clock = Clock()
    turnstile = Turnstile(clock=clock)
    busy = admit(turnstile, caller("busy", concurrent=1))
    for number in range(30_000):
        clock.now += 0.1
        admit(turnstile, caller(f"t{number}", requests_per_minute=5)).leave()
    assert len(turnstile._tenants) < 20_000
    with pytest.raises(QuotaExceeded):
        admit(turnstile, caller("busy", concurrent=1))
    busy.leave()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.floats(0.01, 90)),
        st.tuples(st.just("ask"), st.integers(1, 3)),
        st.tuples(st.just("spend"), st.integers(1, 200)),
        st.tuples(st.just("leave"), st.integers(0, 5)),
    ),
    max_size=40,
)


@given(
    steps=STEPS,
    requests=st.none() | st.integers(1, 100),
    tokens=st.none() | st.integers(1, 500),
    concurrent=st.none() | st.integers(1, 4),
)
def test_after_the_seconds_that_are_told_the_same_request_is_let_in(
    steps: list[tuple[str, float]], requests: int | None, tokens: int | None, concurrent: int | None
) -> None:
    """And none sooner than a second before, as far as the buckets go; whole seconds, as the header has them."""
    clock = Clock()
    turnstile = Turnstile(clock=clock)
    quotas = Quotas(requests_per_minute=requests, tokens_per_minute=tokens, concurrent=concurrent)
    who = Caller(tenant="ann", key_id="k", scopes=frozenset(), quotas=quotas)
    running: list[Admission] = []
    for step, value in steps:
        if step == "wait":
            clock.now += value
        elif step == "spend" and running:
            running[-1].spend(int(value))
        elif step == "leave" and running:
            running.pop(int(value) % len(running)).leave()
        elif step == "ask" and value <= (concurrent or 3):
            try:
                running.append(admit(turnstile, who, int(value)))
            except QuotaExceeded as refused:
                clock.now += max(1, math.ceil(refused.retry_after))
                # Whatever ran then has had its time.
                for old in [x for x in running if x._until <= clock.now]:
                    running.remove(old)
                    old.leave()
                running.append(admit(turnstile, who, int(value)))


# Over HTTP


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    folder = tmp_path_factory.mktemp("quotas")
    secrets = furnished(folder)
    with serving_app(folder, limits=LIMITS) as running:
        running.secrets = secrets
        yield running


@pytest.fixture
def tenant(app: App, request: pytest.FixtureRequest) -> str:
    """One of the test's own, with a prefix of ann's to use."""
    name = f"t{abs(hash(request.node.name)) % 10**9}"
    app.registry.tenants.add(name)
    app.secrets[name] = app.registry.tenants.make_key(name, scopes=frozenset(("use",)))[1]
    for prefix in ("cards", "long"):
        app.registry.share("ann", prefix, name)
    return name


def test_retry_after_is_true_and_the_headers_count(app: App, tenant: str) -> None:
    app.registry.tenants.set_quotas(tenant, Quotas(requests_per_minute=30))
    statuses = []
    while not statuses or statuses[-1] == 200:
        got = app.complete(tenant, "ann/cards", max_tokens=1)
        statuses.append(got.status_code)
        assert got.headers["x-ratelimit-limit-requests"] == "30"
    assert statuses[-1] == 429
    assert 30 <= len(statuses) - 1 <= 33
    error = got.json()["error"]
    assert (error["code"], error["type"]) == ("QuotaExceeded", "rate_limit_error")
    assert got.headers["x-ratelimit-remaining-requests"] == "0"
    assert got.headers["x-ratelimit-reset-requests"].endswith("s")
    seconds = int(got.headers["Retry-After"])
    assert seconds <= 2
    time.sleep(seconds)
    assert app.complete(tenant, "ann/cards", max_tokens=1).status_code == 200


def test_tokens_count_virtual_ones_text_and_answer(app: App, tenant: str) -> None:
    app.registry.tenants.set_quotas(tenant, Quotas(tokens_per_minute=600))
    got = app.complete(tenant, "ann/cards")
    used = got.json()["usage"]["total_tokens"]
    assert got.headers["x-ratelimit-remaining-tokens"] == "600"
    left = int(app.complete(tenant, "ann/cards", max_tokens=1).headers["x-ratelimit-remaining-tokens"])
    assert 600 - used <= left <= 600 - used + 15


def test_a_long_answer_is_paid_for_while_it_comes(app: App, tenant: str) -> None:
    app.registry.tenants.set_quotas(tenant, Quotas(tokens_per_minute=60))
    assert app.complete(tenant, "ann/long", max_tokens=80).status_code == 200
    got = app.complete(tenant, "ann/cards", max_tokens=1)
    assert got.status_code == 429
    assert "60 tokens a minute" in got.json()["error"]["message"]
    assert 20 <= int(got.headers["Retry-After"]) <= 40


def test_answers_at_once_are_bounded_and_free_again_when_the_client_goes(app: App, tenant: str) -> None:
    app.registry.tenants.set_quotas(tenant, Quotas(concurrent=2))
    body = {"model": "ann/long", "prompt": "x", "stream": True, "n": 2}
    with app.http.stream("POST", f"{app.url}/v1/completions", json=body, headers=app.key(tenant)) as stream:
        assert stream.status_code == 200
        pieces = stream.iter_raw()
        next(pieces)
        got = app.complete(tenant, "ann/cards")
        assert (got.status_code, "2 answers at once" in got.text) == (429, True)
        # By then the stream has had its time.
        assert 1 <= int(got.headers["Retry-After"]) <= 26
        assert app.complete("ann", "cards").status_code == 200
    wait_until(lambda: app.complete(tenant, "ann/cards").status_code == 200)


def test_a_quota_is_checked_before_the_name_so_that_guessing_costs(app: App, tenant: str) -> None:
    app.registry.tenants.set_quotas(tenant, Quotas(requests_per_minute=5))
    statuses = [app.complete(tenant, f"bob/guess{x}").status_code for x in range(7)]
    assert statuses == [404] * 5 + [429] * 2


def test_a_full_queue_says_so(app: App) -> None:
    body = {"model": "long", "prompt": "x", "stream": True, "n": 16}
    with ThreadPoolExecutor(3) as threads, httpx.Client(timeout=60) as http:
        stop = threading.Event()

        def hold() -> int:
            with http.stream("POST", f"{app.url}/v1/completions", json=body, headers=app.key("ann")) as stream:
                for _ in stream.iter_raw():
                    if stop.is_set():
                        break
            return stream.status_code

        held = [threads.submit(hold) for _ in range(3)]
        wait_until(lambda: (app.engine.counts().running, app.engine.counts().waiting) == (32, 16))
        got = app.complete("ann", "cards", n=16)
        stop.set()
        assert (got.status_code, got.json()["error"]["code"]) == (503, "EngineUnavailable")
        assert "16 requests wait already, this server lets 20 wait" in got.text
        assert int(got.headers["Retry-After"]) > 0
        assert [x.result() for x in held] == [200] * 3
    wait_until(app.idle)
    assert events_of(app.complete("ann", "cards", stream=True))[-1] == "[DONE]"
