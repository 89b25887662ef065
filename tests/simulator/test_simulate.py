from __future__ import annotations

from dataclasses import replace

import pytest

from kvflow.errors import InvalidInputError
from kvflow.simulator import POLICIES, EngineModel, PolicyName, SimulationResult, simulate
from kvflow.workload import WorkloadWorkflow
from tests.simulator.workloads import (
    COSTS,
    reversed_graph,
    ring,
    ring_graph,
    ring_workflow,
    sizes,
    workload,
)

WITH_HINTS: tuple[PolicyName, ...] = ("kvflow-eviction", "kvflow")


class TestRingByHand:
    """Three agents, prefixes of 100 tokens, 4 + 3 more per call; one page is one token."""

    def test_lru_finds_nothing_where_not_all_fit(self) -> None:
        result = simulate(ring(3, 4), sizes(240), COSTS, "lru")
        assert result.calls == 9
        assert result.prompt_tokens == 9 * 104
        assert result.hit_tokens == 0

    @pytest.mark.parametrize("policy", POLICIES)
    def test_everyone_finds_all_where_all_fit(self, policy: PolicyName) -> None:
        result = simulate(ring(3, 4), sizes(2000), COSTS, policy)
        assert result.hits.device == result.hit_tokens == 9 * 100

    @pytest.mark.parametrize("policy", [*WITH_HINTS, "clairvoyant"])
    @pytest.mark.parametrize(("room", "found"), [(206, 11 * 100), (306, 21 * 100)])
    def test_kvflow_finds_what_there_is_room_for(
        self, policy: PolicyName, room: int, found: int
    ) -> None:
        """A call takes 106 tokens. With 100 beside it one other prefix stays: that of the agent
        that runs next, so every second of 21 calls finds its own. With 200 beside it all do."""
        result = simulate(ring(3, 8), sizes(room), COSTS, policy, bound=True)
        assert result.hit_tokens == result.bound_hit_tokens == found

    @pytest.mark.parametrize("policy", ["lru", "hicache-lru", *WITH_HINTS])
    def test_a_host_tier_is_read_by_those_that_have_one(self, policy: PolicyName) -> None:
        result = simulate(ring(3, 4), sizes(240, host=600), COSTS, policy)
        assert result.hit_tokens == (0 if policy == "lru" else 900)

    def test_given_to_all_it_is_read_by_all(self) -> None:
        engine = EngineModel(host_for_all=True)
        for policy in POLICIES:
            result = simulate(ring(3, 4), sizes(240, host=600), COSTS, policy, engine=engine)
            assert result.hit_tokens == 900, policy

    @pytest.mark.parametrize("write_policy", ["write_through", "write_back"])
    def test_under_either_write_policy(self, write_policy: str) -> None:
        engine = EngineModel(write_policy=write_policy)  # type: ignore[arg-type]
        result = simulate(ring(3, 5), sizes(240, host=600), COSTS, "hicache-lru", engine=engine)
        assert result.hits.host == 1200
        assert result.written_tokens > 0

    def test_a_node_is_written_after_two_uses_where_that_is_the_policy(self) -> None:
        engine = EngineModel(write_policy="write_through_selective")
        result = simulate(ring(3, 4), sizes(240, host=600), COSTS, "hicache-lru", engine=engine)
        assert result.hit_tokens == 0

    def test_prefetch_moves_hits_from_host_to_device(self) -> None:
        """Beside a call there is room for all of the next agent's prefix."""
        evicting = simulate(ring(5, 4), sizes(330, host=900), COSTS, "kvflow-eviction")
        prefetching = simulate(ring(5, 4), sizes(330, host=900), COSTS, "kvflow")
        assert evicting.hits.host > 0
        assert prefetching.hits.host == 0
        assert prefetching.hits.device == evicting.hit_tokens == 1500
        assert prefetching.used_tokens > 0
        assert prefetching.wasted_tokens == 0
        assert prefetching.loaded_tokens == 0


