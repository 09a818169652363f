"""The vLLM engine against the local path in the same process: one engine, one tiny model, every kind of request.

Answers are decided (the tiny model's two best tokens are apart), so that greedy answers are equal to the character.
"""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
import time
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vllm is not installed here", allow_module_level=True)

from conftest import tiny_tokenizer
from epigraph import artifact
from epigraph.artifact import Artifact
from epigraph.contract import Decoding, TextContract
from epigraph.engine.base import Answer, Piece, Request, Sampling, Text, answer
from epigraph.engine.vllm import VLLMEngine
from epigraph.errors import (
    BadClaim,
    BadValue,
    CannotServe,
    EngineUnavailable,
    PrefixNotFound,
    RequestFailed,
    TextTooLong,
    WrongBase,
)
from epigraph.frozen.generate import generate
from epigraph.frozen.inputs import chat_template_hash
from epigraph.frozen.model import FrozenModel
from epigraph.tuned import Tuned
from epigraph.virtual import SoftPrompt
from models import drawn, put, save_model

# vLLM's own warnings are not ours to mend.
pytestmark = pytest.mark.filterwarnings("default")

LIMIT = 512
SHORT = Decoding(max_new_tokens=24)
PLAIN = TextContract(input_template="Q {source}\nA", decoding=SHORT)
CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TEXTS = ("a tree", "The weather today is", "x")


@dataclass
class Place:
    runner: asyncio.Runner
    engine: VLLMEngine
    frozen: FrozenModel
    shelf: Path

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    def answer(self, request: Request) -> Answer:
        return self.run(answer(self.engine, request))

    def tuned(self, prefix: str) -> Tuned:
        return Tuned(self.frozen, artifact.load(self.shelf / f"{prefix}.safetensors"))

    def local(self, prefix: str, text: Text, **options: Any) -> str:
        return self.tuned(prefix).generate([text], **options)[0]

    def put(self, name: str, content: Artifact) -> str:
        artifact.save(content, self.shelf / f"{name}.safetensors", dtype=torch.float32)
        return name

    def unfinished(self) -> int:
        return int(self.engine._engine.get_num_unfinished_requests())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("engine")
    model = save_model("qwen3", root / "model")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(model)
    frozen = FrozenModel.load(str(model))
    shelf = root / "shelf"
    put(frozen, shelf, "plain", drawn(frozen.geometry, 5, 1), PLAIN)
    put(frozen, shelf, "other/v1", drawn(frozen.geometry, 40, 2), PLAIN)
    with asyncio.Runner() as runner:
        start = VLLMEngine.start(
            str(model),
            shelf,
            lower_into=shelf / "lowered",
            recheck_seconds=0.2,
            dtype="float32",
            max_model_len=LIMIT,
            max_num_seqs=16,
            enforce_eager=True,
            block_size=32,
            disable_log_stats=True,
        )
        made = Place(runner=runner, engine=runner.run(start), frozen=frozen, shelf=shelf)
        yield made
        runner.run(made.engine.close())


async def pieces_of(engine: VLLMEngine, request: Request) -> list[Piece]:
    return [piece async for piece in await engine.submit(request)]


@pytest.mark.parametrize("text", TEXTS)
def test_an_answer_is_the_local_one(place: Place, text: str) -> None:
    got = place.answer(Request(text=text, prefix="plain"))
    assert got.text == place.local("plain", text)
    assert got.num_prompt_tokens == 5 + len(place.tuned("plain").encode(text).ids)
    longer = place.answer(Request(text=text, prefix="other", version="v1"))
    assert longer.text == place.local("other/v1", text)
    assert longer.text != got.text


def test_many_at_once_are_each_their_own(place: Place) -> None:
    """Prefixes of several lengths and the bare model in one batch."""
    requests = [Request(text=text, prefix=prefix) for text in TEXTS for prefix in ("plain", "other/v1", None)]

    async def all_of_them() -> list[Answer]:
        return await asyncio.gather(*(answer(place.engine, request) for request in requests))

    together = place.run(all_of_them())
    for request, got in zip(requests, together, strict=True):
        if request.prefix is not None:
            assert got.text == place.local(request.prefix, str(request.text))
    assert [x.text for x in together] == [
        place.answer(replace(x, request_id=x.request_id + "2")).text for x in requests
    ]


def test_the_bare_model_says_what_it_says_alone(place: Place) -> None:
    decoding = Decoding(max_new_tokens=30)
    ids = place.frozen.tokenizer("a tree").input_ids
    want = generate(place.frozen, [ids], None, decoding)[0]
    assert place.answer(Request(text="a tree", decoding=decoding)).token_ids == tuple(want)


