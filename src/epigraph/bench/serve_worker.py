"""What a worker tells of the prefixes it holds; vLLM mixes the class into its own (``worker_extension_cls``)."""

from __future__ import annotations


class Telling:
    """One method more for a worker."""

    def epigraph_held_bytes(self) -> int:
        """The bytes of all keys and values that the connector's cache holds."""
        from epigraph.engine.vllm_names import get_kv_transfer_group

        held: int = get_kv_transfer_group()._worker.residents.num_bytes()
        return held
