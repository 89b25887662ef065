"""The service and a real mosquitto: events in, plans out, and what if one of them goes."""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trustme
from pydantic import SecretStr

from kvflow.server import ServiceSettings
from tests.server.mqtt.killed import killed_service
from tests.server.mqtt.mosquitto import Mosquitto, Peer, broker, peer
from tests.server.running import RunningService, eventually, running_service, stream

pytest.importorskip("aiomqtt")

CHAIN = {
    "agents": [{"agent_id": "a"}, {"agent_id": "b"}],
    "edges": [{"source": "a", "target": "b"}],
    "entry": ["a"],
}


def settings(url: str, **more: Any) -> ServiceSettings:
    return ServiceSettings(mqtt_url=SecretStr(url), mqtt_reorder_wait_s=0.8, **more)


def workflow(workflow_id: str, command: str) -> str:
    return f"clients/c/workflows/{workflow_id}/{command}"


def event(kind: str, agent_id: str, step_id: str | None = None, **more: Any) -> dict[str, Any]:
    named = {} if step_id is None else {"step_id": step_id}
    return {"type": f"step_{kind}", "agent_id": agent_id, **named, **more}


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    with broker(tmp_path) as running:
        yield running


@pytest.fixture
def service(mosquitto: Mosquitto) -> Iterator[RunningService]:
    with running_service(settings(f"mqtt://127.0.0.1:{mosquitto.port}")) as running:
        yield running


@pytest.fixture
def client(mosquitto: Mosquitto, service: RunningService) -> Iterator[Peer]:
    with peer(mosquitto.port) as client:
        eventually(lambda: (client.json("service/status") or {}).get("status") == "online")
        yield client


def counted(service: RunningService, name: str, **labels: str) -> float:
    text = httpx2.get(f"{service.url}/metrics", trust_env=False).text
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    return sum(
        float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.partition("{")[0].partition(" ")[0] == name
        and all(label in line for label in wanted)
    )


def test_a_workflow_from_beginning_to_end(client: Peer, service: RunningService) -> None:
    client.publish(workflow("w", "create"), CHAIN)
    eventually(lambda: client.plan("w") == {"a": 1, "b": 2})
    client.publish(workflow("w", "events"), event("started", "a"))
    eventually(lambda: client.plan("w") == {"a": 0, "b": 1})
    client.publish(workflow("w", "events"), [event("finished", "a"), event("started", "b", "b-1")])
    eventually(lambda: client.plan("w") == {"a": None, "b": 0})
    # The same workflow over HTTP: there is only one kind.
    seen = httpx2.get(f"{service.url}/v1/workflows/w", trust_env=False).json()
    assert (seen["client_id"], seen["version"]) == ("c", 3)

    client.publish(workflow("w", "close"))
    eventually(lambda: client.plan("w") is None)
    assert httpx2.get(f"{service.url}/v1/workflows/w", trust_env=False).status_code == 404
    assert client.errors() == []
    # Whoever subscribes now is told of nothing that is over.
    with peer(client_port(client)) as late:
        eventually(lambda: late.json("service/status") is not None)
        assert late.plan("w") is None


def client_port(client: Peer) -> int:
    return client._client.port


def test_a_late_subscriber_has_the_present_plan_of_http_workflows_too(
    client: Peer, service: RunningService
) -> None:
    made = httpx2.post(
        f"{service.url}/v1/workflows",
        json={"workflow_id": "w", "client_id": "c", **CHAIN},
        trust_env=False,
    )
    assert made.status_code == 201
    eventually(lambda: client.plan("w") == {"a": 1, "b": 2})
    with peer(client_port(client)) as late:
        eventually(lambda: late.plan("w") == {"a": 1, "b": 2})


def test_what_is_refused_is_answered_as_http_would(client: Peer) -> None:
    client.publish(workflow("w", "create"), {**CHAIN, "entry": ["nobody"]})
    client.publish(workflow("w", "create"), b"{")
    client.publish(workflow("w", "create"), {**CHAIN, "client_id": "other"})
    client.publish(workflow("w", "create"), {**CHAIN, "message_id": "m-1"})
    client.publish(workflow("w", "events"), [event("started", "a"), event("started", "z")])
    client.publish(workflow("w", "events"), event("started", "a", colour="red"))
    client.publish(workflow("w", "events"), event("finished", "b", message_id="m 2"))
    client.publish(workflow("w", "close"), {"why": "done"})
    client.publish(workflow("w?", "events"), event("started", "a"))
    eventually(lambda: len(client.errors()) == 8)
    found = [
        (one["status"], one["type"].rpartition(":")[2], one["topic"].rpartition("/")[2])
        for one in client.errors()
    ]
    assert sorted(found) == sorted(
        [
            (422, "invalid-input", "create"),
            (400, "malformed-body", "create"),
            (422, "invalid-input", "create"),
            (404, "agent-not-found", "events"),
            (422, "invalid-input", "events"),
            (422, "invalid-input", "events"),
            (422, "invalid-input", "close"),
            (422, "invalid-input", "events"),
        ]
    )
    (agent,) = [one for one in client.errors() if one["status"] == 404]
    assert agent["event_index"] == 1
    assert agent["errors"][0]["field"] == "[1].agent_id"
    assert client.plan("w") == {"a": 1, "b": 2}


