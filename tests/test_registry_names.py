"""What somebody may try with names, references and other tenants' prefixes, each attempt a row of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from epigraph.engine.claim import check_id
from epigraph.errors import BadKey, BadName, BadValue, EpigraphError, PrefixNotFound, TenantNotFound
from epigraph.registry import Registry
from epigraph.registry.refs import parse_ref, parse_wanted
from registry_worker import saved

# No tenant, prefix or alias may be called so, and nothing is found under it.
BAD = {
    "empty": "",
    "a dot": ".",
    "two dots": "..",
    "up and away": "../eve",
    "up from within": "x/../../eve",
    "a root": "/etc",
    "backslashes": "..\\eve",
    "hidden": ".epigraph-registry",
    "a slash": "a/b",
    "a slash at the end": "a/",
    "an encoded slash": "a%2fb",
    "a blank": "a b",
    "a line": "a\n",
    "a line and a name": "secret\ncards",
    "a zero": "secret\0",
    "a star": "*",
    "SQL": "' OR 1=1 --",
    "a pattern": "secr%",
    "another letter that looks alike": "s\u0435cret",
    "full width": "\uff53ecret",
    "a combining mark": "secre\u0301t",
    "other digits": "\u0661",
    "turned around": "\u202etercss",
    "half a character": "\ud800",
    "a version": "secret@1",
    "an ensemble": "secret+other",
    "a scheme": "s3:secret",
    "a dash first": "-rf",
    "too long": "x" * 129,
    "very long": "x" * 1_000_000,
}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Ann has a secret in three versions, one deleted; bob has it shared and eve has not."""
    folder = tmp_path_factory.mktemp("registry")
    with Registry.open(folder / "c.sqlite", folder / "store") as opened:
        for tenant in ("ann", "bob", "eve", "mallory"):
            opened.tenants.add(tenant)
        source = saved(folder / "files")
        for _ in range(3):
            opened.push("ann", "secret", source)
        opened.delete("ann", "secret", 2)
        opened.set_alias("ann", "secret", "stable", 1)
        opened.share("ann", "secret", "bob")
        opened.push("ann", "deleted", source)
        opened.share("ann", "deleted", "eve")
        opened.delete("ann", "deleted")
        opened.push("ann", "unshared", source)
        opened.share("ann", "unshared", "eve")
        opened.unshare("ann", "unshared", "eve")
        opened.push("eve", "own", source)
        opened.push("mallory", "gone", source)
        opened.share("mallory", "gone", "eve")
        opened.tenants.remove("mallory")
        yield opened


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return saved(tmp_path)


def everything(registry: Registry) -> dict[str, bytes]:
    root = Path(registry.store_address)
    return {x.relative_to(root.parent).as_posix(): x.read_bytes() for x in root.parent.rglob("*.safetensors")}


@pytest.mark.parametrize("name", BAD.values(), ids=BAD)
def test_names_that_nothing_may_have(registry: Registry, source: Path, name: str) -> None:
    before = everything(registry)
    attempts: list[Callable[[], object]] = [
        lambda: registry.push("ann", name, source),
        lambda: registry.push(name, "cards", source),
        lambda: registry.push("ann", "cards", source, aliases=[name]),
        lambda: registry.set_alias("ann", "secret", name, 1),
        lambda: registry.tenants.add(name),
    ]
    for attempt in attempts:
        with pytest.raises(BadName) as wrong:
            attempt()
        assert len(str(wrong.value)) < 2000
        assert "\n" not in str(wrong.value)
    assert everything(registry) == before


@pytest.mark.parametrize("name", BAD.values(), ids=BAD)
def test_names_under_which_nothing_is_found(registry: Registry, name: str) -> None:
    attempts: list[Callable[[], object]] = [
        lambda: registry.resolve("eve", name),
        lambda: registry.resolve("eve", f"ann/{name}"),
        lambda: registry.resolve("eve", f"{name}/secret"),
        lambda: registry.resolve("eve", f"own@{name}"),
        lambda: registry.get("ann", name),
        lambda: registry.get("ann", "secret", name),
        lambda: registry.delete("ann", name),
        lambda: registry.delete("ann", "secret", name or ".."),
        lambda: registry.rollback("ann", name),
        lambda: registry.versions("ann", name),
        lambda: registry.share("ann", name, "bob"),
    ]
    for attempt in attempts:
        with pytest.raises(PrefixNotFound) as wrong:
            attempt()
        assert len(str(wrong.value)) < 2000
    assert registry.versions("ann", "secret")
    for attempt in (registry.tenants.get, registry.tenants.remove, registry.tenants.keys):
        with pytest.raises(TenantNotFound):
            attempt(name)
    with pytest.raises(TenantNotFound):
        registry.share("ann", "secret", name)
    with pytest.raises(BadValue):
        registry.unshare("ann", "secret", name)
    with pytest.raises(BadKey):
        registry.tenants.key(name)
    assert registry.list(name).names == registry.shares("ann", name) == registry.shares(name, "secret") == ()
    assert registry.audit("ann", name=name) == (registry.audit("ann") if name == "" else ())
    assert registry.admitted(name) == frozenset()


