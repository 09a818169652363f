"""The server as its clients see it: the official openai package and curl, unchanged; what they get is the prefix's."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest

from epigraph.contract import Decoding
from epigraph.engine.base import MAX_SEED, Named, Request, Sampling
from epigraph.server.asking import requests_of
from epigraph.server.bodies import CompletionBody
from epigraph.server.limits import Limits
from serving_app import BASE, SHORT, App, artifact_of, events_of, furnished, serving_app, text_of

LIMITS = Limits(choices=8, members=3, new_tokens=64, source_tokens=300, beams=4)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    folder = tmp_path_factory.mktemp("server")
    secrets = furnished(folder)
    with serving_app(folder, limits=LIMITS) as running:
        running.secrets = secrets
        yield running


# The openai package


def test_a_completion_is_what_the_prefix_says(app: App) -> None:
    done = app.client("ann").completions.create(model="cards", prompt="a tree")
    assert done.choices[0].text == app.local("ann/cards", "a tree")
    assert (done.model, done.object, done.choices[0].finish_reason) == ("cards", "text_completion", "length")
    assert done.usage is not None
    # Five virtual tokens, "Q a tree\nA" in one token a letter.
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.total_tokens) == (15, 12, 27)
    assert done.usage.prompt_tokens_details.virtual_tokens == 5  # type: ignore[union-attr]
    assert done.system_fingerprint == f"fp_{app.engine.base.fingerprint[:12]}"


@pytest.mark.parametrize("model", ["cards", "ann/cards", "ann/cards@2", "ann/cards@latest", "cards@latest"])
def test_the_model_is_a_prefix_id(app: App, model: str) -> None:
    got = app.complete("ann", model)
    assert got.json()["choices"][0]["text"] == app.local("ann/cards", "a tree", "2")
    assert got.json()["model"] == model
    assert got.headers["X-Epigraph-Prefix"] == "ann/cards@2"


def test_an_older_version_is_another_prefix(app: App) -> None:
    old = app.complete("ann", "cards@1").json()["choices"][0]["text"]
    assert old == app.local("ann/cards", "a tree", "1") != app.local("ann/cards", "a tree", "2")


def test_the_base_answers_by_its_own_name(app: App) -> None:
    got = app.complete("ann", BASE, max_tokens=4)
    assert got.status_code == 200
    assert "X-Epigraph-Prefix" not in got.headers
    assert got.json()["usage"]["prompt_tokens_details"] == {"virtual_tokens": 0}


def test_a_stream_says_the_same_in_pieces(app: App) -> None:
    chunks = list(
        app.client("ann").completions.create(
            model="cards", prompt="a tree", stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(x.choices[0].text for x in chunks if x.choices) == app.local("ann/cards", "a tree")
    assert len(chunks) > 3
    assert [x.choices[0].finish_reason for x in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
    assert chunks[-1].usage is not None
    assert (chunks[-1].choices, chunks[-1].usage.total_tokens) == ([], 27)
    assert all(x.usage is None for x in chunks[:-1])
    assert len({x.id for x in chunks}) == 1


def test_a_stream_ends_with_done_and_without_usage_unless_asked(app: App) -> None:
    got = app.complete("ann", "cards", stream=True)
    assert got.headers["Content-Type"].startswith("text/event-stream")
    *events, last = events_of(got)
    assert last == "[DONE]"
    assert all("usage" not in x for x in events)


def test_several_texts_and_several_answers_each(app: App) -> None:
    prompts = ["a tree", "a pub"]
    done = app.client("ann").completions.create(model="cards", prompt=prompts, n=2)
    want = [app.local("ann/cards", prompt) for prompt in prompts]
    assert [(x.index, x.text) for x in done.choices] == [(0, want[0]), (1, want[0]), (2, want[1]), (3, want[1])]
    assert done.usage is not None
    # Each text is read once.
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (15 + 14, 48)
    streamed = events_of(app.complete("ann", "cards", prompts, stream=True))
    for index, text in enumerate(want):
        assert text_of([x for x in streamed[:-1] if x["choices"][0]["index"] == index]) == text


def test_the_same_seed_draws_the_same_and_each_choice_its_own(app: App) -> None:
    drawn = [
        [
            x.text
            for x in app.client("ann")
            .completions.create(model="cards", prompt="a tree", n=3, seed=seed, temperature=1.5, max_tokens=20)
            .choices
        ]
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) > 1


def test_fields_fill_the_template(app: App) -> None:
    fields = {"a": "red", "b": "warm"}
    got = app.post("ann", "/v1/completions", model="rows", fields=fields)
    assert got.json()["choices"][0]["text"] == app.local("ann/rows", fields)
    missing = app.post("ann", "/v1/completions", model="rows", fields={"a": "red"})
    assert (missing.status_code, missing.json()["error"]["code"]) == (400, "BadValue")


def test_raw_leaves_the_template_out(app: App) -> None:
    filled = app.complete("ann", "cards", "Q a tree\nA", raw=True)
    assert filled.json()["choices"][0]["text"] == app.local("ann/cards", "a tree")


def test_length_stop_texts_and_beams_change_the_contracts_own(app: App) -> None:
    text = app.local("ann/cards", "a tree")
    short = app.complete("ann", "cards", max_tokens=3).json()
    assert (short["choices"][0]["text"], short["usage"]["completion_tokens"]) == (text[:3], 3)
    for stop in (text[4], ["none of it", text[4]]):
        stopped = app.complete("ann", "cards", stop=stop).json()["choices"][0]
        assert (stopped["text"], stopped["finish_reason"]) == (text[: text.index(text[4])].strip(), "stop")
    beams = app.complete("ann", "cards", num_beams=3).json()["choices"][0]["text"]
    version = app.registry.resolve("ann", "cards")
    from epigraph.tuned import Tuned

    tuned = Tuned.load(app.folder / "store" / version.path, model=str(app.folder / BASE))
    assert beams == tuned.generate(["a tree"], decoding=Decoding(max_new_tokens=12, num_beams=3))[0]


def test_penalties_and_cuts_reach_the_engine(app: App) -> None:
    plain = app.complete("ann", "cards").json()["choices"][0]["text"]
    for change in ({"presence_penalty": 2.0}, {"frequency_penalty": 2.0}):
        assert app.complete("ann", "cards", **change).json()["choices"][0]["text"] != plain
    # Of one candidate there is nothing to draw.
    for change in ({"top_k": 1}, {"top_p": 1e-9}):
        assert app.complete("ann", "cards", temperature=2.0, **change).json()["choices"][0]["text"] == plain


def test_logprobs_in_both_shapes(app: App) -> None:
    done = app.client("ann").completions.create(model="cards", prompt="a tree", logprobs=2, max_tokens=4)
    told = done.choices[0].logprobs
    assert told is not None
    assert told.token_logprobs
    assert told.top_logprobs
    assert told.tokens is not None
    assert "".join(told.tokens).strip() == done.choices[0].text
    assert told.text_offset == [0, 1, 2, 3]
    assert all(x <= 0 for x in told.token_logprobs)
    assert [len(x) for x in told.top_logprobs] == [2] * 4
    chat = app.client("ann").chat.completions.create(
        model="chat", messages=[{"role": "user", "content": "hi"}], logprobs=True, top_logprobs=2, max_tokens=3
    )
    content = chat.choices[0].logprobs
    assert content is not None
    assert content.content is not None
    assert [len(x.top_logprobs) for x in content.content] == [2] * 3
    assert content.content[0].top_logprobs[0].logprob == content.content[0].logprob
    streamed = events_of(app.complete("ann", "cards", logprobs=2, max_tokens=4, stream=True))[:-1]
    pieces = [x["choices"][0]["logprobs"] for x in streamed if x["choices"][0]["logprobs"]]
    assert [x for piece in pieces for x in piece["tokens"]] == told.tokens
    assert [x for piece in pieces for x in piece["text_offset"]] == told.text_offset


def test_chat(app: App) -> None:
    turns: list[Any] = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hi "}, {"type": "text", "text": "you"}]},
    ]
    plain = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi you"}]
    done = app.client("ann").chat.completions.create(model="ann/chat", messages=turns)
    assert done.choices[0].message.role == "assistant"
    assert done.choices[0].message.content == app.local("ann/chat", plain)
    chunks = list(app.client("ann").chat.completions.create(model="ann/chat", messages=turns, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(x.choices[0].delta.content or "" for x in chunks) == done.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == "length"
    short = app.client("ann").chat.completions.create(model="chat", messages=turns, max_completion_tokens=2)
    assert short.usage is not None
    assert short.usage.completion_tokens == 2


def test_the_base_takes_conversations_by_its_own_template(app: App) -> None:
    done = app.post(
        "ann", "/v1/chat/completions", model=BASE, messages=[{"role": "user", "content": "hi"}], max_tokens=3
    )
    assert done.status_code == 200


def test_chat_is_refused_for_a_prefix_of_plain_text(app: App) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match="ask it at /v1/completions"):
        app.client("ann").chat.completions.create(model="cards", messages=[{"role": "user", "content": "hi"}])


def test_an_ensemble_answers_as_its_members_do_together(app: App) -> None:
    from epigraph.tuned import Tuned

    paths = [app.folder / "store" / app.registry.resolve("ann", x).path for x in ("cards", "twin")]
    tuned = Tuned.load(paths[0], model=str(app.folder / BASE))
    for mean in ("geometric", "arithmetic", "majority"):
        got = app.complete("ann", "ann/cards+twin", mean=mean)
        assert got.headers["X-Epigraph-Prefix"] == "ann/cards@2+ann/twin@1"
        want = tuned.generate(["a tree"], ensemble=tuned.ensemble(paths[1], mean=mean))[0]
        assert got.json()["choices"][0]["text"] == want
    assert app.complete("ann", "cards+rows").json()["error"]["code"] == "ContractMismatch"
    assert app.complete("ann", f"cards+{BASE}").status_code == 400


def test_models_are_listed_in_pages_and_shown(app: App) -> None:
    client = app.client("ann")
    ids = [x.id for x in client.models.list()]
    assert ids == [BASE, "ann/cards", "ann/chat", "ann/long", "ann/rows", "ann/twin"]
    paged, after = [], ""
    while True:
        page = app.ask("ann", "GET", "/v1/models", params={"limit": 2, "after": after}).json()
        paged += [x["id"] for x in page["data"]]
        after = page["next"]
        assert page["has_more"] == bool(after)
        if not after:
            break
    assert paged == ids
    assert [x["id"] for x in app.ask("ann", "GET", "/v1/models?search=ca").json()["data"]] == ["ann/cards"]
    shown = client.models.retrieve("ann/cards")
    assert (shown.id, shown.owned_by) == ("ann/cards", "ann")
    assert shown.created > 1_700_000_000
    assert client.models.retrieve(BASE).id == BASE
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("bob/letters")


def test_the_engine_is_told_whose_request_it_is_and_nothing_that_was_not_checked(app: App) -> None:
    caller = app.registry.tenants.who(app.secrets["ann"])
    chosen = app.serving.chooser.choose("ann", "cards@1+twin")
    body = CompletionBody(model="cards@1+twin", prompt="x", max_tokens=5, stop="y", user="bob", seed=MAX_SEED, n=2)
    made = requests_of(body, chosen, caller, LIMITS)
    assert [x.sampling.seed for x in made] == [MAX_SEED, 0]
    assert len({x.request_id for x in made}) == 2
    assert replace(made[0], request_id="") == Request(
        text="x",
        prefix="ann/cards",
        version="1",
        others=(Named(prefix="ann/twin", version="1"),),
        tenant="ann",
        decoding=Decoding(max_new_tokens=5),
        sampling=Sampling(seed=MAX_SEED),
        stop=("y",),
        request_id="",
    )


# Errors as openai raises them


def test_openai_knows_each_refusal(app: App) -> None:
    client = app.client("ann")
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="nothing", prompt="x")
    assert (missing.value.code, missing.value.type) == ("PrefixNotFound", "not_found_error")
    with pytest.raises(openai.BadRequestError) as wrong:
        client.completions.create(model="cards", prompt="x", temperature=7)
    assert (wrong.value.code, wrong.value.param) == ("BadValue", "temperature")
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{app.url}/v1", api_key="epk_none", max_retries=0).models.list()
    with pytest.raises(openai.PermissionDeniedError):
        app.client("ann-use").post("/prefixes/ann/cards/rollback", body={}, cast_to=object)


REFUSED = {
    "echo": True,
    "suffix": "x",
    "logit_bias": {"5": 1},
    "best_of": 3,
    "stream_options": {"include_usage": True},
    "raw": "yes",
    "n": 0,
    "max_tokens": 0,
    "temperature": -1,
    "top_p": 0,
    "top_k": -1,
    "seed": -1,
    "stop": [""],
    "logprobs": 21,
    "presence_penalty": 3,
    "mean": "concatenate",
    "num_beams": 65,
    "store": True,
    "min_tokens": 3,
    "max_token": 3,
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_field_that_is_not_offered_is_refused_by_its_name(app: App, name: str) -> None:
    got = app.complete("ann", "cards", **{name: REFUSED[name]})
    assert got.status_code == 400
    error = got.json()["error"]
    assert error["param"] == name or name in error["message"]
    assert error["code"] == ("UnknownKey" if name in ("min_tokens", "max_token") else "BadValue")


def test_the_nearest_name_is_named(app: App) -> None:
    assert "did you mean max_tokens?" in app.complete("ann", "cards", max_token=3).json()["error"]["message"]


CHAT_REFUSED = {
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "tool_choice": "auto",
    "functions": [{}],
    "response_format": {"type": "json_object"},
    "audio": {"voice": "x", "format": "wav"},
    "modalities": ["audio"],
    "prediction": {"type": "content", "content": "x"},
    "logit_bias": {"5": 1},
    "top_logprobs": 2,
    "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}],
}


@pytest.mark.parametrize("name", CHAT_REFUSED)
def test_a_chat_field_that_is_not_offered_is_refused_by_its_name(app: App, name: str) -> None:
    body: dict[str, Any] = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
    got = app.post("ann", "/v1/chat/completions", **{**body, name: CHAT_REFUSED[name]})
    assert got.status_code == 400
    assert name in got.json()["error"]["message"] or got.json()["error"]["param"] == name


def test_harmless_fields_and_nulls_change_nothing(app: App) -> None:
    harmless = {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "prompt_cache_key": "k"}
    nulls = dict.fromkeys(("suffix", "logit_bias", "stop", "seed", "temperature", "max_tokens", "echo"))
    got = app.complete("ann", "cards", **harmless, **nulls, best_of=1)
    assert got.json()["choices"][0]["text"] == app.local("ann/cards", "a tree")


# Limits


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n": 9}, "asks for 9 answers, this server gives 8"),
        ({"prompt": ["x"] * 9}, "asks for 9 answers"),
        ({"max_tokens": 65}, "asks for 65 new tokens, this server gives 64"),
        ({"num_beams": 5}, "asks for 5 beams"),
        ({"prompt": "x" * 301}, "has over 300 tokens, all that this server reads"),
        ({"model": "cards+cards+cards+cards"}, "joins 4 prefixes, this server takes 3"),
    ],
)
def test_what_is_over_a_limit_is_refused(app: App, change: dict[str, Any], words: str) -> None:
    got = app.post("ann", "/v1/completions", **{"model": "cards", "prompt": "a tree", **change})
    assert (got.status_code, got.json()["error"]["code"]) == (413, "RequestTooLarge")
    assert words in got.json()["error"]["message"]


def test_what_is_just_within_the_limits_is_answered(app: App) -> None:
    assert app.complete("ann", "cards", "x" * 300, n=8, max_tokens=1).status_code == 200
    # Ten letters in thirty bytes are no thirty tokens.
    assert app.complete("ann", "cards", "字" * 150, max_tokens=1).status_code == 200


def test_the_servers_limit_is_the_contracts_too(app: App) -> None:
    done = app.complete("ann", "long").json()
    assert (done["usage"]["completion_tokens"], done["choices"][0]["finish_reason"]) == (64, "length")


# curl


def curl(*words: str) -> str:
    command = shutil.which("curl")
    if command is None:
        pytest.skip("curl is not installed here")
    done = subprocess.run([command, "-sS", *words], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


def test_curl_streams(app: App) -> None:
    body = json.dumps({"model": "cards", "prompt": "a tree", "stream": True})
    key = f"Authorization: Bearer {app.secrets['ann']}"
    out = curl("-N", f"{app.url}/v1/completions", "-H", key, "-H", "Content-Type: application/json", "-d", body)
    *events, last = (json.loads(x[6:]) if x[6:] != "[DONE]" else x[6:] for x in out.split("\n\n") if x)
    assert last == "[DONE]"
    assert text_of(events) == app.local("ann/cards", "a tree")


def test_curl_without_the_type_of_its_body_is_told_so(app: App) -> None:
    out = curl(f"{app.url}/v1/completions", "-H", f"Authorization: Bearer {app.secrets['ann']}", "-d", '{"model": "x"}')
    assert "send one, with Content-Type: application/json" in json.loads(out)["error"]["message"]


def test_curl_pushes_a_file_and_asks_it(app: App) -> None:
    path = artifact_of(app.folder / BASE, app.folder / "made" / "new.safetensors", SHORT, seed=30)
    key = f"Authorization: Bearer {app.secrets['bob']}"
    out = json.loads(curl("--data-binary", f"@{path}", f"{app.url}/v1/prefixes?name=pushed", "-H", key))
    assert (out["id"], out["servable"], out["aliases"]) == ("bob/pushed@1", True, ["latest"])
    assert app.complete("bob", "pushed").json()["choices"][0]["text"] == app.local("bob/pushed", "a tree")


# The edge


def test_every_answer_has_an_id_and_safe_headers(app: App) -> None:
    for got in (app.complete("ann", "cards"), app.complete(None, "cards"), app.ask("ann", "GET", "/nothing")):
        assert len(got.headers["X-Request-ID"]) == 32
        assert got.headers["X-Content-Type-Options"] == "nosniff"
        assert got.headers["Cache-Control"] == "no-store"
        assert "server" not in got.headers
        assert "set-cookie" not in got.headers
        assert "access-control-allow-origin" not in got.headers
    mine = app.ask("ann", "GET", "/v1/models", headers={"X-Request-ID": "mine-7"})
    assert mine.headers["X-Request-ID"] == "mine-7"
    hostile = app.ask("ann", "GET", "/v1/models", headers={"X-Request-ID": 'x"} {"forged": 1'})
    assert len(hostile.headers["X-Request-ID"]) == 32


def test_other_origins_get_no_permission(app: App) -> None:
    got = httpx.options(f"{app.url}/v1/models", headers={"Origin": "https://x.org", **app.key("ann")})
    assert got.status_code == 405
    assert not [x for x in got.headers if x.startswith("access-control")]


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/v1/models/", "/v1", "//v1/models", "/healthz/"])
def test_there_is_nothing_else(app: App, path: str) -> None:
    got = app.ask("ann", "GET", path)
    assert (got.status_code, got.json()["error"]["type"]) == (404, "not_found_error")
