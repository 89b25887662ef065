from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from kvflow.errors import EnvironmentProblemError
from kvflow.protocol import StepEvent
from kvflow.server import ServiceSettings, build_service
from kvflow.server.keys import change_key_file, create_key
from kvflow.server.metrics import ServiceMetrics
from kvflow.server.recorder import FileRecorder
from kvflow.workload.converters import convert
from tests.server.conftest import FakeClock
from tests.server.keys.made import LONG_AGO
from tests.server.running import eventually
from tests.server.workflow_bodies import cycle, finished, started


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def counted(metrics: ServiceMetrics, outcome: str) -> float:
    value = metrics.registry.get_sample_value("kvflow_recording_lines_total", {"outcome": outcome})
    return value or 0.0


def test_what_happens_is_recorded_and_replays(tmp_path: Path, clock: FakeClock) -> None:
    path = tmp_path / "recording.jsonl"
    settings = ServiceSettings(sweep_interval_s=3600, record=path)
    with TestClient(build_service(settings, clock=clock).app) as client:
        clock.now_s += 2.0
        client.post("/v1/workflows", json=cycle())
        url = "/v1/workflows/w/events"
        assert client.post(url, json=started("a0", "s1")).status_code == 200
        client.post(url, json=started("a0", "s1"))
        clock.now_s += 1.0
        client.post(
            url,
            json=[
                finished("a0", "s1") | {"prompt_tokens": 1500, "output_tokens": 3},
                started("a1"),
            ],
        )
        assert client.post(url, json=started("nobody")).status_code == 404
        clock.now_s += 1.0
        client.delete("/v1/workflows/w")
        client.post("/v1/workflows", json=cycle("late", ttl_s=5))
        clock.now_s += 6.0
        assert client.get("/v1/workflows/late").status_code == 404

    recorded = lines(path)
    assert [line["type"] for line in recorded] == [
        *("header", "workflow", "events", "events", "closed", "workflow", "closed")
    ]
    assert [line["at_s"] for line in recorded[1:]] == [2.0, 2.0, 3.0, 4.0, 4.0, 10.0]
    assert [line["reason"] for line in recorded if line["type"] == "closed"] == [
        "deleted",
        "expired",
    ]
    (workflow,) = convert(path, "recording")
    assert [(call.agent_id, call.after, call.pause_s) for call in workflow.calls] == [
        ("a0", (), 0.0),
        ("a1", (0,), 0.0),
    ]
    assert (workflow.calls[0].prompt_tokens, workflow.calls[0].answer.tokens) == (1500, 3)


def test_workflows_of_clients_with_long_names_are_told_apart(tmp_path: Path) -> None:
    # Each pair below would be one and the same, or too long, if the names were just put together.
    workflows = [
        *(("a", "b:w"), ("a:b", "w"), ("c" * 256, "w" * 256), ("c" * 256, "w" * 255 + "v")),
        *(("c" * 255 + "d", "w" * 256), ("short", "w" * 250), ("short", "w" * 251)),
    ]
    keys = {
        name: change_key_file(
            tmp_path / "keys.json",
            lambda content, name=name: create_key(content, name, "client", LONG_AGO),
        ).key
        for name in dict(workflows)
    }
    path = tmp_path / "recording.jsonl"
    settings = ServiceSettings(record=path, keys_file=tmp_path / "keys.json")
    with TestClient(build_service(settings).app) as client:
        for name, workflow_id in workflows:
            client.headers["Authorization"] = f"Bearer {keys[name]}"
            assert client.post("/v1/workflows", json=cycle(workflow_id)).status_code == 201
            url = f"/v1/workflows/{workflow_id}/events"
            assert client.post(url, json=started("a0")).status_code == 200
            assert client.delete(f"/v1/workflows/{workflow_id}").status_code == 204

    assert [(one.client_id, len(one.calls)) for one in convert(path, "recording")] == [
        (name, 1) for name, _ in workflows
    ]
    ids = [line["workflow_id"] for line in lines(path)[1:]]
    assert len(set(ids)) == len(workflows)
    assert ids[0] == "a:b:w"
    assert "short:" + "w" * 250 in ids


def test_counts_that_cannot_be(client: TestClient) -> None:
    client.post("/v1/workflows", json=cycle())
    for event in (
        started("a0") | {"prompt_tokens": 5},
        finished("a0") | {"prompt_tokens": -1},
        finished("a0") | {"prompt_tokens": 5, "cached_tokens": 6},
    ):
        answer = client.post("/v1/workflows/w/events", json=event)
        assert answer.status_code == 422
        assert "_tokens" in answer.text


def test_a_second_service_goes_on_in_the_file(tmp_path: Path, clock: FakeClock) -> None:
    path = tmp_path / "recording.jsonl"
    for workflow_id in ("first", "second"):
        settings = ServiceSettings(sweep_interval_s=3600, record=path)
        with TestClient(build_service(settings, clock=clock).app) as client:
            client.post("/v1/workflows", json=cycle(workflow_id))
            client.post(f"/v1/workflows/{workflow_id}/events", json=started("a0"))
    assert len(list(convert(path, "recording"))) == 2


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblemError, match=r"cannot record to .*: No such file"):
        build_service(ServiceSettings(record=tmp_path / "nowhere" / "r.jsonl"))


class StuckEvent(list[StepEvent]):
    """Events whose line takes until it is let go to be written."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()
        self.let_go = threading.Event()

    def __iter__(self) -> Any:
        self.reached.set()
        self.let_go.wait()
        return super().__iter__()


def test_a_slow_disk_costs_lines_and_no_time(
    tmp_path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = ServiceMetrics()
    recorder = FileRecorder(tmp_path / "r", clock, metrics, max_waiting_lines=3)
    stuck = StuckEvent()
    recorder.applied("w", stuck)
    assert stuck.reached.wait(30)
    for _ in range(5):
        recorder.closed("w", "deleted")
    assert counted(metrics, "dropped") == 2
    with caplog.at_level(logging.WARNING, "kvflow.server"):
        stuck.let_go.set()
        recorder.stop()
    assert counted(metrics, "written") == 4
    assert len(lines(tmp_path / "r")) == 5
    assert [record.message for record in caplog.records if "2 lines were dropped" in record.message]


def test_a_disk_that_is_full_ends_the_recording_only(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = ServiceMetrics()
    # Takes nothing, as a disk that is full.
    recorder = FileRecorder(Path("/dev/full"), clock, metrics)
    recorder.closed("w", "deleted")
    eventually(lambda: "has ended; the service goes on" in caplog.text)
    recorder.closed("w", "deleted")
    recorder.stop()
    assert counted(metrics, "dropped") == 1
