"""Fits recover the coefficients that samples were made with."""

import random
from dataclasses import fields, replace

import pytest

from kvflow.prefetch import Link
from kvflow.simulator.costs import CostModel
from kvflow.simulator.fitting import (
    CopySample,
    DecodeSample,
    PrefillSample,
    Samples,
    fit,
    mean_of,
)

TRUTH = CostModel(
    name="this machine",
    kv_bytes_per_token=46_080,
    step_overhead_s=0.012,
    prefill_s_per_token=1.6e-3,
    prefill_s_per_token_pair=4e-7,
    decode_step_s=0.06,
    decode_s_per_sequence=0.01,
    decode_s_per_context_token=2e-6,
    load=Link(20_000.0, 0.004),
    write=Link(1e9),
    fetch=Link(5_000.0, 0.02),
    prefill_s_per_cached_pair=1.5e-6,
    decode_batched_s=0.03,
)


def samples(truth: CostModel, noise: float = 0.0) -> Samples:
    draw = random.Random(1)

    def timed(seconds: float) -> float:
        return seconds * draw.uniform(1 - noise, 1 + noise)

    prefills = [
        PrefillSample(new, before, timed(truth.prefill_s([(new, before)])))
        for new in (64, 128, 256, 512, 800)
        for before in (0, 400, 1200)
    ]
    decodes = [
        DecodeSample(n, n * context, timed(truth.decode_s(n, n * context)))
        for n in (1, 2, 4)
        for context in (64, 400, 800, 1500)
    ]
    loads = [CopySample(n, timed(truth.load.seconds(n))) for n in (160, 320, 640)]
    fetches = [CopySample(n, timed(truth.fetch.seconds(n))) for n in (160, 640)]
    return Samples(prefills, decodes, loads, fetches=fetches)


def test_exact_samples_give_the_coefficients_back() -> None:
    found = fit(TRUTH.name, TRUTH.kv_bytes_per_token, samples(TRUTH))
    for name in (
        *("step_overhead_s", "prefill_s_per_token", "prefill_s_per_token_pair"),
        *("decode_step_s", "decode_s_per_sequence", "decode_s_per_context_token"),
        *("prefill_s_per_cached_pair", "decode_batched_s"),
    ):
        assert getattr(found, name) == pytest.approx(getattr(TRUTH, name), rel=1e-6), name
    for copy in ("load", "fetch"):
        assert getattr(found, copy).tokens_per_s == pytest.approx(getattr(TRUTH, copy).tokens_per_s)
        assert getattr(found, copy).latency_s == pytest.approx(getattr(TRUTH, copy).latency_s)
    assert found.write == Link(1e9)


def test_noise_moves_predictions_by_less_than_itself() -> None:
    found = fit(TRUTH.name, TRUTH.kv_bytes_per_token, samples(TRUTH, noise=0.05))
    for parts in ([(700, 0)], [(90, 600)], [(300, 300), (200, 0)]):
        assert found.prefill_s(parts) == pytest.approx(TRUTH.prefill_s(parts), rel=0.05)
    assert found.decode_s(3, 2000) == pytest.approx(TRUTH.decode_s(3, 2000), rel=0.05)


def test_a_process_that_was_held_and_tokens_that_came_at_once_move_little() -> None:
    made = samples(TRUTH, noise=0.02)
    prefills, decodes = list(made.prefills), list(made.decodes)
    prefills[3] = replace(prefills[3], seconds=4 * prefills[3].seconds)
    decodes[0] = replace(decodes[0], seconds=0.0004)
    found = fit("x", 1, replace(made, prefills=prefills, decodes=decodes))
    for parts in ([(700, 0)], [(48, 592)]):
        assert found.prefill_s(parts) == pytest.approx(TRUTH.prefill_s(parts), rel=0.05)
    assert found.decode_s(1, 640) == pytest.approx(TRUTH.decode_s(1, 640), rel=0.05)


def test_a_prefill_may_have_more_that_is_fixed_than_a_decode_step() -> None:
    # Then the weights' part cannot be told from the overhead.
    truth = replace(TRUTH, step_overhead_s=0.02, decode_step_s=0.0, prefill_overhead_s=0.1)
    found = fit("x", 1, samples(truth))
    assert found.step_overhead_s == pytest.approx(0.02, rel=1e-6)
    assert found.prefill_overhead_s == pytest.approx(0.1, rel=1e-6)
    assert found.decode_step_s == pytest.approx(0, abs=1e-9)


def test_no_coefficient_is_below_zero() -> None:
    # Longer contexts took less time, and so did more sequences: noise.
    decodes = [DecodeSample(1, 100, 0.2), DecodeSample(2, 400, 0.19), DecodeSample(4, 800, 0.18)]
    made = replace(samples(TRUTH), decodes=decodes)
    found = fit(TRUTH.name, TRUTH.kv_bytes_per_token, made)
    assert found.decode_s_per_sequence == 0
    assert found.decode_s_per_context_token == 0
    assert found.step_overhead_s + found.decode_step_s == pytest.approx(0.19, rel=0.01)


def test_copies_of_one_size_give_a_rate_alone() -> None:
    made = replace(samples(TRUTH), loads=[CopySample(600, 0.03), CopySample(600, 0.03)])
    assert fit("x", 1, made).load.tokens_per_s == pytest.approx(20_000)


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="prefills"):
        fit("x", 1, replace(samples(TRUTH), prefills=[PrefillSample(1, 0, 0.1)] * 5))
    with pytest.raises(ValueError, match="decodes"):
        fit("x", 1, replace(samples(TRUTH), decodes=[DecodeSample(1, 1, 0.1)] * 5))


def test_the_mean_of_two_is_halfway_in_seconds() -> None:
    timed = [field.name for field in fields(CostModel) if field.name.endswith("_s")]
    timed += [field.name for field in fields(CostModel) if "_s_per_" in field.name]
    assert len(timed) == 9
    doubled = {name: 2 * getattr(TRUTH, name) for name in timed}
    slow = replace(TRUTH, load=Link(10_000.0, 0.008), **doubled)
    middle = mean_of(TRUTH, slow)
    assert (middle.name, middle.kv_bytes_per_token) == (TRUTH.name, TRUTH.kv_bytes_per_token)
    for name in timed:
        assert getattr(middle, name) == pytest.approx(1.5 * getattr(TRUTH, name))
    assert middle.load.seconds(1000) == pytest.approx(
        (TRUTH.load.seconds(1000) + slow.load.seconds(1000)) / 2
    )