def test_pieces_joined_are_the_answer(place: Place) -> None:
    pieces = place.run(pieces_of(place.engine, Request(text="a tree", prefix="plain")))
    assert "".join(piece.text for piece in pieces) == place.local("plain", "a tree")
    assert sum(bool(piece.text) for piece in pieces) > 3
    assert [piece.finish_reason is None for piece in pieces] == [True] * (len(pieces) - 1) + [False]


def test_fields_fill_the_template(place: Place) -> None:
    contract = PLAIN.model_copy(update={"input_template": "{title}: {body}\n"})
    prefix = put(place.frozen, place.shelf, "fields", drawn(place.frozen.geometry, 4, 3), contract)
    fields = {"title": "Trees", "body": "They grow."}
    got = place.answer(Request(text=fields, prefix=prefix))
    assert got.text == place.local(prefix, fields)
    with pytest.raises(BadValue, match="asks for the field 'title'"):
        place.answer(Request(text="a tree", prefix=prefix))


def test_turns_go_through_the_chat_template(place: Place) -> None:
    contract = TextContract(chat_template_hash=chat_template_hash(place.frozen.tokenizer), decoding=SHORT)
    prefix = put(place.frozen, place.shelf, "chat", drawn(place.frozen.geometry, 4, 4), contract)
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "a"},
    ]
    assert place.answer(Request(text=turns, prefix=prefix)).text == place.local(prefix, turns)
    assert place.answer(Request(text="hi", prefix=prefix)).text == place.local(prefix, "hi")
    with pytest.raises(BadValue, match="trained on plain text"):
        place.answer(Request(text=turns, prefix="plain"))


def test_raw_text_goes_in_as_it_is(place: Place) -> None:
    content = place.tuned("plain").artifact
    plain = content.contract.model_copy(update={"input_template": "{source}"})
    want = Tuned(place.frozen, replace(content, contract=plain)).generate(["a tree"])[0]
    got = place.answer(Request(text="a tree", prefix="plain", raw=True)).text
    assert got == want
    assert got != place.local("plain", "a tree")


def test_a_stop_text_ends_the_answer_where_it_does_locally(place: Place) -> None:
    """The stop is a pair of characters of the answer itself; what was said ends soon behind it, not at its length."""
    content = place.tuned("plain").artifact
    whole = place.local("plain", "a tree")
    stop = whole[6:8]
    place.put("stops", replace(content, contract=content.contract.model_copy(update={"stop": (stop, "never")})))
    pieces = place.run(pieces_of(place.engine, Request(text="a tree", prefix="stops")))
    text = "".join(piece.text for piece in pieces)
    assert text == place.local("stops", "a tree") == whole.split(stop)[0].strip()
    assert pieces[-1].finish_reason == "stop"
    assert sum(len(piece.token_ids) for piece in pieces) < SHORT.max_new_tokens
    assert place.unfinished() == 0


def test_decoding_can_be_asked_for(place: Place) -> None:
    """The least number of new tokens holds the end token back, the largest ends the answer."""
    prefix, text = put(place.frozen, place.shelf, "ends", drawn(place.frozen.geometry, 5, 5), PLAIN), "aa"
    tuned = place.tuned(prefix)
    (local,) = generate(place.frozen, [tuned.encode(text).ids], tuned.prefix, SHORT)
    assert len(local) < SHORT.max_new_tokens, "the end token comes by itself"
    got = place.answer(Request(text=text, prefix=prefix))
    assert (got.token_ids, got.finish_reason) == (tuple(local), "stop")
    longer = Decoding(max_new_tokens=24, min_new_tokens=24)
    got = place.answer(Request(text=text, prefix=prefix, decoding=longer))
    assert (got.text, got.finish_reason) == (place.local(prefix, text, decoding=longer), "length")
    assert len(got.token_ids) == 24
    few = place.answer(Request(text=text, prefix=prefix, decoding=Decoding(max_new_tokens=2)))
    assert (few.token_ids, few.finish_reason) == (tuple(local[:2]), "length")


def test_a_seed_decides_what_is_drawn(place: Place) -> None:
    def drawn_with(seed: int) -> str:
        sampling = Sampling(temperature=2.0, seed=seed)
        return place.answer(Request(text="a tree", prefix="plain", sampling=sampling)).text

    assert drawn_with(1) == drawn_with(1)
    assert len({drawn_with(seed) for seed in range(4)}) > 1
    with pytest.raises(BadValue, match="temperature must be in"):
        place.answer(Request(text="a tree", prefix="plain", sampling=Sampling(temperature=5.0)))


