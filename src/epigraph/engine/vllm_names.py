"""Every name that Epigraph takes from vLLM, in one place, so that a version without one of them is found out here.

tests/vllm/test_contract.py tells what each is needed for.
"""

from __future__ import annotations

from vllm.config import KVTransferConfig, VllmConfig
from vllm.distributed.kv_transfer import get_kv_transfer_group
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    KVConnectorWorkerMetadata,
    SupportsHMA,
)
from vllm.distributed.parallel_state import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
from vllm.exceptions import VLLMClientError
from vllm.inputs.engine import embeds_input, tokens_input
from vllm.logger import init_logger
from vllm.lora.request import LoRARequest
from vllm.model_executor.models.utils import extract_layer_index
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    SlidingWindowSpec,
    UniformTypeKVCacheSpecs,
)
from vllm.version import __version__

__all__ = [
    "AsyncEngineArgs",
    "AsyncLLM",
    "EngineArgs",
    "EngineDeadError",
    "EngineGenerateError",
    "FullAttentionSpec",
    "KVCacheConfig",
    "KVCacheGroupSpec",
    "KVConnectorBase_V1",
    "KVConnectorMetadata",
    "KVConnectorRole",
    "KVConnectorTransferResults",
    "KVConnectorWorkerMetadata",
    "KVTransferConfig",
    "LLMEngine",
    "LoRARequest",
    "RequestOutputKind",
    "SamplingParams",
    "SlidingWindowSpec",
    "SupportsHMA",
    "UniformTypeKVCacheSpecs",
    "VLLMClientError",
    "VllmConfig",
    "__version__",
    "embeds_input",
    "extract_layer_index",
    "get_kv_transfer_group",
    "get_tensor_model_parallel_rank",
    "get_tensor_model_parallel_world_size",
    "init_logger",
    "tokens_input",
]
