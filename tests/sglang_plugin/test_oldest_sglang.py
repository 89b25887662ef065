"""The plugin in the oldest SGLang it supports, installed beside the newest one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.engines import Engines
from tests.sglang_plugin.workload import Ring, hit_rate

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

OVERLAY = Path(sys.prefix) / "overlays" / "sglang-0.5.17"
CAPACITY_TOKENS = 1280


@pytest.fixture(scope="module")
def overlay() -> dict[str, str]:
    if not OVERLAY.is_dir():
        if os.environ.get("KVFLOW_SKIP_SGLANG_0_5_17") == "1":
            pytest.skip("KVFLOW_SKIP_SGLANG_0_5_17=1")
        pytest.fail(f"{OVERLAY} is missing; run `make test`, which installs it")
    return {"PYTHONPATH": str(OVERLAY), "KVFLOW_SERVICE_URL": "off"}


@pytest.mark.parametrize("hicache_ratio", [None, 3.0])
def test_ring_hits_what_lru_loses(
    engines: Engines, overlay: dict[str, str], hicache_ratio: float | None
) -> None:
    engine = engines.start(
        radix="kvflow",
        max_total_tokens=CAPACITY_TOKENS,
        page_size=1,
        hicache_ratio=hicache_ratio,
        env=overlay,
    )
    assert engine.http.get("/get_server_info").json()["version"] == "0.5.17"
    ring = Ring(max_tokens=4)
    answers = [ring.round(engine, number) for number in range(3)]
    assert hit_rate(answers[1] + answers[2]) > 0.4
    assert engine.metric("kvflow_evicted_tokens_total", kind="prefix", tier="device") > 0
    if hicache_ratio is not None:
        assert engine.metric("kvflow_prefetch_outcome_tokens_total", outcome="used") > 0
    assert "Traceback" not in engine.log().partition("fired up")[2]
    engines.stop(engine)
