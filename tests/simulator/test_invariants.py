"""What holds whatever the workload, the sizes and the policy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvflow.simulator import POLICIES, EngineModel, PolicyName, SimulationResult, run, simulate
from kvflow.simulator.cache import TieredCache
from kvflow.simulator.radix import Node
from kvflow.workload import CacheSizes, Piece, Workload, WorkloadCall, WorkloadWorkflow
from tests.simulator.workloads import COSTS, reversed_graph, ring_graph, workload

AGENTS = 4
LARGEST_CALL = 60 + 12 + 10


class CheckedCache(TieredCache):
    """Checks its books at each step, and each eviction."""

    def at(self, now_s: float) -> None:
        assert now_s >= self.now_s
        super().at(now_s)
        nodes = list(_below(self.tree.root))
        assert sum(len(node) for node in nodes if node.device) == self.tree.device_tokens
        assert sum(len(node) for node in nodes if node.host) == self.tree.host_tokens
        locked = [node for node in nodes if node.locks]
        assert sum(len(node) for node in locked if node.device) == self.tree.locked_tokens
        assert len(nodes) == self.tree.nodes
        assert self.tree.device_tokens + self.private_tokens <= self.device_capacity
        assert self.free_host_tokens >= 0
        assert self.private_tokens >= 0
        page = self.page_tokens
        for node in nodes:
            assert node.device or node.host, "nodes that are nowhere are pruned"
            assert node.start == node.parent.end
            assert node.start < node.end
            assert node.start % page == node.end % page == 0
            assert node.device_children == sum(child.device for child in node.children.values())
            assert node.prefix.holding(node.end) is node.prefix
            assert node.first is node.prefix.holding(node.start + page)
            assert node.parent.device or not node.device
            leaf = node.device and not node.locks and not node.device_children
            assert (node in self.device_leaves) == leaf
            on_host_only = node.host and not node.device
            host_leaf = on_host_only and not node.locks and not node.children
            assert (node in self.host_leaves) == host_leaf

    def _evict(self, node: Node) -> bool:
        assert node.locks == 0
        assert node.device_children == 0
        return super()._evict(node)


def _below(node: Node) -> Iterator[Node]:
    for child in node.children.values():
        yield child
        yield from _below(child)


@st.composite
def workflows(draw: st.DrawFn) -> WorkloadWorkflow:
    """Agents that partly share their prefixes, chat or not, in any order and side by side."""
    name = f"w{draw(st.integers(0, 10**9))}"
    calls: list[WorkloadCall] = []
    context: tuple[Piece, ...] = ()
    for number in range(draw(st.integers(1, 7))):
        agent = draw(st.integers(0, AGENTS - 1))
        fixed = (Piece("shared", 20), Piece(f"fixed-{agent}", 5 + 8 * agent))
        chat = draw(st.booleans()) and sum(piece.tokens for piece in context) < 35
        beginning = context if chat and context else fixed
        dynamic = Piece(f"{name}-d{number}", draw(st.integers(1, 12)))
        answer = Piece(f"{name}-o{number}", draw(st.integers(1, 10)))
        prompt = (*beginning, dynamic)
        calls.append(
            WorkloadCall(
                agent_id=f"a{agent}",
                after=tuple(sorted(draw(st.sets(st.integers(0, number - 1), max_size=2))))
                if number
                else (),
                pause_s=draw(st.sampled_from([0.0, 0.0, 0.003, 0.5])),
                prompt=prompt,
                fixed_pieces=min(2, len(prompt)),
                answer=answer,
            )
        )
        context = (*prompt, answer)
    graph = draw(st.sampled_from([None, ring_graph(AGENTS, 25), reversed_graph(AGENTS, 25)]))
    return WorkloadWorkflow("c", name, None, graph, tuple(calls))


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    made = draw(st.lists(workflows(), min_size=1, max_size=5, unique_by=lambda w: w.workflow_id))
    concurrency = draw(st.sampled_from([1, 2, 4]))
    return workload(*made, concurrency=concurrency, warm_up_calls=draw(st.integers(0, 3)))


@st.composite
def tiers(draw: st.DrawFn) -> CacheSizes:
    page = draw(st.sampled_from([1, 4, 16]))
    return CacheSizes(
        device_tokens=LARGEST_CALL + 4 * page + draw(st.integers(0, 200)),
        host_tokens=draw(st.sampled_from([0, 64, 300])),
        storage=draw(st.booleans()),
        page_tokens=page,
    )


ENGINES = st.sampled_from(
    [
        EngineModel(),
        EngineModel(write_policy="write_back", host_for_all=True),
        EngineModel(chunked_prefill_tokens=32, max_running_requests=2, fetch_tokens=16),
        EngineModel(hint_s=0.01, client_s=0.002, host_for_all=True, fetch_tokens=8),
    ]
)


def checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "TieredCache", CheckedCache)


@given(workloads(), tiers(), st.sampled_from(POLICIES), ENGINES)
@settings(max_examples=120, deadline=None)
def test_the_books_are_right(
    given_workload: Workload, cache: CacheSizes, policy: PolicyName, engine: EngineModel
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        checked(monkeypatch)
        result = simulate(given_workload, cache, COSTS, policy, engine=engine, bound=True)
    calls = [call for workflow in given_workload.workflows() for call in workflow.calls]
    assert result.calls_in_all == len(calls)
    assert result.calls == max(0, len(calls) - given_workload.warm_up_calls)
    assert_consistent(result)


def assert_consistent(result: SimulationResult) -> None:
    assert result.bound_hit_tokens is not None
    assert result.hit_tokens <= result.bound_hit_tokens <= result.prompt_tokens
    assert (
        result.prefetched_tokens == result.used_tokens + result.wasted_tokens + result.unused_tokens
    )
    assert result.wasted_tokens >= 0
    assert result.unused_tokens >= 0
    assert result.loaded_tokens >= 0
    assert result.late_tokens <= result.prefetched_tokens


@given(workloads(), st.sampled_from([1, 4, 16]))
@settings(max_examples=40, deadline=None)
def test_with_room_for_all_every_policy_finds_the_same(given_workload: Workload, page: int) -> None:
    cache = CacheSizes(device_tokens=100_000, page_tokens=page)
    found: dict[str, Any] = {
        policy: simulate(given_workload, cache, COSTS, policy).hits for policy in POLICIES
    }
    assert set(found.values()) == {found["lru"]}


@given(workflows(), st.sampled_from(POLICIES), tiers(), ENGINES)
@settings(max_examples=60, deadline=None)
def test_nothing_is_left_behind(
    workflow: WorkloadWorkflow, policy: PolicyName, cache: CacheSizes, engine: EngineModel
) -> None:
    """After the last call nothing is held, and nobody's memory has grown by the workflow."""
    caches: list[TieredCache] = []

    class KeptCache(CheckedCache):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            caches.append(self)

    again = replace(workflow, workflow_id=f"{workflow.workflow_id}-again")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(run, "TieredCache", KeptCache)
        simulate(workload(workflow, again), cache, COSTS, policy, engine=engine)
    (kept,) = caches
    kept.at(kept.now_s + 100.0)
    kept.reap()
    assert kept.private_tokens == 0
    assert kept.tree.locked_tokens == 0
    assert not any(node.locks for node in _below(kept.tree.root))
