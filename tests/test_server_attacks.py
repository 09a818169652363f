"""What a tenant, a stranger or a page in a browser may try against a server, one row an attack; none may succeed."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from epigraph.registry import LOCAL
from epigraph.server.limits import Limits
from serving_app import BASE, SHORT, App, artifact_of, furnished, serving_app

LIMITS = Limits(body_bytes=200_000, upload_bytes=400_000, body_seconds=2.0)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    folder = tmp_path_factory.mktemp("attacks")
    secrets = furnished(folder)
    with serving_app(folder, limits=LIMITS) as running:
        running.secrets = secrets
        yield running


# Names

NAMES = {
    "another tenant's": "bob/letters",
    "another tenant's by version": "bob/letters@1",
    "another tenant's by alias": "bob/letters@latest",
    "nobody's": "eve/letters",
    "a version that never was": "ann/cards@99",
    "version 0": "ann/cards@0",
    "a negative version": "ann/cards@-1",
    "an alias that never was": "ann/cards@stable",
    "a folder above": "../bob/letters",
    "a folder above, inside": "ann/../bob/letters",
    "a folder above, as a version": "ann/cards@../../bob/letters/1",
    "an absolute path": "/etc/passwd",
    "a file of the store": "bob/letters/1.safetensors",
    "another way to write it": "bob//letters",
    "a backslash": "bob\\letters",
    "an escaped slash": "bob%2Fletters",
    "a zero": "bob/letters\0",
    "a line break": "bob/letters\n",
    "a blank": " bob/letters",
    "a look-alike letter": "bοb/letters",  # noqa: RUF001 (it is the attack)
    "a look-alike slash": "bob∕letters",  # noqa: RUF001 (it is the attack)
    "letters that turn around": "\u202ebob/letters",
    "a joined character": "ann/cärds".replace("ä", "a\u0308"),
    "SQL": "bob/letters' OR '1'='1",
    "a wildcard": "bob/%",
    "another address": "s3://bob/letters",
    "an ensemble with a foreign member": "ann/cards+bob/letters",
    "an ensemble that begins with one": "bob/letters+ann/cards",
    "an ensemble with nothing": "ann/cards+",
    "nothing and an ensemble": "+ann/cards",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
def test_no_name_leads_to_a_foreign_prefix(app: App, route: str, name: str) -> None:
    text = {"messages": [{"role": "user", "content": "x"}]} if "chat" in route else {"prompt": "x"}
    got = app.post("ann", route, model=name, **text)
    assert (got.status_code, got.json()["error"]["code"]) == (404, "PrefixNotFound")
    assert "X-Epigraph-Prefix" not in got.headers


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_no_name_shows_a_foreign_prefix(app: App, name: str) -> None:
    from urllib.parse import quote

    got = app.ask("ann", "GET", f"/v1/models/{quote(name, safe='')}")
    assert got.status_code == 404


@pytest.mark.parametrize(
    "path", ["/bob/letters", "/bob/letters/versions", "/bob/letters/versions/1", "/bob/letters/shares"]
)
def test_a_foreign_prefix_is_not_shown(app: App, path: str) -> None:
    there, nowhere = (app.ask("ann", "GET", f"/v1/prefixes{x}") for x in (path, path.replace("letters", "nothing")))
    assert there.status_code == nowhere.status_code == 404
    assert there.content == nowhere.content.replace(b"nothing", b"letters")


@pytest.mark.parametrize("path", ["/v1/prefixes/../keys", "/v1/prefixes/%2e%2e/%2e%2e", "/v1/models/../../metrics"])
def test_no_path_leads_elsewhere(app: App, path: str) -> None:
    """As bytes on a connection: clients tidy paths up."""
    status, body = raw(app, f"GET {path} HTTP/1.1\r\n{head_of(app)}\r\n")
    assert status in (400, 404)
    assert b"epk_" not in body


def test_what_is_unknown_and_what_is_forbidden_read_the_same(app: App) -> None:
    """Before it was there, while it is another's, and after it was deleted: the same bytes."""
    path = artifact_of(app.folder / BASE, app.folder / "made" / "secret.safetensors", SHORT, seed=40)
    bodies = [app.complete("ann", "bob/secret").content]
    app.registry.push("bob", "secret", path)
    bodies.append(app.complete("ann", "bob/secret").content)
    app.registry.delete("bob", "secret")
    bodies.append(app.complete("ann", "bob/secret").content)
    assert len(set(bodies)) == 1


