"""The CPU profile, service by service, as processes of this machine; then a workflow through it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from kvflow.engine import cache_dir
from tests.docker.local_stack import ROOT, LocalStack, compose, start_order, with_profile
from tests.server.mqtt.mosquitto import peer
from tests.server.running import eventually

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    folder = tmp_path_factory.mktemp("stack")
    services = with_profile(compose({"CPU_MAX_TOTAL_TOKENS": "4096"}), "cpu")
    # There is no program of Grafana's to be had; its files are checked in test_files.py.
    del services["grafana"]
    # The model was converted before, by the tests of the engine or in the user's own cache.
    engine = services["engine-cpu"]
    engine["volumes"] = []
    engine["environment"]["KVFLOW_CACHE_DIR"] = str(cache_dir())
    running = LocalStack(folder, services)
    try:
        for name in start_order(services):
            running.start(name, patience_s=200 if name == "engine-cpu" else 60)
        yield running
    finally:
        running.stop()


def get(url: str, **params: str) -> Any:
    answer = httpx2.get(url, params=params, trust_env=False, timeout=20)
    answer.raise_for_status()
    return answer.json()


def prometheus(stack: LocalStack, query: str) -> list[float]:
    found = get(f"{stack.url(9090)}/api/v1/query", query=query)["data"]["result"]
    return [float(one["value"][1]) for one in found]


def test_the_engine_is_on_the_services_stream(stack: LocalStack) -> None:
    engines = get(f"{stack.url(8100)}/v1/engines")["engines"]
    assert [one["engine_id"] for one in engines] == ["engine-cpu"]
    with peer(int(stack.ports["1883"])) as client:
        eventually(
            lambda: (client.json("engines/engine-cpu/status") or {}).get("status") == "connected"
        )


def test_a_workflow_goes_through_all_of_it(stack: LocalStack) -> None:
    with peer(int(stack.ports["1883"])) as client:
        done = subprocess.run(
            [sys.executable, str(ROOT / "examples" / "plain_http.py")],
            env={
                **os.environ,
                "OPENAI_BASE_URL": f"{stack.url(30000)}/v1",
                "KVFLOW_SERVICE_URL": stack.url(8100),
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert (done.returncode, done.stderr) == (0, "")
        plans = [json.loads(body) for topic, body in client.all if topic.endswith("/plan") and body]
    agents = {"translator", "proofreader"}
    assert plans
    assert all(set(plan["steps_to_execution"]) == agents for plan in plans)
    assert {plan["steps_to_execution"]["translator"] for plan in plans} >= {0, None}
    eventually(lambda: prometheus(stack, "sum(kvflow_events_total)") == [4.0])


def test_prometheus_scrapes_service_and_engine(stack: LocalStack) -> None:
    eventually(lambda: prometheus(stack, "sum by (job) (up)") == [1.0, 1.0])
    eventually(lambda: len(prometheus(stack, "kvflow_lease_held == 1")) == 1)
    rules = get(f"{stack.url(9090)}/api/v1/rules")["data"]["groups"]
    assert rules


def test_the_front_door_reaches_the_engine(stack: LocalStack) -> None:
    models = get(f"{stack.url(8100)}/v1/models")["data"]
    assert models == get(f"{stack.url(30000)}/v1/models")["data"]


def test_all_of_it_stays_healthy(stack: LocalStack) -> None:
    for name in ("mosquitto", "service", "engine-cpu", "prometheus"):
        assert stack.is_healthy(name), stack.log(name)[-2000:]


def test_the_service_keeps_its_data_in_its_volume(stack: LocalStack, tmp_path: Path) -> None:
    assert "kvflow.db" in stack.log("service")
