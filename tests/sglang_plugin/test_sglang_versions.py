"""The plugin in older SGLangs, installed beside the newest one.

The oldest supported one by default; ``KVFLOW_TEST_SGLANG_VERSIONS`` names others, or ``all``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from kvflow.sglang_plugin.compat import SUPPORTED
from tests.engines import Engines
from tests.sglang_plugin.workload import Ring, hit_rate

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

OVERLAYS = Path(os.environ.get("KVFLOW_TEST_OVERLAYS") or Path(sys.prefix) / "overlays")
CAPACITY_TOKENS = 1280


def versions() -> list[str]:
    asked = os.environ.get("KVFLOW_TEST_SGLANG_VERSIONS", "")
    if asked == "all":
        return list(SUPPORTED[:-1])
    return [name.strip() for name in asked.split(",") if name.strip()] or [SUPPORTED[0]]


def overlay(version: str) -> dict[str, str]:
    folder = OVERLAYS / f"sglang-{version}"
    if not folder.is_dir():
        if os.environ.get("KVFLOW_SKIP_SGLANG_0_5_17") == "1":
            pytest.skip("KVFLOW_SKIP_SGLANG_0_5_17=1")
        pytest.fail(
            f"{folder} is missing; run `make test`, which installs the oldest one, or "
            "`python3 requirements/install.py --dev --all-versions`"
        )
    return {"PYTHONPATH": str(folder), "KVFLOW_SERVICE_URL": "off"}


@pytest.mark.parametrize("hicache_ratio", [None, 3.0])
@pytest.mark.parametrize("version", versions())
def test_ring_hits_what_lru_loses(
    engines: Engines, version: str, hicache_ratio: float | None
) -> None:
    engine = engines.start(
        radix="kvflow",
        max_total_tokens=CAPACITY_TOKENS,
        page_size=1,
        hicache_ratio=hicache_ratio,
        env=overlay(version),
    )
    assert engine.http.get("/get_server_info").json()["version"] == version
    ring = Ring(max_tokens=4)
    answers = [ring.round(engine, number) for number in range(3)]
    assert hit_rate(answers[1] + answers[2]) > 0.4
    assert engine.metric("kvflow_evicted_tokens_total", kind="prefix", tier="device") > 0
    if hicache_ratio is not None:
        assert engine.metric("kvflow_prefetch_outcome_tokens_total", outcome="used") > 0
    for agent in (0, 4):
        engine.flush()
        cold = engine.chat(ring.messages(agent, 2), max_tokens=ring.max_tokens)
        assert cold.cached_tokens == 0
        assert answers[2][agent].text == cold.text
    assert "Traceback" not in engine.log().partition("fired up")[2]
    engines.stop(engine)
