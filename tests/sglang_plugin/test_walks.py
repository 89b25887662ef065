"""The shorter walks leave what SGLang's own leave: both run side by side, call by call."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.sglang_plugin.caches import FULL, build_cache, insert, insert_host
from tests.sglang_plugin.hicache import Engine, WritePolicy, build_engine, patched_sglang

SHORT_WALKS: Any = "short-walks"


@pytest.fixture(scope="module", autouse=True)
def _sglang() -> Iterator[None]:
    from sglang.srt.mem_cache.unified_cache.tree_core_registry import register_tree_core_backend

    from kvflow.sglang_plugin.walks import ShortWalks

    register_tree_core_backend(SHORT_WALKS, ShortWalks)
    with patched_sglang():
        yield


def tokens(*pieces: int, piece: int = 16) -> list[int]:
    """A prompt of pieces; two prompts share what their first pieces share."""
    return [number * 1000 + position for number in pieces for position in range(piece)]


def state(cache: Any) -> Any:
    """All that the tree knows, without ids and times: recency as a rank."""
    core = cache.tree_core
    nodes = core._collect_all_nodes()
    assert len({node.last_access_time for node in nodes}) == len(nodes)
    recency = {
        id(node): rank for rank, node in enumerate(sorted(nodes, key=lambda n: n.last_access_time))
    }

    def describe(node: Any) -> Any:
        data = node.component_data[FULL]
        return (
            tuple(node.key.token_ids),
            None if data.value is None else len(data.value),
            None if data.host_value is None else len(data.host_value),
            (data.lock_ref, data.host_lock_ref, node.hit_count, node.priority),
            (node in core.evictable_device_leaves, node in core.evictable_host_leaves),
            recency[id(node)],
            sorted(describe(child) for child in node.children.values()),
        )

    return (
        describe(core.root_node),
        (core.component_evictable_size_[FULL], core.component_protected_size_[FULL]),
        cache.token_to_kv_pool_allocator.available_size(),
    )


class SideBySide:
    """The same requests on SGLang's Python core and on ours, a random step at a time."""

    def __init__(self, engines: tuple[Engine, Engine], seed: int, page_size: int) -> None:
        self.engines = engines
        self.rng = random.Random(seed)
        self.page_size = page_size

    def step(self) -> None:
        rng, sglang = self.rng, self.engines[0]
        action = rng.choice(("submit", "form", "form", "decode", "finish", "evict", "settle"))
        if action == "submit" and len(sglang.waiting) < 3:
            prompt = tokens(*rng.choices(range(3), k=rng.randint(1, 4)))[: rng.randint(9, 64)]
            answer = [rng.randint(1, 2)] * rng.choice((1, 2, 20))
            self.both(lambda engine: engine.submit(prompt, answer))
        elif action == "form":
            self.both(lambda engine: engine.form())
        elif action == "decode":
            self.both(lambda engine: engine.decode())
        elif action == "finish" and sglang.releasable:
            number = rng.randrange(len(sglang.releasable))
            self.both(lambda engine: engine.finish(engine.releasable[number]))
        elif action == "evict":
            wanted = rng.randint(1, 60)
            self.both(lambda engine: engine.evict(wanted))
        else:
            self.both(lambda engine: engine.settle())

    def both(self, act: Any) -> None:
        for engine in self.engines:
            act(engine)

    def check(self) -> None:
        sglang, ours = (state(engine.cache) for engine in self.engines)
        assert ours == sglang
        ours_read, sglang_read = (
            [(req.prefix_len, req.host_hit_length) for req in engine.running]
            for engine in self.engines
        )
        assert ours_read == sglang_read
        assert not any(engine.wrong for engine in self.engines)


@pytest.mark.parametrize("core", [SHORT_WALKS, "kvflow"])
@pytest.mark.parametrize("page_size", [1, 8])
@pytest.mark.parametrize("policy", ["write_through", "write_through_selective", "write_back"])
def test_random_requests_leave_the_tree_that_sglang_leaves(
    policy: WritePolicy, page_size: int, core: Any
) -> None:
    for seed in range(2):
        with ExitStack() as stack:
            first, second = (
                stack.enter_context(
                    build_engine(core=each, page_size=page_size, policy=policy, capacity_tokens=192)
                )
                for each in ("python", core)
            )
            assert second.cache.tree_core.short_walks
            pair = SideBySide((first, second), seed, page_size)
            for number in range(120):
                pair.step()
                try:
                    pair.check()
                except AssertionError as error:
                    error.add_note(f"seed {seed}, after {number + 1} steps")
                    raise


def test_what_a_transfer_reads_is_no_leaf_of_the_host_pool() -> None:
    cache = build_cache(SHORT_WALKS, 100)
    core = cache.tree_core
    core.set_hicache_enabled()
    insert_host(cache, tokens(1))
    (leaf,) = core.evictable_host_leaves
    receipt = core.inc_host_lock_ref(leaf.id).to_dec_params()
    assert not core.evictable_host_leaves
    core.dec_host_lock_ref(leaf.id, receipt)
    assert core.evictable_host_leaves == {leaf}


def test_a_release_too_many_is_refused() -> None:
    cache = build_cache(SHORT_WALKS, 100)
    insert(cache, tokens(1))
    leaf = next(iter(cache.tree_core.evictable_device_leaves))
    lock = cache.lock(leaf.id)
    cache.unlock(lock)
    with pytest.raises(AssertionError, match="more often"):
        cache.unlock(lock)
