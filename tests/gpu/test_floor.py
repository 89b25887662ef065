"""Floors, against arithmetic by hand."""

from __future__ import annotations

import pytest

from benchmarks.gpu.floor import CallSizes, Rates, call_floor, floors
from kvflow.simulator.presets import MODELS, ModelShape

# One layer of 2 heads of 4, one KV head: 32 bytes of KV a token.
SMALL = ModelShape(1, 8, 16, 2, 1, 4, 100, False, "test")
RATES = Rates(1000.0, 1e6, 1e5)


def test_by_hand() -> None:
    layer = 8 * 4 * 2 * 3 + 3 * 8 * 16
    read_bytes = 2 * (layer + 100 * 8)
    floor = call_floor(SMALL, CallSizes(fixed=100, dynamic=10, output=3), RATES)
    assert SMALL.kv_bytes_per_token == 16
    assert floor.load_s == pytest.approx(100 * 16 / 1000)
    pairs = 10 * 100 + 55
    flops = 10 * 2 * layer + pairs * 4 * 2 * 4
    assert floor.hit_ttft_s == pytest.approx(max(flops / 1e6, read_bytes / 1e5))
    # Two steps after the first token; they read 111 and 112 tokens.
    assert floor.decode_s == pytest.approx((2 * read_bytes + 223 * 16) / 1e5)
    assert floor.fetch_s is None


def test_a_prefill_takes_no_less_than_reading_the_weights() -> None:
    floor = call_floor(SMALL, CallSizes(0, 1, 1), Rates(1.0, 1e30, 1.0))
    assert floor.hit_ttft_s == SMALL.weight_bytes - 2 * 100 * 8
    assert floor.decode_s == 0


def test_the_embedding_is_not_read_unless_it_is_the_output_layer() -> None:
    tied = ModelShape(1, 8, 16, 2, 1, 4, 100, True, "test")
    rates = Rates(1.0, 1e30, 1.0)
    mine, its = (call_floor(one, CallSizes(0, 1, 1), rates) for one in (tied, SMALL))
    assert mine.hit_ttft_s == its.hit_ttft_s == tied.weight_bytes


def test_of_a_real_model_loading_beats_computing_at_these_rates() -> None:
    h100 = Rates(50e9, 500e12, 3.35e12, 5e9)
    floor = call_floor(MODELS["llama-3.1-8b"], CallSizes(8192, 32, 32), h100)
    assert floor.load_s == pytest.approx(8192 * 131_072 / 50e9)
    assert floor.hit_ttft_s < floor.load_ttft_s == floor.load_s < floor.cold_ttft_s
    assert floor.fetch_s == pytest.approx(10 * floor.load_s)


def test_equal_calls_have_one_floor() -> None:
    sizes = [CallSizes(10, 1, 1), CallSizes(20, 1, 1), CallSizes(10, 1, 1)]
    found = floors(SMALL, sizes, RATES)
    assert [one["sizes"]["fixed"] for one in found] == [10, 20]
    assert found[1]["load_s"] == 2 * found[0]["load_s"]
