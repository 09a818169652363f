"""The door into stock vLLM: a KV connector that writes trained keys and values into vLLM's own paged blocks.

The scheduler's side claims a prefix's tokens as computed once the workers hold it (:mod:`epigraph.engine.desk`
decides); the workers write them by the attention layers' own cache update, so that layout and quantisation stay vLLM's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from epigraph.engine.claim import Claim, check_placeholders, from_params, salt_key
from epigraph.engine.desk import Answer, Desk, Key, Matched, Refused, Wait
from epigraph.engine.pages import Load, Pages
from epigraph.engine.residents import Base, Residents
from epigraph.engine.shelf import Shelf
from epigraph.engine.vllm_layers import Layers, bytes_per_token, page_sizes, refuse_config
from epigraph.engine.vllm_names import (
    KVCacheConfig,
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    KVConnectorWorkerMetadata,
    SupportsHMA,
    VllmConfig,
    init_logger,
)
from epigraph.engine.vllm_request import read_options
from epigraph.errors import BadClaim, EngineError
from epigraph.frozen.identity import identify

logger = init_logger("vllm.epigraph")


@dataclass
class Step(KVConnectorMetadata):  # type: ignore[misc]
    """What the scheduler's side tells the workers at one step, in this order: drop, read, write, report as failed."""

    base: Base
    drops: list[Key] = field(default_factory=list)
    orders: list[Key] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)


@dataclass
class Verdicts(KVConnectorWorkerMetadata):  # type: ignore[misc]
    """What workers found out about prefixes: how many of them, and what is wrong or nothing."""

    found: dict[Key, tuple[int, str]]

    def aggregate(self, other: Verdicts) -> Verdicts:
        """The answers of two workers as one."""
        both = dict(self.found)
        for key, (count, wrong) in other.found.items():
            before, first = both.get(key, (0, ""))
            both[key] = (before + count, first or wrong)
        return Verdicts(both)


class PrefixConnector(KVConnectorBase_V1, SupportsHMA):  # type: ignore[misc]
    """Name it in vLLM's ``--kv-transfer-config`` (docs/vllm.md; ``epigraph vllm config`` prints one).

    Raises :class:`CannotServe` at the start for a configuration under which prefixes could not be served exactly.
    """

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        options = read_options(self._kv_transfer_config)
        refuse_config(vllm_config, kv_cache_config)
        self._side: _Scheduler | _Worker
        if role == KVConnectorRole.SCHEDULER:
            self._side = _Scheduler(vllm_config, kv_cache_config, options)
        else:
            self._side = _Worker(vllm_config, kv_cache_config, Shelf(options["prefixes"]))

    @property
    def _scheduler(self) -> _Scheduler:
        assert isinstance(self._side, _Scheduler)
        return self._side

    @property
    def _worker(self) -> _Worker:
        assert isinstance(self._side, _Worker)
        return self._side

    def shutdown(self) -> None:
        """Vllm ends."""
        self._side.close()

    # The scheduler's side

    def on_new_request(self, request: Any) -> None:
        """A request has arrived."""
        self._scheduler.came(request)

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """How many tokens a request has from its prefix; None while nobody knows; an asynchronous one if it fails."""
        match self._scheduler.matched(request.request_id, num_computed_tokens):
            case Matched(num_tokens=count):
                return count, False
            case Wait():
                return None, False
            case Refused():
                # A request whose loading is asynchronous can fail alone, whatever it shares with others.
                return 1, True

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """A request has got its blocks."""
        self._scheduler.allocated(request.request_id, blocks.get_block_ids(), num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> Step:
        """What the workers are told at this step."""
        return self._scheduler.step()

    def update_connector_output(self, connector_output: Any) -> None:
        """What the workers say after a step."""
        said = connector_output.kv_connector_worker_meta
        if isinstance(said, Verdicts):
            self._scheduler.desk.answered(said.found)

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, None]:
        """A request has ended; its blocks are free."""
        self._scheduler.desk.went(request.request_id)
        return False, None

    def request_finished_all_groups(self, request: Any, block_ids: tuple[list[int], ...]) -> tuple[bool, None]:
        """The same, for models whose layers have several kinds of cache."""
        return self.request_finished(request, [])

    # The workers' side

    def register_kv_caches(self, kv_caches: Mapping[str, Any]) -> None:
        """The caches are there: this is what the worker has."""
        self._worker.begin()

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Do what the scheduler's side told: what this step's requests need is in their blocks afterwards."""
        step = self._get_connector_metadata()
        assert isinstance(step, Step)
        self._worker.do(step)

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        """The requests that are to fail."""
        refused = self._worker.take_refused()
        return KVConnectorTransferResults(finished_recving=refused, failed_recving=set(refused))

    def build_connector_worker_meta(self) -> Verdicts | None:
        """What the worker found out about prefixes since it was asked last."""
        found = self._worker.residents.verdicts()
        return Verdicts(found) if found else None

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing is loaded layer by layer."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing is saved."""

    def wait_for_save(self) -> None:
        """Nothing is saved."""


