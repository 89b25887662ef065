"""Insert, match and split: KVFlow's tree core beside SGLang's two, one sample of each in turn.

Every tree holds ten agents' prefixes and a number of other leaves. KVFlow's nodes have owners, so
what annotation costs is in its figures: owners follow a split, leaves are ranked. What it learns
from a finished request is a row of its own, as it has no counterpart in SGLang.
"""

from __future__ import annotations

import gc
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.plugin.requests import Tree, build_tree
from benchmarks.plugin.samples import in_turn, ratios, summary
from tests.sglang_plugin.caches import Core, finished_request

__all__ = ["CORES", "OPERATIONS", "TreeShape", "measure_trees", "quiet_collector"]

CORES: Final[tuple[Core, ...]] = ("python", "rust", "kvflow")
OPERATIONS: Final = ("match", "insert", "split", "learn")
AGENTS: Final = 10
FRESH_TOKENS: Final = 64
CLIENT: Final = "benchmark"
_AGENT_STRIDE: Final = 100_000
_OTHERS_FROM: Final = 10_000_000
_FRESH_FROM: Final = 100_000_000


@dataclass(frozen=True, slots=True)
class TreeShape:
    """Trees of so many ``nodes`` besides the agents', in pages of ``page_size`` tokens."""

    nodes: int
    page_size: int
    prefix_tokens: tuple[int, ...] = (800, 8000)


@contextmanager
def quiet_collector() -> Iterator[None]:
    """Python's garbage collector is off, so that none of its pauses is taken for something else."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def measure_trees(shape: TreeShape, samples: int) -> list[dict[str, Any]]:
    """A row per length of prefix and operation; times in microseconds."""
    with quiet_collector():
        trees = {core: _filled(core, shape, samples) for core in CORES}
        return [
            row
            for prefix_tokens in shape.prefix_tokens
            for row in _measure_prefix(trees, shape, prefix_tokens, samples)
        ]


def _measure_prefix(
    trees: dict[Core, Tree], shape: TreeShape, prefix_tokens: int, samples: int
) -> list[dict[str, Any]]:
    times: dict[str, dict[str, list[float]]] = {op: {} for op in OPERATIONS}
    for number in range(samples):
        agent = number % AGENTS
        prefix = _prefix(agent, prefix_tokens)
        first = _FRESH_FROM + (number + prefix_tokens * samples) * FRESH_TOKENS
        fresh = list(range(first, first + FRESH_TOKENS))
        for core in in_turn(trees, number):
            for operation, seconds in _sample(core, trees[core], agent, prefix, fresh):
                times[operation].setdefault(core, []).append(seconds * 1e6)
    return [
        {
            "nodes": shape.nodes,
            "page_size": shape.page_size,
            "prefix_tokens": prefix_tokens,
            "operation": operation,
            "us": {core: summary(taken) for core, taken in by_core.items()},
            "over_rust": {
                core: ratios(taken, by_core["rust"])
                for core, taken in by_core.items()
                if core != "rust" and "rust" in by_core
            },
        }
        for operation, by_core in times.items()
    ]


def _sample(
    core: Core, tree: Tree, agent: int, prefix: list[int], fresh: list[int]
) -> Iterator[tuple[str, float]]:
    cache = tree.cache
    path = array("q", prefix + fresh)
    begun_s = time.perf_counter()
    tree.match(path)
    yield "match", time.perf_counter() - begun_s
    params = tree.insertion(path, len(prefix))
    begun_s = time.perf_counter()
    cache.insert(params)
    yield "insert", time.perf_counter() - begun_s
    if core == "kvflow":
        metadata = {"client_id": CLIENT, "workflow_id": "w", "agent_id": _agent(agent, len(prefix))}
        req = finished_request(path, [1], metadata)
        begun_s = time.perf_counter()
        cache._learn_guarded(req)
        yield "learn", time.perf_counter() - begun_s
    half = path[: len(prefix) + FRESH_TOKENS // 2]
    begun_s = time.perf_counter()
    tree.match(half)
    yield "split", time.perf_counter() - begun_s


def _filled(core: Core, shape: TreeShape, samples: int) -> Tree:
    page = shape.page_size
    prefixes = sum(AGENTS * tokens for tokens in shape.prefix_tokens)
    fresh = len(shape.prefix_tokens) * samples * FRESH_TOKENS
    tree = build_tree(core, page, shape.nodes * page + prefixes + fresh + 16 * page, 16)
    for number in range(shape.nodes):
        first = _OTHERS_FROM + number * page
        tree.insert(range(first, first + page))
    for agent in range(AGENTS):
        for tokens in shape.prefix_tokens:
            tree.insert(_prefix(agent, tokens))
    if core == "kvflow":
        for agent in range(AGENTS):
            for tokens in shape.prefix_tokens:
                tree.own(CLIENT, _agent(agent, tokens), _prefix(agent, tokens))
    return tree


def _agent(agent: int, prefix_tokens: int) -> str:
    return f"a{agent}-{prefix_tokens}"


def _prefix(agent: int, tokens: int) -> list[int]:
    """Prefixes of two lengths have nothing in common."""
    first = (2 * agent + (tokens > 1000)) * _AGENT_STRIDE
    return list(range(first, first + tokens))
