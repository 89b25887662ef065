"""Requests through SGLang's cache in this process: real trees, requests, pools; no model.

What the scheduler asks of the cache for one request, in its order, so that the cost of a tree core
can be stated per request (0.5.23: ``init_next_round_input`` and ``PrefillAdder.add_one_req``,
``checkpoint_kv_cache`` after the prefill if it goes on, ``release_kv_cache`` at the end).
"""

from __future__ import annotations

import functools
import itertools
import time
import warnings
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from tests.sglang_plugin.caches import FULL, Core  # puts the stand-ins for CUDA on the path

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    from sglang.srt import runtime_context
    from sglang.srt.managers.schedule_batch import FINISH_LENGTH, Req
    from sglang.srt.mem_cache.allocator import (
        PagedTokenToKVPoolAllocator,
        TokenToKVPoolAllocator,
    )
    from sglang.srt.mem_cache.base_prefix_cache import InsertParams, MatchPrefixParams
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams
    from sglang.srt.mem_cache.common import (
        checkpoint_kv_cache,
        evict_from_tree_cache,
        release_kv_cache,
    )
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, ReqToTokenPool
    from sglang.srt.mem_cache.radix_cache import RadixKey
    from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache
    from sglang.srt.sampling.sampling_params import SamplingParams
    from sglang.srt.server_args import ServerArgs

    from kvflow.sglang_plugin.cache import KVFlowRadixCache
    from kvflow.sglang_plugin.tree import KVFlowFullComponent

__all__ = ["PHASES", "Tree", "build_tree", "engine_context"]

PHASES: Final = ("match", "prefilled", "finished")
_ROWS: Final = 4
_rids = itertools.count()


@functools.cache
def _context() -> Any:
    arguments = ServerArgs(model_path="none", device="cpu")
    return runtime_context.create_context(arguments, role="scheduler")


@contextmanager
def engine_context() -> Iterator[None]:
    """SGLang's process-wide settings, which requests read."""
    with runtime_context.use_context(_context()):
        yield


def build_tree(core: Core, page_size: int, capacity_tokens: int, context_tokens: int) -> Tree:
    """An empty cache over a pool of ``capacity_tokens``. ``engine_context`` must be entered."""
    pool = MHATokenToKVPool(
        size=capacity_tokens,
        page_size=page_size,
        dtype=torch.float32,
        head_num=1,
        head_dim=1,
        layer_num=1,
        device="cpu",
        enable_memory_saver=False,
    )
    allocator = (
        TokenToKVPoolAllocator(capacity_tokens, torch.float32, "cpu", pool, False)
        if page_size == 1
        else PagedTokenToKVPoolAllocator(
            capacity_tokens, page_size, torch.float32, "cpu", pool, False
        )
    )
    params = CacheInitParams(
        disable=False,
        req_to_token_pool=ReqToTokenPool(_ROWS, context_tokens, "cpu", False),
        token_to_kv_pool_allocator=allocator,
        page_size=page_size,
        tree_components=(FULL,),
    )
    params.tree_core_backend = core
    if core != "kvflow":
        return Tree(UnifiedRadixCache(params))
    params.component_registry_override = {FULL: KVFlowFullComponent}
    return Tree(KVFlowRadixCache(params))


@dataclass(frozen=True, slots=True)
class Tree:
    """A cache, and what a scheduler does with it."""

    cache: Any

    def serve(
        self,
        prompt: Sequence[int],
        answer: Sequence[int],
        metadata: Mapping[str, Any] | None = None,
    ) -> dict[str, float]:
        """A request from its admission to its end; seconds by ``PHASES``.

        One that ends with its first token enters the tree once, at its end.
        """
        cache = self.cache
        params = SamplingParams(max_new_tokens=len(answer))
        params.custom_params = None if metadata is None else {"kvflow": metadata}
        req = Req(f"r{next(_rids)}", "", array("q", prompt), params)
        row_pool = cache.req_to_token_pool
        begun_s = time.perf_counter()
        req.init_next_round_input(cache)
        pinned = cache.lock(req.last_node)
        req.lock = cache.lock(req.last_node)
        cache.unlock(pinned)
        prefix = cache.prefix_device_indices(req)
        matched_s = time.perf_counter()
        row_pool.alloc([req])
        row = row_pool.req_to_token[req.kv.req_pool_idx]
        row[: req.prefix_len] = prefix
        req.kv.kv_allocated_len = req.kv.kv_committed_len = req.prefix_len
        self._take(req, row, len(prompt))
        req.extend_end = len(prompt)
        req.output_ids.append(answer[0])
        prefilled_s = decoding_s = time.perf_counter()
        if len(answer) > 1:
            checkpoint_kv_cache(req, cache)
            decoding_s = time.perf_counter()
            self._take(req, row, len(prompt) + len(answer) - 1)
            req.output_ids.extend(answer[1:])
        req.finished_reason = FINISH_LENGTH(length=len(answer))
        finished_s = time.perf_counter()
        release_kv_cache(req, cache, checkpoint=True)
        ended_s = time.perf_counter()
        return {
            "match": matched_s - begun_s,
            "prefilled": decoding_s - prefilled_s,
            "finished": ended_s - finished_s,
        }

    def _take(self, req: Any, row: Any, end: int) -> None:
        """Slots for the request up to ``end``, the rest of its last page first."""
        start, page = req.kv.kv_allocated_len, int(self.cache.page_size)
        within = min(-(-start // page) * page, end)
        if within > start:
            row[start:within] = row[start - 1] + torch.arange(1, within - start + 1)
        wanted = -(-(end - within) // page) * page
        if wanted:
            evict_from_tree_cache(self.cache, wanted)
            slots = self.cache.token_to_kv_pool_allocator.alloc(wanted)
            if slots is None:
                raise RuntimeError(f"no room for {wanted} tokens")
            row[within:end] = slots[: end - within].int()
        req.kv.kv_allocated_len = req.kv.kv_committed_len = end

    def match(self, tokens: array[int]) -> Any:
        """Look a prompt up, as for a request."""
        return self.cache.match_prefix(MatchPrefixParams(key=RadixKey(tokens)))

    def insert(self, tokens: Sequence[int], cached: int = 0) -> None:
        """Put a path into the tree whose first ``cached`` tokens are there already."""
        self.cache.insert(self.insertion(array("q", tokens), cached))

    def insertion(self, tokens: array[int], cached: int) -> Any:
        """What a request inserts whose first ``cached`` tokens are the tree's already."""
        slots = self.cache.token_to_kv_pool_allocator.alloc(len(tokens) - cached)
        if slots is None:
            raise RuntimeError("the pool is too small")
        value = torch.cat([torch.zeros(cached, dtype=slots.dtype), slots])
        return InsertParams(key=RadixKey(tokens), value=value, prev_prefix_len=cached)

    def own(self, client_id: str, agent_id: str, tokens: Sequence[int]) -> None:
        """Make a path of KVFlow's tree an agent's fixed prefix."""
        cache = self.cache
        owner = cache.kvflow_weights.prefix_owner(client_id, agent_id, (None, None))
        cache._assign(owner, cache._path(array("q", tokens), None, None))
