"""`epigraph registry`, `tenants` and `keys`, as a person or a script runs them."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from epigraph import artifact
from epigraph.registry import Registry
from folders import call, printed, refused
from registry_worker import BASE, saved

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry of nothing, to be copied: making its schema takes longer than most tests."""
    folder = tmp_path_factory.mktemp("home") / "registry"
    Registry.open(folder / "catalogue.sqlite", folder / "prefixes").close()
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "home" / "registry")
    monkeypatch.setenv("EPIGRAPH_HOME", str(tmp_path / "home"))
    for name in ("EPIGRAPH_CATALOGUE", "EPIGRAPH_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder as training and two evaluations leave it."""
    folder = tmp_path / "cards"
    (folder / "evaluations").mkdir(parents=True)
    (folder / artifact.FILE_NAME).write_bytes(saved(tmp_path / "files").read_bytes())
    (folder / "steps.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    for name, bleu in (("before", 4.5), ("after", 57.5)):
        record = {"name": name, "split": "test", "scores": {"bleu": bleu}, "num_examples": 10}
        (folder / "evaluations" / f"{name}-test.json").write_text(json.dumps(record))
    return folder


def told(capsys: Capture, *words: object) -> Any:
    return json.loads(printed(capsys, *words, "--json"))


def test_a_laptop_pushes_shows_rolls_back_and_deletes(capsys: Capture, run: Path, home: Path) -> None:
    made = told(capsys, "registry", "push", "cards")
    assert (made["id"], made["number"], made["aliases"]) == ("local/cards@1", 1, ["latest"])
    assert made["scores"] == {"test": {"bleu": 57.5}}
    assert (home / "registry" / "catalogue.sqlite").is_file()
    assert (home / "registry" / "prefixes" / "local" / "cards" / "1.safetensors").is_file()
    said = printed(capsys, "registry", "push", run, "cards", "--alias", "stable", "--no-latest")
    assert said.startswith("local/cards@2 ")
    assert "test bleu 57.5" in said
    assert told(capsys, "registry", "list") == {"prefixes": [{"id": "local/cards", "num_versions": 2}], "next": ""}
    shown = told(capsys, "registry", "show", "cards@stable")
    assert [(x["number"], x["aliases"]) for x in shown["versions"]] == [(1, ["latest"]), (2, ["stable"])]
    assert (shown["number"], shown["base_fingerprint"], shown["provenance"]["seed"]) == (2, BASE, 0)
    assert told(capsys, "registry", "alias", "cards", "latest", 2)["aliases"] == ["latest", "stable"]
    assert told(capsys, "registry", "rollback", "cards")["number"] == 1
    assert printed(capsys, "registry", "delete", "cards@2") == "deleted 1 version\n"
    assert told(capsys, "registry", "verify")["is_clean"] is True
    assert "cards would go in all its versions; say --yes" in refused(capsys, "registry", "delete", "local/cards")
    assert told(capsys, "registry", "delete", "cards", "--yes") == {"deleted": 1}
    assert "no prefix 'local/cards@latest' that tenant 'local' may use" in refused(capsys, "registry", "show", "cards")
    actions = [x["action"] for x in told(capsys, "registry", "audit", "cards")]
    assert actions == ["push", "push", "alias", "rollback", "delete", "delete"]
    table = printed(capsys, "registry", "audit")
    assert "at the command line" in table
    assert "alias stable" not in table


def test_scores_from_a_file(capsys: Capture, run: Path, tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text('{"ours": 3}')
    assert told(capsys, "registry", "push", "cards", "--scores", "own.json")["scores"] == {"ours": 3}
    record = '{"split": "dev", "scores": {"rouge": 1.5}, "examples": ["of a customer"]}'
    (tmp_path / "record.json").write_text(record)
    assert told(capsys, "registry", "push", "cards", "--scores", "record.json")["scores"] == {"dev": {"rouge": 1.5}}
    assert "ours  3" in re.sub("[│ ]+", "  ", printed(capsys, "registry", "show", "cards@1"))
    for text, words in (
        ("[1]", "holds a list"),
        ("{", "cannot be read as scores"),
        ('{"a": NaN}', "the scores are no JSON"),
    ):
        (tmp_path / "bad.json").write_text(text)
        assert words in refused(capsys, "registry", "push", "cards", "--scores", "bad.json")
    assert "No such file" in refused(capsys, "registry", "push", "cards", "--scores", "nothing.json")
    # A file that is no run's has none.
    assert told(capsys, "registry", "push", tmp_path / "files" / "0.safetensors", "x")["scores"] == {}


def test_where_it_is_kept(
    capsys: Capture, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    places = ("--catalogue", tmp_path / "mine.sqlite", "--store", tmp_path / "mine")
    told(capsys, "registry", "push", "cards", *places)
    assert (tmp_path / "mine" / "local" / "cards" / "1.safetensors").is_file()
    assert not (home / "registry" / "prefixes").exists()
    monkeypatch.setenv("EPIGRAPH_CATALOGUE", f"sqlite:///{tmp_path}/mine.sqlite")
    monkeypatch.setenv("EPIGRAPH_STORE", f"file://{tmp_path}/mine")
    assert told(capsys, "registry", "list")["prefixes"] == [{"id": "local/cards", "num_versions": 1}]


def test_tenants_keys_and_shares(capsys: Capture, run: Path, home: Path) -> None:
    assert told(capsys, "tenants", "add", "ann", "--prefixes", 10)["quotas"]["prefixes"] == 10
    printed(capsys, "tenants", "add", "bob")
    assert [x["name"] for x in told(capsys, "tenants", "list")] == ["ann", "bob", "local"]
    changed = told(capsys, "tenants", "quotas", "ann", "--bytes", 1_000_000, "--concurrent", 4)["quotas"]
    assert (changed["prefixes"], changed["bytes"], changed["concurrent"]) == (10, 1_000_000, 4)
    assert told(capsys, "tenants", "quotas", "ann", "--prefixes", "none")["quotas"]["prefixes"] is None
    assert "expected a number of 0 or more, or none" in refused(capsys, "tenants", "quotas", "ann", "--bytes", "many")
    told(capsys, "registry", "push", "cards", "ann/cards")
    printed(capsys, "registry", "share", "ann/cards", "bob")
    assert told(capsys, "registry", "show", "ann/cards")["shared_with"] == ["bob"]
    assert "shared with bob" in printed(capsys, "registry", "show", "ann/cards")
    assert "ann/cards" in printed(capsys, "registry", "list", "--tenant", "bob")
    printed(capsys, "registry", "unshare", "ann/cards", "bob")
    assert told(capsys, "registry", "list", "--tenant", "bob")["prefixes"] == []
    made = told(
        capsys, "keys", "make", "ann", "--scope", "use", "--scope", "push", "--expires-days", 30, "--note", "laptop"
    )
    assert (made["scopes"], made["note"], made["good"]) == (["push", "use"], "laptop", True)
    said = printed(capsys, "keys", "make", "ann").splitlines()
    assert len(said) == 2
    assert said[1].startswith("epk_")
    listed = printed(capsys, "keys", "list", "ann")
    assert made["id"] in listed
    assert made["secret"] not in listed
    rotated = told(capsys, "keys", "rotate", made["id"], "--grace-minutes", 5)
    with Registry.open(home / "registry" / "catalogue.sqlite", home / "registry" / "prefixes") as registry:
        for secret in (made["secret"], rotated["secret"], said[1]):
            assert registry.tenants.who(secret).tenant == "ann"
        printed(capsys, "keys", "revoke", rotated["id"])
        assert registry.tenants.key(rotated["id"]).revoked is not None
    assert "revoked" in printed(capsys, "keys", "list", "ann")
    assert "tenant ann would go with all it has; say --yes" in refused(capsys, "tenants", "remove", "ann")
    assert told(capsys, "tenants", "remove", "ann", "--yes") == {"deleted": 1}
    assert "no tenant 'ann'" in refused(capsys, "keys", "list", "ann")


def test_lists_in_pages(capsys: Capture, run: Path) -> None:
    for name in "abc":
        told(capsys, "registry", "push", "cards", name)
    assert "more: --after local/b\n" in printed(capsys, "registry", "list", "--limit", 2)
    assert "more" not in printed(capsys, "registry", "list", "--limit", 2, "--after", "local/b")
    assert told(capsys, "registry", "list", "B")["prefixes"] == [{"id": "local/b", "num_versions": 1}]


def test_verify_says_what_is_wrong_and_exits_with_2(capsys: Capture, run: Path, home: Path) -> None:
    told(capsys, "registry", "push", "cards")
    store = home / "registry" / "prefixes"
    assert re.match(r"1 version, .*: well\n", printed(capsys, "registry", "verify"))
    told(capsys, "registry", "push", "cards")
    told(capsys, "registry", "delete", "cards@2")
    (store / "local" / "cards" / "2.safetensors").write_bytes(b"late")
    assert call("registry", "verify") == 2
    said = capsys.readouterr().out
    assert "orphans" in said
    assert "not well; --repair takes away" in said
    assert "well" in printed(capsys, "registry", "verify", "--repair")
    (store / "local" / "cards" / "1.safetensors").write_bytes(b"changed")
    assert call("registry", "verify", "--quick", "--json") == 2
    assert json.loads(capsys.readouterr().out)["changed"] == ["local/cards@1"]
    (store / ".epigraph-registry").unlink()
    assert "--adopt" in refused(capsys, "registry", "verify")
    assert call("registry", "verify", "--adopt") == 2
    capsys.readouterr()


def test_a_base_is_admitted_on_record(capsys: Capture) -> None:
    twin = "d" * 64
    assert "the reason is empty" in refused(capsys, "registry", "allow-base", BASE, twin)
    assert "expected all of its 64" in refused(capsys, "registry", "allow-base", BASE[:12], twin, "--why", "x")
    printed(capsys, "registry", "allow-base", BASE, twin, "--why", "the same in 8 bits")
    [entry] = told(capsys, "registry", "audit", "--tenant", "")
    assert (entry["action"], entry["detail"]["why"]) == ("allow-base", "the same in 8 bits")
    printed(capsys, "registry", "allow-base", BASE, twin, "--remove")


REFUSED: dict[str, tuple[tuple[object, ...], str]] = {
    "a path for a prefix": (("registry", "show", "../x"), "expected NAME or TENANT/NAME, and @VERSION for one version"),
    "a version to share": (("registry", "share", "cards@1", "bob"), "expected NAME or TENANT/NAME\n"),
    "neither version nor drop": (("registry", "alias", "cards", "stable"), "either a version for the alias or --drop"),
    "both version and drop": (("registry", "alias", "cards", "stable", 1, "--drop"), "either a version"),
    "a page of nothing": (("registry", "list", "--limit", 0), "a page of 0 was asked for"),
    "no artifact": (("registry", "push", "nothing"), "nothing does not exist"),
    "a scope that there is not": (
        ("keys", "make", "local", "--scope", "root"),
        "expected some of admin, manage, push, use",
    ),
    "a key that there is not": (("keys", "revoke", "nothing"), "no key 'nothing'"),
    "days without end": (("keys", "make", "local", "--expires-days", "1e300"), "expected so many that a calendar has"),
    "days that are over": (("keys", "make", "local", "--expires-days", "-1"), "expected a later time than now"),
    "an address of another kind": (("registry", "list", "--catalogue", "mysql://me:hunter2@x/y"), "of kind 'mysql'"),
    "a tenant twice": (("tenants", "add", "local"), "tenant local is there"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_mistakes_are_said_in_one_line(capsys: Capture, case: tuple[tuple[object, ...], str]) -> None:
    words, want = case
    said = refused(capsys, *words) + "\n"
    assert want in said
    assert "hunter2" not in said


def test_text_of_others_moves_no_cursor(capsys: Capture, tmp_path: Path) -> None:
    path = saved(tmp_path / "files", provenance={"note": "\x1b[2J[red]x\u202e"})
    for words in (("registry", "push", path, "x"), ("registry", "show", "x"), ("registry", "show", "x", "--json")):
        said = printed(capsys, *words)
        assert "\x1b" not in said
        assert "\u202e" not in said
        assert "[red]x" in said


def test_without_the_packages_it_says_which(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [x for x in sys.modules if x.startswith("epigraph.registry")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    assert "install epigraph[registry]" in refused(capsys, "registry", "list")
