"""SGLang's walks over the radix tree, shorter where attention's KV is all that it holds.

SGLang's Python tree core asks each component of a node (KV of full attention, of sliding windows,
states) what it has to say; its Rust core is faster, and takes no eviction order of ours. Most
models have the first component alone. For them what follows gives the same results as SGLang's
Python core by fewer steps (``tests/sglang_plugin/test_walks.py`` compares the two, call by call);
whatever is out of the ordinary is left to SGLang. ADR 0007 has the reasons.

The walks are those of the versions in ``KNOWN``; with any other, SGLang's own run.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, Final

from sglang.srt.mem_cache.base_prefix_cache import (
    DecLockRefResult,
    IncLockRefResult,
    InsertResult,
    MatchResult,
)
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.unified_cache.components import BASE_COMPONENT_TYPE
from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeCore

__all__ = ["KNOWN", "ShortWalks"]

KNOWN: Final = ("0.5.23",)
"""SGLang versions whose walks these are."""

_known: Final = version("sglang").split("+")[0] in KNOWN

if _known:
    from sglang.srt.mem_cache.unified_cache.cache_action import FreeDeviceKV
    from sglang.srt.mem_cache.unified_cache.components import get_and_increase_time_counter
    from sglang.srt.mem_cache.unified_cache.unified_tree_core_interface import InsertStepResult

_KV: Final = BASE_COMPONENT_TYPE
_PARENT_IS_OLDER_BY: Final = 0.00001
"""What SGLang takes off the recency of a node for each one below it on a matched path."""


class ShortWalks(UnifiedTreeCore):  # type: ignore[misc]
    """The Python tree core, with shorter walks where all nodes hold KV of full attention alone."""

    def __init__(self, params: Any, components: Any) -> None:
        self._short = (
            _known
            and tuple(components) == (_KV,)
            and params.eviction_policy.lower() != "tlru"
            and not (params.is_eagle or params.enable_session_radix_cache)
        )
        super().__init__(params, components)

    @property
    def short_walks(self) -> bool:
        """Whether the shorter walks are taken at all."""
        return self._short

    def _update_evictable_leaf_sets(self, node: Any) -> None:
        if not self._short:
            super()._update_evictable_leaf_sets(node)
            return
        data = node.component_data[_KV]
        free = data.lock_ref == 0 and node is not self.root_node
        evicted = node.evicted
        if free and not evicted and not _has_device_child(node):
            self.evictable_device_leaves.add(node)
        else:
            self.evictable_device_leaves.discard(node)
        if (
            free
            and evicted
            and data.host_value is not None
            and data.host_lock_ref == 0
            and not node.children
        ):
            self.evictable_host_leaves.add(node)
        else:
            self.evictable_host_leaves.discard(node)

    def inc_lock_ref(self, node_id: int, skip_lock_components: Sequence[Any] = ()) -> Any:
        if not self._short or skip_lock_components:
            return super().inc_lock_ref(node_id, skip_lock_components)
        node = self._node_arena[node_id]
        root, locked_tokens = self.root_node, 0
        self.evictable_host_leaves.discard(node)
        cursor = node
        while cursor is not root and cursor.component_data[_KV].value is None:
            cursor.component_data[_KV].lock_ref += 1
            cursor = cursor.parent
        while cursor is not root:
            data = cursor.component_data[_KV]
            if data.lock_ref == 0:
                locked_tokens += data.value.size(0)
                self.evictable_device_leaves.discard(cursor)
            data.lock_ref += 1
            cursor = cursor.parent
        self.component_evictable_size_[_KV] -= locked_tokens
        self.component_protected_size_[_KV] += locked_tokens
        return IncLockRefResult(delta=locked_tokens, node_id=node_id)

    def dec_lock_ref(self, node_id: int, params: Any, skip_swa: bool = False) -> Any:
        if not self._short or params.skipped_lock_components:
            return super().dec_lock_ref(node_id, params, skip_swa)
        node = self._node_arena[node_id]
        self._assert_receipt_anchor(node, params)
        root, freed_tokens = self.root_node, 0
        while node is not root:
            data = node.component_data[_KV]
            if data.lock_ref <= 0:
                raise AssertionError(f"node {node.id} is released more often than it was locked")
            data.lock_ref -= 1
            if data.lock_ref == 0:
                if data.value is not None:
                    freed_tokens += data.value.size(0)
                self._update_evictable_leaf_sets(node)
            node = node.parent
        self.component_evictable_size_[_KV] += freed_tokens
        self.component_protected_size_[_KV] -= freed_tokens
        return DecLockRefResult()

    def match_prefix(self, params: Any) -> Any:
        if not self._short:
            return super().match_prefix(params)
        key, page = params.key, self.page_size
        length = len(key) // page * page
        if length == 0:
            return self._empty_match_result
        if length != len(key):
            key = _limited(key, length)
        node = best = best_on_device = self.root_node
        matched = on_device = best_on_device_tokens = 0
        host_nodes_match, action = self.enable_hicache, None
        while matched < length:
            child = node.children.get(key.child_key_at(matched, page))
            if child is None or (child.evicted and not child.backuped):
                break
            shared = _shared(child.key, key, matched, page)
            matched += shared
            whole = shared == len(child.key)
            if not whole:
                child, action = self._split_node(child.key, child, shared)
            node = child
            data = node.component_data[_KV]
            if data.value is not None:
                on_device += data.value.size(0)
                best = best_on_device = node
                best_on_device_tokens = on_device
            elif host_nodes_match and data.host_value is not None:
                best = node
            if not whole:
                break
        self._touch_path(best)
        host_tokens = 0
        above = best
        while above is not best_on_device:
            if above.component_data[_KV].host_value is not None:
                host_tokens += len(above.component_data[_KV].host_value)
            above = above.parent
        return MatchResult(
            device_prefix_len=best_on_device_tokens,
            last_device_node=best_on_device.id,
            last_host_node=best.id if host_nodes_match else best_on_device.id,
            best_match_node=best.id,
            host_hit_length=host_tokens,
            full_kv_hit_length=matched,
            cache_actions=[] if action is None else [action],
            last_visited_node_id=None if node is self.root_node else node.id,
        )

    def _touch_path(self, node: Any) -> None:
        now = get_and_increase_time_counter()
        while node is not None:
            node.last_access_time = now
            now -= _PARENT_IS_OLDER_BY
            node = node.parent

    def touch_down(self, node_id: int) -> None:
        """Make the path to a node recent, as an insert that ends there does."""
        path = []
        node = self._node_arena[node_id]
        while node is not None:
            path.append(node)
            node = node.parent
        for node in reversed(path):
            node.last_access_time = get_and_increase_time_counter()

    def begin_insert(self, params: Any) -> Any:
        if (
            not self._short
            or params.value is None
            or params.rotation_base is not None
            or params.track_adopted_ranges
            or self._ongoing_insert_walk_state is not None
        ):
            return super().begin_insert(params)
        key, page = params.key, self.page_size
        length = len(key) // page * page
        if length == 0:
            return super().begin_insert(params)
        if length != len(key):
            key = _limited(key, length)
        path = self._path_for_insert(key, length, params.inserted_len)
        if path is None:
            return super().begin_insert(params)
        return self._insert_below(path, key, length, params)

    def _path_for_insert(
        self, key: Any, length: int, counted: int
    ) -> list[tuple[Any, int, int]] | None:
        """Nodes on the way of ``key``, from where to where it shares them; changes nothing.

        None where SGLang may have to stop on the way: at a node that is to be written to the host
        pool, or that comes back onto the device.
        """
        path: list[tuple[Any, int, int]] = []
        node, start = self.root_node, 0
        while start < length:
            child = node.children.get(key.child_key_at(start, self.page_size))
            if child is None:
                break
            if child.evicted:
                return None
            shared = _shared(child.key, key, start, self.page_size)
            end = start + shared
            if end > counted and self._may_be_written(child):
                return None
            path.append((child, start, end))
            node, start = child, end
            if shared < len(child.key):
                break
        return path

    def _may_be_written(self, node: Any) -> bool:
        if self.enable_external_cache_linker:
            return True
        return self.enable_hicache and not self.is_write_back and not node.backuped

    def _insert_below(
        self, path: list[tuple[Any, int, int]], key: Any, length: int, params: Any
    ) -> Any:
        priority = params.priority or 0
        actions: list[Any] = []
        node, shared = self.root_node, 0
        self._touch_node(node)
        node.priority = max(node.priority, priority)
        for node, start, shared in path:
            self._touch_node(node)
            if shared - start < len(node.key):
                node, action = self._split_node(node.key, node, shared - start)  # noqa: PLW2901
                if action is not None:
                    actions.append(action)
            node.priority = max(node.priority, priority)
            duplicate = max(params.prev_prefix_len, start)
            if duplicate < shared:
                actions.append(FreeDeviceKV([params.value[duplicate:shared]]))
            if shared > params.inserted_len and not self.is_write_back:
                node.hit_count += 1
        if shared < length:
            node = self._add_new_node(
                node,
                key[shared:],
                params.value[shared:length],
                priority=priority,
                session_id=params.session_id,
                rotation_base=None,
            )
            if (
                not self.is_write_back
                and length > params.inserted_len
                and self._inc_hit_count_and_check(node)
            ):
                actions.append(self._build_backup_kv_action(node, write_back=self.is_write_back))
        result = InsertResult(prefix_len=shared, last_device_node=node.id)
        return InsertStepResult(actions=actions, result=result)


def _limited(key: Any, length: int) -> Any:
    """The first ``length`` tokens of a key, without a copy."""
    return RadixKey(key.token_ids, key.extra_key, limit=length, cache_salt=key.cache_salt)


def _shared(whole: Any, key: Any, start: int, page: int) -> int:
    """How much of ``whole`` the key has from ``start`` on: at first glance all of it, mostly.

    Both are in one namespace, as the one was found by the other's tokens there.
    """
    tokens = whole.token_ids
    end = start + len(tokens)
    if whole.limit is None and end <= len(key) and tokens == key.token_ids[start:end]:
        return len(tokens)
    return int(whole.match_at(key, start, page_size=page))


def _has_device_child(node: Any) -> bool:
    for child in node.children.values():  # noqa: SIM110 - a generator takes three times as long
        if child.component_data[_KV].value is not None:
            return True
    return False