def test_a_deleted_prefix_is_gone_at_once_and_an_old_version_too(app: App) -> None:
    path = artifact_of(app.folder / BASE, app.folder / "made" / "gone.safetensors", SHORT, seed=41)
    for _ in range(2):
        app.registry.push("ann", "gone", path)
    assert [app.complete("ann", f"gone@{x}").status_code for x in ("1", "2", "latest")] == [200] * 3
    assert app.ask("ann", "DELETE", "/v1/prefixes/ann/gone/versions/1").json() == {"deleted": 1}
    assert [app.complete("ann", f"gone@{x}").status_code for x in ("1", "2")] == [404, 200]
    assert app.ask("ann", "DELETE", "/v1/prefixes/ann/gone").json() == {"deleted": 1}
    assert [app.complete("ann", f"gone@{x}").status_code for x in ("1", "2", "latest")] == [404] * 3
    assert not list((app.folder / "store" / "ann" / "gone").glob("*.safetensors"))


def test_a_share_ends_when_it_is_taken_back(app: App) -> None:
    assert app.complete("bob", "ann/twin").status_code == 404
    assert app.ask("ann", "PUT", "/v1/prefixes/ann/twin/shares/bob").json() == {"tenants": ["bob"]}
    shared = app.complete("bob", "ann/twin")
    assert shared.json()["choices"][0]["text"] == app.local("ann/twin", "a tree")
    # To use is not to change.
    assert app.ask("bob", "DELETE", "/v1/prefixes/ann/twin").status_code == 403
    assert app.ask("bob", "PUT", "/v1/prefixes/ann/twin/shares/bob").status_code == 403
    assert app.ask("ann", "DELETE", "/v1/prefixes/ann/twin/shares/bob").json() == {"deleted": 1}
    assert app.complete("bob", "ann/twin").status_code == 404


# Fields and headers that would reach past the server's checks

NEVER: dict[str, Any] = {
    "cache_salt": "epigraph-1.x",
    "kv_transfer_params": {"epigraph": {"prefix": "bob/letters"}},
    "prompt_embeds": "AAAA",
    "prompt_token_ids": [0, 0, 0],
    "lora_request": {"lora_name": "bob"},
    "tenant": "bob",
    "prefix": "bob/letters",
    "version": "1",
    "request_id": "other",
    "extra_args": {"kv_transfer_params": {}},
    "vllm_xargs": {"kv_transfer_params": "x"},
    "guided_json": {},
    "ignore_eos": True,
}


@pytest.mark.parametrize("name", NEVER)
@pytest.mark.parametrize("value", ["given", "null"])
def test_no_field_reaches_past_the_checks(app: App, name: str, value: str) -> None:
    got = app.complete("ann", "cards", **{name: NEVER[name] if value == "given" else None})
    assert got.status_code == 400
    assert name in got.json()["error"]["message"]


@pytest.mark.parametrize("prompt", [[0, 0, 0, 5], [[0, 0, 5], [1]], [True], ["x", 5], 7, None, {"ids": [0]}, []])
def test_token_ids_are_no_prompt(app: App, prompt: Any) -> None:
    got = app.complete("ann", "cards", prompt)
    assert (got.status_code, got.json()["error"]["param"]) == (400, "prompt")


@pytest.mark.parametrize(
    "text", ["{1}", "{5}{5}", "\0\0\0\0\0", "<pad><pad><pad>", "[MASK]", "{source}", "{0.__class__}", "%s%n"]
)
def test_placeholders_in_a_text_are_text(app: App, text: str) -> None:
    got = app.complete("ann", "cards", text)
    assert got.status_code == 200
    assert got.json()["choices"][0]["text"] == app.local("ann/cards", text)