def test_time_is_that_of_the_cost_model() -> None:
    """One call: a prefill of 104 tokens, then two decode steps."""
    result = simulate(workload(ring_workflow(1, 1)), sizes(1000), COSTS, "lru")
    prefill_s = COSTS.prefill_s([(104, 0)])
    decode_s = COSTS.decode_s(1, 105) + COSTS.decode_s(1, 106)
    assert result.wall_s == pytest.approx(prefill_s + decode_s)
    assert result.ttft_s[0.5] == pytest.approx(prefill_s, rel=0.01)
    assert result.total_s[0.99] == pytest.approx(prefill_s + decode_s, rel=0.01)
    assert (result.prefill_steps, result.decode_steps) == (1, 2)
    assert result.output_tokens == 3


def test_a_load_is_overlapped_with_the_prefill() -> None:
    """The slower of the two counts: 104 new tokens in 4 steps, or 100 tokens over the link."""
    slow_link = replace(COSTS, load=replace(COSTS.load, tokens_per_s=1000.0))
    result = simulate(ring(3, 2), sizes(240, host=600), slow_link, "hicache-lru")
    assert result.ttft_s[0.5] == pytest.approx(slow_link.load.seconds(100), rel=0.01)


def test_kvflow_computes_what_a_slow_link_would_take_longer_to_bring() -> None:
    slow_link = replace(COSTS, load=replace(COSTS.load, tokens_per_s=100.0))
    result = simulate(ring(3, 6), sizes(240, host=600), slow_link, "kvflow-eviction")
    assert result.ttft_s[0.99] < slow_link.load.seconds(100)


def test_pauses_pass_and_calls_that_wait_for_nobody_run_side_by_side() -> None:
    pausing = ring_workflow(2, 1, pause_s=3.0)
    alone = simulate(workload(pausing), sizes(1000), COSTS, "lru")
    assert alone.wall_s > 3.0
    pair = workload(pausing, replace(pausing, workflow_id="v"), concurrency=2)
    together = simulate(pair, sizes(1000), COSTS, "lru")
    assert together.calls == 4
    assert together.wall_s < 2 * alone.wall_s


def test_workflows_arrive_when_they_say() -> None:
    late = [replace(ring_workflow(1, 1, name=f"w{n}"), arrival_s=10.0 * n) for n in range(3)]
    result = simulate(workload(*late, concurrency=None), sizes(1000), COSTS, "lru")
    assert result.workflows == 3
    assert 20.0 < result.wall_s < 21.0


def test_long_prompts_are_computed_in_chunks() -> None:
    engine = EngineModel(chunked_prefill_tokens=40)
    result = simulate(workload(ring_workflow(1, 2)), sizes(1000), COSTS, "lru", engine=engine)
    assert result.prefill_steps == 3 + 1
    assert result.hit_tokens == 100


def test_hints_and_clients_take_their_time() -> None:
    plain = simulate(ring(3, 2), sizes(1000), COSTS, "kvflow")
    engine = EngineModel(client_s=0.5, hint_s=0.1)
    slower = simulate(ring(3, 2), sizes(1000), COSTS, "kvflow", engine=engine)
    assert slower.wall_s == pytest.approx(plain.wall_s + 3 * 0.5)


def test_requests_sent_at_once_are_received_one_after_the_other() -> None:
    """Then the first is prefilled alone, and the others find what it evicted gone."""
    pair = [ring_workflow(1, 1, name=name) for name in "vw"]
    together = simulate(workload(*pair, concurrency=2), sizes(1000), COSTS, "lru")
    engine = EngineModel(receive_s=1e-4)
    apart = simulate(workload(*pair, concurrency=2), sizes(1000), COSTS, "lru", engine=engine)
    assert (together.prefill_steps, apart.prefill_steps) == (1, 2)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_again_gives_the_same(policy: PolicyName) -> None:
    def once() -> object:
        pair = [
            ring_workflow(3, 3, name=name, graph=ring_graph(3, 100), pause_s=0.01) for name in "vw"
        ]
        return simulate(
            workload(*pair, concurrency=2), sizes(260, host=300), COSTS, policy, bound=True
        )

    assert once() == once()


