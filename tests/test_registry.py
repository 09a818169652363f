"""The registry on SQLite and PostgreSQL: pushes, aliases, shares, deletions, pages, records, quotas, addresses."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import postgres
from epigraph import artifact
from epigraph.contract import TextContract
from epigraph.engine.shelf import Shelf
from epigraph.errors import (
    AlreadyThere,
    BadName,
    BadValue,
    ContentMismatch,
    EpigraphError,
    NotAnArtifact,
    PrefixNotFound,
    QuotaExceeded,
    StoreUnavailable,
    TenantNotFound,
    Truncated,
)
from epigraph.registry import LOCAL, Quotas, Registry, Version, pushing
from epigraph.registry.store import Store
from epigraph.virtual import geometry_digest
from registry_worker import BASE, GEOMETRY, TOKENIZER, content, saved


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Postgres]:
    if why := postgres.missing():
        pytest.skip(why)
    with postgres.running() as started:
        yield started


def with_tenants(catalogue: str, store: Path) -> str:
    with Registry.open(catalogue, store) as made:
        for tenant in ("ann", "bob", "eve"):
            made.tenants.add(tenant)
    return catalogue


@pytest.fixture(scope="module")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("template")
    return with_tenants(str(folder / "catalogue.sqlite"), folder / "store")


@pytest.fixture(scope="module")
def postgres_template(server: postgres.Postgres, tmp_path_factory: pytest.TempPathFactory) -> str:
    with_tenants(server.database("made"), tmp_path_factory.mktemp("template") / "store")
    return "made"


# What a database does otherwise is in test_registry_many, _schema and _away; here it is a second for each test.
@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def catalogue(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A catalogue of three tenants, copied: making one takes longer than most tests."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "catalogue.sqlite")
        return str(tmp_path / "catalogue.sqlite")
    server: postgres.Postgres = request.getfixturevalue("server")
    return server.database(uuid.uuid4().hex, template=request.getfixturevalue("postgres_template"))


@pytest.fixture
def registry(catalogue: str, tmp_path: Path) -> Iterator[Registry]:
    with Registry.open(catalogue, tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return saved(tmp_path / "files")


def files(registry: Registry) -> list[str]:
    root = Path(registry.store_address)
    return sorted(x.relative_to(root).as_posix() for x in root.rglob("*") if x.is_file() and x.name[0] != ".")


def actions(registry: Registry, tenant: str, name: str = "") -> list[tuple[str, int | None]]:
    return [(x.action, x.number) for x in registry.audit(tenant, name=name)]


# Pushes


def test_a_push_pins_what_the_file_is(registry: Registry, source: Path) -> None:
    before = datetime.now(UTC)
    made = registry.push("ann", "cards", source, by="key-1", scores={"test": {"bleu": 57.5}})
    assert (made.tenant, made.name, made.number) == ("ann", "cards", 1)
    assert (made.id, made.prefix, made.path) == ("ann/cards@1", "ann/cards", "ann/cards/1.safetensors")
    assert made.content_hash == artifact.read(source)[1].content_hash
    assert (made.base_name, made.base_fingerprint, made.tokenizer_fingerprint) == ("some-model", BASE, TOKENIZER)
    assert made.geometry == geometry_digest(GEOMETRY)
    assert (made.num_virtual_tokens, made.num_bytes) == (3, source.stat().st_size)
    assert (made.method, made.kind, made.is_chat) == ("prefix-tuning", "kv", False)
    assert before - timedelta(seconds=1) < made.created < datetime.now(UTC) + timedelta(seconds=1)
    assert (made.created.utcoffset(), made.created_by, made.aliases) == (timedelta(0), "key-1", ("latest",))
    assert made.provenance == {"data": {"task": "e2e"}, "seed": 0}
    assert made.scores == {"test": {"bleu": 57.5}}
    assert registry.get("ann", "cards") == registry.get("ann", "cards", 1) == registry.resolve("ann", "cards") == made
    assert (Path(registry.store_address) / made.path).read_bytes() == source.read_bytes()


def test_an_engine_finds_a_version_where_the_registry_put_it(registry: Registry, source: Path) -> None:
    made = registry.push("ann", "cards", source)
    opened = Shelf(registry.store_address).open(made.prefix, str(made.number))
    assert opened.content_hash == made.content_hash


def test_a_chat_artifact_is_known_as_one(registry: Registry, tmp_path: Path) -> None:
    contract = TextContract(chat_template_hash="d" * 64)
    assert registry.push("ann", "chat", saved(tmp_path / "chat", contract=contract)).is_chat


def test_what_a_file_says_of_itself_comes_back_as_it_was(registry: Registry, tmp_path: Path) -> None:
    hostile = {
        "zero": "a\0b",
        "turned": "\u202e",
        "quotes": "'\";--",
        "deep": [[[[{"x": None}]]]],
        "big": 10**15,
        "": "%s",
    }
    made = registry.push("ann", "cards", saved(tmp_path / "files", provenance=hostile), scores={"a\0": 1.5})
    assert registry.resolve("ann", "cards").provenance == made.provenance == hostile
    assert made.scores == {"a\0": 1.5}


def test_a_run_folder_is_pushed_by_its_name(registry: Registry, source: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / artifact.FILE_NAME).write_bytes(source.read_bytes())
    assert registry.push("ann", "cards", run).number == 1


def test_versions_count_on_and_latest_goes_with_them(registry: Registry, tmp_path: Path) -> None:
    made = [registry.push("ann", "cards", saved(tmp_path / "files", seed)) for seed in range(3)]
    assert [x.number for x in made] == [1, 2, 3]
    assert len({x.content_hash for x in made}) == 3
    assert [x.aliases for x in registry.versions("ann", "cards")] == [(), (), ("latest",)]
    # The same content again is a version of its own.
    assert registry.push("ann", "cards", saved(tmp_path / "files", 2)).number == 4
    assert [x.number for x in registry.versions("ann", "cards", after=2, limit=1)] == [3]
    assert registry.versions("ann", "cards", after=4) == ()


def test_a_push_may_have_other_aliases_or_none(registry: Registry, source: Path) -> None:
    registry.push("ann", "cards", source)
    assert registry.push("ann", "cards", source, aliases=("stable", "july")).aliases == ("july", "stable")
    assert registry.push("ann", "cards", source, aliases=()).aliases == ()
    assert registry.get("ann", "cards").number == 1
    assert registry.get("ann", "cards", "stable").number == 2


def test_what_is_no_whole_artifact_is_not_pushed(registry: Registry, source: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(source.read_bytes()[:-7])
    changed = tmp_path / "changed.safetensors"
    changed.write_bytes(source.read_bytes()[:-1] + b"\1")
    link = tmp_path / "link.safetensors"
    link.symlink_to(source)
    for path, error in ((cut, Truncated), (changed, ContentMismatch), (link, NotAnArtifact), (tmp_path, NotAnArtifact)):
        with pytest.raises(error):
            registry.push("ann", "cards", path)
    assert (files(registry), actions(registry, "ann", "cards")) == ([], [])
    assert registry.push("ann", "cards", source).number == 1


def test_a_file_that_changes_under_a_push_is_not_pushed(
    registry: Registry, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts, other = pushing._facts, saved(tmp_path / "files", 1)

    def then_changed(path: Path) -> Any:
        told = facts(path)
        path.write_bytes(other.read_bytes())
        return told

    monkeypatch.setattr(pushing, "_facts", then_changed)
    with pytest.raises(ContentMismatch, match="changed while it was pushed"):
        registry.push("ann", "cards", source)
    assert (files(registry), registry.list("ann").names) == ([], ())
    assert registry.verify().is_clean


@pytest.mark.parametrize(
    "scores", [{"x": float("nan")}, {"x": object()}, {"x": "y" * 70_000}], ids=["nan", "object", "long"]
)
def test_scores_that_cannot_be_kept_are_refused(registry: Registry, source: Path, scores: dict[str, Any]) -> None:
    with pytest.raises(BadValue, match="the scores"):
        registry.push("ann", "cards", source, scores=scores)
    assert files(registry) == []


def test_a_tenant_that_is_not_there_gets_nothing(registry: Registry, source: Path) -> None:
    with pytest.raises(TenantNotFound, match="no tenant 'mallory'; add it with `epigraph tenants add`"):
        registry.push("mallory", "cards", source)
    assert files(registry) == []


# Aliases and rollback


def test_aliases_move_and_go(registry: Registry, source: Path) -> None:
    for _ in range(3):
        registry.push("ann", "cards", source)
    assert registry.set_alias("ann", "cards", "stable", 1, by="me").aliases == ("stable",)
    assert registry.set_alias("ann", "cards", "stable", "latest").aliases == ("latest", "stable")
    assert registry.resolve("ann", "ann/cards@stable").number == 3
    registry.drop_alias("ann", "cards", "stable")
    for wrong in (
        lambda: registry.drop_alias("ann", "cards", "stable"),
        lambda: registry.get("ann", "cards", "stable"),
    ):
        with pytest.raises(PrefixNotFound):
            wrong()
    with pytest.raises(PrefixNotFound):
        registry.set_alias("ann", "cards", "stable", 4)
    told = [(x.action, x.number, x.detail) for x in registry.audit("ann", name="cards")][3:]
    assert told == [
        ("alias", 1, {"alias": "stable", "was": None}),
        ("alias", 3, {"alias": "stable", "was": 1}),
        ("drop-alias", 3, {"alias": "stable"}),
    ]


def test_rollback_goes_to_the_version_before_that_is_there(registry: Registry, source: Path) -> None:
    for _ in range(4):
        registry.push("ann", "cards", source)
    registry.delete("ann", "cards", 3)
    assert registry.rollback("ann", "cards").number == 2
    assert registry.rollback("ann", "cards", by="me").number == 1
    with pytest.raises(BadValue, match="ann/cards@latest is version 1, before which there is none"):
        registry.rollback("ann", "cards")
    assert registry.get("ann", "cards").number == 1
    assert registry.push("ann", "cards", source).number == 5
    assert registry.get("ann", "cards").number == 5
    with pytest.raises(PrefixNotFound):
        registry.rollback("ann", "cards", "stable")


def test_a_prefix_has_so_many_aliases_and_no_more(registry: Registry, source: Path) -> None:
    registry.push("ann", "cards", source)
    for number in range(99):
        registry.set_alias("ann", "cards", f"a{number}", 1)
    registry.set_alias("ann", "cards", "a0", 1)
    with pytest.raises(BadValue, match="has 100 aliases, and no room for 'more'"):
        registry.set_alias("ann", "cards", "more", 1)


# Deletion


def test_a_deleted_version_is_refused_and_its_bytes_are_gone(registry: Registry, source: Path) -> None:
    for _ in range(3):
        registry.push("ann", "cards", source)
    registry.set_alias("ann", "cards", "stable", 3)
    assert registry.delete("ann", "cards", 3, by="me") == 1
    assert files(registry) == ["ann/cards/1.safetensors", "ann/cards/2.safetensors"]
    for ref in ("cards@3", "cards@stable"):
        with pytest.raises(PrefixNotFound):
            registry.resolve("ann", ref)
    # latest goes to the version before; another alias does not become something else by itself.
    assert registry.get("ann", "cards").number == 2
    assert registry.get("ann", "cards").aliases == ("latest",)
    with pytest.raises(PrefixNotFound):
        registry.delete("ann", "cards", 3)
    assert registry.push("ann", "cards", source).number == 4
    assert registry.verify().is_clean


def test_a_deleted_name_is_gone_and_its_numbers_are_not_given_again(registry: Registry, source: Path) -> None:
    for _ in range(2):
        registry.push("ann", "cards", source)
    registry.share("ann", "cards", "bob")
    assert registry.delete("ann", "cards", by="me") == 2
    assert files(registry) == []
    assert list(Path(registry.store_address).iterdir()) == [Path(registry.store_address) / ".epigraph-registry"]
    assert registry.list("ann").names == registry.list("bob").names == ()
    wrong: list[Callable[[], object]] = [
        lambda: registry.get("ann", "cards"),
        lambda: registry.versions("ann", "cards"),
        lambda: registry.delete("ann", "cards"),
        lambda: registry.share("ann", "cards", "bob"),
        lambda: registry.rollback("ann", "cards"),
    ]
    for attempt in wrong:
        with pytest.raises(PrefixNotFound):
            attempt()
    assert registry.tenants.get("ann").num_prefixes == 0
    assert registry.tenants.get("ann").num_bytes == 0
    made = registry.push("ann", "cards", source)
    assert made.number == 3
    assert registry.push("ann", "cards", source).number == 4
    # Who could use the old one may not use the new one.
    with pytest.raises(PrefixNotFound):
        registry.resolve("bob", "ann/cards")
    assert actions(registry, "ann", "cards") == [
        ("push", 1),
        ("push", 2),
        ("share", None),
        ("delete", None),
        ("push", 3),
        ("push", 4),
    ]
    [deleted] = [x for x in registry.audit("ann") if x.action == "delete"]
    assert (deleted.by, deleted.detail) == ("me", {"numbers": [1, 2]})


def test_a_version_may_be_deleted_by_its_alias(registry: Registry, source: Path) -> None:
    registry.push("ann", "cards", source)
    assert registry.delete("ann", "cards", "latest") == 1
    with pytest.raises(PrefixNotFound):
        registry.get("ann", "cards", 1)
    assert registry.list("ann").names == ()


def test_bytes_that_cannot_be_removed_leave_a_version_that_is_refused(
    registry: Registry, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.push("ann", "cards", source)
    delete = Store.delete

    def away(self: Store, paths: object) -> None:
        raise StoreUnavailable("the store is away")

    monkeypatch.setattr(Store, "delete", away)
    with pytest.raises(StoreUnavailable):
        registry.delete("ann", "cards")
    assert files(registry) == ["ann/cards/1.safetensors"]
    with pytest.raises(PrefixNotFound):
        registry.get("ann", "cards")
    found = registry.verify()
    assert (found.undeleted, found.is_clean) == (("ann/cards@1",), False)
    monkeypatch.setattr(Store, "delete", delete)
    assert registry.delete("ann", "cards") == 1
    assert files(registry) == []
    with pytest.raises(PrefixNotFound):
        registry.delete("ann", "cards")
    assert registry.verify().is_clean


@pytest.mark.parametrize("whole", [True, False])
def test_a_push_of_a_name_that_is_deleted_meanwhile(
    registry: Registry, source: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    registry.push("ann", "cards", source)
    put = Store.put

    def then_deleted(self: Store, *given: Any) -> None:
        put(self, *given)
        assert registry.delete("ann", "cards", None if whole else 1) == (2 if whole else 1)

    monkeypatch.setattr(Store, "put", then_deleted)
    if whole:
        with pytest.raises(PrefixNotFound, match="ann/cards@2 was deleted while it was pushed"):
            registry.push("ann", "cards", source)
        assert (files(registry), registry.list("ann").names) == ([], ())
    else:
        assert registry.push("ann", "cards", source).aliases == ("latest",)
        assert files(registry) == ["ann/cards/2.safetensors"]
    assert registry.verify().is_clean


def test_a_push_does_not_bring_back_what_is_half_deleted(
    registry: Registry, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Store.put

    def away(self: Store, paths: object) -> None:
        raise StoreUnavailable("the store is away")

    def then_half_deleted(self: Store, *given: Any) -> None:
        put(self, *given)
        monkeypatch.setattr(Store, "delete", away)
        with pytest.raises(StoreUnavailable):
            registry.delete("ann", "cards")

    monkeypatch.setattr(Store, "put", then_half_deleted)
    with pytest.raises(PrefixNotFound, match="was deleted while it was pushed"):
        registry.push("ann", "cards", source)
    with pytest.raises(PrefixNotFound):
        registry.resolve("ann", "cards@1")
    monkeypatch.undo()
    assert registry.verify(repair=True).undeleted == ("ann/cards@1",)
    assert (files(registry), registry.verify().is_clean) == ([], True)


# Shares


def test_a_prefix_is_used_by_those_it_is_shared_with(registry: Registry, source: Path) -> None:
    made = registry.push("ann", "cards", source)
    for reader in ("bob", "eve"):
        with pytest.raises(PrefixNotFound):
            registry.resolve(reader, "ann/cards")
    registry.share("ann", "cards", "bob", by="me")
    registry.share("ann", "cards", "bob", by="me")
    assert registry.shares("ann", "cards") == ("bob",)
    assert registry.resolve("bob", "ann/cards") == registry.resolve("bob", "ann/cards@1") == made
    # Without a tenant a name is one of the reader's own, and using is not owning.
    for attempt in (
        lambda: registry.resolve("bob", "cards"),
        lambda: registry.resolve("eve", "ann/cards"),
        lambda: registry.get("bob", "cards"),
        lambda: registry.delete("bob", "cards"),
    ):
        with pytest.raises(PrefixNotFound):
            attempt()
    assert registry.list("bob").names == ("ann/cards",)
    registry.unshare("ann", "cards", "bob")
    with pytest.raises(PrefixNotFound):
        registry.resolve("bob", "ann/cards")
    with pytest.raises(BadValue, match="not shared with 'bob'"):
        registry.unshare("ann", "cards", "bob")
    with pytest.raises(BadValue, match="ann/cards is ann's own"):
        registry.share("ann", "cards", "ann")
    with pytest.raises(TenantNotFound):
        registry.share("ann", "cards", "nobody")
    assert [x.action for x in registry.audit("ann", name="cards")] == ["push", "share", "unshare"]


# Two of them on one database


def test_two_registries_see_each_other_at_once(catalogue: str, registry: Registry, source: Path) -> None:
    with Registry.open(catalogue, registry.store_address) as other:
        registry.push("ann", "cards", source)
        assert other.resolve("ann", "cards").number == 1
        other.push("ann", "cards", source)
        assert registry.resolve("ann", "cards").number == 2
        other.rollback("ann", "cards")
        assert registry.resolve("ann", "cards").number == 1
        registry.share("ann", "cards", "bob")
        assert other.list("bob").names == ("ann/cards",)
        other.delete("ann", "cards", 1)
        with pytest.raises(PrefixNotFound):
            registry.resolve("ann", "cards@1")
        _, secret = other.tenants.make_key("ann", scopes={"use"})
        key = registry.tenants.who(secret).key_id
        registry.tenants.revoke(key)
        with pytest.raises(EpigraphError):
            other.tenants.who(secret)


# Quotas


def test_quotas_on_prefixes_and_bytes(registry: Registry, source: Path) -> None:
    size = source.stat().st_size
    registry.tenants.set_quotas("ann", Quotas(prefixes=2, bytes=3 * size))
    for name in ("a", "b"):
        registry.push("ann", name, source)
    with pytest.raises(QuotaExceeded, match="tenant ann has 2 prefixes and would have 3, expected at most 2") as full:
        registry.push("ann", "c", source)
    assert full.value.retry_after > 60
    registry.push("ann", "a", source)
    with pytest.raises(QuotaExceeded, match="bytes and would have"):
        registry.push("ann", "a", source)
    assert len(files(registry)) == 3
    registry.delete("ann", "b")
    registry.push("ann", "c", source)
    assert registry.tenants.get("ann").num_prefixes == 2
    assert registry.tenants.get("ann").num_bytes == 3 * size
    # What is there stays where less is allowed afterwards.
    registry.tenants.set_quotas("ann", Quotas(prefixes=0, bytes=0))
    assert registry.resolve("ann", "a").number == 2


# Lists


def test_lists_in_pages(registry: Registry, source: Path) -> None:
    registry.tenants.add("bo")
    names = ["B", "a", "a-", "a.b", "a_b", "b"]
    for tenant in ("ann", "bob", "bo"):
        for name in names:
            registry.push(tenant, name, source)
    for name in ("a", "b"):
        registry.share("ann", name, "bob")
        registry.share("bo", name, "bob")
    want = ["ann/a", "ann/b", "bo/a", "bo/b", *(f"bob/{name}" for name in names)]
    assert list(registry.list("bob").names) == want
    assert registry.list("bob").next == ""
    for limit in range(1, len(want) + 2):
        seen: list[str] = []
        after, pages = "", 0
        while True:
            page = registry.list("bob", after=after, limit=limit)
            seen += page.names
            pages += 1
            if not (after := page.next):
                break
        assert (seen, pages) == (want, -(-len(want) // limit))
    assert [x.num_versions for x in registry.list("eve").prefixes] == []


def test_lists_are_searched(registry: Registry, source: Path) -> None:
    for name in ("menu", "Menu-cards", "letters", "a_b", "axb"):
        registry.push("ann", name, source)
    registry.share("ann", "menu", "bob")
    assert registry.list("ann", search="MENU").names == ("ann/Menu-cards", "ann/menu")
    assert registry.list("ann", search="MENU", limit=1).next == "ann/Menu-cards"
    # What means something in a pattern means itself.
    assert registry.list("ann", search="a_b").names == ("ann/a_b",)
    assert registry.list("ann", search="%").names == ()
    assert registry.list("ann", search="x\0").names == ()
    assert registry.list("bob", search="en").names == ("ann/menu",)
    assert registry.list("bob", search="ann").names == ()


@pytest.mark.parametrize(
    "given", [{"limit": 0}, {"limit": 1001}, {"after": "ann"}, {"after": "ann/x@1"}, {"after": "a/b/c"}]
)
def test_pages_that_there_are_not(registry: Registry, given: dict[str, Any]) -> None:
    with pytest.raises(BadValue, match="page"):
        registry.list("ann", **given)


# The record


def test_the_record_is_in_pages_and_nobody_changes_it(registry: Registry, source: Path) -> None:
    for number in range(5):
        registry.push("ann", "ab"[number % 2], source, by=f"key-{number}")
    every = registry.audit("ann")
    assert [x.action for x in every] == ["add-tenant", *["push"] * 5]
    assert [x.by for x in registry.audit("ann", name="a")] == ["key-0", "key-2", "key-4"]
    assert registry.audit("ann", after=every[2].id, limit=2) == every[3:5]
    assert registry.audit("bob", name="a") == ()
    for statement in ("UPDATE audit SET done_by = 'nobody'", "DELETE FROM audit"):
        with (
            pytest.raises(Exception, match="rows of audit are never changed"),
            registry._database.writing() as connection,
        ):
            connection.exec_driver_sql(statement)
    assert registry.audit("ann") == every


def test_words_for_the_record_are_checked(registry: Registry, source: Path) -> None:
    for by in ("x" * 501, "a\nb", "a\0b"):
        with pytest.raises(BadValue, match="by is"):
            registry.push("ann", "cards", source, by=by)
        with pytest.raises(BadValue, match="by is"):
            registry.tenants.add("new", by=by)
    assert files(registry) == []
    with pytest.raises(TenantNotFound):
        registry.tenants.get("new")


# Bases


def test_a_base_that_stands_for_another(registry: Registry) -> None:
    twin, other = "d" * 64, "e" * 64
    assert registry.admitted(twin) == frozenset()
    registry.allow_base(BASE, twin, by="me", why="the same weights in 8 bits, 0.1 BLEU apart")
    registry.allow_base(BASE, twin, by="me", why="again")
    registry.allow_base(other, twin, by="me", why="and another")
    assert registry.admitted(twin) == {BASE, other}
    # It is no two-way street.
    assert registry.admitted(BASE) == frozenset()
    assert [x.detail["why"] for x in registry.audit("")] == [
        "the same weights in 8 bits, 0.1 BLEU apart",
        "and another",
    ]
    registry.refuse_base(BASE, twin, by="me")
    assert registry.admitted(twin) == {other}
    with pytest.raises(BadValue, match="was not admitted"):
        registry.refuse_base(BASE, twin, by="me")
    for trained, admitted, why in ((BASE[:12], twin, "x"), (BASE, "D" * 64, "x"), (BASE, BASE, "x"), (BASE, twin, " ")):
        with pytest.raises(BadValue):
            registry.allow_base(trained, admitted, by="me", why=why)


# Addresses


def test_opening_and_closing(tmp_path: Path, source: Path) -> None:
    catalogue = tmp_path / "deep" / "er" / "c.sqlite"
    with Registry.open(f"sqlite:///{catalogue}", f"file://{tmp_path}/s") as registry:
        registry.tenants.ensure(LOCAL)
        registry.check()
        registry.push(LOCAL, "cards", source)
    registry.close()
    with Registry.open(catalogue, tmp_path / "s") as again:
        assert again.get(LOCAL, "cards").number == 1
        assert again.store_address == str(tmp_path / "s")
        assert again.verify().is_clean


def test_two_catalogues_do_not_write_into_one_store(tmp_path: Path, source: Path) -> None:
    with (
        Registry.open(tmp_path / "1.sqlite", tmp_path / "s") as one,
        Registry.open(tmp_path / "2.sqlite", tmp_path / "s") as two,
    ):
        for registry in (one, two):
            registry.tenants.ensure(LOCAL)
        one.push(LOCAL, "cards", source)
        for attempt in (lambda: two.push(LOCAL, "cards", source), two.check, two.verify, two.adopt_store):
            with pytest.raises(StoreUnavailable, match="belongs to another catalogue"):
                attempt()
        assert two.list(LOCAL).names == ()
        assert one.verify().is_clean


def test_an_empty_mount_does_not_pass_for_the_store(tmp_path: Path, source: Path) -> None:
    store = tmp_path / "s"
    with Registry.open(tmp_path / "c.sqlite", store) as registry:
        registry.tenants.ensure(LOCAL)
        registry.push(LOCAL, "cards", source)
        store.rename(tmp_path / "elsewhere")
        store.mkdir()
        for attempt in (
            registry.check,
            registry.verify,
            lambda: registry.push(LOCAL, "cards", source),
            lambda: registry.delete(LOCAL, "cards"),
        ):
            with pytest.raises(StoreUnavailable, match="has no mark of this catalogue; see that it is mounted"):
                attempt()
        store.rmdir()
        (tmp_path / "elsewhere").rename(store)
        # It was refused from then on, and the bytes go now.
        with pytest.raises(PrefixNotFound):
            registry.get(LOCAL, "cards")
        assert registry.verify(repair=True).undeleted == ("local/cards@1",)
        assert (files(registry), registry.verify().is_clean) == ([], True)
        (store / ".epigraph-registry").unlink()
        registry.adopt_store()
        registry.check()


def test_what_is_not_an_address(tmp_path: Path) -> None:
    for catalogue in ("mysql://me:hunter2@host/db", "sqlite://", "sqlite:///:memory:", "nonsense://me:hunter2@x"):
        with pytest.raises(BadValue) as wrong:
            Registry.open(catalogue, tmp_path)
        assert "hunter2" not in str(wrong.value)
    with pytest.raises(StoreUnavailable, match="give a folder or an fsspec address") as none:
        Registry.open(tmp_path / "c.sqlite", "nonsense://me:hunter2@x/y")
    assert "hunter2" not in str(none.value)


def test_a_version_as_json(registry: Registry, source: Path) -> None:
    """What it holds is plain data, for whoever prints it."""
    made = registry.push("ann", "cards", source)
    assert isinstance(made, Version)
    assert json.loads(json.dumps({"provenance": made.provenance, "scores": made.scores}))
    assert content().method == made.method


def test_names_that_are_alike_but_for_capitals(registry: Registry) -> None:
    with pytest.raises(AlreadyThere, match="tenant ann is there, or was"):
        registry.tenants.add("Ann")
    with pytest.raises(BadName):
        registry.tenants.add("änn")
