"""Tenants and keys: who comes in, for how long and with what, and what is left when a tenant is gone."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from epigraph.errors import AlreadyThere, BadKey, BadValue, PrefixNotFound, StoreUnavailable, TenantNotFound
from epigraph.registry import SCOPES, Quotas, Registry
from epigraph.registry.store import Store
from registry_worker import saved

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WORDS = "the API key is missing, unknown, expired or revoked; send one that is good"


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with Registry.open(tmp_path / "c.sqlite", tmp_path / "store") as opened:
        for tenant in ("ann", "bob"):
            opened.tenants.add(tenant)
        yield opened


def at(monkeypatch: pytest.MonkeyPatch, when: datetime) -> None:
    monkeypatch.setattr("epigraph.registry.rows.now", lambda: when)


def refused(registry: Registry, secret: str) -> bool:
    """Whether the key is refused, in the words that all are refused with."""
    try:
        registry.tenants.who(secret)
    except BadKey as wrong:
        said = str(wrong)
    else:
        return False
    assert said == WORDS
    return True


# Tenants


def test_tenants_are_added_listed_and_given_quotas(registry: Registry) -> None:
    quotas = Quotas(requests_per_minute=60, tokens_per_minute=10_000, concurrent=4, prefixes=10, bytes=1 << 40)
    assert registry.tenants.add("cleo", quotas).quotas == quotas
    assert registry.tenants.get("cleo") == registry.tenants.ensure("cleo")
    assert [x.name for x in registry.tenants.list()] == ["ann", "bob", "cleo"]
    assert [x.name for x in registry.tenants.list(after="ann", limit=1)] == ["bob"]
    assert registry.tenants.set_quotas("cleo", Quotas(concurrent=0)).quotas == Quotas(concurrent=0)
    assert registry.tenants.get("ann").quotas == Quotas()
    with pytest.raises(AlreadyThere):
        registry.tenants.add("ann")
    for attempt in (registry.tenants.get, registry.tenants.remove, registry.tenants.keys):
        with pytest.raises(TenantNotFound, match="no tenant 'nobody'"):
            attempt("nobody")
    with pytest.raises(TenantNotFound):
        registry.tenants.set_quotas("nobody", Quotas())


@pytest.mark.parametrize("number", [-1, 1 << 63])
def test_quotas_that_there_are_not(number: int) -> None:
    with pytest.raises(BadValue, match="quota prefixes is"):
        Quotas(prefixes=number)


def test_many_add_one_tenant_at_once(registry: Registry) -> None:
    gate, got = threading.Barrier(8), []

    def add() -> None:
        gate.wait()
        try:
            registry.tenants.add("new")
            got.append("added")
        except AlreadyThere:
            got.append("there")
        registry.tenants.ensure("other")

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == ["added", *["there"] * 7]


def test_a_removed_tenant_is_gone_with_all_it_had(registry: Registry, tmp_path: Path) -> None:
    source = saved(tmp_path / "files")
    for name in ("a", "b", "b"):
        registry.push("ann", name, source)
    registry.push("bob", "c", source)
    registry.share("ann", "a", "bob")
    registry.share("bob", "c", "ann")
    _, secret = registry.tenants.make_key("ann", scopes={"use"})
    assert registry.tenants.remove("ann", by="me") == 3
    assert refused(registry, secret)
    assert [x.name for x in registry.tenants.list()] == ["bob"]
    assert registry.shares("bob", "c") == ()
    for attempt in (lambda: registry.resolve("bob", "ann/a"), lambda: registry.resolve("ann", "a")):
        with pytest.raises(PrefixNotFound):
            attempt()
    with pytest.raises(TenantNotFound):
        registry.push("ann", "a", source)
    with pytest.raises(TenantNotFound):
        registry.tenants.remove("ann")
    kept = sorted(x.name for x in (tmp_path / "store").rglob("*"))
    assert kept == [".epigraph-registry", "1.safetensors", "bob", "c"]
    assert [x.action for x in registry.audit("ann")][-2:] == ["make-key", "remove-tenant"]
    assert registry.verify().is_clean
    # One of that name who comes again has nothing of it, and no number is used twice.
    assert registry.tenants.add("ann", Quotas(prefixes=1)).num_prefixes == 0
    assert registry.list("ann").names == registry.tenants.keys("ann") == () or not registry.list("ann").names
    assert refused(registry, secret)
    assert registry.push("ann", "b", source).number == 3
    assert registry.verify().is_clean


def test_a_tenant_is_removed_again_until_its_bytes_are_gone(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.push("ann", "a", saved(tmp_path / "files"))
    delete = Store.delete

    def away(self: Store, paths: object) -> None:
        raise StoreUnavailable("away")

    monkeypatch.setattr(Store, "delete", away)
    with pytest.raises(StoreUnavailable):
        registry.tenants.remove("ann")
    with pytest.raises(TenantNotFound):
        registry.tenants.get("ann")
    monkeypatch.setattr(Store, "delete", delete)
    assert registry.tenants.remove("ann") == 1
    assert not (tmp_path / "store" / "ann").exists()


# Keys


def test_a_key_opens_what_it_was_made_for(registry: Registry) -> None:
    registry.tenants.set_quotas("ann", Quotas(concurrent=3))
    key, secret = registry.tenants.make_key("ann", scopes={"use", "push"}, note="the laptop", by="me")
    assert re.fullmatch(r"epk_[0-9a-f]{16}_[A-Za-z0-9_-]{43}", secret)
    caller = registry.tenants.who(secret)
    assert (caller.tenant, caller.key_id, caller.scopes) == ("ann", key.id, {"use", "push"})
    assert caller.quotas == Quotas(concurrent=3)
    assert registry.tenants.keys("ann") == (registry.tenants.key(key.id),) == (key,)
    assert (key.note, key.expires, key.revoked, key.is_good()) == ("the laptop", None, None, True)
    assert registry.tenants.keys("bob") == ()
    registry.tenants.set_quotas("ann", Quotas(concurrent=4))
    assert registry.tenants.who(secret).quotas.concurrent == 4


def test_a_secret_is_nowhere_but_with_its_owner(registry: Registry, tmp_path: Path) -> None:
    key, secret = registry.tenants.make_key("ann", scopes={"use"}, by="me")
    new, rotated = registry.tenants.rotate(key.id, grace=timedelta(hours=1), by="me")
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    said = repr((key, new, registry.tenants.keys("ann"), registry.audit("ann"), registry.tenants.who(secret)))
    for word in (secret, rotated):
        random_part = word.split("_", 2)[2]
        assert random_part.encode() not in kept
        assert random_part not in said
    assert key.id.encode() in kept


BAD_SECRETS: dict[str, Callable[[str], str]] = {
    "empty": lambda _: "",
    "another's form": lambda _: "sk-" + "x" * 48,
    "the id alone": lambda secret: secret[:20],
    "no secret": lambda secret: secret[:21],
    "one letter less": lambda secret: secret[:-1],
    "one letter more": lambda secret: secret + "x",
    "one letter other": lambda secret: secret[:-1] + ("x" if secret[-1] != "x" else "y"),
    "another id": lambda secret: "epk_" + "0" * 16 + secret[20:],
    "capitals": str.upper,
    "a blank": lambda secret: secret + " ",
    "a line": lambda secret: secret + "\n",
    "a zero": lambda secret: secret + "\0",
    "not ASCII": lambda secret: secret[:-1] + "\uff58",
    "half a character": lambda secret: secret[:-1] + "\ud800",
    "SQL": lambda secret: secret[:4] + "' OR '1'='1" + secret[20:],
    "a pattern": lambda secret: secret[:4] + "%" * 16 + secret[20:],
    "very long": lambda secret: secret * 100_000,
}


@pytest.mark.parametrize("changed", BAD_SECRETS.values(), ids=BAD_SECRETS)
def test_what_is_no_key_is_refused_in_the_same_words(registry: Registry, changed: Callable[[str], str]) -> None:
    _, secret = registry.tenants.make_key("ann", scopes=SCOPES)
    assert refused(registry, changed(secret))
    assert not refused(registry, secret)


def test_the_stored_hash_opens_nothing(registry: Registry) -> None:
    key, secret = registry.tenants.make_key("ann", scopes={"use"})
    with registry._database.reading() as connection:
        kept = connection.exec_driver_sql("SELECT hash FROM api_keys").scalar_one()
    assert kept not in secret
    assert refused(registry, f"epk_{key.id}_{kept[:43]}")
    assert refused(registry, kept)


def test_a_key_expires(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, NOW)
    key, secret = registry.tenants.make_key("ann", scopes={"use"}, expires=NOW + timedelta(days=1))
    at(monkeypatch, NOW + timedelta(days=1, seconds=-1))
    assert not refused(registry, secret)
    at(monkeypatch, NOW + timedelta(days=1))
    assert refused(registry, secret)
    assert not registry.tenants.key(key.id).is_good(NOW + timedelta(days=1))
    with pytest.raises(BadKey, match="is expired or revoked"):
        registry.tenants.rotate(key.id)


def test_a_revoked_key_is_refused_at_once(registry: Registry) -> None:
    key, secret = registry.tenants.make_key("ann", scopes={"use"})
    _, other = registry.tenants.make_key("ann", scopes={"use"})
    registry.tenants.revoke(key.id, by="me")
    first = registry.tenants.revoke(key.id).revoked
    assert first is not None
    assert (refused(registry, secret), refused(registry, other)) == (True, False)
    assert [x.action for x in registry.audit("ann")].count("revoke-key") == 1
    for attempt in (registry.tenants.revoke, registry.tenants.rotate, registry.tenants.key):
        with pytest.raises(BadKey, match="no key 'nothing'"):
            attempt("nothing")


@pytest.mark.parametrize("grace", [timedelta(0), timedelta(minutes=5)])
def test_a_rotated_key_is_good_for_its_grace(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, grace: timedelta
) -> None:
    at(monkeypatch, NOW)
    ends = NOW + timedelta(days=9)
    old, secret = registry.tenants.make_key("ann", scopes={"use", "manage"}, expires=ends, note="the laptop")
    new, fresh = registry.tenants.rotate(old.id, grace=grace, by="me")
    assert (new.tenant, new.scopes, new.note, new.expires) == (old.tenant, old.scopes, old.note, old.expires)
    assert new.id != old.id
    for seconds in (-1, 0):
        at(monkeypatch, NOW + grace + timedelta(seconds=seconds))
        assert refused(registry, secret) is (seconds == 0)
        assert not refused(registry, fresh)
    at(monkeypatch, ends)
    assert refused(registry, fresh)
    assert [x.action for x in registry.audit("ann")][-3:] == ["make-key", "rotate-key", "make-key"]


def test_a_grace_makes_no_key_last_longer(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, NOW)
    old, _ = registry.tenants.make_key("ann", scopes={"use"}, expires=NOW + timedelta(minutes=1))
    registry.tenants.rotate(old.id, grace=timedelta(hours=1))
    assert registry.tenants.key(old.id).expires == NOW + timedelta(minutes=1)
    with pytest.raises(BadValue, match="the grace is"):
        registry.tenants.rotate(old.id, grace=timedelta(seconds=-1))


@pytest.mark.parametrize(
    ("scopes", "expires", "note"),
    [
        (set(), None, ""),
        ({"root"}, None, ""),
        ({"use", "root"}, None, ""),
        ({"use"}, datetime(2020, 1, 1, tzinfo=UTC), ""),
        ({"use"}, datetime(2050, 1, 1), ""),
        ({"use"}, None, "a\nb"),
        ({"use"}, None, "x" * 501),
    ],
)
def test_keys_that_there_are_not(registry: Registry, scopes: set[str], expires: datetime | None, note: str) -> None:
    with pytest.raises(BadValue):
        registry.tenants.make_key("ann", scopes=scopes, expires=expires, note=note)  # type: ignore[arg-type]
    assert registry.tenants.keys("ann") == ()


def test_a_tenant_has_so_many_keys_and_no_more(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("epigraph.registry.keys.MAX_KEYS", 2)
    keys = [registry.tenants.make_key("ann", scopes={"use"})[0] for _ in range(2)]
    with pytest.raises(BadValue, match="tenant ann has 2 keys; revoke"):
        registry.tenants.make_key("ann", scopes={"use"})
    registry.tenants.revoke(keys[0].id)
    registry.tenants.make_key("ann", scopes={"use"})


def test_the_first_admin_key_is_made_once(registry: Registry) -> None:
    registry.tenants.make_key("ann", scopes={"use", "push", "manage"})
    gate, got = threading.Barrier(6), []

    def start() -> None:
        gate.wait()
        got.append(registry.tenants.first_admin_key("admin"))

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [(key, secret)] = [x for x in got if x is not None]
    assert registry.tenants.who(secret).scopes == SCOPES
    assert registry.tenants.first_admin_key("admin") is None
    registry.tenants.revoke(key.id)
    assert registry.tenants.first_admin_key("admin") is not None
