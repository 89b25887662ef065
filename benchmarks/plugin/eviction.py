"""What one eviction costs: KVFlow's tree core beside SGLang's two, in one run. A part of ``micro``.

One leaf at a time is evicted out of many. KVFlow's leaves are weighted ones (each owned by an agent
with its own steps), the dearer case; the host tier is measured in the same way.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.plugin.samples import RAW_SAMPLES
from kvflow.eviction import Owner
from tests.sglang_plugin.caches import Core, build_cache, evict, evict_host, insert, insert_host

CORES: tuple[Core, ...] = ("python", "rust", "kvflow")
SEED = 11

Tier = str


def own_all(cache: Any) -> None:
    """Give every leaf an owner of its own, with steps from 1 to 50."""
    rng = random.Random(SEED)
    core = cache.tree_core
    for node in core._collect_all_nodes():
        if node is not core.root_node:
            owner: Owner[Any] = Owner("prefix", rng.randint(1, 50))
            core.rerank(core.ownership.assign(owner, [node]))


def fill(core: Core, tier: Tier, leaves: int) -> tuple[Any, float]:
    cache = build_cache(core, 2 * leaves + 16)
    put: Callable[[Any, list[int]], None] = insert
    if tier == "host":
        cache.tree_core.set_hicache_enabled()
        put = insert_host
    start_s = time.perf_counter()
    for number in range(leaves):
        put(cache, [number, 1])
    insert_us = (time.perf_counter() - start_s) / leaves * 1e6
    if core == "kvflow":
        own_all(cache)
    return cache, insert_us


def measure(
    core: Core,
    tier: Tier,
    leaves: int,
    evictions: int,
    at_most_s: float,
) -> dict[str, Any]:
    """Evict one leaf at a time, ``evictions`` of them or as many as fit into the time."""
    cache, insert_us = fill(core, tier, leaves)
    take = evict if tier == "device" else evict_host
    times_ms: list[float] = []
    begun_s = time.perf_counter()
    while len(times_ms) < evictions and time.perf_counter() - begun_s < at_most_s:
        start_s = time.perf_counter()
        freed = take(cache, 2)
        times_ms.append((time.perf_counter() - start_s) * 1e3)
        if freed != 2:
            raise RuntimeError(f"{core} freed {freed} tokens instead of one leaf of 2")
    return {
        "core": core,
        "tier": tier,
        "leaves": leaves,
        "evictions": len(times_ms),
        "evict_ms_median": statistics.median(times_ms),
        "evict_ms_p99": sorted(times_ms)[int(len(times_ms) * 0.99)],
        "insert_us_mean": insert_us,
        "evict_ms": times_ms,
    }


def thinned(row: dict[str, Any]) -> dict[str, Any]:
    """A row with at most a few of its samples."""
    every = -(-len(row["evict_ms"]) // RAW_SAMPLES)
    return {**row, "evict_ms": [float(f"{ms:.4g}") for ms in row["evict_ms"][::every]]}
