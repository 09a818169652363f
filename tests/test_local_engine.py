"""The local engine answers each of many users as if he were alone, whoever comes, goes, fails or waits beside him."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Coroutine
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from conftest import random_prefix
from epigraph.contract import Decoding
from epigraph.engine.base import Answer, Counts, Named, Piece, Request, Sampling, answer
from epigraph.errors import (
    BadClaim,
    BadValue,
    CannotServe,
    ContractMismatch,
    EngineUnavailable,
    PrefixNotFound,
    RequestFailed,
    TextTooLong,
    WrongBase,
)
from families import tiny_family
from local_serving import CONTRACT, NEW, Served, all_answers, ensemble, made, put, put_every_kind, put_prefixes, serving

CAUSAL = ("llama", "gpt2", "gemma3", "opt")
BESIDE = ("t5", "bart")


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


def texts(number: int, seed: int = 0) -> list[str]:
    draw = Random(seed)
    return ["".join(draw.choices("abcdefgh XYZ", k=draw.randrange(1, 30))) for _ in range(number)]


async def settled(served: Served) -> Counts:
    """The engine's counts once it has heard of everything."""
    for _ in range(200):
        if served.engine.counts() == Counts(running=0, waiting=0):
            break
        await asyncio.sleep(0.01)
    return served.engine.counts()


@pytest.mark.parametrize("family", [*CAUSAL, *BESIDE])
def test_every_kind_at_once_is_answered_as_alone(family: str, tmp_path: Path) -> None:
    names = put_every_kind(tmp_path, tiny_family(family))

    async def work() -> None:
        async with serving(tmp_path, family, max_rows=5, read_tokens=7) as served:
            requests = [Request(text=text, prefix=names[n % len(names)]) for n, text in enumerate(texts(40))]
            requests += [ensemble("always", "long"), ensemble("long", "always", mean="arithmetic")]
            requests += [ensemble("always", "long", mean="majority"), ensemble("labels", "labels")]
            got = await all_answers(served.engine, requests)
            assert [x.text for x in got] == [served.alone(x) for x in requests]
            assert await settled(served) == Counts(running=0, waiting=0)

    run(work())


def test_requests_that_come_at_any_moment_are_answered_as_alone(tmp_path: Path) -> None:
    names = put_prefixes(tmp_path, tiny_family("llama"), 12)
    draw = Random(3)

    async def later(served: Served, request: Request) -> Answer:
        await asyncio.sleep(draw.random() * 0.5)
        return await answer(served.engine, request)

    async def work() -> None:
        async with serving(tmp_path, "llama", max_rows=8, read_tokens=16) as served:
            requests = [
                Request(text=text, prefix=draw.choice(names), decoding=Decoding(max_new_tokens=draw.randrange(1, 30)))
                for text in texts(80, seed=5)
            ]
            got = await asyncio.gather(*(later(served, x) for x in requests))
            assert [x.text for x in got] == [served.alone(x) for x in requests]

    run(work())