HEADERS = ["X-Tenant", "X-Epigraph-Tenant", "X-Epigraph-Prefix", "X-Forwarded-User", "OpenAI-Organization", "Cookie"]


@pytest.mark.parametrize("header", HEADERS)
def test_no_header_pretends_a_tenant(app: App, header: str) -> None:
    got = app.post("ann", "/v1/completions", model="letters", prompt="x")
    told = app.ask(
        "ann", "POST", "/v1/completions", json={"model": "letters", "prompt": "x"}, headers={header: "tenant=bob"}
    )
    assert (told.status_code, told.content) == (404, got.content)
    # Of a name that both have, each gets its own.
    mine = app.ask("ann", "POST", "/v1/completions", json={"model": "cards", "prompt": "x"}, headers={header: "bob"})
    assert mine.headers["X-Epigraph-Prefix"] == "ann/cards@2"


def test_a_forwarded_address_is_not_believed(app: App) -> None:
    forged = {"X-Forwarded-For": "127.0.0.1", "X-Real-IP": "127.0.0.1", "Forwarded": "for=127.0.0.1"}
    assert app.ask("ann", "GET", "/metrics", headers=forged).status_code == 403
    assert app.ask(None, "GET", "/metrics", headers=forged).status_code == 401


# Keys

KEYS: dict[str, dict[str, str]] = {
    "none": {},
    "empty": {"Authorization": ""},
    "another scheme": {"Authorization": "Basic epk_x"},
    "no scheme": {"Authorization": "KEY"},
    "in lower case": {"Authorization": "Bearer key"},
    "cut": {"Authorization": "Bearer CUT"},
    "with more behind": {"Authorization": "Bearer KEY0"},
    "with a byte changed": {"Authorization": "Bearer CHANGED"},
    "long": {"Authorization": f"Bearer {'x' * 5_000}"},
    "two of them": {"Authorization": "Bearer KEY, Bearer KEY"},
    "in a query": {},
    "under another name": {"X-Api-Key": "KEY"},
}


@pytest.mark.parametrize("kind", KEYS)
def test_what_is_no_key_opens_nothing(app: App, kind: str) -> None:
    key = app.secrets["ann"]
    changed = key[:-1] + ("A" if key[-1] != "A" else "B")
    words = {"KEY": key, "key": key.lower(), "CUT": key[:-1], "CHANGED": changed}
    headers = {}
    for name, value in KEYS[kind].items():
        first, _, last = value.rpartition(" ")
        headers[name] = f"{first} {words.get(last, last.replace('KEY', key))}".strip().replace("KEY,", f"{key},")
    query = f"?api_key={key}&key={key}" if kind == "in a query" else ""
    got = app.ask(None, "GET", f"/v1/models{query}", headers=headers)
    assert (got.status_code, got.json()["error"]["code"]) == (401, "BadKey")
    assert got.headers["WWW-Authenticate"] == "Bearer"
    assert key not in got.text


def test_two_headers_with_keys_open_nothing(app: App) -> None:
    keys = [("Authorization", f"Bearer {app.secrets[x]}") for x in ("ann", "bob")]
    got = httpx.get(f"{app.url}/v1/models", headers=keys)
    assert got.status_code == 401


def test_unknown_expired_and_revoked_keys_read_the_same(app: App) -> None:
    tenants = app.registry.tenants
    revoked, revoked_secret = tenants.make_key("ann", scopes=frozenset(("use",)))
    _, short = tenants.make_key("ann", scopes=frozenset(("use",)), expires=datetime.now(UTC) + timedelta(seconds=0.4))
    assert [status_with(app, x) for x in (revoked_secret, short)] == [200, 200]
    tenants.revoke(revoked.id)
    bodies = {body_with(app, revoked_secret), body_with(app, "epk_0123456789abcdef_" + "x" * 43)}
    until = datetime.now(UTC) + timedelta(seconds=5)
    while status_with(app, short) != 401:
        assert datetime.now(UTC) < until
    bodies.add(body_with(app, short))
    assert len(bodies) == 1


