"""Which SGLang versions the plugin was tried against, and what differs between them.

| what                        | up to  | is                    | from   | is                       |
|-----------------------------|--------|-----------------------|--------|--------------------------|
| copies on both tiers        | 0.5.17 | not known             | 0.5.18 | full_host_duplicates     |
| loads are made by           | 0.5.17 | the controller itself | 0.5.18 | L2TransferEngine         |
| a load waits for computing  | 0.5.18 | never                 | 0.5.19 | load_fence_stream        |
| a fetch ahead's namespace   | 0.5.18 | the node's it is below| 0.5.19 | an argument              |
| rows are asked for by       | 0.5.18 | evict                 | 0.5.19 | evict_for_alloc, too     |
| a fetch is known by         | 0.5.19 | the request's id      | 0.5.20 | CacheRequestHandle       |
| FULL component module       | 0.5.19 | full_component        | 0.5.20 | full                     |
| what a fetch brought, by    | 0.5.20 | the request's id      | 0.5.21 | CacheRequestHandle       |
| tree core chosen by         | 0.5.20 | environment variable  | 0.5.21 | CacheInitParams field    |
| the cache's class           | 0.5.20 | looked up by name     | 0.5.21 | an argument              |
| finished request enters by  | 0.5.20 | cache_finished_req    | 0.5.22 | checkpoint_into_tree     |
|                             | 0.5.21 | insert_req            |        |                          |
| unfinished one enters by    | 0.5.21 | cache_unfinished_req  | 0.5.22 | checkpoint_into_tree     |
| load-back answers with      | 0.5.21 | tensor of indices     | 0.5.22 | count                    |
| victims are freed with      | 0.5.22 | two lists of frees    | 0.5.23 | a list of actions, too   |
| a backup waits for computing| 0.5.22 | never                 | 0.5.23 | write_fence_stream       |

So nothing is fetched ahead from storage up to 0.5.18 (a prefix that hangs from the root would get
into the tree without its salt); and where copies wait for nothing, KVFlow makes them wait.

Common to all, private, and relied on (``sglang/srt/...``; what the table has for some alone is
used there alone):

* ``mem_cache/unified_cache/unified_tree_core.py``: ``UnifiedTreeCore`` keeps
  ``evictable_device_leaves`` and ``evictable_host_leaves`` up to date through ``add`` and
  ``discard`` alone; ``_split_node`` returns ``(upper node, action)``; ``_unregister_node`` is
  called for each node that leaves the tree, ``_demote`` for each that stays in host memory only;
  ``_can_reclaim_full_host_duplicate`` and ``_release_full_host_duplicate`` (0.5.18);
* ``mem_cache/unified_cache/components``: ``FullComponent._evict_device_start/_next_node/_end`` and
  ``drive_host_eviction`` choose the victims;
* ``mem_cache/unified_radix_cache.py``: ``evict`` and (0.5.19) ``evict_for_alloc`` state the
  shortfall, ``_execute_kv_backup`` writes one node to the host pool and states the shortfall to
  ``evict_host``, what comes from storage asks that for all of it whatever is free; ``load_back``
  without a request queues a load, ``ready_to_load_host_cache`` starts what is queued, and
  ``ongoing_load_back`` has it until ``loading_check`` finds it done; ``init_load_back`` may load
  nothing; ``prefetch_from_storage`` (0.5.19) takes any handle, ``ongoing_prefetch`` has it until it
  is over, ``prefetch_loaded_tokens_by_reqid`` then says how much came;
* ``managers/cache_controller.py``: loads are done in order on one stream; ``ack_load_queue`` has
  their events; ``layer_done_counter`` has three slots, and what is computed layer by layer waits
  for the slot in the batch's ``hicache_consumer_index``;
* ``managers/scheduler.py``: ``_get_new_batch_prefill_raw`` takes from ``waiting_queue`` and returns
  the batch first; ``run_batch``, ``process_batch_result``, ``flush_cache`` and ``on_idle`` are
  called on the scheduler's thread, and ``IdleSleeper.maybe_sleep`` polls sockets;
* ``managers/scheduler_components/request_receiver.py``: the list that ``_pull_raw_reqs`` returns on
  the first rank is what all ranks receive; ``Scheduler.process_input_requests`` dispatches it.

``tests/sglang_plugin/test_compat.py`` checks these one by one and names the one that broke.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Final

from kvflow.errors import UnsupportedEngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "SUPPORTED",
    "check_version",
    "complete_fences",
    "computing_stream",
    "nothing_loaded",
    "prefetch_obstacle",
    "request_handle",
    "select_tree_core",
    "served_model_name",
    "storage_prefetch_supported",
    "tokens_fetched",
]

SUPPORTED: Final = ("0.5.17", "0.5.18", "0.5.19", "0.5.20", "0.5.21", "0.5.22", "0.5.23")
TREE_CORE_VARIABLE: Final = "SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND"


def check_version() -> str:
    """The installed SGLang's version.

    Raises:
        UnsupportedEngineError: it is not in the table; SGLang is then left as it is.
    """
    try:
        installed = version("sglang")
    except PackageNotFoundError:
        raise UnsupportedEngineError("SGLang is not installed") from None
    if installed.split("+")[0] not in SUPPORTED:
        raise UnsupportedEngineError(
            f"SGLang {installed} was not tried with this KVFlow "
            f"(tried: {SUPPORTED[0]} to {SUPPORTED[-1]}); SGLang is left as it is and "
            "--radix-cache-backend kvflow is not offered. "
            f"Install sglang=={SUPPORTED[-1]}, or a KVFlow release that knows {installed}."
        )
    return installed


def select_tree_core(params: Any, name: str) -> None:
    """Have the cache that is built from ``params`` use the tree core registered as ``name``."""
    if "tree_core_backend" in {field.name for field in dataclasses.fields(params)}:
        params.tree_core_backend = name
    else:
        os.environ[TREE_CORE_VARIABLE] = name


def served_model_name(server_args: Any) -> str:
    """The name SGLang's own metrics carry as ``model_name``."""
    try:
        from sglang.srt.runtime_context import get_serving
    except ImportError:  # 0.5.17: resolved on the arguments themselves
        return str(server_args.served_model_name)
    return str(get_serving().served_model_name)


