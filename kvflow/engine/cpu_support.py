"""What HiCache lacks on a machine without CUDA, as an SGLang plugin of its own.

Entry point ``kvflow_cpu`` of group ``sglang.srt.plugins``; SGLang calls ``register`` in every
process it starts.  It does nothing unless ``KVFLOW_CPU_ENGINE=1`` is set, which only KVFlow's
launcher does, and it changes no cache policy: with ``SGLANG_PLUGINS=kvflow_cpu`` SGLang is stock.

HiCache moves KV pages between a host pool and the device pool with CUDA kernels and pins the host
pool through the CUDA driver.  On the CPU both pools are ordinary memory, so nothing has to be
pinned and a transfer is an indexed copy.  A copy to the host pool is done when the call returns;
one from there runs in the background, as on a GPU, where this SGLang allows it (``cpu_link.py``).
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import os
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from kvflow.engine import cpu_link
from kvflow.errors import InvalidInputError

if TYPE_CHECKING:
    import torch

__all__ = ["CPU_ENGINE_VARIABLE", "copy_tokens", "register"]

CPU_ENGINE_VARIABLE: Final = "KVFLOW_CPU_ENGINE"

HOST_MEMORY_RESERVE_BYTES: Final = 1024**3
"""SGLang keeps 10 GiB of the machine free; a laptop that serves a small model has not got them."""

_POOLS: Final = "sglang.srt.mem_cache.pool_host"
_TRANSFER_USERS: Final = (f"{_POOLS}.mha", f"{_POOLS}.mla")

logger = logging.getLogger(__name__)


def register() -> None:
    """Make HiCache's ``direct`` I/O backend work between two pools in ordinary memory.

    Loads become asynchronous, unless ``KVFLOW_CPU_LINK=sync``.  Idempotent.  Exits the process with
    a message if SGLang does not look as expected, since without the patch an engine with HiCache
    would come up and fail at its first backup, or if a variable cannot be understood.
    """
    if os.environ.get(CPU_ENGINE_VARIABLE) != "1":
        return
    try:
        link = cpu_link.LinkSettings.from_env(os.environ)
    except InvalidInputError as error:
        raise SystemExit(f"KVFlow: {error}") from error
    try:
        _patch_host_pools()
        if link is not None:
            cpu_link.install(link)
    except (ImportError, AttributeError) as error:
        raise SystemExit(
            f"KVFlow cannot run HiCache on the CPU with this SGLang: {error}. "
            "Run `kvflow doctor` to see which SGLang versions are known to work."
        ) from error


def _patch_host_pools() -> None:
    base = importlib.import_module(f"{_POOLS}.base")
    if hasattr(base, "HICACHE_HOST_MEMORY_RESERVE_BYTES"):
        base.HICACHE_HOST_MEMORY_RESERVE_BYTES = HOST_MEMORY_RESERVE_BYTES  # type: ignore[attr-defined]
    _allocate_unpinned(base)
    for name in _TRANSFER_USERS:
        _provide_copy(importlib.import_module(name))
    logger.info("kvflow_cpu: HiCache copies between pools in ordinary memory")


def _allocate_unpinned(base: ModuleType) -> None:
    """Make every host pool believe it was asked for memory that is not pinned."""
    original: Callable[..., None] = base.HostKVCache.__init__
    if getattr(original, "kvflow_unpinned", False):
        return

    signature = inspect.signature(original)

    @functools.wraps(original)
    def init(*args: Any, **kwargs: Any) -> None:
        call = signature.bind(*args, **kwargs)
        call.arguments["pin_memory"] = False
        original(*call.args, **call.kwargs)

    init.kvflow_unpinned = True  # type: ignore[attr-defined]
    base.HostKVCache.__init__ = init


def _provide_copy(module: ModuleType) -> None:
    """Bind ``transfer_kv_direct``, which SGLang imports only where there is CUDA or HIP."""
    if not hasattr(module, "transfer_kv_direct"):
        module.transfer_kv_direct = copy_tokens  # type: ignore[attr-defined]


def copy_tokens(
    src_layers: Sequence[torch.Tensor],
    dst_layers: Sequence[torch.Tensor],
    src_indices: torch.Tensor,
    dst_indices: torch.Tensor,
    page_size: int,
) -> None:
    """Copy rows ``src_indices`` to rows ``dst_indices`` in each pair of layers.

    The contract of ``sgl_kernel.kvcacheio.transfer_kv_direct``: the first dimension of a layer
    counts tokens, the indices name tokens (whole pages of them).  O(tokens x layers).

    Done when the call returns, or submitted to the link that is the current stream.
    """
    del page_size  # the indices are already those of tokens
    link = cpu_link.current_link()
    copy = functools.partial(_copy_rows, src_layers, dst_layers, src_indices, dst_indices)
    if link is None:
        copy()
    else:
        link.copy(copy, sum(map(_row_bytes, src_layers)) * len(src_indices))


def _copy_rows(
    src_layers: Sequence[torch.Tensor],
    dst_layers: Sequence[torch.Tensor],
    src_indices: torch.Tensor,
    dst_indices: torch.Tensor,
) -> None:
    for source, target in zip(src_layers, dst_layers, strict=True):
        target[dst_indices] = source[src_indices]


def _row_bytes(layer: torch.Tensor) -> int:
    return int(layer.shape[1:].numel() * layer.element_size())