class _Scheduler:
    """The scheduler's side: requests in, orders to the workers out."""

    def __init__(self, vllm_config: VllmConfig, kv_cache_config: KVCacheConfig, options: Mapping[str, Any]) -> None:
        model = vllm_config.model_config
        identity = identify(str(model.model), str(model.tokenizer))
        self._base = Base(
            fingerprint=identity.fingerprint,
            tokenizer_fingerprint=identity.tokenizer_fingerprint,
            allow_base=options["allow_base"],
        )
        self._salt_key = salt_key()
        self.desk = Desk(
            bytes_per_token=bytes_per_token(kv_cache_config, model.dtype),
            cache_bytes=options["cache_bytes"],
            recheck_seconds=options["recheck_seconds"],
            num_workers=vllm_config.parallel_config.world_size,
        )
        self._step = Step(base=self._base)
        self._refusals: dict[str, str] = {}

    def matched(self, request_id: str, num_local: int) -> Answer:
        answer = self.desk.matched(request_id, num_local)
        self._refusals.pop(request_id, None)
        if isinstance(answer, Refused):
            self._refusals[request_id] = answer.reason
        return answer

    def came(self, request: Any) -> None:
        claim, refusal = None, ""
        try:
            claim = self._claim(request)
        except EngineError as wrong:
            refusal = str(wrong)
        if claim is not None or refusal:
            # vLLM would not ask us about a request that reads no cached blocks, and compute its placeholders as text.
            request.skip_reading_prefix_cache = False
        self.desk.came(request.request_id, claim, refusal)

    def _claim(self, request: Any) -> Claim | None:
        claim = from_params(request.kv_transfer_params, request.cache_salt)
        if claim is None:
            return None
        claim.check_salt(request.cache_salt, self._salt_key)
        check_placeholders(claim, request.prompt_token_ids)
        if request.skip_reading_prefix_cache:
            raise BadClaim(
                "the request asks for the likelihood of its own text (prompt_logprobs) or to read no cached blocks, "
                "which a text behind virtual tokens cannot have; leave that out"
            )
        return claim

    def allocated(self, request_id: str, blocks: tuple[list[int], ...], num_tokens: int) -> None:
        if request_id in self._refusals:
            logger.error("Request %s is refused: %s", request_id, self._refusals.pop(request_id))
            self._step.refused.add(request_id)
        elif num_tokens > 0:
            key = self.desk.taken(request_id)
            first = key.num_virtual_tokens - num_tokens
            self._step.loads.append(Load(key=key, first=first, blocks=tuple(map(tuple, blocks))))

    def step(self) -> Step:
        step, self._step = self._step, Step(base=self._base)
        slip = self.desk.slip()
        step.drops, step.orders = slip.drops, slip.orders
        return step

    def close(self) -> None:
        pass


class _Worker:
    """A worker's side: what it is told becomes keys and values in blocks."""

    def __init__(self, vllm_config: VllmConfig, kv_cache_config: KVCacheConfig, shelf: Shelf) -> None:
        self._layers = Layers(vllm_config, kv_cache_config)
        self._pages = Pages(page_sizes(kv_cache_config))
        self._shelf = shelf
        self._dtype = vllm_config.model_config.dtype
        self._refused: set[str] = set()
        self._residents: Residents | None = None

    @property
    def residents(self) -> Residents:
        assert self._residents is not None, "the caches were never registered"
        return self._residents

    def begin(self) -> None:
        self._layers.refuse_layers()
        self._residents = Residents(self._shelf, self._layers.share(), self._dtype)

    def do(self, step: Step) -> None:
        for key in step.drops:
            self.residents.drop(key)
        for key in step.orders:
            self.residents.order(key, step.base)
        self._refused |= step.refused
        if step.loads:
            self._write(step.loads)

    def _write(self, loads: list[Load]) -> None:
        held = [self.residents.held(load.key) for load in loads]
        for group, names in enumerate(self._layers.groups):
            picked = self._pages.places(loads, group)
            for name in names:
                number = self._layers.number(name)
                self._layers.write(name, *picked.of([one[number] for one in held]))

    def take_refused(self) -> set[str]:
        refused, self._refused = self._refused, set()
        return refused

    def close(self) -> None:
        if self._residents is not None:
            self._residents.close()
