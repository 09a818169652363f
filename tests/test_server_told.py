"""What a server tells: statuses of errors, OpenAPI against requests made from it, metrics and logs without text."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import checks

from epigraph import errors
from epigraph.errors import EpigraphError, QuotaExceeded, UserError
from epigraph.registry import Quotas
from epigraph.server.documented import refusals_of
from epigraph.server.limits import Limits
from epigraph.server.refusals import STATUSES, refusal_of
from serving_app import App, furnished, hidden, serving_app, wait_until

CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.response_schema_conformance,
    checks.content_type_conformance,
]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    folder = tmp_path_factory.mktemp("told")
    secrets = furnished(folder)
    with serving_app(folder, limits=Limits(new_tokens=8, seconds=20), metrics_by_tenant=True) as running:
        running.secrets = secrets
        yield running


# Errors


def leaves(kind: type[EpigraphError] = UserError) -> Iterator[type[EpigraphError]]:
    below = [x for x in kind.__subclasses__() if x.__module__ == errors.__name__]
    if not below:
        yield kind
    for inner in below:
        yield from leaves(inner)


def test_every_error_has_one_status_that_is_documented() -> None:
    assert set(STATUSES) == set(leaves())
    refusals_of(*set(STATUSES.values()))


@pytest.mark.parametrize("leaf", sorted(leaves(), key=lambda x: x.__name__))
def test_an_error_is_told_by_its_name_or_not_at_all(leaf: type[EpigraphError]) -> None:
    given = {"retry_after": 2.1} if leaf is QuotaExceeded else {}
    refusal = refusal_of(leaf("at /secret/place", **given), "the-id")
    told = refusal.body["error"]
    assert set(told) == {"message", "type", "code", "param"}
    if told["code"] == "InternalError":
        assert "the-id" in told["message"]
        assert refusal.status == 500
    else:
        assert told["code"] == leaf.__name__
    # What is ours to mend may tell of addresses, and the client cannot mend it.
    assert ("secret" in told["message"]) == (refusal.status < 500)


def test_a_refusal_for_a_time_says_when_to_come_back() -> None:
    assert refusal_of(QuotaExceeded("x", retry_after=2.1), "i").headers["Retry-After"] == "3"
    assert refusal_of(errors.CatalogueUnavailable("x"), "i").headers["Retry-After"] == "5"
    assert refusal_of(errors.BadKey("x"), "i").headers["WWW-Authenticate"] == "Bearer"


# OpenAPI


@pytest.fixture(scope="module")
def openapi(app: App) -> dict[str, Any]:
    found: dict[str, Any] = app.ask(None, "GET", "/openapi.json").json()
    return found


def test_openapi_names_every_route_with_its_answers_and_its_key(openapi: dict[str, Any]) -> None:
    assert len(openapi["paths"]) >= 20
    for path, methods in openapi["paths"].items():
        for told in methods.values():
            answers = told["responses"]
            assert [x for x in answers if x.startswith("2")], path
            assert "422" not in answers or "Refused" in json.dumps(answers["422"]), path
            if path.startswith("/v1/"):
                assert told["security"], path
                assert {"400", "401", "403", "500", "503"} <= set(answers), path


# What makes half of the requests meet something that is there.
KNOWN = {"tenant": "ann", "name": "cards", "wanted": "1", "alias": "stable", "reader": "bob", "model": "ann/cards"}


def asked(app: App, openapi: dict[str, Any], count: int) -> dict[str, set[int]]:
    """Send requests made from the description, good ones and bad ones; the statuses of each operation."""
    found: dict[str, set[int]] = {}
    for result in schemathesis.openapi.from_dict(openapi).get_all_operations():
        operation = result.ok()
        for mode in schemathesis.GenerationMode:
            statuses = send(app, operation, operation.as_strategy(generation_mode=mode), count)
            found.setdefault(operation.label, set()).update(statuses)
    return found


def send(app: App, operation: Any, strategy: Any, count: int) -> set[int]:
    statuses: set[int] = set()

    @seed(0)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(case=strategy, is_known=st.booleans())
    def run(case: Any, is_known: bool) -> None:
        if is_known and operation.method != "delete":
            for given_to in (case.path_parameters, case.body):
                if isinstance(given_to, dict):
                    given_to.update({name: value for name, value in KNOWN.items() if name in given_to})
        got = case.call(base_url=app.url, headers=app.key("admin"), timeout=60)
        statuses.add(got.status_code)
        assert got.status_code < 500, (case.as_curl_command(), got.content[:500])
        case.validate_response(got, checks=CHECKS)

    # Bad requests cannot be made of an operation that takes anything.
    with contextlib.suppress(Unsatisfiable):
        run()
    return statuses


@pytest.mark.slow
def test_requests_made_from_the_description_find_no_error_of_ours(app: App, openapi: dict[str, Any]) -> None:
    found = asked(app, openapi, 2)
    assert len(found) >= 30
    assert all(found.values())
    assert {x for statuses in found.values() for x in statuses} >= {200, 400, 404}


@pytest.mark.slow
def test_many_requests_made_from_the_description_find_no_error_of_ours(app: App, openapi: dict[str, Any]) -> None:
    asked(app, openapi, 40)


# Logs and metrics

SECRET_TEXT = "a word that nobody may write down"


def test_the_log_has_a_line_a_request_and_no_text(app: App) -> None:
    got = app.complete("ann", "cards", SECRET_TEXT, user=SECRET_TEXT, stop=[SECRET_TEXT])
    line = app.line(got.headers["X-Request-ID"])
    caller = app.registry.tenants.who(app.secrets["ann"])
    assert {x: line[x] for x in ("level", "method", "route", "status", "tenant", "key", "prefix")} == {
        "level": "info",
        "method": "POST",
        "route": "/v1/completions",
        "status": 200,
        "tenant": "ann",
        "key": caller.key_id,
        "prefix": "ann/cards@2",
    }
    used = got.json()["usage"]
    assert (line["prompt_tokens"], line["completion_tokens"]) == (used["prompt_tokens"], used["completion_tokens"])
    assert 0 < line["first_token_ms"] <= line["ms"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT.*\+00:00", line["time"])


def test_nothing_that_a_client_writes_gets_into_the_log(app: App) -> None:
    text = SECRET_TEXT
    app.complete("ann", text, text, unknown=text)
    app.complete("ann", "cards", text, stop=7)
    app.post("ann", "/v1/completions", model="rows", fields={text: text})
    app.ask("ann", "GET", f"/v1/models/{text}?{text}={text}")
    app.ask("ann", "GET", f"/{text}")
    app.ask("ann", "GET", "/v1/models", headers={"X-Request-ID": text, "X-Other": text, "User-Agent": text})
    app.ask("ann", "POST", "/v1/prefixes?name=x", content=text.encode(), headers={"X-Epigraph-Scores": text})
    app.ask(None, "GET", "/v1/models", headers={"Authorization": f"Bearer {text}"})
    wait_until(lambda: len([x for x in app.lines() if x.get("error")]) >= 6)
    log = app.log.getvalue()
    for word in ("nobody", *app.secrets.values()):
        assert word not in log
    for key in app.secrets.values():
        assert hidden(key) not in log
    assert all(isinstance(json.loads(x), dict) for x in log.splitlines())


def test_probes_are_not_logged_while_all_is_well(app: App) -> None:
    before = len(app.lines())
    assert [app.ask(None, "GET", x).status_code for x in ("/healthz", "/readyz")] == [200, 200]
    assert len(app.lines()) == before


def metrics(app: App) -> dict[str, float]:
    got = app.ask("admin", "GET", "/metrics")
    assert got.headers["Content-Type"].startswith("text/plain")
    lines = [x for x in got.text.splitlines() if not x.startswith("#")]
    return {x.rpartition(" ")[0]: float(x.rpartition(" ")[2]) for x in lines}


def grown(app: App, before: dict[str, float], name: str) -> float:
    return metrics(app).get(name, 0.0) - before.get(name, 0.0)


def test_metrics_count_what_happened(app: App) -> None:
    before = metrics(app)
    used = app.complete("ann", "cards").json()["usage"]
    app.complete("ann", "nothing")
    done = 'epigraph_requests_total{method="POST",route="/v1/completions",status="%s"}'
    wait_until(lambda: grown(app, before, done % 404) == 1)
    assert grown(app, before, done % 200) == 1
    assert grown(app, before, 'epigraph_tokens_total{kind="prompt"}') == used["prompt_tokens"]
    assert grown(app, before, 'epigraph_tokens_total{kind="completion"}') == used["completion_tokens"]
    assert grown(app, before, 'epigraph_tenant_tokens_total{kind="prompt",tenant="ann"}') == used["prompt_tokens"]
    assert grown(app, before, "epigraph_first_token_seconds_count") == 1
    assert grown(app, before, "epigraph_token_seconds_count") == 1
    assert grown(app, before, 'epigraph_request_seconds_count{route="/v1/completions"}') == 2
    assert (metrics(app)["epigraph_running"], metrics(app)["epigraph_waiting"]) == (0, 0)


def test_metrics_count_refusals_by_quota(app: App) -> None:
    before = metrics(app)
    app.registry.tenants.set_quotas("bob", Quotas(requests_per_minute=1))
    try:
        assert [app.complete("bob", "cards").status_code for _ in range(2)] == [200, 429]
    finally:
        app.registry.tenants.set_quotas("bob", Quotas())
    assert grown(app, before, 'epigraph_quota_refusals_total{quota="requests"}') == 1


def test_metrics_have_few_labels_whatever_is_asked(app: App) -> None:
    metrics(app)
    wait_until(lambda: len(metrics(app)) > 5)
    for number in range(30):
        app.ask("ann", "GET", f"/v1/models/x{number}")
        app.ask("ann", "GET", f"/x{number}")
        app.ask("ann", f"M{number}", "/v1/models")
        app.ask("ann", "GET", f"/v1/prefixes/ann/x{number}")
    names = metrics(app)
    assert len([x for x in names if x.startswith("epigraph_requests_total")]) < 80
    assert not [x for x in names if "x1" in x or "cards" in x or "M1" in x]


def test_without_the_flag_no_tenant_is_a_label(app: App) -> None:
    from epigraph.server.meters import Meters

    meters = Meters(app.engine)
    meters.tokens("ann", read=3)
    assert b"ann" not in meters.text()
    assert b'epigraph_tokens_total{kind="prompt"} 3.0' in meters.text()