def status_with(app: App, secret: str) -> int:
    return app.ask(None, "GET", "/v1/models", headers={"Authorization": f"Bearer {secret}"}).status_code


def body_with(app: App, secret: str) -> bytes:
    got = app.ask(None, "GET", "/v1/models", headers={"Authorization": f"Bearer {secret}"})
    assert got.status_code == 401
    return got.content


# Scopes

NEEDS: list[tuple[str, str, str]] = [
    ("ann-use", "POST", "/v1/prefixes?name=x"),
    ("ann-use", "DELETE", "/v1/prefixes/ann/cards"),
    ("ann-use", "DELETE", "/v1/prefixes/ann/cards/versions/1"),
    ("ann-use", "PUT", "/v1/prefixes/ann/cards/aliases/stable"),
    ("ann-use", "DELETE", "/v1/prefixes/ann/cards/aliases/latest"),
    ("ann-use", "POST", "/v1/prefixes/ann/cards/rollback"),
    ("ann-use", "GET", "/v1/prefixes/ann/cards/shares"),
    ("ann-use", "PUT", "/v1/prefixes/ann/cards/shares/bob"),
    ("ann-use", "DELETE", "/v1/prefixes/ann/cards/shares/bob"),
    ("ann-use", "GET", "/v1/prefixes/ann/cards/audit"),
    ("ann", "GET", "/v1/prefixes/bob/letters/audit"),
    ("ann", "POST", "/v1/prefixes?name=x&tenant=bob"),
    ("ann", "GET", "/v1/prefixes?tenant=bob"),
    ("ann-use", "GET", "/v1/keys"),
    ("ann-use", "POST", "/v1/keys"),
    ("ann", "GET", "/v1/keys?tenant=bob"),
    ("ann", "GET", "/v1/tenants"),
    ("ann", "POST", "/v1/tenants"),
    ("ann", "GET", "/v1/tenants/bob"),
    ("ann", "PUT", "/v1/tenants/ann/quotas"),
    ("ann", "DELETE", "/v1/tenants/ann"),
    ("ann", "GET", "/metrics"),
]
BODIES: dict[str, Any] = {
    "/v1/keys": {"scopes": ["use"]},
    "/v1/tenants": {"name": "eve"},
    "/v1/tenants/ann/quotas": {},
    "/v1/prefixes/ann/cards/aliases/stable": {"version": 1},
    "/v1/prefixes/ann/cards/rollback": {},
}


@pytest.mark.parametrize(("who", "method", "path"), NEEDS)
def test_a_key_does_what_its_scopes_say_and_no_more(app: App, who: str, method: str, path: str) -> None:
    given = {"json": BODIES[path]} if path in BODIES else {}
    got = app.ask(who, method, path, **given)
    assert (got.status_code, got.json()["error"]["code"]) == (403, "Forbidden")


@pytest.mark.parametrize(("method", "path"), [("DELETE", "/bob/letters"), ("POST", "/bob/letters/rollback")])
def test_what_cannot_be_seen_cannot_be_changed_nor_guessed(app: App, method: str, path: str) -> None:
    given = {"json": {}} if method == "POST" else {}
    there, nowhere = (
        app.ask("ann", method, f"/v1/prefixes{x}", **given) for x in (path, path.replace("letters", "nothing"))
    )
    assert there.status_code == nowhere.status_code == 404
    assert there.content == nowhere.content.replace(b"nothing", b"letters")
    assert app.complete("bob", "letters").status_code == 200


@pytest.mark.parametrize(
    "body", [{"scopes": ["admin"]}, {"scopes": ["use", "admin"]}, {"scopes": ["use"], "tenant": "bob"}]
)
def test_a_key_makes_none_that_may_more_than_itself(app: App, body: dict[str, Any]) -> None:
    before = len(app.registry.tenants.keys("ann")) + len(app.registry.tenants.keys("bob"))
    assert app.post("ann", "/v1/keys", **body).status_code == 403
    assert len(app.registry.tenants.keys("ann")) + len(app.registry.tenants.keys("bob")) == before


