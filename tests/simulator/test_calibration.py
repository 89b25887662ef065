"""Calibration against an engine that takes exactly as long as a cost model says."""

import json
from collections.abc import Iterator

import httpx2
import pytest

from benchmarks.simulation.calibrate import Plan, calibrate
from kvflow.prefetch import Link
from kvflow.simulator.costs import CostModel

TRUTH = CostModel(
    name="made up",
    kv_bytes_per_token=46_080,
    step_overhead_s=0.02,
    prefill_s_per_token=2e-3,
    prefill_s_per_token_pair=1e-6,
    decode_step_s=0.05,
    decode_s_per_sequence=0.0,
    decode_s_per_context_token=1e-5,
    load=Link(5_000.0, 0.01),
    write=Link(1e9),
    fetch=Link(1e9),
    prefill_s_per_cached_pair=5e-7,
)
PLAN = Plan(loads=(256, 640), decodes=((1, 64), (1, 448), (1, 896)), after=((48, 896), (128, 448)))


class _Engine:
    """Answers /generate on a clock of its own; its device holds the latest prompts only."""

    def __init__(self, device_tokens: int) -> None:
        self.now_s = 0.0
        self._device_tokens = device_tokens
        self._prompts: list[list[int]] = []

    def handle(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/flush_cache":
            self._prompts.clear()
            return httpx2.Response(200)
        body = json.loads(request.content)
        count = body["sampling_params"]["max_new_tokens"]
        return httpx2.Response(200, stream=_Chunks(self._answer(body["input_ids"], count)))

    def _answer(self, ids: list[int], count: int) -> Iterator[bytes]:
        cached = on_device = 0
        held = 0
        for earlier in reversed(self._prompts):
            held += len(earlier)
            same = next(
                (n for n, (a, b) in enumerate(zip(earlier, ids, strict=False)) if a != b),
                min(len(earlier), len(ids)),
            )
            same = min(same // 16 * 16, len(ids) - 1)
            if same > cached:
                cached = same
                on_device = same if held <= self._device_tokens else 0
        self._prompts.append(ids)
        host = cached - on_device
        self.now_s += TRUTH.prefill_s([(len(ids) - cached, cached)]) + TRUTH.load.seconds(host)
        for number in range(1, count + 1):
            meta = {
                **{"prompt_tokens": len(ids), "cached_tokens": cached, "completion_tokens": number},
                "cached_tokens_details": {"device": on_device, "host": host},
            }
            yield f"data: {json.dumps({'meta_info': meta})}\n\n".encode()
            self.now_s += TRUTH.decode_s(1, len(ids) + number)
        yield b"data: [DONE]\n\n"


class _Chunks(httpx2.SyncByteStream):
    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks


def _calibrated(device_tokens: int) -> CostModel:
    engine = _Engine(device_tokens)
    return calibrate(
        "http://engine.invalid",
        plan=PLAN,
        clock=lambda: engine.now_s,
        transport=httpx2.MockTransport(engine.handle),
    ).costs


def test_the_engine_is_found_out() -> None:
    found = _calibrated(device_tokens=2048)
    for parts in ([(600, 0)], [(48, 576)], [(200, 100), (64, 0)]):
        assert found.prefill_s(parts) == pytest.approx(TRUTH.prefill_s(parts), rel=0.001)
    assert found.decode_s(1, 500) == pytest.approx(TRUTH.decode_s(1, 500), rel=0.01)
    assert found.load.seconds(500) == pytest.approx(TRUTH.load.seconds(500), rel=0.02)


def test_without_a_host_tier_loads_are_not_known() -> None:
    assert _calibrated(device_tokens=1_000_000).load == Link(1e9)