def test_the_bare_model_stands_beside_prefixes(tmp_path: Path) -> None:
    put_prefixes(tmp_path, tiny_family("llama"), 2)

    async def work() -> None:
        async with serving(tmp_path, "llama") as served:
            requests = [Request(text="abc", prefix=x, decoding=CONTRACT.decoding) for x in (None, "user-0", None)]
            one, other, again = await all_answers(served.engine, requests)
            frozen = served.frozen
            ids = torch.tensor([frozen.tokenizer("abc").input_ids])
            with torch.no_grad():
                alone = frozen.model.generate(input_ids=ids, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
            assert list(one.token_ids) == alone[0, ids.shape[1] :].tolist()
            assert one == again
            assert other.text != one.text
            assert (one.num_prompt_tokens, other.num_prompt_tokens) == (3, 6)

    run(work())


def test_the_bare_encoder_decoder_answers_and_a_bare_encoder_does_not(tmp_path: Path) -> None:
    async def work() -> None:
        async with serving(tmp_path, "t5") as served:
            frozen = served.frozen
            got = await answer(served.engine, Request(text="abc", decoding=CONTRACT.decoding))
            ids = torch.tensor([frozen.tokenizer("abc").input_ids])
            with torch.no_grad():
                alone = frozen.model.generate(input_ids=ids, max_new_tokens=NEW, do_sample=False)
            assert list(got.token_ids) == alone[0, 1:].tolist()
        async with serving(tmp_path, "bert") as served:
            with pytest.raises(CannotServe, match="answers nothing by itself"):
                await answer(served.engine, Request(text="abc"))

    run(work())


def test_pieces_come_token_by_token_and_make_the_answer(tmp_path: Path) -> None:
    for family in ("llama", "bart"):
        folder = tmp_path / family
        put_every_kind(folder, tiny_family(family))

        async def work(family: str = family, folder: Path = folder) -> None:
            async with serving(folder, family) as served:
                request = Request(text="abc", prefix="always")
                pieces = [x async for x in await served.engine.submit(request)]
                assert "".join(x.text for x in pieces) == served.alone(request)
                assert [len(x.token_ids) for x in pieces] == [1] * NEW
                assert [x.finish_reason for x in pieces] == [None] * (NEW - 1) + ["length"]

        run(work())


def test_the_same_seed_draws_the_same_whoever_is_beside(tmp_path: Path) -> None:
    names = put_prefixes(tmp_path, tiny_family("llama"), 4)

    def drawn(seed: int | None) -> Request:
        return Request(text="abc", prefix=names[0], sampling=Sampling(temperature=3.0, top_p=0.95, seed=seed))

    async def work() -> None:
        async with serving(tmp_path, "llama", max_rows=4) as served:
            [alone] = await all_answers(served.engine, [drawn(7)])
            others = [
                Request(text=x, prefix=y, sampling=Sampling(temperature=1))
                for x, y in zip(texts(12), names * 3, strict=True)
            ]
            together = await all_answers(served.engine, [*others, drawn(7), drawn(8), drawn(None), drawn(None)])
            assert together[12] == alone
            assert len({x.token_ids for x in together[12:]}) == 4

    run(work())


@pytest.mark.parametrize("family", ["llama", "bart"])
def test_log_probabilities_are_the_models_own(family: str, tmp_path: Path) -> None:
    frozen = tiny_family(family)
    put_every_kind(tmp_path, frozen)

    async def work() -> None:
        async with serving(tmp_path, family) as served:
            sampling = Sampling(temperature=2.0, top_k=40, presence_penalty=1.0, seed=1)
            got = await answer(served.engine, Request(text="abc", prefix="always", logprobs=3, sampling=sampling))
            assert len(got.logprobs) == len(got.token_ids) == NEW
            tuned = served.tuned("always")
            ids, said = list(tuned.encode("abc").ids), list(got.token_ids)
            with torch.no_grad(), frozen.bind(frozen.carried(tuned.artifact.tokens)):
                if family == "llama":
                    logits = frozen.model(input_ids=torch.tensor([[*ids, *said]])).logits[0, len(ids) - 1 : -1]
                else:
                    begun = torch.tensor([[*frozen.decoder_start, *said]])
                    logits = frozen.model(input_ids=torch.tensor([ids]), decoder_input_ids=begun).logits[0, :-1]
            logs = logits.log_softmax(-1)
            for token, told, row in zip(said, got.logprobs, logs, strict=True):
                assert math.isclose(told.logprob, float(row[token]), abs_tol=1e-3)
                assert told.text == frozen.tokenizer.decode([token])
                best = row.topk(3)
                assert [x for x, _ in told.top] == [frozen.tokenizer.decode([i]) for i in best.indices.tolist()]
                assert [x for _, x in told.top] == pytest.approx(best.values.tolist(), abs=1e-3)

    run(work())


def test_a_stop_text_ends_the_answer_and_frees_its_row(tmp_path: Path) -> None:
    put_prefixes(tmp_path, tiny_family("llama"), 1)

    async def work() -> None:
        async with serving(tmp_path, "llama", max_rows=1) as served:
            long = Decoding(max_new_tokens=60)
            whole = await answer(served.engine, Request(text="abc", prefix="user-0", decoding=long))
            at = whole.text[5:7]
            request = Request(text="abc", prefix="user-0", decoding=long, stop=(at,))
            got = await answer(served.engine, request)
            assert got.text == whole.text.split(at, 1)[0].strip()
            assert got.finish_reason == "stop"
            assert await settled(served) == Counts(running=0, waiting=0)

    run(work())


def test_whoever_leaves_or_is_cancelled_frees_his_row(tmp_path: Path) -> None:
    names = put_prefixes(tmp_path, tiny_family("llama"), 3)
    put_every_kind(tmp_path, tiny_family("llama"))
    long = Decoding(max_new_tokens=80)

    async def work() -> None:
        async with serving(tmp_path, "llama", max_rows=2) as served:
            engine = served.engine
            for name in (names[0], "infix"):
                pieces = await engine.submit(Request(text="abc", prefix=name, decoding=long))
                async for _ in pieces:
                    break
                await pieces.aclose()  # type: ignore[attr-defined]
                assert await settled(served) == Counts(running=0, waiting=0)
            asked = [Request(text="abc", prefix=names[0], decoding=long, request_id=f"r{n}") for n in range(4)]
            tasks = [asyncio.create_task(answer(engine, x)) for x in asked]
            await asyncio.sleep(0.05)
            for n in (3, 0):
                await engine.cancel(f"r{n}")
            await engine.cancel("nobody")
            found = await asyncio.gather(*tasks)
            assert [x.finish_reason for x in found] == ["cancelled", "length", "length", "cancelled"]
            assert found[3].token_ids == ()
            task = asyncio.create_task(answer(engine, Request(text="abc", prefix=names[1], decoding=long)))
            await asyncio.sleep(0.05)
            task.cancel()
            assert await settled(served) == Counts(running=0, waiting=0)

    run(work())


def test_a_user_whose_numbers_overflow_fails_alone(tmp_path: Path) -> None:
    frozen = tiny_family("llama")
    names = put_prefixes(tmp_path, frozen, 3)
    put(
        tmp_path, "broken", made(frozen, random_prefix(frozen.geometry, 3, seed=0).map(lambda x: x.clamp(-3, 3) * 1e38))
    )

    async def work() -> None:
        async with serving(tmp_path, "llama") as served:
            requests = [Request(text=x, prefix=y) for x, y in zip(texts(6), names * 2, strict=True)]
            broken = asyncio.create_task(answer(served.engine, Request(text="abc", prefix="broken")))
            got = await all_answers(served.engine, requests)
            with pytest.raises(RequestFailed, match="logits are no numbers"):
                await broken
            again = await all_answers(served.engine, requests)
            assert [x.text for x in got] == [x.text for x in again] == [served.alone(x) for x in requests]
            assert await settled(served) == Counts(running=0, waiting=0)

    run(work())


def test_artifacts_are_held_within_their_bytes_and_read_anew_when_they_change(tmp_path: Path) -> None:
    frozen = tiny_family("llama")
    names = put_prefixes(tmp_path, frozen, 12)
    one = sum(2 * 3 * 2 * 16 * 4 * (2 + 3 * n % 7) for n in range(12)) // 12

    async def work() -> None:
        async with serving(tmp_path, "llama", cache_bytes=4 * one) as served:
            requests = [Request(text=x, prefix=y) for x, y in zip(texts(36), names * 3, strict=True)]
            got = await all_answers(served.engine, requests)
            assert [x.text for x in got] == [served.alone(x) for x in requests]
            assert 0 < served.engine.held_bytes <= 4 * one
            before = await answer(served.engine, requests[0])
            put(tmp_path, names[0], made(frozen, random_prefix(frozen.geometry, 4, seed=77)))
            after = await answer(served.engine, requests[0])
            assert after.text == served.alone(requests[0]) != before.text
            (tmp_path / f"{names[0]}.safetensors").unlink()
            with pytest.raises(PrefixNotFound):
                await served.engine.submit(requests[0])

    run(work())


def test_what_cannot_be_answered_is_refused_by_name(tmp_path: Path) -> None:
    frozen = tiny_family("llama")
    put_every_kind(tmp_path, frozen)
    other = replace(made(frozen, random_prefix(frozen.geometry, 3, seed=0)), base_fingerprint="0" * 64)
    put(tmp_path, "foreign", other)
    drawn = Sampling(temperature=1.0)
    refused: list[tuple[Request, type[Exception], str]] = [
        (Request(text="abc", prefix="nobody"), PrefixNotFound, "no prefix nobody"),
        (Request(text="abc", prefix="../always"), BadClaim, "no prefix id"),
        (Request(text="abc", prefix="foreign"), WrongBase, "the base is"),
        (Request(text="", prefix=None), BadValue, "no tokens"),
        (Request(text=[{"role": "user", "content": "a"}], prefix="always"), BadValue, "plain text"),
        (Request(text="abc", prefix="beams", sampling=drawn), CannotServe, "searched with beams"),
        (Request(text="abc", prefix="labels", sampling=drawn), CannotServe, "nothing is drawn"),
        (Request(text="abc", prefix="labels", logprobs=1), CannotServe, "no log-probabilities"),
        (ensemble("beams", "beams"), CannotServe, "without beams"),
        (ensemble("always", "labels"), ContractMismatch, "labels"),
        (Request(text="abc", prefix="always", decoding=Decoding(max_new_tokens=999_999)), TextTooLong, "room for"),
    ]

    async def work() -> None:
        async with serving(tmp_path, "llama", kv_bytes=1 << 20) as served:
            for request, error, words in refused:
                with pytest.raises(error, match=words):
                    await served.engine.submit(request)
            assert await settled(served) == Counts(running=0, waiting=0)
            await served.engine.submit(Request(text="abc", prefix="always", request_id="mine"))
            with pytest.raises(BadValue, match="'mine' is running"):
                await served.engine.submit(Request(text="abc", prefix="always", request_id="mine"))

    run(work())


def test_a_closed_engine_ends_what_runs_and_takes_nothing(tmp_path: Path) -> None:
    names = put_prefixes(tmp_path, tiny_family("llama"), 1)

    async def work() -> None:
        async with serving(tmp_path, "llama", max_rows=1) as served:
            long = Decoding(max_new_tokens=300)
            requests = [Request(text="abc", prefix=names[0], decoding=long) for _ in range(3)]
            tasks = [asyncio.create_task(answer(served.engine, x)) for x in requests]
            await asyncio.sleep(0.05)
            await served.engine.close()
            assert [(await x).finish_reason for x in tasks] == ["cancelled"] * 3
            with pytest.raises(EngineUnavailable, match="closed"):
                await served.engine.submit(requests[0])
            await served.engine.close()

    run(work())


def test_a_thread_that_dies_tells_everybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = put_prefixes(tmp_path, tiny_family("llama"), 1)

    async def work() -> None:
        async with serving(tmp_path, "llama", max_rows=1) as served:
            engine = served.engine
            monkeypatch.setattr(engine._worker, "_speak", lambda: sys.exit(3))
            tasks = [asyncio.create_task(answer(engine, Request(text="abc", prefix=names[0]))) for _ in range(3)]
            for task in tasks:
                with pytest.raises(EngineUnavailable, match="the engine ended: SystemExit"):
                    await task
            with pytest.raises(EngineUnavailable, match="the engine ended"):
                engine.check()

    run(work())


def test_who_speaks_is_not_kept_waiting_by_a_long_text_or_by_beams(tmp_path: Path) -> None:
    put_every_kind(tmp_path, tiny_family("llama"))
    order: list[str] = []

    async def told(served: Served, name: str, request: Request) -> None:
        async for piece in await served.engine.submit(request):
            assert isinstance(piece, Piece)
            order.append(name)

    async def work() -> None:
        async with serving(tmp_path, "llama", read_tokens=4) as served:
            short = Request(text="abc", prefix="always", decoding=Decoding(max_new_tokens=40))
            long = Request(text="a" * 400, prefix="long", decoding=Decoding(max_new_tokens=2))
            infix = Request(text="abc", prefix="infix", decoding=Decoding(max_new_tokens=40))
            speaks = asyncio.create_task(told(served, "short", short))
            await asyncio.sleep(0.02)
            await asyncio.gather(speaks, told(served, "long", long), told(served, "infix", infix))
            assert order.index("long") > len(order) // 3
            # Answers by generate() and by the table come in turns.
            turns = sum(a != b for a, b in pairwise(order))
            assert turns > 20

    run(work())


def test_raw_text_and_others_of_another_version(tmp_path: Path) -> None:
    frozen = tiny_family("llama")
    for number in (1, 2):
        put(tmp_path, f"mine/{number}", made(frozen, random_prefix(frozen.geometry, 3, seed=number)))

    async def work() -> None:
        async with serving(tmp_path, "llama") as served:
            both = Request(text="abc", prefix="mine", version="1", others=(Named(prefix="mine", version="2"),))
            one = Request(text="abc", prefix="mine", version="1")
            got = await all_answers(served.engine, [both, one, replace(one, text="abc\n", raw=True, request_id="raw")])
            assert got[0].text == served.alone(both)
            assert got[2].text == got[1].text == served.alone(one)

    run(work())