@pytest.mark.parametrize("method", ["rotate", "revoke"])
def test_a_key_takes_over_none_that_may_more_than_itself(app: App, method: str) -> None:
    """The new secret of an admin's key would be an admin's; and to lock the admin out is no tenant's to do."""
    tenants = app.registry.tenants
    manager = tenants.make_key(LOCAL, scopes=frozenset(("manage",)))[1]
    admin = next(x for x in tenants.keys(LOCAL) if "admin" in x.scopes)
    got = changed_key(app, f"Bearer {manager}", admin.id, method)
    assert (got.status_code, "secret" in got.text) == (403, False)
    assert tenants.key(admin.id).is_good()
    foreign = changed_key(app, app.key("ann")["Authorization"], admin.id, method)
    unknown = changed_key(app, app.key("ann")["Authorization"], "0" * 16, method)
    assert foreign.status_code == unknown.status_code == 400
    assert foreign.content.replace(admin.id.encode(), b"0" * 16) == unknown.content


def changed_key(app: App, authorization: str, key_id: str, method: str) -> httpx.Response:
    headers = {"Authorization": authorization}
    if method == "rotate":
        return app.ask(None, "POST", f"/v1/keys/{key_id}/rotate", json={}, headers=headers)
    return app.ask(None, "DELETE", f"/v1/keys/{key_id}", headers=headers)


# Bodies


def test_a_body_over_the_limit_is_refused_before_it_is_read(app: App) -> None:
    body = {"model": "cards", "prompt": "x" * 200_001}
    got = app.ask("ann", "POST", "/v1/completions", json=body)
    assert (got.status_code, got.json()["error"]["code"]) == (413, "RequestTooLarge")
    assert got.headers["Connection"] == "close"
    assert app.complete("ann", "cards").status_code == 200


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/prefixes?name=large"])
def test_a_body_that_does_not_say_how_long_it_is_is_counted(app: App, path: str) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(50):
            yield b'{"model": ' + b" " * 10_000

    headers = {"Content-Type": "application/json"}
    got = app.ask("ann", "POST", path, content=pieces(), headers=headers)
    assert (got.status_code, got.json()["error"]["code"]) == (413, "RequestTooLarge")
    assert not [x for x in app.registry.list("ann").names if "large" in x]


def test_an_unknown_client_sends_nothing_large(app: App) -> None:
    got = app.ask(None, "POST", "/v1/completions", content=b"x" * 100_000)
    assert got.status_code == 401


def head_of(app: App) -> str:
    return f"Host: x\r\nConnection: close\r\nAuthorization: Bearer {app.secrets['ann']}\r\n"


def raw(app: App, text: str, *, seconds: float = 10.0) -> tuple[int, bytes]:
    """Bytes as they are, on a connection of their own: the answer's status, and all that came."""
    host, port = app.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        connection.sendall(text.encode("latin-1"))
        came = b""
        while piece := connection.recv(65_536):
            came += piece
    status = came.split(b" ", 2)[1] if came.startswith(b"HTTP/1.1 ") else b"0"
    return int(status), came


WIRE = {
    "a negative length": "Content-Length: -5\r\n\r\n",
    "a length that is no number": "Content-Length: 1e3\r\n\r\n",
    "two lengths": "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "a length and chunks": "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks of another kind": "Transfer-Encoding: gzip\r\n\r\n",
    "a header over two lines": "X-A: 1\r\n b: 2\r\nContent-Length: 0\r\n\r\n",
    "a huge length": "Content-Length: 99999999999999999999\r\n\r\n",
    "a bad chunk": "Transfer-Encoding: chunked\r\n\r\nzz\r\n",
}


@pytest.mark.parametrize("tail", WIRE.values(), ids=WIRE)
def test_what_is_no_http_is_refused(app: App, tail: str) -> None:
    status, _ = raw(app, f"POST /v1/completions HTTP/1.1\r\n{head_of(app)}{tail}")
    assert status in (400, 413)
    assert app.complete("ann", "cards").status_code == 200


