"""The frozen model in this process behind the engine protocol: many users' prefixes in one batch that never stops.

It applies text contracts and tells errors by name before the model sees a request; docs/serving.md tells what it does
beside vLLM. The model runs in a thread of its own (local_worker.py).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

import torch

from epigraph.artifact import Artifact
from epigraph.engine.base import Base, Counts, Engine, Piece, Request
from epigraph.engine.contracts import bare_contract, raw_contract, stopping
from epigraph.engine.drawing import Draw
from epigraph.engine.jobs import Event, Job
from epigraph.engine.loaded import DEFAULT_CACHE_BYTES, Held, Loaded
from epigraph.engine.local_ways import fields_of, named, num_in_front, piece_of, refuse_settings, way_of
from epigraph.engine.local_worker import DEFAULT_READ_TOKENS, Worker
from epigraph.engine.shelf import Shelf
from epigraph.engine.spoken import Spoken
from epigraph.errors import BadValue, EngineUnavailable, TextTooLong, UnsupportedModel
from epigraph.frozen.inputs import Codec
from epigraph.frozen.model import FrozenModel
from epigraph.frozen.stepper import DEFAULT_BYTES, DEFAULT_ROWS, Stepper, can_carry
from epigraph.tuned import Tuned, check_contract, encoded

T = TypeVar("T")
# A text of so many characters is made into ids beside the event loop.
_LONG = 2_000


@dataclass(kw_only=True, slots=True, eq=False)
class _Running:
    """A request between its submission and its last piece. ``events`` are what the model's thread says."""

    held: tuple[Held, ...]
    job: Job
    num_prompt_tokens: int
    events: asyncio.Queue[Event]