@pytest.mark.parametrize("template", ["{source} {3} is{2}", "{2}{source}:"])
def test_virtual_tokens_in_the_text_are_embeddings(place: Place, template: str) -> None:
    scale = 2 * place.frozen.embedding_rms
    num_slots = TextContract(input_template=template).num_slots
    soft = scale * torch.randn(
        num_slots, place.frozen.geometry.embedding_dim, generator=torch.Generator().manual_seed(5)
    )
    contract = PLAIN.model_copy(update={"input_template": template})
    prefix = put(place.frozen, place.shelf, "placed", SoftPrompt(embeddings_PE=soft, placed=True), contract)
    for text in TEXTS:
        assert place.answer(Request(text=text, prefix=prefix)).text == place.local(prefix, text)
    other = put(place.frozen, place.shelf, "placed-2", SoftPrompt(embeddings_PE=-soft, placed=True), contract)
    assert place.answer(Request(text="a tree", prefix=other)).text == place.local(other, "a tree")
    assert place.local(other, "a tree") != place.local(prefix, "a tree")
    with pytest.raises(BadValue, match="leave raw out"):
        place.answer(Request(text="a tree", prefix=prefix, raw=True))


def test_a_prompt_in_front_is_lowered_once(place: Place) -> None:
    soft = 2 * place.frozen.embedding_rms * torch.randn(7, place.frozen.geometry.embedding_dim)
    prefix = put(place.frozen, place.shelf, "soft", SoftPrompt(embeddings_PE=soft), PLAIN)

    async def several() -> list[Answer]:
        return await asyncio.gather(*(answer(place.engine, Request(text=text, prefix=prefix)) for text in TEXTS))

    assert [got.text for got in place.run(several())] == [place.local(prefix, text) for text in TEXTS]
    (made,) = (place.shelf / "lowered").glob("*.safetensors")
    before = made.stat().st_mtime_ns
    assert place.answer(Request(text=TEXTS[0], prefix=prefix)).text == place.local(prefix, TEXTS[0])
    assert made.stat().st_mtime_ns == before


def test_tenants_share_nothing(place: Place) -> None:
    """The second time, a tenant's own blocks are found; another tenant finds what the first found the first time."""
    text = "a tree " * 20
    found: list[int] = []
    spied = place.engine._engine.generate

    async def spy(*given: Any) -> Any:
        async for output in spied(*given):
            if output.finished:
                found.append(int(output.num_cached_tokens))
            yield output

    place.engine._engine.generate = spy
    try:
        texts = [place.answer(Request(text=text, prefix="plain", tenant=who)).text for who in ("ann", "ann", "bob", "")]
    finally:
        del place.engine._engine.generate
    assert set(texts) == {place.local("plain", text)}
    first, second, other, nobody = found
    assert second > first
    assert other == nobody == first


def test_a_warm_request_reads_no_file(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.answer(Request(text="a tree", prefix="plain"))
    monkeypatch.setattr(type(place.engine._prefixes.shelf), "open", lambda *_: pytest.fail("the artifact was read"))
    assert place.answer(Request(text="x", prefix="plain")).text


def test_a_replaced_artifact_answers_at_once(place: Place) -> None:
    put(place.frozen, place.shelf, "changing", drawn(place.frozen.geometry, 5, 11), PLAIN)
    before = place.answer(Request(text="a tree", prefix="changing")).text
    put(place.frozen, place.shelf, "changing", drawn(place.frozen.geometry, 9, 12), PLAIN)
    after = place.answer(Request(text="a tree", prefix="changing")).text
    assert after == place.local("changing", "a tree")
    assert after != before


def test_a_deleted_artifact_is_not_found(place: Place) -> None:
    put(place.frozen, place.shelf, "going", drawn(place.frozen.geometry, 5, 13), PLAIN)
    place.answer(Request(text="a tree", prefix="going"))
    (place.shelf / "going.safetensors").unlink()
    with pytest.raises(PrefixNotFound, match="no prefix going"):
        place.answer(Request(text="a tree", prefix="going"))


def test_a_request_that_vllm_refuses_fails_alone_and_says_why(place: Place) -> None:
    """Its artifact goes between the look in front and the workers'; its neighbours are answered."""
    put(place.frozen, place.shelf, "gone", drawn(place.frozen.geometry, 5, 14), PLAIN)

    async def both() -> list[Any]:
        pieces = await place.engine.submit(Request(text="a tree", prefix="gone"))
        (place.shelf / "gone.safetensors").unlink()
        return await asyncio.gather(
            anext(pieces), answer(place.engine, Request(text="x", prefix="plain")), return_exceptions=True
        )

    refused, answered = place.run(both())
    assert isinstance(refused, RequestFailed)
    assert "no prefix gone" in str(refused)
    assert answered.text == place.local("plain", "x")
    assert place.unfinished() == 0


def test_another_base_is_refused_by_name(place: Place) -> None:
    place.put("foreign", replace(place.tuned("plain").artifact, base_fingerprint="0" * 64))
    with pytest.raises(WrongBase, match="the base is"):
        place.answer(Request(text="a tree", prefix="foreign"))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"labels": ("yes", "no")}, "chosen among 2 labels"),
        ({"decoding": Decoding(num_beams=3)}, "3 beams"),
        ({"layout": "label", "labels": ("yes", "no")}, "layout is 'label'"),
    ],
)
def test_what_only_the_local_engine_can_do_is_refused(place: Place, change: dict[str, Any], why: str) -> None:
    content = place.tuned("plain").artifact
    place.put("local-only", replace(content, contract=content.contract.model_copy(update=change)))
    with pytest.raises(CannotServe, match=why):
        place.answer(Request(text="a tree", prefix="local-only"))