@pytest.mark.parametrize("room", range(120, 1000, 80))
def test_with_a_right_graph_kvflow_finds_no_less_than_lru(room: int) -> None:
    lru = simulate(ring(6, 5), sizes(room), COSTS, "lru")
    for policy in WITH_HINTS:
        assert simulate(ring(6, 5), sizes(room), COSTS, policy).hit_tokens >= lru.hit_tokens


class TestWrongGraph:
    def test_trust_takes_prefetch_away(self) -> None:
        right = simulate(ring(8, 12), sizes(500, host=900), COSTS, "kvflow")
        wrong = simulate(
            ring(8, 12, graph=reversed_graph(8, 100)), sizes(500, host=900), COSTS, "kvflow"
        )
        assert right.prediction_misses == 0
        assert wrong.prediction_misses > wrong.prediction_hits
        assert wrong.prefetched_tokens < right.prefetched_tokens / 4

    def test_and_then_eviction_is_lru(self) -> None:
        """Which is what a ring of eight in a cache for four makes nothing of."""
        wrong = simulate(ring(8, 12, graph=reversed_graph(8, 100)), sizes(500), COSTS, "kvflow")
        right = simulate(ring(8, 12), sizes(500), COSTS, "kvflow")
        assert wrong.hit_tokens < right.hit_tokens / 4


def test_without_a_graph_kvflow_is_lru() -> None:
    undeclared = workload(ring_workflow(4, 5), warm_up_calls=4)
    for room in (260, 1000):
        lru = simulate(undeclared, sizes(room), COSTS, "lru")
        kvflow = simulate(undeclared, sizes(room), COSTS, "kvflow")
        assert kvflow.hits == lru.hits
        assert kvflow.wall_s == lru.wall_s
        assert kvflow.prediction_hits == kvflow.prediction_misses == 0


def test_what_left_the_host_comes_back_from_storage() -> None:
    """The pause lets copies to the host end: what is being copied cannot be evicted."""
    engine = EngineModel(client_s=0.1)

    def run(policy: PolicyName, *, storage: bool) -> SimulationResult:
        tiers = sizes(1500, host=1700, storage=storage)
        return simulate(ring(8, 4, fixed=400), tiers, COSTS, policy, engine=engine)

    without = run("kvflow", storage=False)
    for_requests = run("kvflow-eviction", storage=True)
    ahead = run("kvflow", storage=True)
    assert without.fetched_tokens == without.hits.storage == 0
    assert for_requests.hits.storage > 0
    assert for_requests.hit_tokens > without.hit_tokens
    assert ahead.fetched_tokens > 0
    assert ahead.hit_tokens > without.hit_tokens
    assert ahead.hits.device > for_requests.hits.device


def test_the_warm_up_is_not_counted() -> None:
    counted = simulate(ring(3, 4, warm_up_rounds=0), sizes(1000), COSTS, "lru")
    after = simulate(ring(3, 4), sizes(1000), COSTS, "lru")
    assert (counted.calls, after.calls) == (12, 9)
    assert counted.calls_in_all == after.calls_in_all == 12
    assert after.hit_rate > counted.hit_rate
    assert after.wall_s < counted.wall_s


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"policy: 'best' is unknown; use lru, "):
        simulate(ring(2, 1), sizes(1000), COSTS, "best")  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", ["lru", "kvflow"])
def test_a_call_that_cannot_fit_is_refused(policy: PolicyName) -> None:
    with pytest.raises(InvalidInputError, match=r"cache\.device_tokens: call 0 of 'w' needs 106 "):
        simulate(ring(2, 1), sizes(108), COSTS, policy)
    assert simulate(ring(2, 1), sizes(109), COSTS, policy).calls_in_all == 2


def test_workflows_without_calls_pass_by() -> None:
    empty = WorkloadWorkflow("c", "empty", None, None, ())
    result = simulate(workload(empty, ring_workflow(1, 1), empty), sizes(1000), COSTS, "lru")
    assert result.calls == 1
