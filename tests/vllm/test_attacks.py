"""A table of attacks: each request fails alone and by name; the other 63 in flight are answered as if it were not.

One engine runs through all of them; what it says afterwards is part of the test.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import random_ids
from epigraph import artifact
from epigraph.contract import TextContract
from epigraph.engine.claim import PLACEHOLDER, salt_key
from epigraph.engine.shelf import Shelf
from epigraph.frozen.model import FrozenModel
from epigraph.virtual import KVPrefix, SoftPrompt
from models import drawn, packed, put, save_model
from serving import Served, claimed, differences, request, serving

NUM_REQUESTS = 64
NUM_NEW = 12
# Which of the requests in flight is the attack.
PLACE = 17
NAMES = [f"p{n}" for n in (3, 10, 17, 32, 40)]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("attacks")
    model = save_model("qwen3", root / "model")
    frozen = FrozenModel.load(str(model))
    for name in NAMES:
        put(frozen, root / "shelf", name, drawn(frozen.geometry, int(name[1:]), int(name[1:])))
    hostile_shelf(root / "shelf", frozen, save_model("qwen3", root / "other", seed=1))
    # No patience: every request has its prefix's file looked at.
    os.environ["EPIGRAPH_SALT_KEY"] = "a secret of this test"
    try:
        with serving(model, root / "shelf", frozen, log=root / "log", connector={"recheck_seconds": 0.0}) as found:
            yield found
    finally:
        del os.environ["EPIGRAPH_SALT_KEY"]


def hostile_shelf(shelf: Path, frozen: FrozenModel, other: Path) -> None:
    """Prefixes that are sound files and may not be served here."""
    prefix = drawn(frozen.geometry, 10, 0)
    assert isinstance(prefix, KVPrefix)
    stranger = FrozenModel.load(str(other))
    put(stranger, shelf, "stranger", drawn(stranger.geometry, 10, 0))
    put(frozen, shelf, "late", replace(prefix, text_start=0))
    put(frozen, shelf, "infix", replace(prefix, visibility="answer"))
    put(frozen, shelf, "hollow", replace(prefix, sites={"decoder.self": (*prefix.sites["decoder.self"][:2], None)}))
    embeddings = torch.randn(10, frozen.geometry.embedding_dim)
    put(frozen, shelf, "soft", SoftPrompt(embeddings_PE=embeddings))
    placed = TextContract(input_template="{source}{10}")
    put(frozen, shelf, "placed", SoftPrompt(embeddings_PE=embeddings, placed=True), placed)
    tokenless = replace(packed(frozen, prefix), tokenizer_fingerprint="0" * 64)
    artifact.save(tokenless, shelf / "tongue.safetensors", dtype=torch.float32)


Change = Callable[[Served, list[int]], dict[str, Any]]


def salt_of(served: Served, name: str, tenant: str = "") -> str:
    return served.shelf.claim(name, tenant=tenant).salt(salt_key())


ATTACKS: dict[str, tuple[str, Change, str]] = {
    "no salt": ("p10", lambda s, ids: {"drop_salt": True}, "cache salt is missing, expected that of prefix p10"),
    "wrong salt": ("p10", lambda s, ids: {"cache_salt": "wrong"}, "cache salt is another, expected that of prefix p10"),
    "the salt of another prefix": ("p10", lambda s, ids: {"cache_salt": salt_of(s, "p17")}, "cache salt is another"),
    "the salt of another tenant": (
        "p10",
        lambda s, ids: {"cache_salt": salt_of(s, "p10", "eve")},
        "cache salt is another",
    ),
    "another's name under one's own salt": (
        "p10",
        lambda s, ids: {"claim": {"prefix": "p17"}},
        "cache salt is another",
    ),
    "another tenant's name": ("p10", lambda s, ids: {"claim": {"tenant": "ann"}}, "of tenant ann"),
    "a salt of ours and no claim": ("p10", lambda s, ids: {"params": None}, "names no prefix"),
    "a misspelt key": ("p10", lambda s, ids: {"params": {"epigraf": {}}}, "expected 'epigraph' alone"),
    "another connector's parameters": (
        "p10",
        lambda s, ids: {"params": {"do_remote_prefill": True}},
        "'epigraph' alone",
    ),
    "a path for a name": ("p10", lambda s, ids: {"claim": {"prefix": "../../etc/passwd"}}, "epigraph.prefix"),
    "no placeholders": ("p10", lambda s, ids: {"prompt_token_ids": ids}, "does not begin with 10 placeholders"),
    "too few placeholders": (
        "p10",
        lambda s, ids: {"prompt_token_ids": [PLACEHOLDER] * 9 + ids},
        "does not begin with 10 placeholders",
    ),
    "placeholders alone": ("p10", lambda s, ids: {"prompt_token_ids": [PLACEHOLDER] * 10}, "at least one token"),
    "the likelihood of its own text": ("p10", lambda s, ids: {"prompt_logprobs": 1}, "prompt_logprobs"),
    "a model of another base": ("stranger", lambda s, ids: {}, "the base is"),
    "a prefix of another tokenizer": ("tongue", lambda s, ids: {}, "the tokenizer is"),
    "text that starts elsewhere": ("late", lambda s, ids: {}, "text starts at position 0"),
    "an infix": ("infix", lambda s, ids: {}, "infix"),
    "a layer without keys": ("hollow", lambda s, ids: {}, "layer 2 has no keys and values"),
    "embeddings": ("soft", lambda s, ids: {}, "epigraph lower"),
    "embeddings inside the text": ("placed", lambda s, ids: {}, "as embeddings"),
}


def flight(served: Served) -> tuple[list[str | None], list[list[int]]]:
    """Sixty-four requests over all sound prefixes and the bare model."""
    names: list[str | None] = [[*NAMES, None][i % 6] for i in range(NUM_REQUESTS)]
    return names, [random_ids(2 + i % 20, i) for i in range(NUM_REQUESTS)]


def check_others(served: Served, names: list[str | None], texts: list[list[int]], got: list[Any]) -> None:
    """All but the attack were answered, and as alone."""
    kept = [i for i in range(NUM_REQUESTS) if i != PLACE]
    assert {got[i][1] for i in kept} == {"length"}
    wrong, _ = differences(served, [names[i] for i in kept], [texts[i] for i in kept], [got[i][0] for i in kept])
    assert not wrong


def said(served: Served) -> list[str]:
    """Why the engine refused requests since the last time, from its log."""
    log = Path(served.shelf.address).parent / "log"
    found = re.findall(r"is refused: (.*)", log.read_text(encoding="utf-8"))
    os.truncate(log, 0)
    return found


@pytest.mark.parametrize("attack", ATTACKS)
def test_it_fails_alone_and_by_name(served: Served, attack: str) -> None:
    name, change, says = ATTACKS[attack]
    names, texts = flight(served)
    names[PLACE] = name
    said(served)
    got = served.ask(names, texts, NUM_NEW, changes={PLACE: change(served, texts[PLACE])})
    assert got[PLACE] == ([], "error")
    check_others(served, names, texts, got)
    (reason,) = said(served)
    assert says in reason
    assert "secret" not in reason
    assert salt_of(served, "p10") not in reason


def test_placeholders_in_the_users_text_are_text(served: Served) -> None:
    names, texts = flight(served)
    for number in range(0, NUM_REQUESTS, 5):
        texts[number] = [PLACEHOLDER] * (number % 40) + texts[number]
    for _ in range(2):
        got = served.ask(names, texts, NUM_NEW)
        wrong, _ = differences(served, names, texts, [new for new, _ in got])
        assert not wrong


def broken(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "deleted":
        path.unlink()
    elif how == "replaced":
        path.write_bytes((path.parent / "p17.safetensors").read_bytes())
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.write_bytes(data[:-5] + bytes(5))


@pytest.mark.parametrize(
    ("how", "says"),
    [("deleted", "no prefix p10"), ("replaced", "it was replaced"), ("cut", "p10.safetensors"), ("changed", "content")],
)
def test_a_file_that_goes_bad_while_others_are_answered(served: Served, how: str, says: str) -> None:
    """It was held and served before; from now on requests to it fail, and those to others do not."""
    path = Path(served.shelf.address) / "p10.safetensors"
    kept = path.read_bytes()
    names, texts = flight(served)
    names = [x if x != "p10" else "p17" for x in names]
    names[PLACE] = "p10"
    assert served.ask(["p10"], [texts[0]], NUM_NEW)[0][1] == "length"
    # The claim is made while the file is sound: the request is on its way when it goes bad.
    claim = served.shelf.claim("p10")
    asked = [request_of(served, name, ids, claim) for name, ids in zip(names, texts, strict=True)]
    said(served)
    broken(path, how)
    try:
        found = served.llm.generate([x for x, _ in asked], [x for _, x in asked], use_tqdm=False)
    finally:
        path.write_bytes(kept)
    got = [(list(one.outputs[0].token_ids), one.outputs[0].finish_reason) for one in found]
    assert got[PLACE] == ([], "error")
    served.tokens("p10")
    check_others(served, names, texts, got)
    (reason,) = said(served)
    assert says in reason
    assert served.ask(["p10"], [texts[0]], NUM_NEW)[0][1] == "length", "put back, it is served again"


def request_of(served: Served, name: str | None, ids: list[int], claim: Any) -> Any:
    return claimed(claim, ids, NUM_NEW) if name == "p10" else request(served.shelf, name, ids, NUM_NEW)


def test_ten_thousand_virtual_tokens_fit_neither_the_model_nor_the_cache(served: Served, tmp_path: Path) -> None:
    prefix = drawn(served.frozen.geometry, 10_000, 0)
    put(served.frozen, Path(served.shelf.address), "huge", prefix)
    with pytest.raises(Exception, match="maximum context length"):
        served.ask(["huge"], [[5, 6, 7]], NUM_NEW)
    names, texts = flight(served)
    got = served.ask(names, texts, NUM_NEW)
    wrong, _ = differences(served, names, texts, [new for new, _ in got])
    assert not wrong


def test_nothing_is_left_over(served: Served) -> None:
    """After all of the above every block is free again."""
    assert served.count("vllm:num_requests_running") == 0
    assert served.count("vllm:num_requests_waiting") == 0
    assert served.count("vllm:kv_cache_usage_perc") == 0
    assert Shelf(served.shelf.address).claim("p10")