def test_an_infix_is_refused(place: Place) -> None:
    put(place.frozen, place.shelf, "infix", drawn(place.frozen.geometry, 5, 15, "answer"), PLAIN)
    with pytest.raises(CannotServe, match="infix"):
        place.answer(Request(text="a tree", prefix="infix"))


@pytest.mark.parametrize("prefix", ["../plain", "/etc/passwd", "", ".hidden", "a//b"])
def test_a_prefix_id_leads_nowhere_else(place: Place, prefix: str) -> None:
    shutil.copy(place.shelf / "plain.safetensors", place.shelf.parent / "plain.safetensors")
    with pytest.raises(BadClaim, match="no prefix id"):
        place.answer(Request(text="a tree", prefix=prefix))


def test_a_text_that_leaves_no_room_is_refused(place: Place) -> None:
    decoding = Decoding(max_new_tokens=LIMIT)
    with pytest.raises(TextTooLong, match=f"of {LIMIT} that the engine"):
        place.answer(Request(text="a tree", prefix="plain", decoding=decoding))
    with pytest.raises(BadValue, match="has no tokens"):
        place.answer(Request(text="", prefix="plain", raw=True))


def test_cancelling_leaves_no_request_behind(place: Place) -> None:
    request = Request(text="a tree", prefix="plain", decoding=Decoding(max_new_tokens=400, min_new_tokens=400))

    async def cancelled() -> list[Piece]:
        pieces = await place.engine.submit(request)
        with pytest.raises(BadValue, match="is running"):
            await place.engine.submit(request)
        got = [await anext(pieces), await anext(pieces)]
        await place.engine.cancel(request.request_id)
        return got + [piece async for piece in pieces]

    got = place.run(cancelled())
    assert got[-1].finish_reason == "cancelled"
    assert sum(len(piece.token_ids) for piece in got) < 400
    assert place.unfinished() == 0
    assert not place.engine._running


def test_cancelling_before_the_first_piece_and_leaving_early(place: Place) -> None:
    async def early() -> list[Piece]:
        request = Request(text="a tree", prefix="plain", decoding=Decoding(max_new_tokens=400, min_new_tokens=400))
        pieces = await place.engine.submit(request)
        await place.engine.cancel(request.request_id)
        got = [piece async for piece in pieces]
        left = await place.engine.submit(request)
        await anext(left)
        await left.aclose()  # type: ignore[attr-defined]
        return got

    (only,) = place.run(early())
    assert (only.finish_reason, only.text) == ("cancelled", "")
    assert place.unfinished() == 0
    assert not place.engine._running


def test_closing_leaves_no_process(place: Place) -> None:
    """The last test: the engine is gone afterwards."""
    import psutil

    before = psutil.Process().children(recursive=True)
    assert before, "vLLM runs in processes of its own"
    place.run(place.engine.close())
    place.run(place.engine.close())
    end = time.monotonic() + 10
    while (left := alive(before)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not left
    with pytest.raises(EngineUnavailable, match="closed"):
        place.answer(Request(text="a tree", prefix="plain"))


def alive(processes: Sequence[Any]) -> list[Any]:
    import psutil

    # Python's own tracker of shared memory lives as long as this process does.
    return [
        x for x in processes if x.is_running() and x.status() != psutil.STATUS_ZOMBIE and not is_tracker(x.cmdline())
    ]


def is_tracker(command: Sequence[str]) -> bool:
    return any("resource_tracker" in part for part in command)