def test_messages_that_come_twice_count_once(client: Peer, service: RunningService) -> None:
    for _ in range(2):
        client.publish(workflow("w", "create"), {**CHAIN, "message_id": "m-1"})
        client.publish(workflow("w", "events"), event("started", "a", message_id="m-2"))
        client.publish(
            workflow("w", "events"), {"message_id": "m-3", "events": [event("finished", "a")]}
        )
        client.publish(workflow("w", "events"), event("started", "b", "b-1"))
    eventually(
        lambda: (
            counted(service, "kvflow_mqtt_received_total", outcome="duplicate") == 3
            and counted(service, "kvflow_mqtt_received_total", outcome="applied") == 5
        )
    )
    assert client.plan("w") == {"a": None, "b": 0}
    client.publish(workflow("w", "close"))
    eventually(lambda: client.plan("w") is None)
    # Neither brings the workflow to life again.
    client.publish(workflow("w", "create"), {**CHAIN, "message_id": "m-1"})
    client.publish(workflow("w", "close"))
    eventually(
        lambda: (
            counted(service, "kvflow_mqtt_received_total", outcome="duplicate") == 4
            and counted(service, "kvflow_mqtt_received_total", command="close", outcome="applied")
            == 2
        )
    )
    assert client.plan("w") is None
    assert client.errors() == []


def test_what_comes_too_early_waits_for_a_moment(client: Peer, service: RunningService) -> None:
    client.publish(workflow("w", "events"), event("finished", "a", "a-1"))
    client.publish(workflow("w", "events"), event("started", "a", "a-1"))
    client.publish(workflow("w", "create"), CHAIN)
    eventually(lambda: client.plan("w") == {"a": None, "b": 1})
    assert counted(service, "kvflow_mqtt_received_total", outcome="held") == 2
    assert client.errors() == []

    client.publish(workflow("w", "events"), event("finished", "b", "never-started"))
    eventually(lambda: len(client.errors()) == 1)
    assert client.errors()[0]["type"].endswith(":step-not-running")
    # Nothing tells this one from a repeated finish, so it must not wait for the next start.
    client.publish(workflow("w", "events"), event("finished", "b"))
    client.publish(workflow("w", "events"), event("started", "b"))
    eventually(lambda: client.plan("w") == {"a": None, "b": 0})
    assert len(client.errors()) == 2


def test_a_retained_event_is_ignored(client: Peer, service: RunningService) -> None:
    client.publish(workflow("w", "create"), CHAIN)
    eventually(lambda: client.plan("w") is not None)
    service.stop()
    client.publish(workflow("w", "events"), event("started", "a"), retain=True)
    client.publish(workflow("v", "create"), CHAIN)
    with running_service(
        settings(f"mqtt://127.0.0.1:{client_port(client)}", mqtt_session="another")
    ) as other:
        eventually(lambda: counted(other, "kvflow_mqtt_received_total", outcome="ignored") == 1)


def test_engines_and_their_reports_are_retained_while_connected(
    client: Peer, service: RunningService
) -> None:
    with (
        httpx2.Client(base_url=service.url, trust_env=False, timeout=20) as http,
        stream(http, "engine-a") as reader,
    ):
        assert reader.next() is not None
        eventually(
            lambda: (client.json("engines/engine-a/status") or {}).get("status") == "connected"
        )
        service.service.bus.publish(
            "engine.report", {"engine_id": "engine-a", "cached_tokens": 7}, namespace=None
        )
        eventually(lambda: (client.json("engines/engine-a/report") or {}).get("cached_tokens") == 7)
    eventually(lambda: client.json("engines/engine-a/status") is None)
    assert client.json("engines/engine-a/report") is None