def prefetch_obstacle(server_args: Any, cache: Any) -> str | None:
    """Why nothing can be prefetched in this engine; None if nothing stands in the way."""
    if cache.disable:
        return "the radix cache is off"
    if cache.cache_controller is None:
        return "there is no host pool (--enable-hierarchical-cache)"
    if getattr(server_args, "pp_size", 1) > 1:
        return "pipeline parallelism"
    if getattr(server_args, "disaggregation_mode", "null") not in (None, "null"):
        return "prefill and decode are disaggregated"
    if getattr(cache, "buffer_pipeline", None) is not None:
        return "the host pool is a buffer only (--hicache-host-memory-mode buffer_only)"
    return None


@functools.cache
def storage_prefetch_supported() -> bool:
    """Whether a fetch from the storage tier can be made without a request behind it."""
    from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

    return "extra_key" in inspect.signature(UnifiedRadixCache.prefetch_from_storage).parameters


def request_handle(rid: str) -> Any:
    """What the cache knows a fetch from the storage tier by."""
    try:
        from sglang.srt.mem_cache.base_prefix_cache import CacheRequestHandle
    except ImportError:  # up to 0.5.19
        return rid
    return CacheRequestHandle(rid=rid, attempt_id=0)


def tokens_fetched(loaded: Mapping[Any, int], handle: Any) -> int:
    """What a fetch brought, from ``prefetch_loaded_tokens_by_reqid``."""
    # 0.5.20 knows the fetch by its handle, and this by the request's id.
    return loaded.get(handle, loaded.get(getattr(handle, "rid", handle), 0))


def nothing_loaded(req: Any) -> Any:
    """What ``init_load_back`` returns where a request's host hit is not loaded."""
    if hasattr(req, "prefix_indices"):  # up to 0.5.21
        return req.prefix_indices[:0], req.last_node
    return 0, req.last_node


def complete_fences(controller: Any, computing_stream: Any) -> None:
    """Make copies wait for what is being computed, where SGLang does not.

    With overlap scheduling a batch under way may still write to rows that a load is given (up to
    0.5.18), or that are copied to host memory (up to 0.5.22).
    """
    controller.kvflow_computing_stream = computing_stream
    if not hasattr(controller, "load_fence_stream"):
        controller.start_loading = _fenced(
            controller, controller.start_loading, "load_stream", "host_to_device_stream"
        )
    if not hasattr(controller, "write_fence_stream"):
        controller.start_writing = _fenced(
            controller, controller.start_writing, "write_stream", "device_to_host_stream"
        )


def _fenced(
    controller: Any, start: Callable[[], Any], stream_0_5_17: str, stream: str
) -> Callable[[], Any]:
    @functools.wraps(start)
    def start_after_computing() -> Any:
        transfers = getattr(controller, "l2_transfer_engine", None)
        copies = (
            getattr(controller, stream_0_5_17) if transfers is None else getattr(transfers, stream)
        )
        copies.wait_stream(controller.kvflow_computing_stream)
        return start()

    return start_after_computing


def computing_stream(controller: Any) -> Any:
    """The stream that computes; None where it is not known and the host has to wait."""
    fence = getattr(controller, "load_fence_stream", None)
    return getattr(controller, "kvflow_computing_stream", None) if fence is None else fence
