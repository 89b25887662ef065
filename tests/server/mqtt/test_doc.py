"""What docs/mqtt.md says: its commands, the broker's rules it gives, and the metrics it names."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from kvflow.server import ServiceSettings
from kvflow.server.mqtt.metrics import MqttMetrics
from tests.server.mqtt.mosquitto import Mosquitto, broker, peer
from tests.server.running import eventually, running_service

DOC = (Path(__file__).parents[3] / "docs" / "mqtt.md").read_text()
WORKFLOW = {"agents": [{"agent_id": "a"}], "entry": ["a"]}


def block(after: str) -> str:
    """The first code block after a text."""
    return DOC[DOC.index(after) :].split("```")[1].strip("\n")


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Mosquitto]:
    """A broker with the rules of the page, and the users that they are about."""
    passwords = tmp_path / "passwords"
    passwords.touch()
    for user in ("kvflow", "team", "other"):
        subprocess.run(
            ["mosquitto_passwd", "-b", str(passwords), user, f"{user}-password"],
            check=True,
            capture_output=True,
        )
    (tmp_path / "acl").write_text(block("acl_file") + "\n")
    with broker(tmp_path, f"acl_file {tmp_path}/acl", f"password_file {passwords}") as running:
        yield running


def test_the_commands_do_what_they_seem_to(tmp_path: Path) -> None:
    commands = block("An empty\nmessage").replace("\\\n", "").splitlines()
    assert len(commands) == 3
    with (
        broker(tmp_path) as mosquitto,
        running_service(ServiceSettings(mqtt_url=SecretStr(f"mqtt://127.0.0.1:{mosquitto.port}"))),
        peer(mosquitto.port) as client,
    ):
        eventually(lambda: client.json("service/status") is not None)
        for command in commands[1:]:
            there = command.replace("mosquitto_pub", f"mosquitto_pub -p {mosquitto.port}")
            subprocess.run(["sh", "-c", there], check=True)
        eventually(lambda: client.plan("w1", "team") == {"a": 0, "b": 1})


def test_the_rules_keep_clients_apart(guarded: Mosquitto) -> None:
    url = SecretStr(f"mqtt://kvflow:kvflow-password@127.0.0.1:{guarded.port}")
    with (
        running_service(ServiceSettings(mqtt_url=url)),
        peer(guarded.port, username="team", password="team-password") as team,
        peer(guarded.port, username="other", password="other-password") as other,
    ):
        eventually(lambda: team.json("service/status") is not None)
        other.publish("clients/team/workflows/theirs/create", WORKFLOW)
        team.publish("clients/team/workflows/w/create", WORKFLOW)
        other.publish("clients/other/workflows/v/create", WORKFLOW)
        eventually(lambda: team.plan("w", "team") is not None)
        eventually(lambda: other.plan("v", "other") is not None)
        assert team.plan("theirs", "team") is None
        assert not [topic for topic, _ in other.all if "/clients/team/" in topic]


def test_the_metrics() -> None:
    named = re.findall(r"`(kvflow_mqtt_\w+)(?:\{([\w,]*)\})?`", DOC)
    registry = CollectorRegistry()
    counted = MqttMetrics(registry)
    counted.received.labels("create", "applied").inc()
    counted.published.labels("state", "sent").inc()
    real = {
        sample.name: frozenset(sample.labels)
        for family in registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }
    assert {name: frozenset(filter(None, labels.split(","))) for name, labels in named} == real
