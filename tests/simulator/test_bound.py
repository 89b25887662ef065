"""That the bound of a run is Belady's, page by page, for the calls as they ran."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kvflow.eviction import CachedCall, clairvoyant_hit_tokens
from kvflow.simulator import simulate
from kvflow.workload import CacheSizes, Piece, WorkloadWorkflow
from tests.simulator.test_invariants import LARGEST_CALL, workflows
from tests.simulator.workloads import COSTS, ring, sizes, workload


def token_ids(pieces: tuple[Piece, ...], known: dict[str, int]) -> list[int]:
    """Each piece's own ids: different from the first token on."""
    return [
        known.setdefault(piece.key, len(known)) * 1000 + n
        for piece in pieces
        for n in range(piece.tokens)
    ]


def cached_calls(workflow: WorkloadWorkflow) -> list[CachedCall]:
    known: dict[str, int] = {}
    return [
        CachedCall(
            token_ids(call.prompt, known),
            # SGLang never computes the KV of the last token.
            token_ids((*call.prompt, call.answer), known)[call.prompt_tokens : -1],
        )
        for call in workflow.calls
    ]


def one_by_one(workflow: WorkloadWorkflow) -> WorkloadWorkflow:
    calls = [
        type(call)(
            call.agent_id,
            (number - 1,) if number else (),
            0.0,
            call.prompt,
            call.fixed_pieces,
            call.answer,
        )
        for number, call in enumerate(workflow.calls)
    ]
    return WorkloadWorkflow("c", workflow.workflow_id, None, workflow.graph, tuple(calls))


@given(workflows(), st.integers(0, 150), st.sampled_from([1, 4, 16]))
@settings(max_examples=80, deadline=None)
def test_for_calls_one_after_the_other(drawn: WorkloadWorkflow, spare: int, page: int) -> None:
    workflow = one_by_one(drawn)
    capacity = (LARGEST_CALL + 4 * page + spare) // page * page
    cache = CacheSizes(device_tokens=capacity, page_tokens=page)
    result = simulate(workload(workflow), cache, COSTS, "lru", bound=True)
    exact = sum(clairvoyant_hit_tokens(cached_calls(workflow), capacity, page))
    assert result.bound_hit_tokens is not None
    # A last page that only the answer's last token would fill is taken for there, without room.
    last_pages = sum(
        (call.prompt_tokens + call.answer.tokens) % page == 0 for call in workflow.calls
    )
    assert exact <= result.bound_hit_tokens <= exact + page * last_pages


def test_the_bound_does_not_depend_on_the_policy_where_the_order_does_not() -> None:
    bounds = {
        simulate(ring(5, 4), sizes(333), COSTS, policy, bound=True).bound_hit_tokens
        for policy in ("lru", "lfu", "kvflow", "clairvoyant")
    }
    assert len(bounds) == 1


def test_a_host_tier_adds_to_it_and_a_storage_tier_takes_the_limit_away() -> None:
    def bound(cache: CacheSizes) -> int | None:
        return simulate(ring(5, 4), cache, COSTS, "hicache-lru", bound=True).bound_hit_tokens

    device, with_host = bound(sizes(206)), bound(sizes(206, host=100))
    assert device is not None
    assert with_host is not None
    assert device < with_host
    assert bound(sizes(206, host=100, storage=True)) == 15 * 100
    assert simulate(ring(5, 4), sizes(206), COSTS, "lru").bound_hit_tokens is None