def test_a_body_that_never_ends_holds_nobody_up(app: App) -> None:
    host, port = app.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {app.secrets['ann']}\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{".encode())
        assert app.complete("ann", "cards").status_code == 200
        assert connection.recv(65_536).startswith(b"HTTP/1.1 400 ")


JSON = {
    "deep": "[" * 100_000,
    "not a number": '{"model": "cards", "prompt": "x", "temperature": NaN}',
    "infinite": '{"model": "cards", "prompt": "x", "top_p": Infinity}',
    "half a character": '{"model": "cards", "prompt": "\\ud800"}',
    "half a character in a name": '{"model": "\\ud800", "prompt": "x"}',
    "half a character as a field": '{"model": "cards", "prompt": "x", "\\ud800": 1}',
    "half a character as a stop": '{"model": "cards", "prompt": "x", "stop": "\\udfff"}',
    "a huge number": '{"model": "cards", "prompt": "x", "seed": ' + "9" * 4_000 + "}",
    "a huge exponent": '{"model": "cards", "prompt": "x", "temperature": 1e999}',
    "no object": "[]",
    "null": "null",
    "empty": "",
    "no text at all": "\udcff\udcfe",
}


@pytest.mark.parametrize("text", JSON.values(), ids=JSON)
def test_hostile_json_is_refused(app: App, text: str) -> None:
    body = text.encode("utf-8", "surrogateescape")
    headers = {"Content-Type": "application/json"}
    got = app.ask("ann", "POST", "/v1/completions", content=body, headers=headers)
    assert got.status_code in (400, 404)
    assert got.json()["error"]["message"]


SCORES = ["[]", "{", '{"a": NaN}', '{"a": "\\ud800"}', '{"a": "\\u0000"}', "[" * 5_000, "x" * 9_000]


@pytest.mark.parametrize("scores", SCORES, ids=range(len(SCORES)))
def test_hostile_scores_are_refused(app: App, scores: str) -> None:
    path = app.folder / "made" / "1.safetensors"
    got = app.ask(
        "ann",
        "POST",
        "/v1/prefixes?name=scored",
        content=path.read_bytes(),
        headers={"X-Epigraph-Scores": scores},
    )
    assert got.status_code == 400
    assert "ann/scored" not in app.registry.list("ann").names


# Without keys


@pytest.fixture(scope="module")
def open_app(app: App, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    folder = tmp_path_factory.mktemp("open")
    furnished(folder)
    with serving_app(folder, insecure_local=True) as running:
        yield running


def test_without_keys_the_caller_is_the_local_tenant(open_app: App) -> None:
    path = artifact_of(open_app.folder / BASE, open_app.folder / "made" / "own.safetensors", SHORT, seed=50)
    assert open_app.ask(None, "POST", "/v1/prefixes?name=own", content=path.read_bytes()).json()["id"] == "local/own@1"
    assert open_app.complete(None, "own").status_code == 200
    assert open_app.complete(None, "ann/cards").status_code == 404
    assert open_app.ask(None, "GET", "/metrics").status_code == 200
    # A key that clients send anyway is not asked for.
    assert open_app.ask(None, "GET", "/v1/models", headers={"Authorization": "Bearer x"}).status_code == 200


BROWSERS = {
    "another site": {"Origin": "https://evil.example"},
    "a file": {"Origin": "null"},
    "a name that now means this machine": {"Host": "evil.example:8000"},
    "a name that looks local": {"Host": "localhost.evil.example"},
    "another site that looks local": {"Origin": "http://127.0.0.1.evil.example"},
    "a broken address": {"Origin": "http://[::1"},
}


@pytest.mark.parametrize("headers", BROWSERS.values(), ids=BROWSERS)
def test_without_keys_a_page_in_a_browser_gets_nothing(open_app: App, headers: dict[str, str]) -> None:
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/prefixes?name=evil"), ("DELETE", "/v1/tenants/ann")):
        assert open_app.ask(None, method, path, headers=headers).status_code == 403
    assert open_app.registry.tenants.get("ann").name == "ann"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:8000"])
def test_without_keys_this_machines_own_names_are_fine(open_app: App, host: str) -> None:
    assert open_app.ask(None, "GET", "/v1/models", headers={"Host": host}).status_code == 200
