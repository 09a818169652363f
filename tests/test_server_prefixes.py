"""Prefixes, tenants and keys over HTTP: what the registry promises, through the routes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from epigraph import artifact
from epigraph.registry import Quotas
from epigraph.server.limits import Limits
from serving_app import BASE, SHORT, App, artifact_of, furnished, hidden, serving_app, wait_until


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    folder = tmp_path_factory.mktemp("prefixes")
    secrets = furnished(folder)
    with serving_app(folder, limits=Limits(upload_bytes=8 << 20)) as running:
        running.secrets = secrets
        yield running


@pytest.fixture(scope="module")
def files(app: App) -> list[Path]:
    """Three artifacts that say different things."""
    made = app.folder / "made"
    return [artifact_of(app.folder / BASE, made / f"x{seed}.safetensors", SHORT, seed=seed) for seed in (60, 61, 62)]


def pushed(app: App, who: str, name: str, path: Path, query: str = "", **headers: str) -> Any:
    got = app.ask(who, "POST", f"/v1/prefixes?name={name}{query}", content=path.read_bytes(), headers=headers)
    assert got.status_code == 201, got.text
    return got.json()


def said(app: App, model: str, who: str = "ann") -> str:
    return str(app.complete(who, model).json()["choices"][0]["text"])


def test_from_push_to_delete(app: App, files: list[Path]) -> None:
    texts = []
    for number, path in enumerate(files, 1):
        made = pushed(app, "ann", "story", path, **{"X-Epigraph-Scores": '{"test": {"bleu": 60.2}}'})
        assert (made["id"], made["aliases"]) == (f"ann/story@{number}", ["latest"])
        assert made["content_hash"] == artifact.read(path)[1].content_hash
        assert (made["scores"], made["provenance"]) == ({"test": {"bleu": 60.2}}, {"steps": 7})
        assert (made["servable"], made["reason"]) == (True, None)
        texts.append(said(app, "story"))
    assert len(set(texts)) == 3
    # Aliases move, versions do not.
    path = "/v1/prefixes/ann/story"
    assert app.ask("ann", "PUT", f"{path}/aliases/stable", json={"version": 1}).json()["version"] == 1
    assert said(app, "story@stable") == texts[0]
    assert app.ask("ann", "PUT", f"{path}/aliases/stable", json={"version": "latest"}).json()["version"] == 3
    assert app.post("ann", f"{path}/rollback", alias="stable").json()["version"] == 2
    assert app.post("ann", f"{path}/rollback").json()["aliases"] == ["latest", "stable"]
    assert (said(app, "story"), said(app, "story@stable")) == (texts[1], texts[1])
    assert app.ask("ann", "DELETE", f"{path}/aliases/stable").json() == {"deleted": 1}
    assert app.complete("ann", "story@stable").status_code == 404
    # In pages, in order.
    first = app.ask("ann", "GET", f"{path}/versions?limit=2").json()
    rest = app.ask("ann", "GET", f"{path}/versions?limit=2&after={first['next']}").json()
    assert [x["version"] for x in first["data"] + rest["data"]] == [1, 2, 3]
    assert rest["next"] == 0
    assert app.ask("ann", "GET", path).json()["version"] == 2
    assert app.ask("ann", "GET", f"{path}/versions/3").json()["version"] == 3
    assert app.ask("ann", "DELETE", f"{path}/versions/2").json() == {"deleted": 1}
    assert app.ask("ann", "GET", f"{path}/versions/2").status_code == 404
    assert app.ask("ann", "DELETE", path).json() == {"deleted": 2}
    assert app.ask("ann", "GET", path).status_code == 404
    # A name that comes again counts on, and what was done is written down with the key that did it.
    assert pushed(app, "ann", "story", files[0])["version"] == 4
    rows = app.ask("ann", "GET", f"{path}/audit").json()["data"]
    assert [x["action"] for x in rows].count("push") == 4
    assert {x["by"] for x in rows} == {app.registry.tenants.who(app.secrets["ann"]).key_id}


def test_a_list_in_pages_and_a_search(app: App) -> None:
    all_of = [x["id"] for x in app.ask("bob", "GET", "/v1/prefixes").json()["data"]]
    assert all_of == ["bob/cards", "bob/letters", "bob/long"]
    page = app.ask("bob", "GET", "/v1/prefixes?limit=2").json()
    assert [x["id"] for x in page["data"]] == all_of[:2]
    assert [x["id"] for x in app.ask("bob", "GET", f"/v1/prefixes?after={page['next']}").json()["data"]] == all_of[2:]
    assert [x["id"] for x in app.ask("bob", "GET", "/v1/prefixes?search=LET").json()["data"]] == ["bob/letters"]
    assert [x["id"] for x in app.ask("admin", "GET", "/v1/prefixes?tenant=bob").json()["data"]] == all_of


def test_aliases_are_the_pushers_choice(app: App, files: list[Path]) -> None:
    assert pushed(app, "ann", "named", files[0], "&alias=a&alias=b")["aliases"] == ["a", "b"]
    assert app.complete("ann", "named").status_code == 404
    assert app.complete("ann", "named@b").status_code == 200


def test_another_base_is_taken_and_said_not_to_be_servable(app: App, files: list[Path]) -> None:
    other = artifact_of(
        app.folder / BASE,
        app.folder / "made" / "other.safetensors",
        SHORT,
        seed=63,
        base_name="elsewhere",
        base_fingerprint="ab" * 32,
    )
    made = pushed(app, "ann", "foreign", other)
    assert not made["servable"]
    assert "was trained for elsewhere (abababababab), this server runs base" in made["reason"]
    got = app.complete("ann", "foreign")
    assert (got.status_code, got.json()["error"]["code"]) == (422, "WrongBase")
    assert not app.ask("ann", "GET", "/v1/models/ann/foreign").json()["servable"]
    # Admitted once, on record, it is served from the next request on.
    app.registry.allow_base("ab" * 32, app.engine.base.fingerprint, by="tests", why="a quantised twin")
    assert app.complete("ann", "foreign").status_code == 200
    assert app.ask("ann", "GET", "/v1/prefixes/ann/foreign").json()["servable"]


def test_another_tokenizer_is_not_served(app: App) -> None:
    path = artifact_of(
        app.folder / BASE, app.folder / "made" / "words.safetensors", SHORT, seed=64, tokenizer_fingerprint="cd" * 32
    )
    assert not pushed(app, "ann", "words", path)["servable"]
    assert app.complete("ann", "words").json()["error"]["code"] == "WrongTokenizer"


BROKEN = {
    "nothing": b"",
    "a pickle": b"\x80\x04\x95" + b"x" * 100,
    "a page": b"<html></html>" * 100,
    "a length beyond the end": (1 << 40).to_bytes(8, "little") + b"{}",
}


@pytest.mark.parametrize("content", [*BROKEN.values(), None], ids=[*BROKEN, "half of one"])
def test_a_file_is_taken_whole_or_not_at_all(
    app: App, files: list[Path], content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The server is a thread here; elsewhere lies what servers left that were killed.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    data = files[0].read_bytes()[:-9] if content is None else content
    got = app.ask("ann", "POST", "/v1/prefixes?name=broken", content=data)
    # A header that says it is a terabyte is over the format's limits.
    assert got.status_code == (413 if data[:1] == b"\0" else 422)
    message = got.json()["error"]["message"]
    assert message.startswith("the body: ")
    assert tempfile.gettempdir() not in message
    assert "ann/broken" not in app.registry.list("ann").names
    wait_until(lambda: not list(tmp_path.iterdir()))


def test_the_registrys_own_quotas_hold(app: App, files: list[Path]) -> None:
    app.registry.tenants.set_quotas("bob", Quotas(prefixes=3))
    try:
        got = app.ask("bob", "POST", "/v1/prefixes?name=fourth", content=files[0].read_bytes())
        assert (got.status_code, got.json()["error"]["code"]) == (429, "QuotaExceeded")
        assert int(got.headers["Retry-After"]) > 0
    finally:
        app.registry.tenants.set_quotas("bob", Quotas())


@pytest.mark.parametrize(
    "query", ["", "?name=", "?name=../x", "?name=a/b", "?name=.x", "?name=x&alias=7", "?name=x&alias="]
)
def test_a_bad_name_is_refused(app: App, files: list[Path], query: str) -> None:
    got = app.ask("ann", "POST", f"/v1/prefixes{query}", content=files[0].read_bytes())
    assert got.status_code == 400


def test_an_admin_acts_for_any_tenant(app: App, files: list[Path]) -> None:
    assert pushed(app, "admin", "given", files[0], "&tenant=bob")["id"] == "bob/given@1"
    assert app.ask("admin", "GET", "/v1/prefixes/bob/given").status_code == 200
    # Who keeps the server in order does not read others' tasks with it.
    assert app.complete("admin", "bob/given").status_code == 404
    assert app.ask("admin", "DELETE", "/v1/prefixes/bob/given").json() == {"deleted": 1}
    assert app.ask("admin", "POST", "/v1/prefixes?name=x&tenant=eve", content=files[0].read_bytes()).status_code == 404


# Tenants and keys


def test_tenants_come_are_bounded_and_go(app: App, files: list[Path]) -> None:
    made = app.post("admin", "/v1/tenants", name="carl", quotas={"requests_per_minute": 3})
    assert made.status_code == 201
    assert made.json()["quotas"]["requests_per_minute"] == 3
    assert app.post("admin", "/v1/tenants", name="carl").status_code == 409
    assert "carl" in [x["name"] for x in app.ask("admin", "GET", "/v1/tenants").json()["data"]]
    page = app.ask("admin", "GET", "/v1/tenants?limit=1").json()
    assert [x["name"] for x in page["data"]] == ["ann"] == [page["next"]]
    secret = app.post("admin", "/v1/keys", tenant="carl", scopes=["use", "push", "manage"]).json()["secret"]
    app.secrets["carl"] = secret
    pushed(app, "carl", "own", files[0])
    shown = app.ask("carl", "GET", "/v1/tenants/carl").json()
    assert (shown["num_prefixes"], shown["num_bytes"]) == (1, files[0].stat().st_size)
    assert [app.complete("carl", "own").status_code for _ in range(4)] == [200, 200, 200, 429]
    assert (
        app.ask("admin", "PUT", "/v1/tenants/carl/quotas", json={"concurrent": 5}).json()["quotas"]["concurrent"] == 5
    )
    assert app.complete("carl", "own").status_code == 200
    assert app.ask("admin", "DELETE", "/v1/tenants/carl").json() == {"deleted": 1}
    assert app.complete("carl", "own").status_code == 401
    assert app.ask("admin", "GET", "/v1/tenants/carl").status_code == 404
    assert not list((app.folder / "store" / "carl").rglob("*.safetensors"))


def test_keys_are_made_renewed_and_taken_away(app: App) -> None:
    made = app.post("ann", "/v1/keys", scopes=["use"], expires_in_seconds=3_600, note="a phone").json()
    assert (made["tenant"], made["scopes"], made["note"], made["revoked"]) == ("ann", ["use"], "a phone", None)
    assert datetime.fromisoformat(made["expires"]).tzinfo is not None
    app.secrets["phone"] = made["secret"]
    assert app.complete("phone", "cards").status_code == 200
    renewed = app.post("ann", f"/v1/keys/{made['id']}/rotate").json()
    app.secrets["new phone"] = renewed["secret"]
    assert [app.complete(x, "cards").status_code for x in ("phone", "new phone")] == [401, 200]
    listed = app.ask("ann", "GET", "/v1/keys")
    assert {made["id"], renewed["id"]} <= {x["id"] for x in listed.json()["data"]}
    for secret in app.secrets.values():
        assert hidden(secret) not in listed.text
    gone = app.ask("ann", "DELETE", f"/v1/keys/{renewed['id']}").json()
    assert gone["revoked"]
    assert app.complete("new phone", "cards").status_code == 401
    # A key that is no good cannot be renewed, which is no fault of the one that asks.
    assert app.post("ann", f"/v1/keys/{renewed['id']}/rotate").status_code == 400


def test_an_old_secret_stays_good_for_its_grace(app: App) -> None:
    made = app.post("ann", "/v1/keys", scopes=["use"]).json()
    app.secrets["old"] = made["secret"]
    app.secrets["fresh"] = app.post("ann", f"/v1/keys/{made['id']}/rotate", grace_seconds=60).json()["secret"]
    assert [app.complete(x, "cards").status_code for x in ("old", "fresh")] == [200, 200]


def test_two_servers_on_one_registry_see_each_other_at_once(app: App, files: list[Path]) -> None:
    with serving_app(app.folder) as other:
        other.secrets = app.secrets
        pushed(app, "ann", "both", files[0])
        assert other.complete("ann", "both").status_code == 200
        assert app.complete("ann", "both").status_code == 200
        other.ask("ann", "DELETE", "/v1/prefixes/ann/both")
        assert app.complete("ann", "both").status_code == 404