# What a reader asks for, and what he is told where he may not have it: always the same, but for his own words.
ASKED = {
    "another's": "ann/secret",
    "another's first version": "ann/secret@1",
    "another's alias": "ann/secret@stable",
    "a deleted version": "ann/secret@2",
    "a version to come": "ann/secret@4",
    "version 0": "ann/secret@0",
    "a version with zeros before it": "ann/secret@01",
    "a version with a sign": "ann/secret@-1",
    "a version beyond all numbers": "ann/secret@" + "9" * 30,
    "a version as another number": "ann/secret@1.0",
    "a version in other digits": "ann/secret@\u0661",
    "no version": "ann/secret@",
    "two versions": "ann/secret@1@1",
    "what was deleted": "ann/deleted",
    "what was shared once": "ann/unshared",
    "what a removed tenant shared": "mallory/gone",
    "a tenant that is not there": "nobody/secret",
    "a name that is not there": "ann/nothing",
    "another's as one's own": "secret",
    "one's own under another's name": "ann/own",
    "one's own by a way around": "eve/../ann/secret",
    "another's bytes": "ann/secret/1",
    "another's file": "ann/secret/1.safetensors",
    "capitals": "ANN/SECRET",
    "two slashes": "ann//secret",
    "a slash before": "/ann/secret",
    "a blank before": " ann/secret",
    "a line behind": "ann/secret\n",
    "a zero behind": "ann/secret\0",
    "an ensemble": "eve/own+ann/secret",
    "a pattern for tenant": "%/secret",
    "a pattern for one letter": "an_/secret",
    "SQL": "ann/secret' --",
    "an address": "file:///ann/secret",
}


@pytest.mark.parametrize("ref", ASKED.values(), ids=ASKED)
def test_foreign_and_missing_prefixes_are_refused_alike(registry: Registry, ref: str) -> None:
    with pytest.raises(PrefixNotFound) as wrong:
        registry.resolve("eve", ref)
    with pytest.raises(PrefixNotFound) as nothing:
        registry.resolve("eve", "nobody/nothing")
    assert str(wrong.value) == str(nothing.value).replace("'nobody/nothing'", repr(ref[:200]))


def test_what_may_be_asked_for(registry: Registry) -> None:
    for ref in ("ann/secret", "ann/secret@3", "ann/secret@latest", "ann/secret@1", "ann/secret@stable"):
        assert registry.resolve("ann", ref) == registry.resolve("bob", ref)
    assert registry.resolve("eve", "own").tenant == registry.resolve("eve", "eve/own@latest").tenant == "eve"


# What a tenant does to another's prefix that it may use, or may not.
DONE: dict[str, Callable[[Registry, str], object]] = {
    "get": lambda registry, who: registry.get(who, "secret"),
    "list its versions": lambda registry, who: registry.versions(who, "secret"),
    "name": lambda registry, who: registry.set_alias(who, "secret", "mine", 1),
    "take a name away": lambda registry, who: registry.drop_alias(who, "secret", "stable"),
    "roll back": lambda registry, who: registry.rollback(who, "secret"),
    "delete": lambda registry, who: registry.delete(who, "secret"),
    "delete a version": lambda registry, who: registry.delete(who, "secret", 1),
    "share on": lambda registry, who: registry.share(who, "secret", "eve"),
    "unshare": lambda registry, who: registry.unshare(who, "secret", "bob"),
    "delete by a way around": lambda registry, who: registry.delete(who, "../ann/secret"),
    "delete as the owner, with blanks": lambda registry, who: registry.delete("ann ", "secret"),
    "delete as the owner, with capitals": lambda registry, who: registry.delete("Ann", "secret"),
}


@pytest.mark.parametrize("who", ["bob", "eve", "nobody", "mallory"])
@pytest.mark.parametrize("attempt", DONE.values(), ids=DONE)
def test_using_is_not_owning(registry: Registry, attempt: Callable[[Registry, str], object], who: str) -> None:
    before = everything(registry), registry.versions("ann", "secret"), registry.shares("ann", "secret")
    with pytest.raises((PrefixNotFound, TenantNotFound)):
        attempt(registry, who)
    assert (everything(registry), registry.versions("ann", "secret"), registry.shares("ann", "secret")) == before


def test_a_list_shows_nothing_of_others(registry: Registry) -> None:
    assert registry.list("eve").names == ("eve/own",)
    assert registry.list("bob").names == ("ann/secret",)
    assert registry.list("mallory").names == registry.list("nobody").names == ()
    assert registry.list("eve", after="ann/a").names == ("eve/own",)
    assert registry.list("eve", search="secret").names == ()
    assert registry.shares("eve", "secret") == ()


@pytest.mark.parametrize("number", ["1", "01", "9" * 20, "0"])
def test_no_alias_can_be_taken_for_a_number(registry: Registry, number: str) -> None:
    with pytest.raises(BadName, match="which is a version's number"):
        registry.set_alias("ann", "secret", number, 1)


def test_every_good_reference_is_one_that_engines_take(registry: Registry) -> None:
    for version in (*registry.versions("ann", "secret"), registry.get("eve", "own")):
        check_id(version.prefix, str(version.number), version.tenant)
        assert version.path == f"{version.prefix}/{version.number}.safetensors"


def test_numbers_and_aliases_are_told_apart() -> None:
    assert (parse_wanted(3), parse_wanted("3"), parse_wanted("v3")) == (
        parse_wanted("3"),
        parse_wanted(3),
        parse_wanted("v3"),
    )
    meant = [parse_wanted(x) for x in ("3", "v3", "0", "03", "9" * 10, "", "a b", -1)]
    assert [x and (x.number, x.alias) for x in meant] == [(3, ""), (None, "v3"), *[None] * 6]
    assert parse_ref("a/b@c", "x", "latest") == parse_ref("a/b@c", "y", "other")


def test_errors_are_of_the_tree(registry: Registry) -> None:
    for ref in (*ASKED.values(), *BAD.values()):
        with pytest.raises(EpigraphError):
            registry.resolve("eve", ref)
