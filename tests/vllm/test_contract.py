"""What Epigraph takes from vLLM, name by name: when a version breaks one, this says which, and what it was for."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest
from vllm.config import KVTransferConfig
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.request import Request

import vllm
from epigraph.engine import vllm_names
from epigraph.engine.pages import NO_BLOCK
from epigraph.engine.vllm_names import KVConnectorBase_V1, KVConnectorTransferResults, SupportsHMA

SRC = Path(vllm_names.__file__).parents[1]

# The methods that vLLM calls, with the arguments it gives them.
CALLED = {
    "on_new_request": ["request"],
    "get_num_new_matched_tokens": ["request", "num_computed_tokens"],
    "update_state_after_alloc": ["request", "blocks", "num_external_tokens"],
    "build_connector_meta": ["scheduler_output"],
    "update_connector_output": ["connector_output"],
    "request_finished": ["request", "block_ids"],
    "register_kv_caches": ["kv_caches"],
    "start_load_kv": ["forward_context", "kwargs"],
    "get_transfer_results": ["finished_req_ids"],
    "build_connector_worker_meta": [],
    "shutdown": [],
}


def arguments(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


@pytest.mark.parametrize("name", CALLED)
def test_the_connector_interface_has_what_we_answer(name: str) -> None:
    assert arguments(getattr(KVConnectorBase_V1, name)) == CALLED[name], f"vLLM {vllm.__version__} calls it otherwise"


def test_caches_of_several_kinds_end_requests_by_a_method_of_their_own() -> None:
    assert arguments(SupportsHMA.request_finished_all_groups) == ["request", "block_ids"]


def test_a_request_tells_what_a_claim_is_checked_against() -> None:
    source = inspect.getsource(Request.__init__)
    for name in ("kv_transfer_params", "cache_salt", "prompt_token_ids", "skip_reading_prefix_cache", "request_id"):
        assert f"self.{name}" in source, f"requests of vLLM {vllm.__version__} have no {name}"


def test_a_request_that_reads_no_cached_blocks_is_one_we_have_to_turn_back() -> None:
    """The scheduler asks us and then ignores the answer of such a request; its placeholders would be read as text."""
    assert "request.skip_reading_prefix_cache:\n                            ext_tokens" in inspect.getsource(
        Scheduler.schedule
    ), "the scheduler treats requests that read no cached blocks otherwise: look at _Scheduler.came"


def test_a_request_can_fail_alone() -> None:
    assert {"finished_recving", "failed_recving"} <= set(KVConnectorTransferResults.__dataclass_fields__)
    assert "kv_connector_worker_meta" in KVConnectorOutput.__dataclass_fields__
    assert "WAITING_FOR_REMOTE_KVS" in inspect.getsource(Scheduler._handle_failed_recving)


def test_failures_fail_by_default_and_can_be_told_to() -> None:
    assert KVTransferConfig().kv_load_failure_policy == "fail"


def test_layers_write_their_own_cache() -> None:
    want = ["layer", "key", "value", "kv_cache", "slot_mapping"]
    assert arguments(CPUAttentionBackendImpl.do_kv_cache_update) == want


def test_the_block_that_is_none_is_the_first() -> None:
    source = inspect.getsource(BlockPool.__init__)
    assert "self.null_block = self.free_block_queue.popleft()" in source
    assert NO_BLOCK == 0


def test_vllm_is_imported_in_one_file_alone() -> None:
    found = []
    for file in SRC.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [x.name for x in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            if any(name == "vllm" or name.startswith("vllm.") for name in names):
                found.append(file.name)
    assert set(found) == {"vllm_names.py"}


def test_every_name_that_is_taken_is_used() -> None:
    users = [x for x in SRC.rglob("*.py") if x.name != "vllm_names.py"]
    text = "\n".join(x.read_text(encoding="utf-8") for x in users)
    assert [name for name in vllm_names.__all__ if name not in text] == []
