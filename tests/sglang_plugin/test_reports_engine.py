"""A real engine's reports: the service is told where a prefix is, and when it is there no more."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tests.engines import Engines, words
from tests.sglang_plugin.service_process import engine_of, eventually, service
from tests.sglang_plugin.workload import PAGE_SIZE, token_ids

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

PREFIX = {"role": "system", "content": " ".join(words("reported agent", 200))}
GRAPH: dict[str, Any] = {
    "workflow_id": "reported",
    "agents": [{"agent_id": "first"}, {"agent_id": "second"}],
    "edges": [{"source": "first", "target": "second"}],
    "entry": ["first"],
}


def test_a_prefix_is_on_the_device_and_then_gone(engines: Engines, service_port: int) -> None:
    engine = engine_of(engines, service_port)
    prefix_tokens = len(token_ids([PREFIX])) // PAGE_SIZE * PAGE_SIZE
    with (
        service(service_port),
        httpx2.Client(base_url=f"http://127.0.0.1:{service_port}", trust_env=False) as http,
    ):
        http.post("/v1/workflows", json=GRAPH).raise_for_status()

        def placement() -> dict[str, Any]:
            answer = http.get("/v1/overview/workflows/reported").raise_for_status()
            found: dict[str, Any] = answer.json()["placements"][0]
            return found

        assert placement()["place"] == "unknown"
        for question in ("Say one word.", "Say two words."):
            engine.chat(
                [PREFIX, {"role": "user", "content": question}],
                max_tokens=4,
                custom_params={"kvflow": {"workflow_id": "reported", "agent_id": "first"}},
            )
        eventually(lambda: placement()["place"] == "device")
        (on_device,) = placement()["engines"]
        assert abs(on_device["tokens"] - prefix_tokens) <= 2 * PAGE_SIZE
        assert on_device["device_tokens"] == on_device["tokens"]

        # The agent cannot run again, so nothing speaks for its prefix when others need the room.
        events = [{"type": kind, "agent_id": "first"} for kind in ("step_started", "step_finished")]
        http.post("/v1/workflows/reported/events", json=events).raise_for_status()
        for number in range(6):
            engine.chat([{"role": "user", "content": " ".join(words(f"stranger {number}", 240))}])
        eventually(lambda: placement()["place"] == "gone")
        assert placement()["engines"][0]["device_tokens"] < PAGE_SIZE * 2

        def overview() -> dict[str, Any]:
            (only,) = http.get("/v1/overview").json()["engines"]
            found: dict[str, Any] = only
            return found

        # The prefix may be gone, and reported so, before the last of them has finished.
        eventually(lambda: overview()["report"]["totals"]["requests"] >= 8)
        shown = overview()
        assert shown["state"] == "live"
        reported = shown["report"]
        assert reported["engine_version"].startswith("sglang 0.5.")
        assert reported["device"]["size_tokens"] == 1280
        assert reported["host"] is None
        assert reported["totals"]["evicted_device_tokens"] > 0
        assert reported["totals"]["device_hit_tokens"] > 0
        assert reported["recent"]["first_token_p50_s"] > 0
