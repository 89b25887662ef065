"""How long operations take, against sums done by hand."""

from dataclasses import replace

import pytest

from kvflow.prefetch import Link
from kvflow.simulator.costs import CostModel

COSTS = CostModel(
    name="by hand",
    kv_bytes_per_token=1000,
    step_overhead_s=0.5,
    prefill_s_per_token=0.01,
    prefill_s_per_token_pair=0.001,
    decode_step_s=2.0,
    decode_s_per_sequence=0.1,
    decode_s_per_context_token=0.003,
    load=Link(100.0, 0.25),
    write=Link(50.0),
    fetch=Link(10.0),
)


@pytest.mark.parametrize(
    ("parts", "seconds"),
    [
        ([], 0.0),
        ([(0, 50)], 0.0),
        # 300 tokens take 3 s, more than the weights; 300 * 301 / 2 pairs.
        ([(300, 0)], 0.5 + 3.0 + 45.15),
        # The same tokens after 100 cached ones read those as well.
        ([(300, 100)], 0.5 + 3.0 + 45.15 + 30.0),
        # 10 tokens alone would take 0.1 s; the weights are read in any case.
        ([(10, 0)], 0.5 + 2.0 + 0.055),
        # Two requests in one step do not read each other.
        ([(200, 0), (100, 0)], 0.5 + 3.0 + 20.1 + 5.05),
        ([(200, 0), (0, 700)], 0.5 + 2.0 + 20.1),
    ],
)
def test_prefill(parts: list[tuple[int, int]], seconds: float) -> None:
    assert COSTS.prefill_s(parts) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("sequences", "context", "seconds"),
    [(0, 0, 0.0), (1, 0, 2.6), (1, 1000, 5.6), (4, 1000, 5.9)],
)
def test_decode(sequences: int, context: int, seconds: float) -> None:
    assert COSTS.decode_s(sequences, context) == pytest.approx(seconds)


def test_attention_that_computes_the_cached_part_again() -> None:
    costs = replace(COSTS, prefill_s_per_cached_pair=0.002)
    # 100 cached tokens make 5,050 pairs; a request without new tokens computes nothing.
    assert costs.prefill_s([(300, 100), (0, 900)]) == pytest.approx(
        COSTS.prefill_s([(300, 100)]) + 10.1
    )


def test_what_is_fixed_of_a_prefill_is_paid_once_a_step() -> None:
    costs = replace(COSTS, prefill_overhead_s=7.0)
    for parts in ([(300, 0)], [(200, 0), (100, 0)]):
        assert costs.prefill_s(parts) == pytest.approx(COSTS.prefill_s(parts) + 7.0)
    assert costs.prefill_s([]) == 0
    assert costs.decode_s(1, 10) == COSTS.decode_s(1, 10)


def test_chunks_of_a_prompt_make_the_same_pairs_as_the_whole() -> None:
    overhead = COSTS.step_overhead_s
    whole = COSTS.prefill_s([(600, 0)]) - overhead
    chunks = sum(COSTS.prefill_s([(200, before)]) - overhead for before in (0, 200, 400))
    assert chunks == pytest.approx(whole)
