"""Stock vLLM behind the engine protocol: artifacts' prefixes beside texts, by our connector, in one process's batch.

It applies text contracts and tells errors by name before vLLM sees a request; docs/vllm.md tells what it can serve.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from epigraph.engine.base import Base, Counts, Engine, FinishReason, Piece, Request, TokenLogprob
from epigraph.engine.claim import Claim, check_id, salt_key
from epigraph.engine.contracts import bare_contract, raw_contract, stopping
from epigraph.engine.servable import refuse_ensemble, refuse_unservable_contract
from epigraph.engine.shelf import Shelf
from epigraph.engine.spoken import Spoken
from epigraph.engine.vllm_prefixes import Lowerer, Prefixes
from epigraph.engine.vllm_prompt import Prompt, Width, alone, around, behind, check_room, refuse_nothing, settings
from epigraph.engine.vllm_request import DEFAULT_CACHE_BYTES, DEFAULT_RECHECK_SECONDS, transfer_config
from epigraph.errors import BadValue, EngineUnavailable, RequestFailed
from epigraph.frozen.generate import until_end
from epigraph.frozen.identity import Identity, identify
from epigraph.frozen.inputs import Codec
from epigraph.frozen.resolve import public_name
from epigraph.tuned import encoded

_Output = tuple[tuple[int, ...], str | None, tuple[TokenLogprob, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """A request as it goes into vLLM."""

    prompt: Prompt
    codec: Codec
    parameters: Any
    claim: Claim | None


@dataclass(kw_only=True, slots=True)
class _Running:
    """A request between its submission and its last piece."""

    cancelled: bool = False
    began: bool = False


class VLLMEngine(Engine):
    """vLLM with prefixes. Make one with :meth:`start`, in the event loop that it is used in."""

    def __init__(self, engine: Any, names: ModuleType, base: Identity, prefixes: Prefixes) -> None:
        self._engine = engine
        self._names = names
        self._base = base
        self._prefixes = prefixes
        self._end: int | None = base.tokenizer.eos_token_id
        self._ends: set[int] = set() if self._end is None else {self._end}
        self._key = salt_key()
        self._running: dict[str, _Running] = {}
        self._is_closed = False
        config = engine.model_config
        self._limit = int(config.max_model_len)
        self._width = Width(
            embedding_dim=int(config.get_inputs_embeds_size()),
            dtype=config.dtype,
            layers_read_ids=bool(getattr(config.hf_text_config, "hidden_size_per_layer_input", 0)),
        )

    @classmethod
    async def start(
        cls,
        model: str,
        prefixes: str | os.PathLike[str],
        *,
        lower_into: str | os.PathLike[str] | None = None,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        recheck_seconds: float = DEFAULT_RECHECK_SECONDS,
        allow_base: str | None = None,
        **options: Any,
    ) -> Self:
        """vLLM on the base ``model`` (a known name, a folder or a hub id), serving the artifacts below ``prefixes``.

        Soft prompts in front are made into keys and values once, into ``lower_into``, a folder inside ``prefixes``;
        without it they are refused. ``cache_bytes``, ``recheck_seconds`` and ``allow_base`` are those of
        :func:`transfer_config`; ``options`` go to vLLM's ``AsyncEngineArgs`` (``dtype``, ``max_model_len``). Raises
        :class:`EngineUnavailable` where vLLM is not installed or does not start, and :class:`ModelNotFound`.
        """
        given = transfer_config(
            prefixes, cache_bytes=cache_bytes, recheck_seconds=recheck_seconds, allow_base=allow_base
        )
        base = await asyncio.to_thread(identify, model)
        lowerer = None
        if lower_into is not None:
            lowerer = Lowerer(model, Path(lower_into), Path(prefixes), allow_base)
        known = Prefixes(Shelf(prefixes), base, allow_base=allow_base, lowerer=lowerer)
        names = _vllm()
        arguments = {
            "enable_prompt_embeds": True,
            # What a model's authors would sample with is not what the contract says.
            "generation_config": "vllm",
            **options,
            "model": str(base.checkpoint.folder),
            "kv_transfer_config": names.KVTransferConfig(**given),
        }
        try:
            engine = names.AsyncLLM.from_engine_args(names.AsyncEngineArgs(**arguments))
        except (RuntimeError, ValueError, TypeError) as wrong:
            first = (str(wrong).strip() or type(wrong).__name__).splitlines()[0]
            raise EngineUnavailable(f"vLLM did not start: {first}; its log says more") from wrong
        return cls(engine, names, base, known)

    @property
    def base(self) -> Base:
        """See :class:`epigraph.engine.base.Engine`."""
        known = self._base
        return Base(
            name=public_name(known.checkpoint.name),
            fingerprint=known.fingerprint,
            tokenizer_fingerprint=known.tokenizer_fingerprint,
        )

    def counts(self) -> Counts:
        """See :class:`epigraph.engine.base.Engine`. vLLM does not say which of its requests wait."""
        running = sum(x.began for x in self._running.values())
        return Counts(running=running, waiting=len(self._running) - running)

    def check(self) -> None:
        """See :class:`epigraph.engine.base.Engine`."""
        if self._is_closed:
            raise EngineUnavailable("the engine is closed; start another one")
        if self._engine.errored:
            raise EngineUnavailable("vLLM has ended; its log says why; start another engine")

    async def submit(self, request: Request) -> AsyncIterator[Piece]:
        """See :class:`epigraph.engine.base.Engine`. vLLM begins when the first piece is asked for.

        Raises what is wrong with a text or its prefix; :class:`CannotServe` for what only the local engine can do,
        :class:`TextTooLong`, and :class:`EngineUnavailable` once closed.
        """
        self.check()
        if request.request_id in self._running:
            raise BadValue(f"request {request.request_id!r} is running; give each request an id of its own")
        running = self._running[request.request_id] = _Running()
        try:
            asked = await self._ask(request)
        except BaseException:
            self._running.pop(request.request_id, None)
            raise
        return self._pieces(request, asked, running)

    async def cancel(self, request_id: str) -> None:
        """See :class:`epigraph.engine.base.Engine`."""
        running = self._running.get(request_id)
        if running is None:
            return
        running.cancelled = True
        if running.began:
            await self._engine.abort(request_id)
        else:
            del self._running[request_id]

    async def close(self) -> None:
        """See :class:`epigraph.engine.base.Engine`."""
        if self._is_closed:
            return
        self._is_closed = True
        for request_id in list(self._running):
            await self.cancel(request_id)
        # Let go of, as well: what vLLM does when it is forgotten is not left to the interpreter's end.
        engine, self._engine = self._engine, None
        engine.shutdown()

    async def _ask(self, request: Request) -> _Asked:
        refuse_ensemble(request)
        codec, claim, placed = await self._read(request)
        decoding = request.decoding or codec.contract.decoding
        refuse_unservable_contract(codec.contract.model_copy(update={"decoding": decoding}))
        ids = encoded(codec, request.text).ids
        refuse_nothing(ids)
        if claim is None:
            prompt = alone(ids, request.tenant, self._key)
        elif placed is not None:
            prompt = around(claim, placed, ids, self._width, self._key)
        else:
            prompt = behind(claim, ids, self._key)
        check_room(prompt, decoding, self._limit)
        parameters = self._parameters(settings(decoding, request, self._end, prompt))
        return _Asked(prompt=prompt, codec=codec, parameters=parameters, claim=claim if prompt.params else None)

    def _parameters(self, given: dict[str, Any]) -> Any:
        try:
            return self._names.SamplingParams(**given, output_kind=self._names.RequestOutputKind.DELTA)
        except self._names.VLLMClientError as wrong:
            raise BadValue(f"vLLM does not take the request: {wrong}") from wrong

    async def _read(self, request: Request) -> tuple[Codec, Claim | None, Any]:
        """How the text is read, which keys and values go in front of it, and which virtual tokens stand in it."""
        tokenizer = self._base.tokenizer
        if request.prefix is None:
            check_id("bare", tenant=request.tenant)
            return Codec(tokenizer, stopping(bare_contract(tokenizer, request.text), request.stop)), None, None
        check_id(request.prefix, request.version, request.tenant)
        known = await self._prefixes.get(request.prefix, request.version)
        codec = known.codec
        if request.raw or request.stop:
            contract = raw_contract(codec.contract) if request.raw else codec.contract
            codec = Codec(tokenizer, stopping(contract, request.stop))
        return codec, known.claim.model_copy(update={"tenant": request.tenant}), known.placed

    async def _pieces(self, request: Request, asked: _Asked, running: _Running) -> AsyncIterator[Piece]:
        spoken = Spoken(asked.codec)
        count = asked.prompt.num_tokens
        if running.cancelled:
            yield Piece(text="", token_ids=(), num_prompt_tokens=count, finish_reason="cancelled")
            return
        outputs = self._outputs(request, asked)
        running.began = True
        try:
            async for new, ended, told in outputs:
                text, reason = spoken.add(new), _reason(ended, running, spoken)
                if reason is not None:
                    text += spoken.finish()
                yield Piece(text=text, token_ids=new, num_prompt_tokens=count, finish_reason=reason, logprobs=told)
                if reason is not None:
                    return
        finally:
            # Left early, by a stop text or by whoever reads: vLLM is told, and forgets the request.
            await outputs.aclose()
            self._running.pop(request.request_id, None)

    async def _outputs(self, request: Request, asked: _Asked) -> AsyncGenerator[_Output]:
        """New ids without the end token, at the end vLLM's word for why, and log-probabilities where they were asked
        for. Raises :class:`RequestFailed`."""
        names, value = self._names, asked.prompt.value
        given = names.embeds_input(**value) if "prompt_embeds" in value else names.tokens_input(**value)
        generation = self._engine.generate(given, asked.parameters, request.request_id)
        try:
            async for output in generation:
                said = output.outputs[0]
                if said.finish_reason == "error":
                    raise RequestFailed(f"vLLM refused the request: {await self._why(asked)}")
                new = tuple(until_end(list(said.token_ids), self._ends))
                yield new, said.finish_reason, self._told(new, said.logprobs, request.logprobs)
        except names.EngineDeadError as dead:
            raise EngineUnavailable("vLLM has ended; its log says why; start another engine") from dead
        except (names.EngineGenerateError, names.VLLMClientError) as wrong:
            raise RequestFailed(f"vLLM could not take the request: {wrong.__cause__ or wrong}") from wrong
        finally:
            await generation.aclose()

    def _told(self, new: tuple[int, ...], said: Any, num: int | None) -> tuple[TokenLogprob, ...]:
        """What vLLM says of each new token, as the protocol has it; the token itself is told, too."""
        if num is None:
            return ()
        tokenizer, found = self._base.tokenizer, []
        for token, likely in zip(new, said, strict=False):
            best = sorted((x for x in likely.items() if x[1].rank <= num), key=lambda x: x[1].rank)
            top = tuple((str(tokenizer.decode([i])), float(x.logprob)) for i, x in best)
            own = likely[token]
            found.append(TokenLogprob(text=str(tokenizer.decode([token])), logprob=float(own.logprob), top=top))
        return tuple(found)

    async def _why(self, asked: _Asked) -> str:
        if asked.claim is None:
            return "see the engine's log"
        return await asyncio.to_thread(self._prefixes.why, asked.claim)


def _reason(ended: str | None, running: _Running, spoken: Spoken) -> FinishReason | None:
    """Why the answer ends here, or None where it goes on; ``ended`` is what vLLM says."""
    if running.cancelled or ended == "abort":
        return "cancelled"
    if spoken.stopped or ended == "stop":
        return "stop"
    return None if ended is None else "length"


def _vllm() -> ModuleType:
    try:
        from epigraph.engine import vllm_names
    except ImportError as missing:
        raise EngineUnavailable(
            f"vLLM cannot be imported ({missing}); install it in an environment of its own, as docs/vllm.md says"
        ) from missing
    return vllm_names
