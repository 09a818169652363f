"""POST /v1/completions and /v1/chat/completions: from a key to the last byte of an answer.

It puts the parts together in their order and knows none of their insides.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from epigraph.engine.base import Piece
from epigraph.errors import QuotaExceeded, RequestTooLarge
from epigraph.registry import Caller
from epigraph.server.answering import Answering
from epigraph.server.answers import Chunks, Head, usage, whole
from epigraph.server.asking import check_counts, requests_of, texts_of
from epigraph.server.bodies import ChatBody, CompletionBody
from epigraph.server.choosing import Chosen
from epigraph.server.documented import CHAT_ANSWER, COMPLETION_ANSWER, answers_of, refusals_of
from epigraph.server.edge import noted
from epigraph.server.quotas import Admission
from epigraph.server.refusals import NotNow
from epigraph.server.serving import Record, Serving, caller_of, record_of, serving_of
from epigraph.server.stream import DONE, Events, event, unless_gone

router = APIRouter(prefix="/v1", tags=["answers"])

_REFUSALS = refusals_of(400, 401, 403, 404, 413, 422, 429, 500, 503)
# What a client that reads slowly gets beyond the time of its answer.
_READING_S = 5.0


@router.post("/completions", responses={200: answers_of(COMPLETION_ANSWER), **_REFUSALS})
async def complete(body: CompletionBody, request: Request) -> Response:
    """Answer texts behind a prefix, by the template, stop texts and decoding that it was trained with."""
    return await _answer(body, request)


@router.post("/chat/completions", responses={200: answers_of(CHAT_ANSWER), **_REFUSALS})
async def chat(body: ChatBody, request: Request) -> Response:
    """Answer a conversation, behind a prefix that was trained on conversations or by the bare model."""
    return await _answer(body, request)


@dataclass(kw_only=True, slots=True)
class _Job:
    """One request from when it was let in. ``spent`` are prompts whose tokens were counted."""

    serving: Serving
    caller: Caller
    record: Record
    admission: Admission
    answering: Answering
    head: Head
    spent: set[int] = field(default_factory=set)
    first_s: float | None = None
    last_s: float = 0.0

    async def next(self) -> tuple[int, Piece] | None:
        """The next piece, counted; None at the end."""
        part = await self.answering.next()
        if part is None:
            return None
        self._count(part.index, part.piece)
        return part.index, part.piece

    async def close(self) -> None:
        """Whatever happened: the engine is told, the quota given back, what was used written down."""
        self.serving.flights.drop(self.answering)
        try:
            await self.answering.close()
        finally:
            self.admission.leave()
            self._note()

    def _count(self, index: int, piece: Piece) -> None:
        each = len(self.answering.choices) // self.head.num_texts
        is_new = index // each not in self.spent
        self.spent.add(index // each)
        read, said = piece.num_prompt_tokens if is_new else 0, len(piece.token_ids)
        self.admission.spend(read + said)
        self.serving.meters.tokens(self.caller.tenant, read=read, said=said)
        if said:
            self.last_s = self.record.seconds
            if self.first_s is None:
                self.first_s = self.record.first_token_s = self.last_s
                self.serving.meters.first_token(self.first_s)

    def _note(self) -> None:
        used = usage(self.head, self.answering.choices)
        self.record.num_read, self.record.num_said = used["prompt_tokens"], used["completion_tokens"]
        longest = max(choice.num_tokens for choice in self.answering.choices)
        if self.first_s is not None and longest > 1:
            self.serving.meters.each_token((self.last_s - self.first_s) / (longest - 1))


async def _answer(body: CompletionBody | ChatBody, request: Request) -> Response:
    """In this order: may the key, is there room, what is the model, is the text short enough, what says the engine."""
    serving, record = serving_of(request), record_of(request)
    caller = caller_of(request, "use")
    num_answers = check_counts(body, serving.limits)
    _check_room(serving, num_answers)
    admission = _admitted(serving, caller, record, num_answers)
    try:
        job = await unless_gone(request.receive, _begun(body, serving, caller, record, admission))
    except BaseException:
        admission.leave()
        raise
    if not body.stream:
        return await _whole(job, request)
    return await _streamed(job, request, includes_usage=body.includes_usage)


def _admitted(serving: Serving, caller: Caller, record: Record, num_answers: int) -> Admission:
    try:
        admission = serving.turnstile.admit(caller, num_answers=num_answers, seconds=_longest(serving))
    except QuotaExceeded:
        record.headers |= serving.turnstile.left(caller)
        raise
    record.headers |= admission.headers()
    return admission


def _longest(serving: Serving) -> float:
    return serving.limits.seconds + _READING_S


def _check_room(serving: Serving, num_answers: int) -> None:
    waiting = serving.engine.counts().waiting
    if waiting + num_answers > serving.limits.waiting:
        raise NotNow(
            f"{waiting} requests wait already, this server lets {serving.limits.waiting} wait; ask again in a moment"
        )


async def _begun(
    body: CompletionBody | ChatBody, serving: Serving, caller: Caller, record: Record, admission: Admission
) -> _Job:
    """The engine has the requests. Raises what is wrong with them."""
    chosen = await serving.lookups.run(serving.chooser.choose, caller.tenant, body.model)
    if chosen.ids:
        record.prefix = record.headers["X-Epigraph-Prefix"] = chosen.ids
    requests = requests_of(body, chosen, caller, serving.limits)
    texts = texts_of(body)
    if not serving.ruler.is_short(texts):
        await serving.counting.run(serving.ruler.check, texts)
    answering = Answering(
        serving.engine,
        requests,
        serving.limits.seconds,
        behind=lambda wrong: serving.lookups.run(serving.chooser.behind, chosen.versions, wrong),
        spent=record.seconds,
    )
    job = _Job(
        serving=serving,
        caller=caller,
        record=record,
        admission=admission,
        answering=answering,
        head=_head(body, serving, chosen, len(texts)),
    )
    serving.flights.add(answering)
    try:
        await answering.begin()
    except BaseException:
        await job.close()
        raise
    return job


def _head(body: CompletionBody | ChatBody, serving: Serving, chosen: Chosen, num_texts: int) -> Head:
    return Head(
        model=body.model,
        fingerprint=serving.fingerprint,
        is_chat=isinstance(body, ChatBody),
        num_virtual_tokens=chosen.num_virtual_tokens,
        num_texts=num_texts,
        has_logprobs=(body.num_logprobs if isinstance(body, ChatBody) else body.logprobs) is not None,
    )


async def _whole(job: _Job, request: Request) -> Response:
    async def all_of_it() -> dict[str, Any]:
        while await job.next() is not None:
            pass
        return whole(job.head, job.answering.choices)

    try:
        return JSONResponse(await unless_gone(request.receive, all_of_it()))
    finally:
        await job.close()


async def _streamed(job: _Job, request: Request, *, includes_usage: bool) -> Response:
    """What fails before the first piece is an answer with a status of its own; afterwards, an event."""
    try:
        first = await unless_gone(request.receive, job.next())
    except BaseException:
        await job.close()
        raise
    chunks = Chunks(job.head, len(job.answering.choices), includes_usage=includes_usage)
    return Events(_events(job, chunks, first), job.close, seconds=_longest(job.serving), headers={})


async def _events(job: _Job, chunks: Chunks, first: tuple[int, Piece] | None) -> AsyncIterator[bytes]:
    for chunk in chunks.first():
        yield event(chunk)
    came = first
    try:
        while came is not None:
            for chunk in chunks.of(*came):
                yield event(chunk)
            came = await job.next()
    except Exception as wrong:
        if isinstance(wrong, RequestTooLarge):
            for chunk in chunks.cut(job.answering.choices):
                yield event(chunk)
        yield event(_told(wrong, job.record))
        return
    for chunk in chunks.last(job.answering.choices):
        yield event(chunk)
    yield DONE


def _told(wrong: Exception, record: Record) -> Mapping[str, Any]:
    return noted(wrong, record).body