class LocalEngine(Engine):
    """One frozen model that answers many requests at once. Make one with :meth:`start`, in the event loop it is for."""

    def __init__(
        self,
        frozen: FrozenModel,
        prefixes: Shelf,
        *,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        max_rows: int = DEFAULT_ROWS,
        kv_bytes: int = DEFAULT_BYTES,
        read_tokens: int = DEFAULT_READ_TOKENS,
        allow_base: str | None = None,
    ) -> None:
        """``frozen`` is the engine's alone from now on; call it in the event loop that the engine is for."""
        self._frozen = frozen
        self._loop = asyncio.get_running_loop()
        self._allow_base = allow_base
        self._stepper = _stepper(frozen, max_rows, kv_bytes)
        self._worker = Worker(frozen, self._stepper, self._post, max_rows=max_rows, read_tokens=read_tokens)
        self._loaded = Loaded(prefixes, self._ready, self._on_model, cache_bytes)
        self._running: dict[str, _Running | None] = {}
        self._is_closed = False
        end = frozen.tokenizer.eos_token_id
        self._ends = frozenset(() if end is None else (int(end),))

    @classmethod
    async def start(
        cls,
        model: str,
        prefixes: str | os.PathLike[str],
        *,
        dtype: str = "float32",
        device: str | torch.device = "cpu",
        attention_name: str = "sdpa",
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        max_rows: int = DEFAULT_ROWS,
        kv_bytes: int = DEFAULT_BYTES,
        read_tokens: int = DEFAULT_READ_TOKENS,
        allow_base: str | None = None,
    ) -> Self:
        """The base ``model`` (a known name, a folder or a hub id), serving the artifacts below ``prefixes``.

        ``cache_bytes`` bounds the artifacts that are kept ready beside those in use, ``max_rows`` how many answers are
        made at once (members of ensembles counted each), ``kv_bytes`` what keys and values of these take, and
        ``read_tokens`` how much text is read between two tokens of those who speak. Raises :class:`ModelNotFound`,
        :class:`UnsupportedModel` and :class:`BadValue`.
        """
        shelf = Shelf(prefixes)
        frozen = await asyncio.to_thread(
            FrozenModel.load, model, dtype=dtype, attention_name=attention_name, device=device
        )
        await asyncio.to_thread(lambda: (frozen.fingerprint, frozen.tokenizer_fingerprint))
        return cls(
            frozen,
            shelf,
            cache_bytes=cache_bytes,
            max_rows=max_rows,
            kv_bytes=kv_bytes,
            read_tokens=read_tokens,
            allow_base=allow_base,
        )

    @property
    def base(self) -> Base:
        """See :class:`epigraph.engine.base.Engine`."""
        frozen = self._frozen
        return Base(
            name=frozen.name,
            fingerprint=frozen.fingerprint,
            tokenizer_fingerprint=frozen.tokenizer_fingerprint,
        )

    @property
    def held_bytes(self) -> int:
        """The bytes of the artifacts that are kept ready."""
        return self._loaded.num_bytes

    def counts(self) -> Counts:
        """See :class:`epigraph.engine.base.Engine`."""
        return self._worker.counts()

    def check(self) -> None:
        """See :class:`epigraph.engine.base.Engine`."""
        if self._is_closed:
            raise EngineUnavailable("the engine is closed; start another one")
        if not self._worker.is_alive:
            raise EngineUnavailable(f"the engine ended: {self._worker.failure!r}; start another one")

    async def submit(self, request: Request) -> AsyncIterator[Piece]:
        """See :class:`epigraph.engine.base.Engine`. The request begins when the first piece is asked for.

        Raises what is wrong with a text or its prefixes, :class:`TextTooLong` for what there would never be room for,
        :class:`CannotServe`, and :class:`EngineUnavailable` once closed.
        """
        self.check()
        if request.request_id in self._running:
            raise BadValue(f"request {request.request_id!r} is running; give each request an id of its own")
        self._running[request.request_id] = None
        try:
            running = self._running[request.request_id] = await self._ask(request)
        except BaseException:
            del self._running[request.request_id]
            raise
        return self._pieces(request.request_id, running)

    async def cancel(self, request_id: str) -> None:
        """See :class:`epigraph.engine.base.Engine`."""
        running = self._running.get(request_id)
        if running is not None:
            running.job.cancelled = True
            self._worker.wake()

    async def close(self) -> None:
        """See :class:`epigraph.engine.base.Engine`."""
        if not self._is_closed:
            self._is_closed = True
            await asyncio.to_thread(self._worker.close)

    async def _ask(self, request: Request) -> _Running:
        frozen = self._frozen
        held = [await self._loaded.get(x.prefix, x.version) for x in named(request)]
        codec = self._codec(request, [one.tuned for one in held])
        contract = codec.contract
        if len(str(request.text)) > _LONG:
            asked = await asyncio.to_thread(encoded, codec, request.text)
        else:
            asked = encoded(codec, request.text)
        members = tuple(one.tuned.prefix for one in held) or (None,)
        decoding = request.decoding or contract.decoding
        way = way_of(contract, decoding, request, steps=self._stepper is not None and all(map(can_carry, members)))
        refuse_settings(way, request)
        if not asked.ids:
            raise BadValue("the text has no tokens, so there is nothing to answer; give words")
        events: asyncio.Queue[Event] = asyncio.Queue()
        running = _Running(
            events=events,
            held=tuple(held),
            num_prompt_tokens=len(asked.ids) + num_in_front(members),
            job=Job(
                request_id=request.request_id,
                way=way,
                codec=codec,
                encoded=asked,
                fields=fields_of(request),
                members=members,
                mean=request.mean,
                draw=Draw(
                    sampling=request.sampling,
                    decoding=decoding,
                    ends=self._ends,
                    num_logprobs=request.logprobs,
                    word=lambda token: str(frozen.tokenizer.decode([token])),
                ),
                head=held[0].tuned.head if held else None,
                tell=events.put_nowait,
            ),
        )
        self._check_room(running.job)
        return running

    def _codec(self, request: Request, tuned: Sequence[Tuned]) -> Codec:
        """How the text is read: by the first prefix's contract, which the others share."""
        if not tuned:
            contract = bare_contract(self._frozen.tokenizer, request.text, self._frozen.kind)
        else:
            contract = tuned[0].artifact.contract
            for name, other in zip(request.others, tuned[1:], strict=True):
                check_contract(name.prefix, other.artifact.contract, contract)
            contract = raw_contract(contract) if request.raw else contract
        if tuned and not request.raw and not request.stop:
            return tuned[0].codec
        return Codec(self._frozen.tokenizer, stopping(contract, request.stop))

    def _check_room(self, job: Job) -> None:
        num_tokens, num_new = len(job.encoded.ids), job.draw.decoding.max_new_tokens
        if job.way == "step":
            assert self._stepper is not None
            for tokens in job.members:
                self._stepper.check(tokens, num_tokens, num_new, job.num_rows)
            return
        limit = self._frozen.geometry.max_positions
        said = 0 if job.way == "choose" else num_new
        needed = max(num_tokens, said) if self._frozen.kind == "encoder-decoder" else num_tokens + said
        if limit is not None and needed + max(0 if x is None else x.num_virtual_tokens for x in job.members) > limit:
            raise TextTooLong(
                f"the text has {num_tokens} tokens and the answer up to {said}, {self._frozen.name} has {limit} "
                "positions, virtual tokens included; shorten the text or ask for fewer new tokens"
            )

    async def _pieces(self, request_id: str, running: _Running) -> AsyncIterator[Piece]:
        job, spoken = running.job, Spoken(running.job.codec)
        for held in running.held:
            self._loaded.pin(held)
        try:
            self.check()
            self._worker.put(job)
            while True:
                event = await running.events.get()
                if isinstance(event, Exception):
                    raise event
                piece = piece_of(event, spoken, running.num_prompt_tokens)
                if piece.finish_reason is not None:
                    # Known before the last piece is taken, so that whoever has it sees the request gone.
                    self._running.pop(request_id, None)
                yield piece
                if piece.finish_reason is not None:
                    return
        finally:
            # Left early, by a stop text or by whoever reads: its row is for others.
            job.cancelled = True
            self._worker.wake()
            self._running.pop(request_id, None)
            for held in running.held:
                self._loaded.unpin(held)

    def _post(self, said: Sequence[tuple[Job, Event]]) -> None:
        """What was said in a step, from the model's thread to the event loop, at once for all."""

        def told() -> None:
            for job, event in said:
                job.tell(event)

        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(told)

    def _ready(self, content: Artifact) -> Tuned:
        return Tuned(self._frozen, content, allow_base=self._allow_base)

    async def _on_model(self, function: Callable[[], T]) -> T:
        self.check()
        return await asyncio.wrap_future(self._worker.call(function))


def _stepper(frozen: FrozenModel, max_rows: int, kv_bytes: int) -> Stepper | None:
    for name, value in (("max_rows", max_rows), ("kv_bytes", kv_bytes)):
        if value < 1:
            raise BadValue(f"{name} is {value}, expected 1 or more")
    try:
        return Stepper(frozen, max_rows=max_rows, max_bytes=kv_bytes)
    except UnsupportedModel:
        return None
