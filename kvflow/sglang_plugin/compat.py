"""Which SGLang versions the plugin was tried against, and what differs between them.

|                             | 0.5.17                    | 0.5.23                |
|-----------------------------|---------------------------|-----------------------|
| FULL component module       | components.full_component | components.full       |
| tree core chosen by         | environment variable      | CacheInitParams field |
| finished request enters by  | cache_finished_req        | checkpoint_into_tree  |
| unfinished one enters by    | cache_unfinished_req      | checkpoint_into_tree  |
| load-back answers with      | tensor of indices         | count                 |
| fetch ahead from storage    | no                        | yes                   |
| a load waits for the stream | none                      | load_fence_stream     |
| copies on both tiers        | not known                 | full_host_duplicates  |

Common to both, private, and relied on (``sglang/srt/...``; what the table has for 0.5.23 alone is
used there alone):

* ``mem_cache/unified_cache/unified_tree_core.py``: ``UnifiedTreeCore`` keeps
  ``evictable_device_leaves`` and ``evictable_host_leaves`` up to date through ``add`` and
  ``discard`` alone; ``_split_node`` returns ``(upper node, action)``; ``_unregister_node`` is
  called for each node that leaves the tree, ``_demote`` for each that stays in host memory only;
  ``_can_reclaim_full_host_duplicate`` and ``_release_full_host_duplicate`` (0.5.23);
* ``mem_cache/unified_cache/components``: ``FullComponent._evict_device_start/_next_node/_end`` and
  ``drive_host_eviction`` choose the victims;
* ``mem_cache/unified_radix_cache.py``: ``evict`` and (0.5.23) ``evict_for_alloc`` state the
  shortfall, ``_execute_kv_backup`` writes one node to the host pool and states the shortfall to
  ``evict_host``, what comes from storage asks that for all of it whatever is free; ``load_back``
  without a request queues a load, ``ready_to_load_host_cache`` starts what is queued, and
  ``ongoing_load_back`` has it until ``loading_check`` finds it done; ``init_load_back`` may load
  nothing; ``prefetch_from_storage`` (0.5.23) takes any handle, ``ongoing_prefetch`` has it until it
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
import importlib.util
import os
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from kvflow.errors import UnsupportedEngineError

__all__ = [
    "SUPPORTED",
    "check_version",
    "nothing_loaded",
    "prefetch_obstacle",
    "request_handle",
    "select_tree_core",
    "served_model_name",
    "storage_prefetch_supported",
]

SUPPORTED: Final = ("0.5.17", "0.5.23")
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
            f"SGLang {installed} was not tried with this KVFlow (tried: {', '.join(SUPPORTED)}); "
            "SGLang is left as it is and --radix-cache-backend kvflow is not offered. "
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


def storage_prefetch_supported() -> bool:
    """Whether a fetch from the storage tier can be made without a request behind it."""
    return importlib.util.find_spec("sglang.srt.mem_cache.l2_transfer") is not None


def request_handle(rid: str) -> Any:
    """What the cache knows a fetch from the storage tier by."""
    from sglang.srt.mem_cache.base_prefix_cache import CacheRequestHandle

    return CacheRequestHandle(rid=rid, attempt_id=0)


def nothing_loaded(req: Any) -> Any:
    """What ``init_load_back`` returns where a request's host hit is not loaded."""
    if hasattr(req, "prefix_indices") and not hasattr(req, "host_loaded_length"):  # 0.5.17
        return req.prefix_indices[:0], req.last_node
    return 0, req.last_node
