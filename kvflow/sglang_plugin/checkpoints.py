"""How a request's tokens get into the tree, by fewer steps where attention's KV is all it holds.

As in ``walks.py``: the same results as SGLang's own by the shorter way, for the versions that it
names and for trees with the one component; all else is SGLang's.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from sglang.srt.mem_cache.base_prefix_cache import InsertParams
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.unified_cache.components import BASE_COMPONENT_TYPE
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

__all__ = ["ShortCheckpoints"]

_KV: Final = BASE_COMPONENT_TYPE
_HIGHEST_PRIORITY: Final = 2**63 - 1


class ShortCheckpoints(UnifiedRadixCache):  # type: ignore[misc]
    """SGLang's unified radix cache, with shorter checkpoints of requests."""

    def checkpoint_into_tree(self, req: Any, *, up_to: int, **kwargs: Any) -> None:
        length = min(up_to, len(req.full_untruncated_fill_ids)) // self.page_size * self.page_size
        if (
            not self.tree_core.short_walks
            or self.disable
            or length == 0
            or req.kv_rotation_base is not None
            or self.linker is not None
            or self.buffer_pipeline is not None
        ):
            super().checkpoint_into_tree(req, up_to=up_to, **kwargs)
        elif self._is_in_tree(req, length):
            self.tree_core.touch_down(req.last_node)
        else:
            self._checkpoint(req, length)

    def _is_in_tree(self, req: Any, length: int) -> bool:
        """Whether an earlier checkpoint of the request took all that there is to take.

        So it is with answers that fill no page. SGLang would walk to the node that the request
        holds a lock on, find nothing to do, and lock it anew.
        """
        return bool(
            length == req.kv.cache_inserted_len == req.kv.cache_protected_len
            and length <= len(req.origin_input_ids)
            and req.lock is not None
            and req.lock.node == req.last_node
        )

    def _checkpoint(self, req: Any, length: int) -> None:
        kv, priority = req.kv, req.priority or 0
        row = self.req_to_token_pool.req_to_token[kv.req_pool_idx]
        rows = row[:length].to(torch.int64, copy=True)
        params = InsertParams(
            key=_key(req, req.full_untruncated_fill_ids, length),
            value=rows,
            prev_prefix_len=kv.cache_protected_len,
            inserted_len=kv.cache_inserted_len,
            priority=priority,
            session_id=req.session_id,
        )
        last_node = self.insert(params).last_device_node
        kv.cache_inserted_len = max(kv.cache_inserted_len, length)
        prompt = len(req.origin_input_ids) // self.page_size * self.page_size
        if 0 < prompt < length:
            # Between prompt and answer there is a node's end, so that the one can go without the
            # other.
            params.key = _key(req, req.origin_input_ids, prompt)
            params.value = rows[:prompt]
            params.prev_prefix_len = params.inserted_len = prompt
            params.priority = min(priority + 1, _HIGHEST_PRIORITY)
            self.insert(params)
        self._take_over_rows(row, last_node, kv.cache_protected_len, length)
        self.unlock(req.lock)
        req.lock = self.lock(last_node)
        kv.cache_protected_len = length
        req.last_node = last_node

    def _take_over_rows(self, row: Any, node_id: int, start: int, end: int) -> None:
        """From now on the request reads what the tree has; its own duplicates were freed."""
        node = self.tree_core.node_by_id(node_id)
        while end > start:
            held = node.component_data[_KV].value
            end -= len(held)
            if end >= start:
                row[end : end + len(held)] = held
            else:
                row[start : end + len(held)] = held[start - end :]
            node = node.parent
        if end < 0:
            raise AssertionError(f"node {node_id} is {-end} tokens further down than what it holds")


def _key(req: Any, tokens: Any, length: int) -> Any:
    return RadixKey(tokens[:length], req.extra_key, cache_salt=req.cache_salt)
