"""A real broker on a free loopback port, and a client that sends and reads."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from kvflow.engine import free_port
from tests.server.running import eventually

PREFIX = "kvflow/v1"


def mosquitto_program() -> str:
    """The broker's program; the test command installs it."""
    # Debian puts it where only root's search path looks.
    found = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    assert found, "mosquitto is not installed: sudo apt-get install mosquitto"
    return found


class Mosquitto:
    """A broker that can be stopped and started again, with what it knew or without."""

    def __init__(self, folder: Path, *lines: str) -> None:
        self.port = free_port()
        self._folder = folder
        self._config = folder / "mosquitto.conf"
        self._config.write_text(
            "\n".join(
                [
                    f"listener {self.port} 127.0.0.1",
                    "persistence true",
                    f"persistence_location {folder}/",
                    "allow_anonymous true",
                    # It would become the user `mosquitto` otherwise, who may not read the folder.
                    "user root",
                    *lines,
                    "",
                ]
            )
        )
        self._process: subprocess.Popen[bytes] | None = None
        self.log = folder / "mosquitto.log"

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [mosquitto_program(), "-c", str(self._config)], stdout=log, stderr=log
            )
        eventually(self._listens)

    def stop(self, *, forget: bool = False) -> None:
        """As SIGTERM does; with ``forget``, what it had stored is gone."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)
            self._process = None
        if forget:
            (self._folder / "mosquitto.db").unlink(missing_ok=True)

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@contextmanager
def broker(folder: Path, *lines: str) -> Iterator[Mosquitto]:
    running = Mosquitto(folder, *lines)
    running.start()
    try:
        yield running
    finally:
        running.stop()


class Peer:
    """A client of the broker: publishes, and keeps the last payload and all payloads per topic."""

    def __init__(self, port: int, *topics: str, **login: str) -> None:
        self.all: list[tuple[str, bytes]] = []
        self.last: dict[str, bytes] = {}
        self._subscribed = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2)
        if login:
            self._client.username_pw_set(login["username"], login["password"])
        self._client.on_message = self._received
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        self._client.subscribe([(topic, 1) for topic in topics or (f"{PREFIX}/#",)])
        assert self._subscribed.wait(20)

    def publish(self, topic: str, body: object = None, *, retain: bool = False) -> None:
        """Send to ``<prefix>/<topic>`` and wait until the broker has it."""
        payload = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body)
        sent = self._client.publish(f"{PREFIX}/{topic}", payload, qos=1, retain=retain)
        sent.wait_for_publish(20)
        assert sent.is_published()

    def json(self, topic: str) -> Any:
        """The last message under ``<prefix>/<topic>``; ``None`` if there is none or it is empty."""
        payload = self.last.get(f"{PREFIX}/{topic}")
        return json.loads(payload) if payload else None

    def plan(self, workflow_id: str, client_id: str = "c") -> Any:
        """The steps-to-execution that were published last."""
        plan = self.json(f"clients/{client_id}/workflows/{workflow_id}/plan")
        return None if plan is None else plan["steps_to_execution"]

    def errors(self, client_id: str = "c") -> list[Any]:
        topic = f"{PREFIX}/clients/{client_id}/errors"
        return [json.loads(payload) for name, payload in self.all if name == topic]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _received(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        self.all.append((message.topic, message.payload))
        self.last[message.topic] = message.payload


@contextmanager
def peer(port: int, *topics: str, **login: str) -> Iterator[Peer]:
    client = Peer(port, *topics, **login)
    try:
        yield client
    finally:
        client.close()
