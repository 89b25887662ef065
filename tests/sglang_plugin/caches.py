"""SGLang's own cache classes, built in this process around small pools in ordinary memory.

Real trees, real allocators, real pools; only the model is missing.  The stand-ins for CUDA-only
packages go on the path first, as the launcher does it for an engine's processes.
"""

from __future__ import annotations

import itertools
import os
import sys
import warnings
from array import array
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Literal

from kvflow.engine.command import STAND_INS_DIR

Core = Literal["python", "rust", "kvflow"]

__all__ = [
    "EOS",
    "FULL",
    "MIN_SPLIT_TOKENS",
    "Core",
    "build_cache",
    "cached_tokens",
    "evict",
    "evict_host",
    "finished_request",
    "insert",
    "insert_host",
]

_request_ids = itertools.count()

os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
sys.path.insert(0, str(STAND_INS_DIR))
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator
    from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InsertParams
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, ReqToTokenPool
    from sglang.srt.mem_cache.radix_cache import RadixKey
    from sglang.srt.mem_cache.unified_cache.components import ComponentType
    from sglang.srt.mem_cache.unified_cache.tree_core_registry import register_tree_core_backend
    from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

    from kvflow.sglang_plugin.cache import KVFlowRadixCache
    from kvflow.sglang_plugin.tree import (
        MIN_SPLIT_TOKENS,
        KVFlowFullComponent,
        KVFlowTreeCore,
    )

register_tree_core_backend("kvflow", KVFlowTreeCore)

FULL = ComponentType.FULL
EOS = 10**9


def build_cache(core: Core, capacity_tokens: int) -> Any:
    """An empty cache over a one-layer KV pool of ``capacity_tokens``, pages of one token."""
    pool = MHATokenToKVPool(
        size=capacity_tokens,
        page_size=1,
        dtype=torch.float32,
        head_num=1,
        head_dim=1,
        layer_num=1,
        device="cpu",
        enable_memory_saver=False,
    )
    params = CacheInitParams(
        disable=False,
        req_to_token_pool=ReqToTokenPool(8, 4096, "cpu", False),
        token_to_kv_pool_allocator=TokenToKVPoolAllocator(
            capacity_tokens, torch.float32, "cpu", pool, False
        ),
        page_size=1,
        tree_components=(FULL,),
    )
    params.tree_core_backend = core
    if core != "kvflow":
        return UnifiedRadixCache(params)
    params.component_registry_override = {FULL: KVFlowFullComponent}
    return KVFlowRadixCache(params)


def insert(cache: Any, tokens: Sequence[int]) -> None:
    """Put a path into the tree; what of it was there already is freed again."""
    allocator = cache.token_to_kv_pool_allocator
    if allocator.available_size() < len(tokens):
        evict(cache, len(tokens) - allocator.available_size())
    value = allocator.alloc(len(tokens))
    assert value is not None
    cache.insert(InsertParams(key=RadixKey(array("q", tokens)), value=value))


def insert_host(cache: Any, tokens: Sequence[int]) -> None:
    """Put a path into the host tier of the tree alone, as a fetch from storage does."""
    core = cache.tree_core
    core.insert_host(
        core.root_node_handle(),
        RadixKey(array("q", tokens)),
        torch.arange(len(tokens)),
        [str(t) for t in tokens],
    )


def evict(cache: Any, tokens: int) -> int:
    """Ask for that many tokens of device memory; returns how many were freed."""
    result = cache.evict(EvictParams(num_tokens=tokens))
    return int(result.num_tokens_evicted)


def evict_host(cache: Any, tokens: int) -> int:
    """Ask for that many tokens of host memory; returns how many were given up."""
    result = cache.tree_core.drive_host_eviction(FULL, tokens)
    result.host_frees.clear()  # there is no host pool to give them back to
    return int(result.tracker.get(FULL, 0))


def cached_tokens(cache: Any, tokens: Sequence[int]) -> int:
    """How much of a path is on the device; leaves recency alone."""
    matched, _, _ = cache.tree_core.match_full_device_prefix(RadixKey(array("q", tokens)))
    return int(matched)


def finished_request(
    prompt: Sequence[int],
    answer: Sequence[int],
    metadata: dict[str, Any] | None,
    cached: int = 0,
) -> Any:
    """What the plugin reads of a finished SGLang request."""
    return SimpleNamespace(
        rid=f"request-{next(_request_ids)}",
        origin_input_ids=array("q", prompt),
        output_ids=array("q", answer),
        eos_token_ids={EOS},
        extra_key=None,
        cache_salt=None,
        cached_tokens=cached,
        sampling_params=SimpleNamespace(
            custom_params=None if metadata is None else {"kvflow": metadata}
        ),
    )
