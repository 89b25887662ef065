from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from kvflow.simulator import simulate
from kvflow.simulator.ttl import best_ttl_s
from kvflow.workload import Piece
from tests.simulator.workloads import COSTS, ring_workflow, sizes, workload


def gain(ttl_s: float, gaps_s: list[float], reload_s: float, share: float) -> float:
    in_time = sum(gap <= ttl_s for gap in gaps_s) / len(gaps_s)
    kept_s = sum(min(gap, ttl_s) for gap in gaps_s) / len(gaps_s)
    return in_time * reload_s - share * kept_s


@given(
    st.lists(st.floats(0.01, 10.0), min_size=1, max_size=12),
    st.floats(0.001, 5.0),
    st.floats(0.01, 1.0),
)
def test_no_other_time_gains_more(gaps_s: list[float], reload_s: float, share: float) -> None:
    best = gain(best_ttl_s(gaps_s, reload_s, share), gaps_s, reload_s, share)
    others = [0.0, *gaps_s, *(gap * 0.99 for gap in gaps_s), *(gap + 0.1 for gap in gaps_s)]
    assert best >= max(gain(other, gaps_s, reload_s, share) for other in others) - 1e-9


def test_without_a_gap_as_long_as_it_can_pay() -> None:
    assert best_ttl_s([], 2.0, 0.5) == 4.0


def test_what_pays_is_kept_though_newer_prompts_would_take_its_place() -> None:
    """A long prompt, dear to compute, is read again after short ones that nobody reads again."""
    costs = replace(COSTS, prefill_s_per_token_pair=1e-6)
    long = ring_workflow(1, 6, name="long", fixed=600, pause_s=0.15)
    calls = list(long.calls)
    for number in range(40):
        calls.append(
            replace(
                calls[0],
                agent_id="once",
                after=(len(calls) - 1,) if number else (),
                pause_s=0.0,
                prompt=(Piece(f"once-{number}", 90),),
            )
        )
    mixed = workload(replace(long, calls=tuple(calls)))
    lru = simulate(mixed, sizes(900), costs, "lru")
    ttl = simulate(mixed, sizes(900), costs, "ttl")
    assert lru.hit_tokens == 0
    assert ttl.hit_tokens == 5 * 600