def test_the_broker_restarts_in_mid_run(client: Peer, mosquitto: Mosquitto) -> None:
    """With nothing of what it knew: what lives is told again, and events go on."""
    client.publish(workflow("w", "create"), CHAIN)
    eventually(lambda: client.plan("w") == {"a": 1, "b": 2})
    mosquitto.stop(forget=True)
    mosquitto.start()
    with peer(mosquitto.port) as after:
        eventually(lambda: after.plan("w") == {"a": 1, "b": 2})
        eventually(lambda: (after.json("service/status") or {}).get("status") == "online")
        after.publish(workflow("w", "events"), event("started", "a"))
        eventually(lambda: after.plan("w") == {"a": 0, "b": 1})


def test_without_its_broker_the_service_serves(
    client: Peer, mosquitto: Mosquitto, service: RunningService, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "kvflow.server.mqtt"):
        mosquitto.stop()
        eventually(lambda: counted(service, "kvflow_mqtt_connected") == 0)
        with httpx2.Client(base_url=service.url, trust_env=False) as http:
            assert http.post("/v1/workflows", json={"workflow_id": "w", **CHAIN}).is_success
            begun = time.monotonic()
            for _ in range(50):
                started = http.post("/v1/workflows/w/events", json=event("started", "a"))
                assert started.is_success
            assert time.monotonic() - begun < 10
            assert http.get("/ready").is_success
        eventually(lambda: "the service goes on without" in caplog.text)
    mosquitto.start()
    with peer(mosquitto.port) as after:
        eventually(lambda: after.plan("w", "default") == {"a": 0, "b": 1})
    assert counted(service, "kvflow_mqtt_connections_total") == 2


def test_events_sent_while_the_service_was_away_are_applied(
    client: Peer, mosquitto: Mosquitto, service: RunningService
) -> None:
    service.stop()
    eventually(lambda: client.json("service/status")["status"] == "offline")
    client.publish(workflow("w", "create"), CHAIN)
    client.publish(workflow("w", "events"), event("started", "a"))
    with running_service(settings(f"mqtt://127.0.0.1:{mosquitto.port}")):
        eventually(lambda: client.plan("w") == {"a": 0, "b": 1})
        assert client.json("service/status")["status"] == "online"


def test_plans_of_a_former_run_are_cleared(client: Peer, service: RunningService) -> None:
    client.publish(workflow("w", "create"), CHAIN)
    eventually(lambda: client.plan("w") is not None)
    service.stop()
    assert client.plan("w") is not None  # it does not know better yet
    with running_service(settings(f"mqtt://127.0.0.1:{client_port(client)}")):
        eventually(lambda: client.plan("w") is None)


def test_the_last_will_of_a_service_that_was_killed(tmp_path: Path, mosquitto: Mosquitto) -> None:
    with peer(mosquitto.port) as client:
        with killed_service(f"mqtt://127.0.0.1:{mosquitto.port}", tmp_path):
            eventually(lambda: (client.json("service/status") or {}).get("status") == "online")
        eventually(lambda: client.json("service/status")["status"] == "offline")


# Where the handshake fails, paho leaves it to Python's memory management to close the socket.
@pytest.mark.filterwarnings("ignore:.*ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning")
def test_tls_with_a_private_authority_and_a_password(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    for number, blob in enumerate(certificate.cert_chain_pems):
        blob.write_to_path(tmp_path / "cert.pem", append=number > 0)
    passwords = tmp_path / "passwords"
    subprocess.run(
        ["mosquitto_passwd", "-b", "-c", str(passwords), "kvflow", "s3/cret"],
        check=True,
        capture_output=True,
    )
    with broker(
        tmp_path,
        f"cafile {tmp_path}/ca.pem",
        f"certfile {tmp_path}/cert.pem",
        f"keyfile {tmp_path}/key.pem",
        f"password_file {passwords}",
        "allow_anonymous false",
    ) as secured:
        right = f"mqtts://kvflow:s3%2Fcret@localhost:{secured.port}"
        with running_service(settings(right, mqtt_ca=tmp_path / "ca.pem")) as service:
            eventually(lambda: counted(service, "kvflow_mqtt_connected") == 1)
            assert "s3" not in " ".join(settings(right).lines())

        caplog.clear()
        wrong = right.replace("s3%2Fcret", "guessed")
        with running_service(settings(wrong, mqtt_ca=tmp_path / "ca.pem")) as service:
            eventually(lambda: "Not authorized" in caplog.text)
            assert httpx2.get(f"{service.url}/ready", trust_env=False).is_success
        with running_service(settings(right)) as service:
            eventually(lambda: "CERTIFICATE_VERIFY_FAILED" in caplog.text)
            assert counted(service, "kvflow_mqtt_connections_total") == 0
        assert "guessed" not in caplog.text
        assert "s3/cret" not in caplog.text
